"""The key that envs are encrypted to (spec kms 3.5, 3.6)."""

import json
import time

import pytest

from tests.interop.conftest import Meeting, Site
from tests.interop.spec_client import keys, protobuf
from tests.interop.spec_client.kms import app_key_request, env_key_signers
from tests.interop.spec_client.prpc import Refused


def test_both_signatures_are_the_roots(meeting: Meeting) -> None:
    answer = meeting.site.kms.anyone.call("GetAppEnvEncryptPubKey", {"app_id": meeting.app_id.hex()})
    assert list(answer) == ["public_key", "signature", "timestamp", "signature_v1"]
    root = keys.k256_public(meeting.site.root_keys().k256)
    assert env_key_signers(meeting.app_id, answer) == (root, root)
    assert -60 <= time.time() - answer["timestamp"] <= 300


def test_an_env_encrypted_to_it_is_read_with_the_apps_key(meeting: Meeting) -> None:
    answer = meeting.site.kms.anyone.call("GetAppEnvEncryptPubKey", {"app_id": meeting.app_id.hex()})
    env = b'{"env":[{"key":"FOO","value":"bar"}]}'
    blob = keys.encrypt_env(bytes.fromhex(answer["public_key"]), env)
    own = meeting.guest().call("GetAppKey", app_key_request(meeting.vm_config))
    assert keys.decrypt_env(bytes.fromhex(own["env_crypt_key"]), blob) == env


def test_protobuf_json_and_get_agree(nitro: Site) -> None:
    app_id = bytes(range(20))
    message = nitro.kms.anyone.call_protobuf("GetAppEnvEncryptPubKey", protobuf.data(1, app_id))
    found = protobuf.fields(message)
    got = nitro.kms.anyone.request("GET", f"/prpc/GetAppEnvEncryptPubKey?app_id={app_id.hex()}")
    upper = nitro.kms.anyone.call("GetAppEnvEncryptPubKey", {"app_id": f"0x0x{app_id.hex().upper()}"})
    answers = [json.loads(got.body), upper]
    assert [answer["public_key"] for answer in answers] == [found[1][0].hex()] * 2
    assert [answer["signature"] for answer in answers] == [found[2][0].hex()] * 2
    timed = keys.env_message(app_id, found[1][0], found[3][0])
    assert keys.k256_recover(timed, found[4][0]) == keys.k256_public(nitro.root_keys().k256)


@pytest.mark.parametrize("length", [0, 19, 21])
def test_an_app_id_has_20_bytes(nitro: Site, length: int) -> None:
    with pytest.raises(Refused) as refused:
        nitro.kms.anyone.call("GetAppEnvEncryptPubKey", {"app_id": "11" * length})
    assert refused.value.answer.status == 400
    assert refused.value.text == "app_id must be 20 bytes"

"""From the first KMS to the second: as the new KMS sees it, and as its operator does (spec kms 2.4, 5)."""

import hashlib
import json
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.interop.conftest import FIRST_HOST, MAIN_PORT, Hardware, Site, StartNitro
from tests.interop.guests import nitro_guest
from tests.interop.spec_client import keys, protobuf
from tests.interop.spec_client.certificates import spki
from tests.interop.spec_client.kms import Attest, app_key_request, check_server
from tests.interop.spec_client.prpc import Refused
from tests.interop.webhook import Webhook

SECOND_HOST, SECOND_CID = "second.test", 17


def test_an_attested_kms_is_given_the_root_keys(nitro: Site, hardware: Hardware) -> None:
    temp_ca = nitro.kms.get_temp_ca()
    check_server(nitro.kms.anyone.server())
    new = nitro.kms.as_guest(nitro_guest(hardware.nitro, None))
    answer = new.call("GetKmsKey", {"vm_config": ""})
    assert list(answer)[:2] == ["temp_ca_key", "keys"]
    (only,) = answer["keys"]
    root_ca = load_pem_private_key(only["ca_key"].encode(), None)
    assert isinstance(root_ca, ec.EllipticCurvePrivateKey)
    found = nitro.root_keys()
    assert root_ca.private_numbers().private_value.to_bytes(32, "big") == found.root_ca
    assert bytes.fromhex(only["k256_key"]) == found.k256
    handed = load_pem_private_key(answer["temp_ca_key"].encode(), None)
    assert isinstance(handed, ec.EllipticCurvePrivateKey)
    assert spki(handed) == spki(temp_ca.key)


def test_the_root_keys_in_protobuf(nitro: Site, hardware: Hardware) -> None:
    new = nitro.kms.as_guest(nitro_guest(hardware.nitro, None))
    (packed,) = protobuf.fields(new.call_protobuf("GetKmsKey", b""))[2]
    assert isinstance(packed, bytes)
    assert protobuf.fields(packed)[2] == [nitro.root_keys().k256]


def _status(site: Site, method: str) -> int:
    """What somebody without the operator's token is answered."""
    stranger = replace(site.operator, headers={})
    return stranger.request("POST", f"/prpc/{method}?json", b"{}").status


class Onboarded(NamedTuple):
    """A second whole KMS, and what its operator saw on the way."""

    site: Site
    health: bytes
    info: dict[str, Any]
    strangers: list[int]
    answer: dict[str, Any]
    again: Refused
    finish: bytes


@pytest.fixture(scope="module")
def second(nitro: Site, start_nitro: StartNitro, webhook: Webhook) -> Onboarded:
    """Onboard it from the first, in the order of an operator's page."""
    pins = "".join(f'source_{name} = "{nitro.bootstrap[name]}"\n' for name in ("ca_pubkey", "k256_pubkey"))
    policy = f'type = "webhook"\nwebhook.url = "{webhook.url}"'
    site = start_nitro(SECOND_HOST, SECOND_CID, policy, pins)
    operator = site.operator
    request = {"source_url": f"https://{FIRST_HOST}:{MAIN_PORT}", "domain": SECOND_HOST}
    told = {
        "health": operator.request("GET", "/health").body,
        "info": operator.call("GetAttestationInfo"),
        "strangers": [_status(site, method) for method in ("Bootstrap", "Onboard", "Finish")],
        "answer": operator.call("Onboard", request),
    }
    with pytest.raises(Refused) as again:
        operator.call("Onboard", request)
    finish = operator.request("GET", "/finish").body
    site.wait_until_serving()
    return Onboarded(site, **told, again=again.value, finish=finish)


def test_its_keys_are_the_firsts(nitro: Site, second: Onboarded) -> None:
    assert second.site.root_keys() == nitro.root_keys()
    assert second.answer == {"k256_pubkey": keys.k256_public(nitro.root_keys().k256).hex()}


def test_an_app_gets_the_same_from_both(nitro: Site, second: Onboarded, enclave: Attest) -> None:
    guests = [site.kms.as_guest(enclave) for site in (nitro, second.site)]
    answers = [guest.call("GetAppKey", app_key_request()) for guest in guests]
    roots = [x509.load_pem_x509_certificate(answer.pop("ca_cert").encode()) for answer in answers]
    assert answers[0] == answers[1]
    assert len({spki(root) for root in roots}) == 1
    assert len({root.subject for root in roots}) == 1


def test_a_client_of_the_first_root_believes_the_second(nitro: Site, second: Onboarded) -> None:
    channel = second.site.kms.trusted(None, nitro.kms.get_temp_ca().root_pem)
    assert channel.call("GetMeta")["bootstrap_info"] is None
    assert spki(channel.server()) != spki(nitro.kms.anyone.server())


def test_the_operator_was_told_what_to_allow(second: Onboarded) -> None:
    info = second.info
    shown = check_server(second.site.kms.anyone.server())
    image_hash = json.loads(shown.config)["os_image_hash"]
    assert (info["mr_aggregated"], info["os_image_hash"]) == (image_hash, image_hash)
    assert info["tee_variant"] == "dstack-nitro-enclave"
    assert info["device_id"] == hashlib.sha256(bytes.fromhex(info["ppid"])).hexdigest()


def test_the_onboard_listener_answers_as_specified(second: Onboarded) -> None:
    assert (second.health, second.finish) == (b"OK", b"OK")


def test_ours_wants_a_token_besides(second: Onboarded) -> None:
    assert second.strangers == [401, 401, 401]


def test_a_kms_is_onboarded_once(second: Onboarded) -> None:
    assert second.again.text == "KMS has already been onboarded"
    assert second.again.answer.status == 400

"""An app's guest gets its keys, on the way that specification kms 8 describes step by step."""

import hashlib
import json
from typing import Any

import pytest
from cryptography import x509

from tests.interop.conftest import APP_ID, Hardware, Meeting, Site
from tests.interop.spec_client import evidence, keys, protobuf
from tests.interop.spec_client.certificates import USAGE, extension
from tests.interop.spec_client.kms import (
    KEY_FIELDS,
    Attest,
    Form,
    app_key_request,
    app_keys_of_json,
    app_keys_of_protobuf,
    check_server,
    expected_app_keys,
    identity,
    in_envelope,
    in_envelope_v1,
    in_legacy_pair,
)
from tests.interop.spec_client.prpc import Channel
from tests.interop.webhook import GATEWAY, Webhook

UPSTREAM_FIELDS = [
    "ca_cert",
    "disk_crypt_key",
    "env_crypt_key",
    "k256_key",
    "k256_signature",
    "tproxy_app_id",
    "gateway_app_id",
    "os_image_hash",
]


def _by_query(guest: Channel, vm_config: str) -> dict[str, Any]:
    return app_keys_of_json(guest.call("GetAppKey", app_key_request(vm_config)))


def test_all_encodings_give_the_same_keys(meeting: Meeting) -> None:
    guest = meeting.guest()
    body = json.dumps(app_key_request(meeting.vm_config)).encode()
    typed = guest.request("POST", "/prpc/GetAppKey", body, {"Content-Type": "application/json"})
    message = protobuf.uint(1, 1) + protobuf.text(2, meeting.vm_config)
    answers = [
        _by_query(guest, meeting.vm_config),
        app_keys_of_json(json.loads(typed.body)),
        app_keys_of_protobuf(guest.call_protobuf("GetAppKey", message)),
        app_keys_of_json(guest.call("KMS.GetAppKey", app_key_request(meeting.vm_config), query="?json=true")),
        app_keys_of_protobuf(guest.request("POST", "/prpc/GetAppKey?json=false", message).body),
    ]
    assert [answer == answers[0] for answer in answers] == [True] * 5


def test_a_get_reads_its_query(nitro: Site, enclave: Attest) -> None:
    guest = nitro.kms.as_guest(enclave)
    answer = guest.request("GET", "/prpc/GetAppKey?json&api_version=1&vm_config=")
    assert app_keys_of_json(json.loads(answer.body)) == _by_query(guest, "")


def test_the_keys_are_those_of_the_formulas(meeting: Meeting) -> None:
    answer = _by_query(meeting.guest(), meeting.vm_config)
    assert {name: answer[name] for name in KEY_FIELDS.values()} == meeting.expected_keys()


def test_the_apps_key_is_signed_by_the_root(meeting: Meeting) -> None:
    answer = _by_query(meeting.guest(), meeting.vm_config)
    message = keys.issued_message(meeting.app_id, answer["k256_key"])
    root = meeting.site.kms.anyone.call("GetMeta")["k256_pubkey"]
    assert keys.k256_recover(message, answer["k256_signature"]).hex() == root
    assert keys.k256_public(meeting.site.root_keys().k256).hex() == root


def test_the_other_fields(meeting: Meeting) -> None:
    raw = meeting.guest().call("GetAppKey", app_key_request(meeting.vm_config))
    answer = app_keys_of_json(raw)
    shown = json.loads(meeting.attest(bytes(64)).config)
    assert list(raw)[: len(UPSTREAM_FIELDS)] == UPSTREAM_FIELDS
    assert answer["os_image_hash"].hex() == shown["os_image_hash"]
    assert answer["tproxy_app_id"] == answer["gateway_app_id"]
    assert answer["ca_cert"] == meeting.site.kms.get_temp_ca().root_pem


def test_the_gateways_id_is_the_policys(nitro: Site, gcp: Site, enclave: Attest, gcp_app: Attest) -> None:
    assert _by_query(nitro.kms.as_guest(enclave), "")["gateway_app_id"] == GATEWAY
    assert _by_query(gcp.kms.as_guest(gcp_app), "")["gateway_app_id"] == "any"


def test_the_servers_certificate_is_a_kmss_and_attested(meeting: Meeting) -> None:
    leaf = meeting.guest().server()
    assert extension(leaf, USAGE) == b"kms:rpc"
    assert check_server(leaf).variant in {evidence.NITRO, evidence.GCP_TDX}


def test_a_self_issued_certificate_gets_the_same_keys(meeting: Meeting) -> None:
    """Drift #1106: the evidence is judged, and whoever signed the certificate is not."""
    guest = meeting.site.kms.trusted(identity(meeting.attest, None))
    assert _by_query(guest, meeting.vm_config) == _by_query(meeting.guest(), meeting.vm_config)


def test_the_enclaves_evidence_is_believed_under_the_operators_root(nitro: Site, hardware: Hardware) -> None:
    shown = check_server(nitro.kms.anyone.server())
    root = x509.load_pem_x509_certificate(hardware.nitro.root_pem)
    evidence.check_nsm_document(shown.quote, root)


def test_the_servers_certificate_is_as_its_table_has_it(meeting: Meeting) -> None:
    leaf = meeting.guest().server()
    host = meeting.site.kms.anyone.host
    assert leaf.subject.rfc4514_string() == f"CN={host}"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [host]
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
    assert [one.oid for one in leaf.extensions if one.critical] == [usage.oid]


def test_an_envelope_of_version_1_gets_the_same_keys(nitro: Site, enclave: Attest) -> None:
    guest = nitro.kms.trusted(identity(enclave, None, form=in_envelope_v1))
    assert _by_query(guest, "") == _by_query(nitro.kms.as_guest(enclave), "")


@pytest.mark.parametrize("form", [in_envelope, in_legacy_pair])
def test_a_plain_tdx_guest_gets_its_keys(nitro: Site, tdx_app: Attest, form: Form) -> None:
    shown = tdx_app(bytes(64))
    events, root = dict(shown.runtime_events), nitro.root_keys()
    guest = nitro.kms.trusted(identity(tdx_app, None, form=form))
    answer = _by_query(guest, shown.config)
    expected = expected_app_keys(root.root_ca, root.k256, events["app-id"], events["instance-id"])
    assert {name: answer[name] for name in KEY_FIELDS.values()} == expected


def test_the_old_api_version_passes(nitro: Site, enclave: Attest) -> None:
    guest = nitro.kms.as_guest(enclave)
    assert guest.call("GetAppKey", app_key_request(api_version=0)) == guest.call(
        "GetAppKey", app_key_request()
    )


def test_the_policy_is_asked_in_the_words_of_upstream(nitro: Site, enclave: Attest, webhook: Webhook) -> None:
    guest = nitro.kms.as_guest(enclave)
    webhook.asked.clear()
    _by_query(guest, "")
    (first, _), (second, boot_info) = webhook.asked[-2:]
    assert (first, second) == ("/bootAuth/kms", "/bootAuth/app")
    image_hash = json.loads(enclave(bytes(64)).config)["os_image_hash"]
    assert boot_info == {
        "teeVariant": "dstack-nitro-enclave",
        "mrAggregated": image_hash,
        "osImageHash": image_hash,
        "mrSystem": image_hash,
        "appId": APP_ID.hex(),
        "composeHash": image_hash,
        "instanceId": "",
        "deviceId": hashlib.sha256(b"i").hexdigest(),
        "keyProviderInfo": "",
        "tcbStatus": "",
        "advisoryIds": [],
    }

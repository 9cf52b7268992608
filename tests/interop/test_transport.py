"""What every answer looks like on the wire (spec kms 1), and the methods that anybody may call."""

import json
import re

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.conftest import Meeting, Site
from tests.interop.spec_client import keys, protobuf
from tests.interop.spec_client.certificates import spki
from tests.interop.spec_client.evidence import attested_report_data, decode
from tests.interop.spec_client.kms import Attest, app_key_request, generated_keys_report_data, identity
from tests.interop.spec_client.prpc import Answer, Channel, Refused
from tests.interop.webhook import CONTRACT, GATEWAY, IMPLEMENTATION

BODY_LIMIT = 10 << 20
UPSTREAM_META = [
    "ca_cert",
    "allow_any_upgrade",
    "k256_pubkey",
    "bootstrap_info",
    "is_dev",
    "gateway_app_id",
    "kms_contract_address",
    "chain_id",
    "app_auth_implementation",
]


@pytest.fixture
def anyone(nitro: Site) -> Channel:
    return nitro.kms.anyone


def _header(answer: Answer, name: str) -> str | None:
    return next((value for key, value in answer.headers.items() if key.lower() == name), None)


def _is_json_error(answer: Answer, text: str) -> bool:
    """Upstream's bytes (1.4), to which ours add a machine's code behind the text."""
    head = f'{{\n  "error": {json.dumps(text)}'.encode()
    tail = answer.body.removeprefix(head)
    return (
        answer.status == 400
        and _header(answer, "content-type") == "application/json"
        and answer.body.startswith(head)
        and re.fullmatch(rb'(,\n  "code": "[a-z0-9_.]+")?\n\}', tail) is not None
    )


def _is_protobuf_error(answer: Answer, text: str) -> bool:
    return (
        answer.status == 400
        and _header(answer, "content-type") == "application/octet-stream"
        and protobuf.fields(answer.body)[1] == [text.encode()]
    )


def test_health(anyone: Channel) -> None:
    answer = anyone.request("GET", "/health")
    assert (answer.status, answer.body) == (200, b"OK")


@pytest.mark.parametrize("target", ["/health", "/metrics", "/prpc/GetMeta", "/prpc/Nothing"])
def test_every_answer_names_the_server(anyone: Channel, target: str) -> None:
    answer = anyone.request("GET", target)
    assert _header(answer, "server") == "DStack KMS"
    assert _header(answer, "x-app-version")


def _counters(anyone: Channel) -> dict[str, int]:
    text = anyone.request("GET", "/metrics").body.decode()
    return {name: int(float(value)) for name, value in re.findall(r"^(\w+) ([0-9.]+)$", text, re.MULTILINE)}


def test_metrics_count_attestation_requests_and_failures(anyone: Channel) -> None:
    requests, failures = (f"dstack_kms_attestation_{what}_total" for what in ("requests", "failures"))
    before = _counters(anyone)
    for method in ("GetAppKey", "KMS.GetKmsKey", "SignCert", "GetMeta", "GetTempCaCert"):
        anyone.request("POST", f"/prpc/{method}?json", b"{}")
    after = _counters(anyone)
    assert (after[requests] - before[requests], after[failures] - before[failures]) == (3, 3)


def test_meta_begins_as_upstreams(meeting: Meeting) -> None:
    meta = meeting.site.kms.anyone.call("GetMeta")
    assert list(meta)[: len(UPSTREAM_META)] == UPSTREAM_META
    assert meta["ca_cert"] == meeting.site.kms.get_temp_ca().root_pem
    assert bytes.fromhex(meta["k256_pubkey"]) == keys.k256_public(meeting.site.root_keys().k256)
    assert meta["bootstrap_info"] == meeting.site.bootstrap


def test_meta_tells_the_webhooks_facts(nitro: Site) -> None:
    meta = nitro.kms.anyone.call("GetMeta")
    assert (meta["is_dev"], meta["allow_any_upgrade"]) == (False, False)
    assert meta["gateway_app_id"] == GATEWAY
    assert meta["kms_contract_address"] == CONTRACT
    assert (meta["chain_id"], meta["app_auth_implementation"]) == (31337, IMPLEMENTATION)


def test_meta_of_a_development_kms_has_no_contract(gcp: Site) -> None:
    meta = gcp.kms.anyone.call("GetMeta")
    assert (meta["is_dev"], meta["allow_any_upgrade"]) == (True, True)
    assert [meta[name] for name in ("kms_contract_address", "chain_id", "app_auth_implementation")] == [
        None
    ] * 3


def test_meta_in_protobuf_has_upstreams_numbers(nitro: Site) -> None:
    meta, found = (
        nitro.kms.anyone.call("GetMeta"),
        protobuf.fields(nitro.kms.anyone.call_protobuf("GetMeta", b"")),
    )
    assert found[1] == [meta["ca_cert"].encode()]
    assert found[3] == [bytes.fromhex(meta["k256_pubkey"])]
    nested = protobuf.fields(found[4][0])
    assert [nested[n][0].hex() for n in (1, 2, 3)] == list(meta["bootstrap_info"].values())
    assert [found[n] for n in (6, 7, 8, 9)] == [
        [GATEWAY.encode()],
        [CONTRACT.encode()],
        [31337],
        [IMPLEMENTATION.encode()],
    ]
    assert not {2, 5} & found.keys()  # false is not sent


def test_the_bootstraps_evidence_is_over_the_generated_keys(meeting: Meeting) -> None:
    info = meeting.site.bootstrap
    ca_pubkey, k256_pubkey = (bytes.fromhex(info[name]) for name in ("ca_pubkey", "k256_pubkey"))
    assert len(ca_pubkey) == 91
    shown = decode(bytes.fromhex(info["attestation"]))
    wanted = generated_keys_report_data(ca_pubkey, k256_pubkey)
    assert attested_report_data(shown) == shown.report_data == wanted


def test_temp_ca_and_root_are_as_their_table_has_them(nitro: Site) -> None:
    temp_ca = nitro.kms.get_temp_ca()
    root = x509.load_pem_x509_certificate(temp_ca.root_pem.encode())
    assert temp_ca.certificate.subject.rfc4514_string() == "CN=Dstack Client Temp CA,O=Dstack"
    assert root.subject.rfc4514_string() == "CN=Dstack KMS CA,O=Dstack"
    constraints = [
        one.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        for one in (temp_ca.certificate, root)
    ]
    assert constraints == [0, 1]
    assert spki(temp_ca.certificate) == spki(temp_ca.key)
    assert spki(root).hex() == nitro.bootstrap["ca_pubkey"]


def test_an_unknown_method_is_told_in_json(anyone: Channel) -> None:
    text = "Service not found: Nothing"
    typed = {"Content-Type": "application/json"}
    assert _is_json_error(anyone.request("POST", "/prpc/Nothing?json", b"{}"), text)
    assert _is_json_error(anyone.request("POST", "/prpc/KMS.KMS.Nothing", b"{}", typed), text)
    assert _is_json_error(anyone.request("GET", "/prpc/Nothing"), text)


def test_an_unknown_method_is_told_in_protobuf(anyone: Channel) -> None:
    assert _is_protobuf_error(anyone.request("POST", "/prpc/Nothing", b""), "Service not found: Nothing")
    answer = anyone.request("POST", "/prpc/getmeta?json=false", b"")
    assert _is_protobuf_error(answer, "Service not found: getmeta")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"app_id":"zz"}', b'{"app_id":7}', b"\xff"])
def test_a_body_that_is_no_message_is_400(anyone: Channel, body: bytes) -> None:
    answer = anyone.request("POST", "/prpc/GetAppEnvEncryptPubKey?json", body)
    assert _is_json_error(answer, json.loads(answer.body)["error"])


def test_a_protobuf_that_is_no_message_is_400(anyone: Channel) -> None:
    answer = anyone.request("POST", "/prpc/GetAppEnvEncryptPubKey", b"\x0a\x14\x11")
    assert _is_protobuf_error(answer, protobuf.fields(answer.body)[1][0].decode())


def test_an_oversize_body_is_400(anyone: Channel) -> None:
    text = "failed to read data: payload too large"
    body = bytes(BODY_LIMIT + 1)
    assert _is_json_error(anyone.request("POST", "/prpc/GetMeta?json", body), text)
    # before dispatch the answer's form follows the query alone
    typed = {"Content-Type": "application/json"}
    assert _is_protobuf_error(anyone.request("POST", "/prpc/GetMeta", body, typed), text)


@pytest.mark.parametrize("body", [b"", b"null", b"not json at all"])
def test_a_method_without_input_ignores_the_body(anyone: Channel, body: bytes) -> None:
    answer = anyone.request("POST", "/prpc/GetMeta?json", body)
    assert answer.status == 200


def test_an_empty_body_and_unknown_fields_are_defaults(anyone: Channel) -> None:
    texts = []
    for body in (b"", b"{}", b'{"unknown":[1]}'):
        answer = anyone.request("POST", "/prpc/GetAppEnvEncryptPubKey?json", body)
        texts.append(json.loads(answer.body)["error"])
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    ("query", "is_json"),
    [
        *((query, True) for query in ("?json", "?json=", "?json=1", "?json=true", "?a=b&json")),
        *((query, False) for query in ("", "?json=false", "?json=0", "?json=false&json")),
    ],
)
def test_the_first_json_field_of_the_query_chooses(anyone: Channel, query: str, is_json: bool) -> None:  # noqa: FBT001
    answer = anyone.request("POST", f"/prpc/GetTempCaCert{query}", b"")
    wanted = "application/json" if is_json else "application/octet-stream"
    assert _header(answer, "content-type") == wanted


def test_a_content_type_may_have_a_parameter(anyone: Channel) -> None:
    typed = {"Content-Type": "application/json; charset=utf-8"}
    answer = anyone.request("POST", "/prpc/GetTempCaCert", b"null", typed)
    assert _header(answer, "content-type") == "application/json"


def test_a_path_of_no_route_is_404(anyone: Channel) -> None:
    assert anyone.request("GET", "/nowhere").status == 404


def test_a_refused_certificate_is_answered_by_the_query_alone(nitro: Site, enclave: Attest) -> None:
    another = ec.generate_private_key(ec.SECP256R1())
    guest = nitro.kms.trusted(identity(enclave, None, attested=another))
    body = json.dumps(app_key_request()).encode()
    typed = guest.request("POST", "/prpc/GetAppKey", body, {"Content-Type": "application/json"})
    (text,) = protobuf.fields(typed.body)[1]
    assert isinstance(text, bytes)
    assert text.startswith(b"invalid quote: report data mismatch")
    assert _is_protobuf_error(typed, text.decode())
    # and whatever the method, even one that needs nobody
    with pytest.raises(Refused) as refused:
        guest.call("GetMeta")
    assert _is_json_error(refused.value.answer, text.decode())

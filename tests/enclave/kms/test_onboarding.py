"""Taking root keys over from a running KMS: one connection, both sides checked, pinned keys (N-55, N-56)."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from enclave.kms import source_kms
from enclave.kms.http import onboard_app
from enclave.kms.onboarding import RootPins
from enclave.kms.source_kms import Source, SourceKms
from enclave.serving.attested_tls import build_plain_server
from enclave.tee.peers import PeerVerifier
from shared.attestation.identity import boot_info
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, InvalidEvidence, PolicyDenied, ProtocolError, StorageError
from shared.keys.app_keys import derive_app_keys
from shared.keys.k256 import public_key
from shared.net.fetch import HttpClient
from shared.ratls.certificates import spki_der
from shared.rpc import kms_pb2 as pb
from tests.enclave.conftest import NOW
from tests.enclave.kms.conftest import DENIED, URL, answer_of, pem, pins_of
from tests.shared.refusal import refuses


def test_a_second_kms_serves_identical_keys(running, onboarder, new_store, keys) -> None:
    answer = onboarder(running).onboard(URL, "second.kms.test")
    copied = new_store.load()
    assert answer.k256_pubkey == public_key(keys.k256) == public_key(copied.k256)
    assert derive_app_keys(copied.root_keys(), bytes(20)) == derive_app_keys(keys.root_keys(), bytes(20))
    assert spki_der(copied.temp_ca_key.public_key()) == spki_der(keys.temp_ca_key.public_key())
    assert copied.root_ca_cert.subject == keys.root_ca_cert.subject
    assert (copied.domain, copied.bootstrap_info) == ("second.kms.test", None)


def test_each_side_asks_its_own_policy_about_the_other(
    running, onboarder, source_policy, policy, new_enclave, kms_enclave, anchors
) -> None:
    onboarder(running).onboard(URL, "second.kms.test")
    assert source_policy.asked[-1][0] == "kms"
    assert source_policy.asked[-1][1].mr_aggregated == boot_info(new_enclave.evidence(anchors)).mr_aggregated
    assert [asked.mr_aggregated for _, asked in policy.asked] == [
        boot_info(kms_enclave.evidence(anchors)).mr_aggregated
    ]


def test_keys_are_logged_by_neither_side(running, onboarder, keys, capsys) -> None:
    onboarder(running).onboard(URL, "second.kms.test")
    logged = capsys.readouterr().out
    assert "kms.onboarded" in logged
    secret = keys.root_ca_key.private_numbers().private_value.to_bytes(32, "big")
    assert not [text for text in (keys.k256.hex(), secret.hex(), "PRIVATE KEY") if text in logged]


def test_n55_asks_no_source_that_its_own_policy_refuses(impostor, onboarder, new_store, keys, policy) -> None:
    dialer, asked = impostor(answer_of(keys))
    policy.kms = DENIED
    with refuses("kms.source.denied", PolicyDenied) as refusal:
        onboarder(dialer).onboard(URL, "second.kms.test")
    assert refusal.value.message == (
        "Source KMS is not allowed for onboarding: boot denied: Aggregated MR not allowed"
    )
    assert asked == []
    assert new_store.load() is None


def test_n55_a_source_gives_nothing_to_a_kms_that_its_policy_refuses(
    running, onboarder, new_store, source_policy, kms_enclave, anchors, monkeypatch
) -> None:
    itself = boot_info(kms_enclave.evidence(anchors)).mr_aggregated
    monkeypatch.setattr(
        source_policy,
        "authorize",
        lambda _kind, info: source_policy.kms if info.mr_aggregated == itself else DENIED,
    )
    with refuses("kms.source.refused", PolicyDenied) as refusal:
        onboarder(running).onboard(URL, "second.kms.test")
    assert "Boot denied: Aggregated MR not allowed" in refusal.value.message
    assert new_store.load() is None


def test_n55_evidence_for_another_tls_key_is_refused_before_anything_is_asked(
    impostor, onboarder, new_store, keys
) -> None:
    """What upstream's second connection would have taken keys from."""
    dialer, asked = impostor(answer_of(keys), over=ec.generate_private_key(ec.SECP256R1()))
    with refuses("attestation.report_data"):
        onboarder(dialer).onboard(URL, "second.kms.test")
    assert asked == []
    assert new_store.load() is None


@pytest.mark.parametrize(
    ("shown", "code"),
    [({"attestation": None}, "ratls.attestation.missing"), ({"usage": False}, "ratls.usage")],
)
def test_n55_refuses_a_server_that_does_not_show_that_it_is_a_kms(
    impostor, onboarder, keys, shown: dict[str, Any], code: str
) -> None:
    dialer, asked = impostor(answer_of(keys), **shown)
    with refuses(code):
        onboarder(dialer).onboard(URL, "second.kms.test")
    assert asked == []


def test_n55_refuses_a_source_under_an_unknown_root(running, onboarder, new_enclave) -> None:
    real = PeerVerifier(anchors=TrustAnchors.production(), now=lambda: NOW)
    source = SourceKms(dialer=running, verifier=real, attestor=new_enclave.attestor)
    with pytest.raises(InvalidEvidence) as refusal:
        onboarder(running, source=source).onboard(URL, "second.kms.test")
    assert refusal.value.code.startswith("nitro.")


def test_the_certificate_must_be_of_the_root_that_is_handed_over(
    impostor, onboarder, new_store, keys
) -> None:
    dialer, _ = impostor(answer_of(keys), root=ec.generate_private_key(ec.SECP256R1()))
    with refuses("ratls.signature"):
        onboarder(dialer).onboard(URL, "second.kms.test")
    assert new_store.load() is None


OTHER_KEY = ec.derive_private_key(7, ec.SECP256R1())


@pytest.mark.parametrize("changes", [{"ca": pem(OTHER_KEY)}, {"k256": bytes(31) + b"\x07"}])
def test_n55_an_approved_kms_cannot_hand_over_other_keys(
    impostor, onboarder, new_store, keys, changes: dict[str, Any]
) -> None:
    dialer, _ = impostor(answer_of(keys, **changes))
    with refuses("kms.onboard.other_keys"):
        onboarder(dialer).onboard(URL, "second.kms.test")
    assert new_store.load() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 0},
        {"count": 2},
        {"ca": ""},
        {"ca": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
        {"temp": pem(ec.generate_private_key(ec.SECP384R1()))},
        {"k256": bytes(32)},
        {"k256": bytes(31)},
        {"k256": b"\xff" * 32},
    ],
)
def test_refuses_keys_that_are_none(impostor, onboarder, new_store, keys, changes: dict[str, Any]) -> None:
    dialer, _ = impostor(answer_of(keys, **changes))
    with refuses("kms.onboard.keys", ProtocolError) as refusal:
        onboarder(dialer).onboard(URL, "second.kms.test")
    assert refusal.value.message == "Invalid keys"
    assert new_store.load() is None


def test_refuses_a_temporary_ca_that_would_publish_the_root(impostor, onboarder, new_store, keys) -> None:
    dialer, _ = impostor(answer_of(keys, temp=pem(keys.root_ca_key)))
    with refuses("kms.onboard.keys", ProtocolError):
        onboarder(dialer).onboard(URL, "second.kms.test")
    assert new_store.load() is None


def test_a_refusal_without_a_text_is_malformed(impostor, onboarder) -> None:
    dialer, _ = impostor(b"<html>", status=502)
    with refuses("kms.source.malformed", ProtocolError):
        onboarder(dialer).onboard(URL, "second.kms.test")


@pytest.mark.parametrize("pinned", [(), ("ca_pubkey",), ("k256_pubkey",), ("ca_pubkey", "k256_pubkey")])
def test_the_chains_keys_suffice_and_pins_beside_them_must_agree(
    running, onboarder, new_store, keys, pinned: tuple[str, ...]
) -> None:
    published = pins_of(keys)
    pins = RootPins(**{name: getattr(published, name) for name in pinned})
    right = onboarder(running, pins=pins, proven=lambda: published)
    assert right.onboard(URL, "second.kms.test").k256_pubkey == published.k256_pubkey
    assert new_store.load() is not None


@pytest.mark.parametrize("of", ["pins", "proven"])
@pytest.mark.parametrize("named", ["ca_pubkey", "k256_pubkey"])
def test_n55_every_key_that_is_named_must_be_the_sources(
    running, onboarder, new_store, keys, of: str, named: str
) -> None:
    right = pins_of(keys)
    other = RootPins(ca_pubkey=spki_der(OTHER_KEY.public_key()), k256_pubkey=public_key(bytes(31) + b"\x07"))
    wrong = msgspec.structs.replace(right, **{named: getattr(other, named)})
    both = {"pins": right, "proven": right} | {of: wrong}
    with refuses("kms.onboard.other_keys"):
        onboarder(running, pins=both["pins"], proven=lambda: both["proven"]).onboard(URL, "second.kms.test")
    assert new_store.load() is None


@pytest.mark.parametrize("missing", ["ca_pubkey", "k256_pubkey"])
def test_what_the_contract_does_not_publish_takes_a_pin(
    running, onboarder, keys, new_store, missing: str
) -> None:
    published = pins_of(keys)
    partly = msgspec.structs.replace(published, **{missing: None})
    with refuses("kms.onboard.unpinned", ConfigError):
        onboarder(running, pins=RootPins(), proven=lambda: partly).onboard(URL, "second.kms.test")
    pins = RootPins(**{missing: getattr(published, missing)})
    onboarder(running, pins=pins, proven=lambda: partly).onboard(URL, "second.kms.test")
    assert new_store.load() is not None


@pytest.mark.parametrize("missing", ["ca_pubkey", "k256_pubkey"])
def test_asks_nobody_while_no_keys_are_named(impostor, onboarder, keys, missing: str) -> None:
    dialer, asked = impostor(answer_of(keys))
    without = msgspec.structs.replace(pins_of(keys), **{missing: None})
    with refuses("kms.onboard.unpinned", ConfigError):
        onboarder(dialer, pins=without).onboard(URL, "second.kms.test")
    assert asked == []


def test_n56_onboarding_where_keys_exist_is_refused(impostor, onboarder, keys, store) -> None:
    dialer, asked = impostor(answer_of(keys))
    with refuses("kms.onboarded", StorageError) as refusal:
        onboarder(dialer, store=store).onboard(URL, "kms.test")
    assert refusal.value.message == "KMS has already been onboarded"
    assert asked == []


def test_a_slow_check_is_repeated_on_a_connection_of_its_own(
    running, onboarder, new_store, verifier, monkeypatch
) -> None:
    """The server gives up on a handshake that takes long; what the first check fetched is remembered."""
    monkeypatch.setattr(source_kms, "PATIENCE", -1.0)
    checked: list[bytes] = []
    check = verifier.verify
    monkeypatch.setattr(
        verifier, "verify", lambda envelope, data: (checked.append(data), check(envelope, data))[1]
    )
    onboarder(running).onboard(URL, "second.kms.test")
    assert new_store.load() is not None
    assert checked[0] == checked[1]


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://kms.test", Source("kms.test", 443, "/prpc")),
        ("https://kms.test:8000/", Source("kms.test", 8000, "/prpc")),
        ("https://kms.test/prpc//", Source("kms.test", 443, "/prpc")),
        ("https://[::1]:1/a", Source("::1", 1, "/a/prpc")),
    ],
)
def test_reads_a_source_url_as_upstream_does(url: str, source: Source) -> None:
    assert Source.parse(url) == source


@pytest.mark.parametrize(
    "url",
    [
        *("", "kms.test", "http://kms.test", "https://", "https://a:b@kms.test", "https://kms.test:0"),
        *("https://kms.test:99999", "https://kms.test?a=b", "https://kms.test#a", "https://[::1"),
    ],
)
def test_refuses_a_source_url_that_is_none(url: str) -> None:
    with refuses("kms.source.url", ProtocolError):
        Source.parse(url)


# Who may ask for it


@pytest.fixture
def guarded(onboarder, running, serve) -> Callable[..., Any]:
    app = onboard_app(
        bootstrap=lambda _domain: pb.BootstrapResponse(),
        onboard=onboarder(running).onboard,
        finish=lambda: None,
        describe=pb.AttestationInfoResponse,
        token_digest=hashlib.sha256(b"once").digest(),
    )
    http = HttpClient(serve(build_plain_server(app)), timeout=20)

    def call(path: str, body: object, **headers: str) -> Any:
        return http.request("POST", f"http://kms.test{path}", msgspec.json.encode(body), headers=headers)

    yield call
    http.close()


@pytest.mark.parametrize("path", ["/prpc/Bootstrap", "/prpc/Onboard.Onboard", "/prpc/Finish", "/finish"])
def test_n56_nothing_is_made_without_the_token(guarded, new_store, path: str) -> None:
    body = {"source_url": URL, "domain": "second.kms.test"}
    assert guarded(path + "?json", body).status == 401
    assert guarded(path + "?json", body, authorization="Bearer twice").status == 401
    # which a browser would keep, and send with what any page has it ask for
    basic = base64.b64encode(b"admin:once").decode()
    refused = guarded(path + "?json", body, authorization=f"Basic {basic}")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Bearer realm="dstack-kms admin"')
    assert new_store.load() is None


def test_anybody_may_ask_what_to_allow(guarded) -> None:
    assert guarded("/prpc/GetAttestationInfo?json", None).status == 200


def test_onboards_for_whoever_has_the_token(guarded, new_store, keys) -> None:
    body = {"source_url": URL, "domain": "second.kms.test"}
    answer = guarded("/prpc/Onboard?json", body, authorization="Bearer once")
    assert msgspec.json.decode(answer.body) == {"k256_pubkey": public_key(keys.k256).hex()}
    assert new_store.load().domain == "second.kms.test"

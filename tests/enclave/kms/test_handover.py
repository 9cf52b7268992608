"""Root keys from the listeners that sources have: ours with a token, and upstream's (N-55, N-74)."""

import hashlib
from collections.abc import Callable, Iterator
from ssl import DER_cert_to_PEM_cert
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from enclave.kms.admin import Handover, admin_app, serving_beside
from enclave.kms.audit import AuditLog
from enclave.kms.config import Core, Onboard
from enclave.kms.http import main_app, onboard_app
from enclave.kms.image_cache import ImageCache
from enclave.kms.source_kms import MAX_TOKEN, SourceToken
from enclave.kms.token_auth import TokenAuth
from enclave.serving.attested_tls import build_plain_server, build_server
from enclave.tee.evidence import certificate_evidence
from shared.errors import DstackError, InvalidEvidence, PolicyDenied, ProtocolError
from shared.keys.k256 import public_key
from shared.net.attested_client import AttestedConnection
from shared.net.fetch import HttpClient
from shared.ratls.certificates import TEMP_CA_NAME, rpc_certificate, self_signed_ca
from shared.ratls.tls import server_context
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json
from tests.enclave.conftest import NOW, StandInDialer
from tests.enclave.kms.conftest import CORE, URL, answer_of, pem, temp_ca_of
from tests.shared.refusal import refuses

TOKEN = "correct horse battery staple"
AUTH = TokenAuth(hashlib.sha256(TOKEN.encode()).digest())
BEARER = {"authorization": f"Bearer {TOKEN}"}
DOMAIN = "second.kms.test"


def _connect(dialer: StandInDialer, certificate: tuple[bytes, Any] | None = None) -> AttestedConnection:
    client: dict[str, Any] = {}
    if certificate is not None:
        leaf, key = certificate
        client = {"client_key": key, "client_chain": (x509.load_der_x509_certificate(leaf),)}
    return AttestedConnection.connect(
        dialer, "kms.test", 8001, check_peer=lambda _leaf: None, timeout=20, **client
    )


def _code(response: Any) -> str:
    assert response.status == 400
    return msgspec.json.decode(response.body, type=dict[str, str])["code"]


# The admin listener


@pytest.fixture
def audited() -> list[dict[str, Any]]:
    """What the admin listener's refusals leave in the audit log."""
    return []


@pytest.fixture
def audit(audited) -> AuditLog:
    return AuditLog(lambda line: audited.append(msgspec.json.decode(line)))


@pytest.fixture
def admin(source, vsock, tmp_path, audit) -> Iterator[StandInDialer]:
    """The admin listener of a source whose main listener hands over nothing."""
    parts = source(msgspec.structs.replace(CORE, onboard=Onboard(public_key_handover=False)))
    app = admin_app(ImageCache(tmp_path / "cache"), AUTH, Handover(parts.service, parts.callers), audit)
    with serving_beside(app, vsock.listen(8101), parts.identity.context):
        yield StandInDialer(vsock, 16, 8101)


@pytest.mark.parametrize("method", ["GetKmsKey", "Admin.GetKmsKey"])
def test_hands_over_to_evidence_and_token(admin, new_enclave, keys, method: str) -> None:
    with _connect(admin, new_enclave.certificate(None)) as connection:
        answer = connection.request("POST", f"/prpc/{method}?json", b"{}", BEARER)
    assert from_json(pb.KmsKeyResponse, answer.body).keys[0].k256_key == keys.k256


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
def test_n55_evidence_without_the_token_gets_nothing(admin, new_enclave, headers: dict[str, str]) -> None:
    with _connect(admin, new_enclave.certificate(None)) as connection:
        answer = connection.request("POST", "/prpc/GetKmsKey?json", b"{}", headers)
    assert (answer.status, answer.body) == (401, b"")


def test_n55_the_token_without_evidence_gets_nothing(admin, audited) -> None:
    with _connect(admin) as connection:
        answer = connection.request("POST", "/prpc/GetKmsKey?json", b"{}", BEARER)
    assert _code(answer) == "kms.no_attestation"
    assert [(line["event"], line["method"]) for line in audited] == [("prpc.refused", "GetKmsKey")]


def test_n55_the_token_with_evidence_for_another_key_gets_nothing(admin, new_enclave) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with _connect(admin, new_enclave.certificate(None, over=other)) as connection:
        answer = connection.request("POST", "/prpc/GetKmsKey?json", b"{}", BEARER)
    assert _code(answer) == "attestation.report_data"


def test_n55_token_and_evidence_that_the_policy_refuses_get_nothing(
    admin, new_enclave, source_policy, monkeypatch
) -> None:
    allowed = source_policy.kms
    itself = iter([True])
    denied = msgspec.structs.replace(allowed, is_allowed=False, reason="no")
    monkeypatch.setattr(
        source_policy, "authorize", lambda _kind, _info: allowed if next(itself, False) else denied
    )
    with _connect(admin, new_enclave.certificate(None)) as connection:
        answer = connection.request("POST", "/prpc/GetKmsKey?json", b"{}", BEARER)
    assert _code(answer) == "kms.kms.denied"


def test_n55_a_plain_admin_listener_hands_over_nothing(vsock, tmp_path) -> None:
    with serving_beside(admin_app(ImageCache(tmp_path), AUTH), vsock.listen(8101)):
        http = HttpClient(StandInDialer(vsock, 16, 8101), timeout=20)
        answer = http.request("POST", "http://kms.test/prpc/GetKmsKey?json", b"{}", headers=BEARER)
        http.close()
    assert _code(answer) == "prpc.method"


def test_the_cache_is_cleared_over_tls_without_a_certificate(admin) -> None:
    with _connect(admin) as connection:
        answer = connection.request("POST", "/prpc/ClearImageCache?json", b"{}", BEARER)
    assert (answer.status, answer.body) == (200, b"null")


def test_n55_a_main_listener_without_handover_sends_to_the_admin_one(source, serve, new_enclave) -> None:
    parts = source(msgspec.structs.replace(CORE, onboard=Onboard(public_key_handover=False)))
    app = main_app(parts.service, parts.callers, version="1", metrics=False)
    dialer = serve(build_server(app, context_factory=parts.identity.context))
    with _connect(dialer, new_enclave.certificate(None)) as connection:
        assert _code(connection.request("POST", "/prpc/GetKmsKey?json", b"{}")) == "kms.handover.admin"


# A new KMS with a token


def test_onboards_from_an_admin_listener(admin, onboarder, new_store, keys) -> None:
    answer = onboarder(admin).onboard(URL, DOMAIN, TOKEN)
    assert answer.k256_pubkey == public_key(keys.k256)
    assert new_store.load().domain == DOMAIN


@pytest.mark.parametrize("token", ["", "wrong"])
def test_tells_that_the_token_is_not_the_sources(admin, onboarder, new_store, token: str) -> None:
    with refuses("kms.source.refused", PolicyDenied) as refusal:
        onboarder(admin).onboard(URL, DOMAIN, token)
    assert "token" in refusal.value.message
    assert new_store.load() is None


def test_n55_no_token_goes_to_a_source_that_is_not_allowed(impostor, onboarder, keys, policy) -> None:
    dialer, asked = impostor(answer_of(keys))
    policy.kms = msgspec.structs.replace(policy.kms, is_allowed=False, reason="no")
    with refuses("kms.source.denied", PolicyDenied):
        onboarder(dialer).onboard(URL, DOMAIN, TOKEN)
    assert asked == []


@pytest.mark.parametrize(
    "token", ["a\r\nx: y", "a\n", "\0", "tökén", " a", "a ", "\ta", "a\tb", "\x7f", "x" * (MAX_TOKEN + 1)]
)
def test_refuses_a_token_that_no_header_carries(impostor, onboarder, keys, token: str) -> None:
    dialer, asked = impostor(answer_of(keys))
    with refuses("kms.source.token", ProtocolError) as refusal:
        onboarder(dialer).onboard(URL, DOMAIN, token)
    assert refusal.value.message.startswith("source_token is not 1 to 1024 printable")
    assert asked == []


def test_takes_any_token_that_a_header_carries() -> None:
    for text in ("a", "a b", "~!", "x" * MAX_TOKEN):
        token = SourceToken.parse(text)
        assert token is not None
        assert token.header() == {"authorization": f"Bearer {text}"}
    assert SourceToken.parse("") is None


def test_n74_the_token_is_in_no_log_repr_or_error(admin, onboarder, serve, capsys) -> None:
    app = onboard_app(
        bootstrap=lambda _domain: pb.BootstrapResponse(),
        onboard=onboarder(admin).onboard,
        finish=lambda: None,
        describe=pb.AttestationInfoResponse,
    )
    http = HttpClient(serve(build_plain_server(app)), timeout=20)
    secrets = ["wrong-but-secret", "bad\nsecret", TOKEN]
    answers = [
        http.request(
            "POST",
            "http://kms.test/prpc/Onboard?json",
            msgspec.json.encode({"source_url": URL, "domain": DOMAIN, "source_token": secret}),
        )
        for secret in secrets
    ]
    http.close()
    printed = capsys.readouterr()
    shown = printed.out + printed.err + "".join(answer.body.decode() for answer in answers)
    shown += "".join(repr(SourceToken(secret)) for secret in secrets)
    assert [answer.status for answer in answers] == [400, 400, 200]
    assert not [secret for secret in secrets if secret in shown or secret.split("\n")[-1] in shown]


# A main listener like upstream's


def _upstreams(context: SSL.Context) -> SSL.Context:
    """Make a context end handshakes as upstream's does: a client certificate chains to the temporary CA."""
    context.set_verify(SSL.VERIFY_PEER, lambda _connection, _certificate, _error, _depth, ok: bool(ok))
    return context


@pytest.fixture
def upstream(source, serve) -> StandInDialer:
    """A source whose listener takes no certificate that its temporary CA did not issue."""
    parts = source()
    app = main_app(parts.service, parts.callers, version="0.5.4", metrics=False)
    context = _upstreams(parts.identity.context())
    return serve(build_server(app, context_factory=lambda: context))


def test_upstreams_listener_takes_no_self_issued_certificate(upstream, new_enclave, keys) -> None:
    with (
        pytest.raises(DstackError),  # an alert, or a reset that overtakes it
        _connect(upstream, new_enclave.certificate(None)) as connection,
    ):
        connection.request("GET", "/health")
    with _connect(upstream, new_enclave.certificate(keys)) as connection:
        assert connection.request("GET", "/health").status == 200


def test_onboards_from_a_listener_like_upstreams(upstream, onboarder, new_store, keys) -> None:
    assert onboarder(upstream).onboard(URL, DOMAIN).k256_pubkey == public_key(keys.k256)
    assert new_store.load().root_keys() == keys.root_keys()


@pytest.fixture
def changing(keys, serve) -> Callable[..., tuple[StandInDialer, list[str]]]:
    """Return a function that serves each connection with the next certificate, and notes what was asked."""

    def start(*leaves: tuple[Any, x509.Certificate]) -> tuple[StandInDialer, list[str]]:
        asked: list[str] = []
        contexts = iter(
            [
                _upstreams(server_context(key=key, chain=(leaf,), client_ca=keys.temp_ca_cert))
                for key, leaf in leaves
            ]
        )

        async def answering(scope: Any, _receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            asked.append(scope["path"])
            body = temp_ca_of(keys) if scope["path"].endswith("GetTempCaCert") else answer_of(keys)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

        return serve(build_server(answering, context_factory=lambda: next(contexts))), asked

    return start


@pytest.fixture
def leaf(keys, kms_enclave) -> Callable[..., tuple[ec.EllipticCurvePrivateKey, x509.Certificate]]:
    def make(
        key: ec.EllipticCurvePrivateKey | None = None, *, attested: bool = True
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = key or ec.generate_private_key(ec.SECP256R1())
        evidence = certificate_evidence(kms_enclave.attestor, key.public_key()) if attested else None
        issuer = (keys.root_ca_cert, keys.root_ca_key)
        return key, rpc_certificate(key, domain="kms.test", issuer=issuer, attestation=evidence, now=NOW)

    return make


def test_the_keys_come_from_the_server_whose_evidence_was_checked(changing, leaf, onboarder, keys) -> None:
    checked = leaf()
    dialer, asked = changing(checked, checked)
    assert onboarder(dialer).onboard(URL, DOMAIN).k256_pubkey == public_key(keys.k256)
    assert asked == ["/prpc/GetTempCaCert", "/prpc/GetKmsKey"]


@pytest.mark.parametrize("second", ["another", "unattested", "renewed"])
def test_n55_another_certificate_on_the_second_connection_is_asked_nothing(
    changing, leaf, onboarder, new_store, second: str
) -> None:
    checked = leaf()
    shown = {
        "another": leaf(),  # one that would pass by itself
        "unattested": leaf(attested=False),
        "renewed": leaf(checked[0]),
    }
    dialer, asked = changing(checked, shown[second])
    with refuses("kms.source.changed", InvalidEvidence):
        onboarder(dialer).onboard(URL, DOMAIN)
    assert asked == ["/prpc/GetTempCaCert"]
    assert new_store.load() is None


P384 = ec.generate_private_key(ec.SECP384R1())
KEY = ec.generate_private_key(ec.SECP256R1())
OF_VERSION_2 = (
    self_signed_ca(KEY, TEMP_CA_NAME, 0, NOW, NOW + 60)
    .public_bytes(Encoding.DER)
    .replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020101"), 1)
)


@pytest.mark.parametrize(
    "changes",
    [
        {"temp_ca_cert": ""},
        {"temp_ca_key": ""},
        {"temp_ca_cert": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        {"temp_ca_key": pem(ec.derive_private_key(7, ec.SECP256R1()))},
        {
            "temp_ca_key": pem(P384),
            "temp_ca_cert": self_signed_ca(P384, TEMP_CA_NAME, 0, NOW, NOW + 60)
            .public_bytes(Encoding.PEM)
            .decode(),
        },
        {"temp_ca_key": pem(KEY), "temp_ca_cert": DER_cert_to_PEM_cert(OF_VERSION_2)},
    ],
)
def test_refuses_a_temporary_ca_that_is_none(
    impostor, onboarder, keys, new_store, changes: dict[str, str]
) -> None:
    dialer, asked = impostor(answer_of(keys), temp_ca=temp_ca_of(keys, **changes))
    with refuses("kms.source.malformed", ProtocolError):
        onboarder(dialer).onboard(URL, DOMAIN)
    assert asked == ["/prpc/GetTempCaCert"]
    assert new_store.load() is None


def test_tells_why_a_source_does_not_even_name_its_temporary_ca(onboarder, upstream, source_policy) -> None:
    source_policy.kms = msgspec.structs.replace(source_policy.kms, is_allowed=False, reason="revoked")
    with refuses("kms.source.refused", PolicyDenied) as refusal:
        onboarder(upstream).onboard(URL, DOMAIN)
    assert "KMS self authorization failed" in refusal.value.message


# What GetMeta tells of it


@pytest.mark.parametrize(
    ("core", "told"),
    [
        ({}, "main"),
        ({"onboard": {"public_key_handover": False}}, "off"),
        ({"admin": {"enabled": True, "tls": True}}, "main, admin"),
        (
            {"admin": {"enabled": True, "tls": {"certs": "/a"}}, "onboard": {"public_key_handover": False}},
            "admin",
        ),
        ({"admin": {"enabled": True, "tls": {}}}, "main, admin"),
        ({"admin": {"enabled": True}}, "main"),
        ({"admin": {"tls": True}}, "main"),
    ],
)
def test_the_policy_tells_where_keys_are_handed_over(core: dict[str, Any], told: str) -> None:
    assert msgspec.convert(core, Core).key_handover() == told

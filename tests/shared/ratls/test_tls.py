"""Handshakes in memory: what TLS itself accepts, before any decision about the peer."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from shared.errors import ConfigError
from shared.ratls.certificates import (
    ROOT_CA_NAME,
    TEMP_CA_NAME,
    client_certificate,
    rpc_certificate,
    self_signed_ca,
)
from shared.ratls.tls import client_context, server_context

NOW = 1_800_000_000
DAY = 86_400
KEY = ec.derive_private_key(1, ec.SECP256R1())
TEMP_KEY = ec.derive_private_key(2, ec.SECP256R1())
TEMP_CA = self_signed_ca(TEMP_KEY, TEMP_CA_NAME, 0, NOW - DAY, NOW + 10 * DAY)
ROOT_KEY = ec.derive_private_key(3, ec.SECP256R1())
ROOT = self_signed_ca(ROOT_KEY, ROOT_CA_NAME, 1, NOW - DAY, NOW + 10 * DAY)
SERVER = rpc_certificate(KEY, domain="kms", issuer=(ROOT, ROOT_KEY), attestation=bytes(5000), now=NOW)
ENVELOPE = bytes(5000)


def server() -> SSL.Context:
    return server_context(key=KEY, chain=[SERVER], client_ca=TEMP_CA)


def shake(
    client: SSL.Context, server: SSL.Context, session: SSL.Session | None = None
) -> tuple[SSL.Connection, SSL.Connection]:
    """Run a handshake to its end and exchange a byte in each direction."""
    near, far = SSL.Connection(client, None), SSL.Connection(server, None)
    near.set_connect_state()
    far.set_accept_state()
    if session is not None:
        near.set_session(session)
    pending = {near, far}
    for _ in range(20):
        for end, other in ((near, far), (far, near)):
            if end in pending:
                try:
                    end.do_handshake()
                    pending.discard(end)
                except SSL.WantReadError:
                    pass
            _move(end, other)
    assert not pending
    near.sendall(b"a")
    _move(near, far)
    assert far.recv(1) == b"a"
    far.sendall(b"b")
    _move(far, near)
    assert near.recv(1) == b"b"
    return near, far


def _move(end: SSL.Connection, other: SSL.Connection) -> None:
    try:
        while True:
            other.bio_write(end.bio_read(1 << 16))
    except SSL.WantReadError:
        pass


def client(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey = KEY) -> SSL.Context:
    return client_context(key=key, chain=[certificate])


def test_a_client_without_a_certificate_connects() -> None:
    near, far = shake(client_context(), server())
    assert far.get_peer_certificate(as_cryptography=True) is None
    assert near.get_protocol_version_name() == "TLSv1.3"


def test_the_server_sends_its_leaf_alone() -> None:
    near, _ = shake(client_context(), server())
    assert near.get_peer_cert_chain(as_cryptography=True) == [SERVER]


@pytest.mark.parametrize("issuer", [(TEMP_CA, TEMP_KEY), None], ids=["temp-ca", "self-issued"])
def test_takes_both_kinds_of_client_with_large_evidence(
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
) -> None:
    certificate = client_certificate(KEY, attestation=ENVELOPE, issuer=issuer, now=NOW)
    _, far = shake(client(certificate), server())
    assert far.get_peer_certificate(as_cryptography=True) == certificate


def test_the_clock_plays_no_part_in_the_handshake() -> None:
    certificate = client_certificate(KEY, attestation=None, issuer=(TEMP_CA, TEMP_KEY), now=1_000_000_000)
    _, far = shake(client(certificate), server())
    assert far.get_peer_certificate(as_cryptography=True) == certificate


def test_refuses_a_client_of_another_ca() -> None:
    certificate = client_certificate(KEY, attestation=None, issuer=(ROOT, ROOT_KEY), now=NOW)
    with pytest.raises(SSL.Error, match=r"certificate verify failed|unknown ca"):
        shake(client(certificate), server())


def test_refuses_a_client_whose_ca_has_the_temp_cas_name() -> None:
    impostor = self_signed_ca(ROOT_KEY, TEMP_CA_NAME, 0, NOW, NOW + DAY)
    certificate = client_certificate(KEY, attestation=None, issuer=(impostor, ROOT_KEY), now=NOW)
    with pytest.raises(SSL.Error):
        shake(client(certificate), server())


def test_refuses_a_client_that_brings_its_own_ca_along() -> None:
    other = self_signed_ca(ROOT_KEY, "Other CA", 0, NOW, NOW + DAY)
    certificate = client_certificate(KEY, attestation=None, issuer=(other, ROOT_KEY), now=NOW)
    with pytest.raises(SSL.Error):
        shake(client_context(key=KEY, chain=[certificate, other]), server())


def test_refuses_a_temp_ca_client_for_servers_alone() -> None:
    certificate = (
        x509.CertificateBuilder()
        .subject_name(SERVER.subject)
        .issuer_name(TEMP_CA.subject)
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, tz=UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + DAY, tz=UTC))
        .public_key(KEY.public_key())
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(TEMP_KEY, SHA256())
    )
    with pytest.raises(SSL.Error):
        shake(client(certificate), server())


def test_the_client_leaves_the_server_to_its_caller() -> None:
    other = rpc_certificate(
        KEY, domain="else", issuer=(TEMP_CA, TEMP_KEY), attestation=None, now=1_000_000_000
    )
    near, _ = shake(client_context(), server_context(key=KEY, chain=[other], client_ca=TEMP_CA))
    assert near.get_peer_certificate(as_cryptography=True) == other


def test_speaks_http11() -> None:
    near, far = shake(client_context(), server())
    assert near.get_alpn_proto_negotiated() == far.get_alpn_proto_negotiated() == b"http/1.1"


def test_a_client_that_offers_no_protocol_connects() -> None:
    plain = SSL.Context(SSL.TLS_CLIENT_METHOD)
    near, _ = shake(plain, server())
    assert near.get_alpn_proto_negotiated() == b""


def test_a_client_that_offers_other_protocols_alone_still_connects_without_one() -> None:
    plain = SSL.Context(SSL.TLS_CLIENT_METHOD)
    plain.set_alpn_protos([b"h2"])
    near, _ = shake(plain, server())
    assert near.get_alpn_proto_negotiated() == b""


def test_the_server_names_no_client_ca() -> None:
    near, _ = shake(client_context(), server())
    assert near.get_client_ca_list() == []


def test_takes_tls_1_2() -> None:
    older = client_context()
    older.set_max_proto_version(SSL.TLS1_2_VERSION)
    near, _ = shake(older, server())
    assert near.get_protocol_version_name() == "TLSv1.2"


def test_n51_a_client_shows_its_certificate_to_no_server_of_tls_1_2() -> None:
    """There it would be sent before anybody could judge the server."""
    older = server()
    older.set_max_proto_version(SSL.TLS1_2_VERSION)
    with pytest.raises(SSL.Error, match="protocol"):
        shake(client(client_certificate(KEY, attestation=ENVELOPE, issuer=None, now=NOW)), older)


def test_refuses_tls_1_1() -> None:
    older = SSL.Context(SSL.TLS_CLIENT_METHOD)
    older.set_cipher_list(b"ALL:@SECLEVEL=0")
    older.set_min_proto_version(SSL.TLS1_1_VERSION)
    older.set_max_proto_version(SSL.TLS1_1_VERSION)
    with pytest.raises(SSL.Error):
        shake(older, server())


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
def test_never_resumes_a_session(version: int) -> None:
    verified = []
    near = SSL.Context(SSL.TLS_CLIENT_METHOD)
    near.set_max_proto_version(version)
    near.set_verify(SSL.VERIFY_PEER, lambda *_: verified.append("full handshake") or True)
    context = server()
    first, _ = shake(near, context)
    once = len(verified)
    shake(near, context, first.get_session())
    assert len(verified) == 2 * once > 0


@pytest.mark.parametrize("chain", [[], [ROOT]], ids=["no certificate", "another key"])
def test_refuses_a_chain_that_is_not_for_the_key(chain: list[x509.Certificate]) -> None:
    with pytest.raises(ConfigError) as caught:
        server_context(key=KEY, chain=chain, client_ca=TEMP_CA)
    assert caught.value.code == "ratls.key.mismatch"

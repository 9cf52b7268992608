"""pyOpenSSL contexts for attested TLS (spec kms section 4.6 and 4.7).

TLS proves one thing here: the peer holds the private key of the certificate that it sent. Who the peer is
gets decided afterwards by `shared.ratls.peer`, on the leaf's DER and a trusted `now`:

- a server calls `peer.check_client_certificate` for each connection that presented a certificate,
- a client calls `peer.check_kms_certificate` before it sends the first byte of a request.

No clock is read: validity periods are left to those two, because OpenSSL would use the machine's clock,
which a parent instance controls. Keys and certificates stay in memory. A context cannot change after its
first connection, so renewing a certificate means a new context.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from OpenSSL import SSL, crypto

from shared.errors import ConfigError

if TYPE_CHECKING:
    from OpenSSL.SSL import _NoOverlappingProtocols

ALPN_HTTP11 = b"http/1.1"

# TLS 1.2 is kept for older clients: forward secrecy and AEAD only. TLS 1.3 suites are OpenSSL's own.
_TLS12_CIPHERS = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:"
    b"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-CHACHA20-POLY1305"
)
_SELF_ISSUED = 18  # X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which pyOpenSSL does not name
_CHAIN_DEPTH = 1  # leaf and temp CA; anything deeper is not a client of ours


def server_context(
    *,
    key: EllipticCurvePrivateKey,
    chain: Sequence[x509.Certificate],
    client_ca: x509.Certificate,
) -> SSL.Context:
    """Return a context for an attested server.

    `chain` is the leaf first, then intermediates (the KMS sends its leaf alone). A client certificate is
    asked for and optional. One that is presented must chain to `client_ca`, the temp CA, or be self-issued
    (OpenSSL's error 18 at depth 0, nothing else); otherwise the handshake fails. Neither is an identity, and
    OpenSSL does not check a self-issued leaf's own signature: `peer.check_client_certificate` does.
    Raises `ConfigError("ratls.key.mismatch")`.
    """
    context = _context(SSL.TLS_SERVER_METHOD, key, chain)
    store = context.get_cert_store()
    if store is None:  # pragma: no cover - the type allows it, OpenSSL does not do it
        raise RuntimeError("a new tls context has no certificate store")
    # add_cert, unlike load_verify_locations, leaves the list of CA names sent to the client empty: with the
    # temp CA named there a client would not offer its self-issued certificate.
    store.add_cert(crypto.X509.from_cryptography(client_ca))
    store.set_flags(_NO_CHECK_TIME)
    context.set_verify_depth(_CHAIN_DEPTH)
    context.set_verify(SSL.VERIFY_PEER, _accept_chain_or_self_issued)
    context.set_alpn_select_callback(_select_http11)
    return context


def mutual_context(*, key: EllipticCurvePrivateKey, chain: Sequence[x509.Certificate]) -> SSL.Context:
    """Return a context for a server that judges its callers by their chains, as one app does another.

    A client certificate is asked for and optional, and every one is accepted whose key the client proves to
    hold: the caller must judge the chain of a connection (`shared.net.attested_peer`) before it answers on
    it. Raises `ConfigError("ratls.key.mismatch")`.
    """
    context = _context(SSL.TLS_SERVER_METHOD, key, chain)
    context.set_verify(SSL.VERIFY_PEER, _leave_to_caller)
    context.set_alpn_select_callback(_select_http11)
    return context


def client_context(
    *,
    key: EllipticCurvePrivateKey | None = None,
    chain: Sequence[x509.Certificate] = (),
) -> SSL.Context:
    """Return a context for a client of an attested server, with its certificate when `key` is given.

    Raises `ConfigError("ratls.key.mismatch")` when the chain's first certificate is not for `key`.

    With a certificate it speaks TLS 1.3 alone: in 1.2 whoever answers gets the certificate before its own can
    be judged. It accepts every server certificate whose key the server proves to hold. The caller must pass
    the leaf to `peer.check_kms_certificate` (or, for the unauthenticated GetTempCaCert, decide not to) before
    it sends anything on the connection.
    """
    context = _context(SSL.TLS_CLIENT_METHOD, key, chain)
    if key is not None:
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_verify(SSL.VERIFY_PEER, _leave_to_caller)
    context.set_alpn_protos([ALPN_HTTP11])
    return context


def _context(
    method: int, key: EllipticCurvePrivateKey | None, chain: Sequence[x509.Certificate]
) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_TLS12_CIPHERS)
    # A resumed session skips the verify callback, and its peer would look as if a CA had signed it.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    if key is not None:
        if not chain or chain[0].public_key() != key.public_key():
            raise ConfigError(
                "ratls.key.mismatch", "the first certificate of the chain is not for the tls key"
            )
        context.use_certificate(chain[0])
        context.use_privatekey(key)
        for intermediate in chain[1:]:
            context.add_extra_chain_cert(intermediate)
    return context


def _accept_chain_or_self_issued(
    _connection: SSL.Connection, _certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    # Called again with ok = 1 after an accepted error 18.
    return bool(ok) or (error == _SELF_ISSUED and depth == 0)


def _leave_to_caller(
    _connection: SSL.Connection, _certificate: crypto.X509, _error: int, _depth: int, _ok: int
) -> bool:
    return True


def _select_http11(_connection: SSL.Connection, offered: list[bytes]) -> "bytes | _NoOverlappingProtocols":
    return ALPN_HTTP11 if ALPN_HTTP11 in offered else SSL.NO_OVERLAPPING_PROTOCOLS

"""`/run/dstack/gateway-cache.json`: by what a guest is known to its gateway (spec gateway section 1.2).

A key with two certificates from the guest's KMS, and the tunnel's key. They are made at boot and kept in
memory, so that registering again asks neither the KMS nor a device.
"""

from typing import Final

import msgspec
from cryptography import x509

from enclave.agent.certificates import CertificateIssuer, new_tls_key, tls_key_pem
from enclave.dstack_util.machine import PRIVATE, Machine
from enclave.dstack_util.wireguard import WireGuardKey, key_of, new_key
from enclave.log import log_event
from shared.errors import DstackError, ProtocolError, StorageError
from shared.ratls.csr import CsrConfig
from shared.ratls.tls_identity import TlsIdentity
from shared.strict_json import decode_json

CACHE_PATH: Final = "/run/dstack/gateway-cache.json"

SUBJECT: Final = "dstack-guest-agent"
VALIDITY: Final = 10 * 86_400
"""Seconds that a certificate is asked for."""

REMAINING: Final = 600
"""Seconds that a certificate must still be valid to be shown."""

_END: Final = "-----END CERTIFICATE-----\n"
_MAX_FILE: Final = 1024 * 1024  # two chains, one with evidence of some hundred kilobytes in base64


class GatewayIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest shows a gateway. `attested` is for gateways from before 0.5.6, which want evidence."""

    plain: TlsIdentity
    attested: TlsIdentity
    wireguard: WireGuardKey


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """Certificates are chains of PEMs, leaf first; the time is in unix seconds."""

    client_cert: str
    client_cert_with_quote: str
    client_key: str
    cert_not_after: int
    wg_sk: str
    wg_pk: str

    def __repr__(self) -> str:
        return f"_File(cert_not_after={self.cert_not_after})"


def gateway_identity(machine: Machine, issuer: CertificateIssuer, *, now: int) -> GatewayIdentity:
    """Return the identity of this boot, from the cache or made and cached.

    The tunnel's key outlives the certificates: new ones leave the interface alone. Raises what the issuer
    does, and `StorageError`: `setup.write`, `setup.unreadable`.
    """
    kept = _load(machine)
    if kept is not None and kept.cert_not_after - now > REMAINING:
        return _identity(kept)
    file = _make(issuer, new_key() if kept is None else key_of(kept.wg_sk), now)
    machine.write(machine.path(CACHE_PATH), msgspec.json.encode(file), PRIVATE)
    return _identity(file)


def _make(issuer: CertificateIssuer, wireguard: WireGuardKey, now: int) -> _File:
    key = new_tls_key()

    def issue(*, attested: bool) -> str:
        config = CsrConfig(
            subject=SUBJECT,
            usage_client_auth=True,
            ext_quote=attested,
            ext_app_info=True,
            not_after=now + VALIDITY,
        )
        return "".join(issuer.issue(key, config))

    plain, attested = issue(attested=False), issue(attested=True)
    return _File(
        client_cert=plain,
        client_cert_with_quote=attested,
        client_key=tls_key_pem(key),
        cert_not_after=min(_not_after(plain), _not_after(attested)),
        wg_sk=wireguard.private,
        wg_pk=wireguard.public,
    )


def _load(machine: Machine) -> _File | None:
    """Return what is cached, None where nothing is that can be used: it is made anew then."""
    path = machine.path(CACHE_PATH)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError("setup.unreadable", f"{path} cannot be read: {error.strerror}") from error
    try:
        return _parse(raw)
    except DstackError as error:
        log_event("gateway.cache_ignored", code=error.code, message=error.message)
        return None


def _parse(raw: bytes) -> _File:
    document = decode_json(raw, what="the gateway cache", code="gateway.cache", max_bytes=_MAX_FILE)
    try:
        file = msgspec.convert(document, _File)
    except msgspec.ValidationError:
        # no cause: the sentence of a parser could quote a key
        raise ProtocolError("gateway.cache", "the gateway cache lacks a field") from None
    if key_of(file.wg_sk).public != file.wg_pk:
        raise ProtocolError("gateway.cache", "the gateway cache has two halves of two wireguard keys")
    _identity(file)
    return file


def _identity(file: _File) -> GatewayIdentity:
    return GatewayIdentity(
        plain=_tls_identity(file.client_key, file.client_cert),
        attested=_tls_identity(file.client_key, file.client_cert_with_quote),
        wireguard=key_of(file.wg_sk),
    )


def _tls_identity(key: str, chain: str) -> TlsIdentity:
    return TlsIdentity.from_pems(key, [part + _END for part in chain.split(_END)[:-1]])


def _not_after(chain: str) -> int:
    leaf = x509.load_pem_x509_certificates(chain.encode())[0]
    return int(leaf.not_valid_after_utc.timestamp())

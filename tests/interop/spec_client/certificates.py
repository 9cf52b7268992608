"""Certificates with evidence, and the requests for them (spec kms 4)."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from tests.interop.spec_client import scale

ARC = "1.3.6.1.4.1.62397.1"
LEGACY_QUOTE, LEGACY_EVENT_LOG, APP_ID, USAGE, ATTESTATION, APP_INFO = 1, 2, 3, 4, 8, 9

NOT_BEFORE = datetime(1975, 1, 1, tzinfo=UTC)
CLIENT_NAME = "RA-TLS TEMP Cert"
CONFIRM = "please sign cert:"


def spki(key: ec.EllipticCurvePrivateKey | x509.Certificate) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def client_certificate(
    key: ec.EllipticCurvePrivateKey,
    extensions: dict[int, bytes],
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
) -> x509.Certificate:
    """The row "RA-TLS client" of the table in 4.2; without an issuer the certificate signs itself.

    `extensions` are contents by number.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CLIENT_NAME)])
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    serial = bytearray(hashlib.sha256(point).digest()[:20])
    serial[0] &= 0x7F
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer[0].subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(serial, "big"))
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(datetime.now(UTC) + timedelta(days=3650))
        .add_extension(_digital_signature(), critical=True)
    )
    for number, content in extensions.items():
        own = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{ARC}.{number}"), _octets(content))
        builder = builder.add_extension(own, critical=False)
    return builder.sign(key if issuer is None else issuer[1], SHA256())


def extension(certificate: x509.Certificate, number: int) -> bytes | None:
    """The content of one of our extensions, None where it is not there."""
    oid = x509.ObjectIdentifier(f"{ARC}.{number}")
    found = [one for one in certificate.extensions if one.oid == oid]
    if not found:
        return None
    (only,) = found
    if only.critical or not isinstance(only.value, x509.UnrecognizedExtension):
        raise ValueError(f"extension .{number} is not as 4.1 has it")
    return _content(only.value.value)


@dataclass(frozen=True)
class CertConfig:
    """What a certificate request asks for. The last three and `ext_app_info` are of version 2 alone."""

    subject: str
    org_name: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    usage_server_auth: bool = False
    usage_client_auth: bool = False
    ext_quote: bool = False
    ext_app_info: bool = False
    not_before: int | None = None
    not_after: int | None = None


def csr_v2(key: bytes, config: CertConfig, attestation: bytes, *, confirm: str = CONFIRM) -> bytes:
    """A request of version 2 (4.5); `key` is SPKI DER."""
    return (
        _csr_head(key, config, confirm)
        + scale.flag(config.ext_app_info)
        + _time(config.not_before)
        + _time(config.not_after)
        + attestation
    )


def csr_v1(
    key: bytes, config: CertConfig, quote: bytes, event_log: bytes, *, confirm: str = CONFIRM
) -> bytes:
    """A request of version 1, of TDX guests."""
    return _csr_head(key, config, confirm) + scale.data(quote) + scale.data(event_log)


def signed(key: ec.EllipticCurvePrivateKey, csr: bytes) -> bytes:
    return key.sign(csr, ec.ECDSA(SHA256()))


def _csr_head(key: bytes, config: CertConfig, confirm: str) -> bytes:
    flags = (config.usage_server_auth, config.usage_client_auth, config.ext_quote)
    return (
        scale.text(confirm)
        + scale.data(key)
        + scale.option(None if config.org_name is None else scale.text(config.org_name))
        + scale.text(config.subject)
        + scale.listed(map(scale.text, config.subject_alt_names))
        + b"".join(map(scale.flag, flags))
    )


def _time(seconds: int | None) -> bytes:
    return scale.option(None if seconds is None else seconds.to_bytes(8, "little"))


def _octets(content: bytes) -> bytes:
    """A DER OCTET STRING."""
    length = len(content)
    if length < 0x80:
        return bytes([4, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([4, 0x80 | size]) + length.to_bytes(size, "big") + content


def _content(der: bytes) -> bytes:
    """The content of a DER OCTET STRING, nothing after it."""
    size = der[1] & 0x7F if der[1] & 0x80 else 0
    content = der[2 + size :]
    if _octets(content) != der:
        raise ValueError("not one der octet string")
    return content


def _digital_signature() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )

"""The PCK certificate chain of a quote: exactly three certificates, and which platform model they name.

Nothing is verified here: the chain's signatures are `tdx`'s work. What is read decides which collateral is
looked for, and which trust anchor the evidence claims (spec attestation sections 3.1 and 3.6).
"""

import binascii
from functools import lru_cache
from typing import Final, Literal

import msgspec
from cryptography import x509

from shared.attestation.der import INTEGER, SEQUENCE, element, split_signed
from shared.errors import InvalidEvidence

PckCa = Literal["processor", "platform"]

# Real leaves have 1,200 bytes, CA certificates 700.
MAX_CERTIFICATE: Final = 4096
CHAIN_LENGTH: Final = 3  # leaf, platform or processor CA, root

_BEGIN = b"-----BEGIN CERTIFICATE-----\n"
_END = b"-----END CERTIFICATE-----\n"
_LINE = 64  # columns of base64, as Intel's service and openssl write it
_SGX_OID = bytes.fromhex("06092a864886f84d010d01")  # 1.2.840.113741.1.13.1, not critical
_FMSPC_OID = bytes.fromhex("060a2a864886f84d010d0104")
_FMSPC_LENGTH = 6
_OCTET_STRING, _EXTENSIONS = 0x04, 0xA3
_VERSION_3 = bytes.fromhex("a003020102")
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
# What `cryptography` raises on der that its outer parser let through.
UNREADABLE = (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


class PckChain(msgspec.Struct, frozen=True):
    """A chain as the quote (or the collateral) carries it, not verified.

    `certificates` are DER, leaf first, root last. `fmspc` (6 bytes) is the platform model and `ca` the
    issuer that its revocation list belongs to. `not_after` (unix seconds) is when the first of them ends.
    """

    certificates: tuple[bytes, ...]
    fmspc: bytes
    ca: PckCa
    serials: tuple[int, ...]
    not_after: int

    @property
    def root(self) -> bytes:
        """The root certificate, DER: which anchor the evidence claims, never trusted for itself."""
        return self.certificates[-1]


# A machine sends the same chain in every quote; nothing is verified here, so nothing can go stale.
@lru_cache(maxsize=64)
def parse_pck_chain(pem: bytes) -> PckChain:
    """Read a PEM chain of a PCK leaf, its CA and a root.

    Raises `InvalidEvidence`: `tdx.pck.pem`, `tdx.pck.length`, `tdx.pck.certificate`, `tdx.pck.fmspc`.
    """
    ders = split_pem(pem)
    if len(ders) != CHAIN_LENGTH:
        raise InvalidEvidence(
            "tdx.pck.length", f"pck chain has {len(ders)} certificates, expected {CHAIN_LENGTH}"
        )
    try:
        chain = [load_certificate(der) for der in ders]
        issuer = chain[0].issuer.public_bytes()
        serials = tuple(certificate.serial_number for certificate in chain)
        not_after = min(int(certificate.not_valid_after_utc.timestamp()) for certificate in chain)
    except UNREADABLE as error:
        raise InvalidEvidence(
            "tdx.pck.certificate", "a certificate of the pck chain is not valid der"
        ) from error
    return PckChain(
        certificates=ders,
        fmspc=_fmspc(chain[0].tbs_certificate_bytes),
        ca=ca_of(issuer),
        serials=serials,
        not_after=not_after,
    )


def ca_of(issuer: bytes) -> PckCa:
    """Return which CA an issuer's DER name means; unknown ones count as the processor CA, as upstream's."""
    return "platform" if b"Platform" in issuer else "processor"


def load_certificate(der: bytes) -> x509.Certificate:
    """Load one certificate of Intel's kind: version 3, a positive serial number, ECDSA with SHA-256.

    Raises `ValueError`, where `cryptography` alone would only warn. Its fields may raise `UNREADABLE`.
    """
    tbs, algorithm, _ = split_signed(der)
    start, end = element(tbs, 0, len(tbs), SEQUENCE)
    if not tbs.startswith(_VERSION_3, start):
        raise ValueError("is not of version 3")
    serial, at = element(tbs, start + len(_VERSION_3), end, INTEGER)
    if serial == at or tbs[serial] & 0x80 or not any(tbs[serial:at]):
        raise ValueError("has a serial number that is not positive")
    if algorithm != _ECDSA_SHA256 or not tbs.startswith(_ECDSA_SHA256, at):
        raise ValueError("is not signed with ecdsa and sha-256")
    return x509.load_der_x509_certificate(der)


def split_pem(pem: bytes) -> tuple[bytes, ...]:
    """Return the DER of PEM certificates that stand back to back, in the one spelling that Intel uses.

    Lines of 64 columns, each ended by a newline: a chain then has one text, and no byte of it is free.
    Raises `InvalidEvidence("tdx.pck.pem")`.
    """
    before, *blocks = pem.split(_BEGIN)
    ders = []
    for block in blocks:
        body, end, after = block.partition(_END)
        try:
            der = binascii.a2b_base64(body)
        except ValueError as error:
            raise InvalidEvidence("tdx.pck.pem", "a certificate is not base64") from error
        if not end or after or body != _base64_lines(der):
            raise InvalidEvidence(
                "tdx.pck.pem", "a certificate is not in pem of 64 columns, or text stands between two"
            )
        if len(der) > MAX_CERTIFICATE:
            raise InvalidEvidence(
                "tdx.pck.pem", f"a certificate has {len(der)} bytes, at most {MAX_CERTIFICATE} are read"
            )
        ders.append(der)
    if before or not ders:
        raise InvalidEvidence("tdx.pck.pem", "text does not start with a pem certificate")
    return tuple(ders)


def join_pem(ders: tuple[bytes, ...]) -> bytes:
    """Return the PEM text of certificates, the inverse of `split_pem`."""
    return b"".join(_BEGIN + _base64_lines(der) + _END for der in ders)


def _base64_lines(der: bytes) -> bytes:
    text = binascii.b2a_base64(der, newline=False)
    return b"".join(text[at : at + _LINE] + b"\n" for at in range(0, len(text), _LINE))


def _fmspc(tbs: bytes) -> bytes:
    """Find the FMSPC in a leaf: cut by hand, since reading other extensions would trust and warn more."""
    try:
        found = [
            fmspc
            for extension in _sgx_extensions(tbs)
            for fmspc in _values(extension, 0, len(extension), _FMSPC_OID)
        ]
    except ValueError as error:
        raise InvalidEvidence("tdx.pck.fmspc", f"pck leaf's sgx extension {error}") from error
    if [len(fmspc) for fmspc in found] != [_FMSPC_LENGTH]:
        raise InvalidEvidence(
            "tdx.pck.fmspc", f"pck leaf names {len(found)} fmspc, expected one of {_FMSPC_LENGTH} bytes"
        )
    return found[0]


def _sgx_extensions(tbs: bytes) -> list[bytes]:
    """Return the contents of a certificate's SGX extensions; a valid one has one."""
    at, end = element(tbs, 0, len(tbs), SEQUENCE)
    while at < end:
        tag = tbs[at]
        start, at = element(tbs, at, end, tag)
        if tag == _EXTENSIONS:
            return _values(tbs, start, at, _SGX_OID)
    return []


def _values(data: bytes, at: int, limit: int, oid: bytes) -> list[bytes]:
    """Return the octet strings that a sequence of (oid, octet string) sequences has under `oid`."""
    found = []
    at, end = element(data, at, limit, SEQUENCE)
    while at < end:
        pair, at = element(data, at, end, SEQUENCE)
        if data.startswith(oid, pair):
            start, stop = element(data, pair + len(oid), at, _OCTET_STRING)
            found.append(data[start:stop])
    return found

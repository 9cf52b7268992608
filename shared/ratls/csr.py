"""Requests for an app's certificate, as SignCert takes them (spec kms section 4.5).

Two layouts in SCALE. `V1` carries a bare TDX quote with its event log, `V2` an attestation envelope that runs
to the end of the input. A request is signed by the key that it asks a certificate for, over the bytes as they
are sent: decoding is strict, so that nothing has a second spelling.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from shared.attestation import scale
from shared.attestation.scale import Reader
from shared.errors import InvalidEvidence, ProtocolError
from shared.ratls.certificates import spki_der

T = TypeVar("T")

CONFIRM: Final = "please sign cert:"
V1: Final = 1
V2: Final = 2

MAX_CSR: Final = 128 * 1024
"""The largest evidence, a TDX quote with a whole event log, has some 100 KB."""

_SPKI_BYTES: Final = 91
_ECDSA_SHA256: Final = ECDSA(SHA256())


class CsrConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the certificate is to say. Times are unix seconds; layout `V1` has neither them nor app info."""

    subject: str
    subject_alt_names: tuple[str, ...] = ()
    org_name: str | None = None
    usage_server_auth: bool = False
    usage_client_auth: bool = False
    ext_quote: bool = False
    ext_app_info: bool = False
    not_before: int | None = None
    not_after: int | None = None


class Csr(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded request. `envelope` is a claim, and nothing of the request is checked but its layout."""

    confirm: str = CONFIRM
    pubkey: bytes
    config: CsrConfig
    envelope: bytes


def decode_csr(data: bytes, version: int) -> Csr:
    """Decode a request of layout `version`; every byte must be accounted for. The envelope is not decoded.

    A quote of layout `V1` becomes the envelope that it stands for, with an empty config. Raises
    `InvalidEvidence`: `csr.size`, `csr.flag`, a `scale.*` code, and for the quote of `V1` `tdx.quote.*` and
    `event_log.*`; `ProtocolError("csr.version")`.
    """
    if version not in (V1, V2):
        raise ProtocolError("csr.version", "Unsupported API version")
    if len(data) > MAX_CSR:
        raise InvalidEvidence("csr.size", f"request has {len(data)} bytes, at most {MAX_CSR} are read")
    reader = Reader(data)
    confirm, pubkey = reader.string("confirm"), reader.bytes_("pubkey")
    config = _read_config(reader, version)
    if version == V2:
        envelope = reader.take(reader.remaining, "attestation")
    else:
        quote, event_log = reader.bytes_("quote"), reader.bytes_("event_log")
        reader.finish()
        envelope = _envelope_of(quote, event_log)
    return Csr(confirm=confirm, pubkey=pubkey, config=config, envelope=envelope)


def encode_csr(csr: Csr) -> bytes:
    """Encode a request in layout `V2`, which clients send."""
    config = csr.config
    flags = (
        config.usage_server_auth,
        config.usage_client_auth,
        config.ext_quote,
        config.ext_app_info,
    )
    return (
        scale.string(csr.confirm)
        + scale.bytes_(csr.pubkey)
        + _option(config.org_name, scale.string)
        + scale.string(config.subject)
        + scale.list_of(config.subject_alt_names, scale.string)
        + bytes(flags)
        + _option(config.not_before, _u64)
        + _option(config.not_after, _u64)
        + csr.envelope
    )


def signed_csr(key: EllipticCurvePrivateKey, config: CsrConfig, envelope: bytes) -> tuple[bytes, bytes]:
    """Return a request for `key`'s certificate in layout `V2`, and its signature.

    `envelope` is evidence over `report_data(RATLS_CERT, spki_der(key.public_key()))`.
    """
    data = encode_csr(Csr(pubkey=spki_der(key.public_key()), config=config, envelope=envelope))
    return data, key.sign(data, _ECDSA_SHA256)


def check_signature(csr: Csr, data: bytes, signature: bytes) -> None:
    """Check that the key that `csr`, decoded from `data`, is for signed `data`, and then the confirm word.

    Raises `InvalidEvidence`: `csr.key`, `csr.signature`, `csr.confirm`.
    """
    try:
        request_key(csr).verify(signature, data, _ECDSA_SHA256)
    except InvalidSignature as error:
        raise InvalidEvidence(
            "csr.signature", "the request's signature does not verify under its own key"
        ) from error
    if csr.confirm != CONFIRM:
        raise InvalidEvidence(
            "csr.confirm", f"the request begins with {csr.confirm[:32]!r}, expected {CONFIRM!r}"
        )


def request_key(csr: Csr) -> EllipticCurvePublicKey:
    """Return the key that a certificate is asked for. Raises `InvalidEvidence("csr.key")`."""
    spki = csr.pubkey
    try:
        key = load_der_public_key(spki) if len(spki) == _SPKI_BYTES else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if (
        not isinstance(key, EllipticCurvePublicKey)
        or not isinstance(key.curve, SECP256R1)
        or spki_der(key) != spki
    ):
        raise InvalidEvidence(
            "csr.key", "the request's key is not the subject public key info of an uncompressed p-256 point"
        )
    return key


def _envelope_of(quote: bytes, event_log: bytes) -> bytes:
    # only old clients of tdx machines need these
    from shared.attestation.envelope import encode_envelope  # noqa: PLC0415 - as above
    from shared.attestation.legacy_request import attestation_of_quote  # noqa: PLC0415 - as above

    return encode_envelope(attestation_of_quote(quote, event_log, ""))


def _read_config(reader: Reader, version: int) -> CsrConfig:
    org_name = _read_option(reader, Reader.string, "org_name")
    subject = reader.string("subject")
    names = reader.list_of(lambda r: r.string("subject_alt_name"), "subject_alt_names", smallest=1)
    server, client, quote = (
        _read_flag(reader, flag) for flag in ("usage_server_auth", "usage_client_auth", "ext_quote")
    )
    config = CsrConfig(
        org_name=org_name,
        subject=subject,
        subject_alt_names=names,
        usage_server_auth=server,
        usage_client_auth=client,
        ext_quote=quote,
    )
    if version == V1:
        return config
    return msgspec.structs.replace(
        config,
        ext_app_info=_read_flag(reader, "ext_app_info"),
        not_before=_read_option(reader, _read_u64, "not_before"),
        not_after=_read_option(reader, _read_u64, "not_after"),
    )


def _read_flag(reader: Reader, what: str) -> bool:
    value = reader.u8(what)
    if value > 1:
        raise InvalidEvidence("csr.flag", f"{what} is marked by byte {value:#04x}, expected 0x00 or 0x01")
    return value == 1


def _read_option(reader: Reader, item: Callable[[Reader, str], T], what: str) -> T | None:
    return item(reader, what) if _read_flag(reader, what) else None


def _read_u64(reader: Reader, what: str) -> int:
    return int.from_bytes(reader.take(8, what), "little")


def _option(value: T | None, item: Callable[[T], bytes]) -> bytes:
    return b"\0" if value is None else b"\1" + item(value)


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")

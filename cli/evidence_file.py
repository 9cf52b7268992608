"""What a file of evidence holds: every form in which evidence travels (spec attestation 1.8, 2.3, 7.1)."""

from typing import Literal

import msgspec

from shared.attestation.cose import MAX_COSE
from shared.attestation.envelope import MAX_ENVELOPE, Attestation, decode_envelope
from shared.attestation.legacy_request import attestation_of_quote
from shared.errors import ConfigError, InvalidEvidence, ProtocolError
from shared.hex import decode_hex

# Hex doubles the size, and a text file may end lines.
MAX_INPUT = 2 * MAX_ENVELOPE + 4096
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_TDX_TEE = bytes.fromhex("81000000")

Kind = Literal["envelope", "nitro-document", "tdx-quote", "request", "certificate"]


class EvidenceFile(msgspec.Struct, frozen=True):
    """One file, told apart. `attestation` is None for bare hardware evidence, which `bare` holds then.

    `report_data` is what the file itself says that the evidence must carry: the TLS key of a certificate.
    """

    kind: Kind
    attestation: Attestation | None = None
    bare: bytes = b""
    report_data: bytes | None = None


class _Request(msgspec.Struct, frozen=True):
    """What a verifier request, or a guest agent's answer to GetQuote or Attest, has in common."""

    attestation: str | None = None
    quote: str | None = None
    event_log: str | None = None
    vm_config: str | None = None


def read_evidence(data: bytes) -> EvidenceFile:
    """Tell what `data` is and decode it.

    It may be an envelope (V0 or V1), a Nitro document, a TDX quote, a JSON request or agent's answer, an
    RA-TLS certificate (PEM or DER), or hex of any of them.

    Raises `ConfigError("verify.file.size")`; `InvalidEvidence`: `verify.file.unknown`, `verify.file.request`,
    `verify.file.no_attestation`, and what decoding raises.
    """
    if len(data) > MAX_INPUT:
        raise ConfigError("verify.file.size", f"file is larger than {MAX_INPUT} bytes, no evidence is")
    data = _unhexed(data)
    if data.lstrip()[:1] == b"{":
        return _request(data)
    if data.lstrip().startswith(b"-----BEGIN CERTIFICATE-----") or data[:2] == b"\x30\x82":
        attestation, report_data = read_certificate(data)
        return EvidenceFile("certificate", attestation, report_data=report_data)
    # An envelope of version 1 is a map of three or more, so these two bytes are a COSE_Sign1's alone.
    if data[:1] in (b"\x84", b"\xd2") and len(data) <= MAX_COSE:
        return EvidenceFile("nitro-document", bare=data)
    if data[4:8] == _TDX_TEE and data[1:2] == b"\x00" and data[0] in {4, 5}:
        return EvidenceFile("tdx-quote", bare=data)
    return EvidenceFile("envelope", decode_envelope(data))


def _unhexed(data: bytes) -> bytes:
    """Return the bytes that hex text stands for, or the data as it is when it is not hex."""
    digits = b"".join(data.split()).removeprefix(b"0x")
    if digits and len(digits) % 2 == 0 and _HEX_DIGITS.issuperset(digits):
        return bytes.fromhex(digits.decode())
    return data


def _request(data: bytes) -> EvidenceFile:
    try:
        request = msgspec.json.decode(data, type=_Request)
        if request.attestation:
            envelope = decode_hex(request.attestation, what="attestation")
            return EvidenceFile("request", decode_envelope(envelope))
        if request.quote and request.event_log is not None:
            quote = decode_hex(request.quote, what="quote")
            attestation = attestation_of_quote(quote, request.event_log, request.vm_config or "")
            return EvidenceFile("request", attestation)
        if request.quote:
            return EvidenceFile("tdx-quote", bare=decode_hex(request.quote, what="quote"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvidence("verify.file.request", "file is not a json request with evidence") from error
    except ProtocolError as error:
        raise InvalidEvidence("verify.file.request", error.message) from error
    raise InvalidEvidence("verify.file.request", "request has neither an attestation nor a quote")


def read_certificate(data: bytes) -> tuple[Attestation, bytes]:
    """Return a certificate's evidence (PEM or DER), and the report_data that its key makes.

    Nothing else of the certificate is looked at. Raises `InvalidEvidence`: `verify.file.unknown`,
    `verify.file.no_attestation`, `ratls.*`, and what decoding raises.
    """
    # PLC0415: certificates are the rare form, and their code loads the TLS rooms
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    from shared.ratls.extensions import read_attestation, read_extensions  # noqa: PLC0415
    from shared.ratls.peer import ratls_report_data  # noqa: PLC0415

    try:
        if data[:1] == b"\x30":
            certificate = x509.load_der_x509_certificate(data)
        else:
            certificate = x509.load_pem_x509_certificates(data)[0]
        der = certificate.public_bytes(Encoding.DER)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise InvalidEvidence("verify.file.unknown", "file is not a readable certificate") from error
    report_data = ratls_report_data(der)
    envelope = read_attestation(read_extensions(certificate))
    if envelope is None:
        raise InvalidEvidence("verify.file.no_attestation", "certificate carries no attestation")
    return decode_envelope(envelope), report_data

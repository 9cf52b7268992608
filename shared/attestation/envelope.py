"""Envelopes: evidence, runtime events, report_data and config as bytes (spec attestation 1.1-1.3).

The model, the choice between the two wire forms, and the older one, V0 in SCALE; `envelope_v1` has the other.
Decoding says nothing about truth: an `Attestation` is a claim until `verify.verify_attestation` accepted it.
"""

import hashlib

import msgspec

from shared.attestation import scale
from shared.attestation.scale import Reader
from shared.boot_info import NITRO_ENCLAVE
from shared.errors import InvalidEvidence

# The largest envelope that upstream's decoder takes; a real one is 5 KB (Nitro) to 100 KB (TDX with its
# logs).
MAX_ENVELOPE = 10 * 1024 * 1024
REPORT_DATA_LENGTH = 64

_V0 = 0x00
_WIDE_MAPS = (0xDE, 0xDF)  # messagepack maps of 16 entries or more
TPM_PLATFORMS = ("dstack", "gcp", "nitroenclave", "aws-ec2")


class RuntimeEvent(msgspec.Struct, frozen=True):
    """One event that the guest reported: a name and raw payload. `version` is 1 or 2, in V0 always 1."""

    event: str
    payload: bytes
    version: int = 1


class TdxEvent(msgspec.Struct, frozen=True):
    """One entry of a TDX event log; `imr` counts from 0.

    A runtime event may lack its digest. `version` and `preimage` say how one was hashed (section 3.4); V0
    carries neither.
    """

    imr: int
    event_type: int
    digest: bytes
    event: str
    event_payload: bytes
    version: int = 1
    preimage: bytes | None = None


class PcrValue(msgspec.Struct, frozen=True):
    """One quoted TPM register."""

    index: int
    algorithm: str
    value: bytes


class TpmEvent(msgspec.Struct, frozen=True):
    """One entry of a TPM event log."""

    pcr_index: int
    digest: bytes


class TpmQuote(msgspec.Struct, frozen=True):
    """A TPM quote: TPMS_ATTEST, TPMT_SIGNATURE, registers, attestation-key certificate (DER), event log."""

    message: bytes
    signature: bytes
    pcr_values: tuple[PcrValue, ...]
    ak_cert: bytes
    platform: str
    event_log: tuple[TpmEvent, ...]


class TdxQuote(msgspec.Struct, frozen=True):
    """Variant 0: a TDX quote and its event log."""

    quote: bytes
    event_log: tuple[TdxEvent, ...]


class GcpTdxQuote(msgspec.Struct, frozen=True):
    """Variant 1: a TDX quote with the vTPM quote that names it."""

    tdx: TdxQuote
    tpm: TpmQuote


class NitroEnclaveQuote(msgspec.Struct, frozen=True):
    """Variant 2: the NSM's COSE_Sign1 document."""

    nsm_quote: bytes


class SevSnpQuote(msgspec.Struct, frozen=True):
    """Variant 3: an SEV-SNP report, its certificates and the mr_config document."""

    report: bytes
    cert_chain: tuple[bytes, ...]
    mr_config: str


class NitroTpmQuote(msgspec.Struct, frozen=True):
    """Variant 4: the NitroTPM's COSE document."""

    attestation_doc: bytes


Quote = TdxQuote | GcpTdxQuote | NitroEnclaveQuote | SevSnpQuote | NitroTpmQuote

_VARIANTS: dict[type[Quote], tuple[int, str]] = {
    TdxQuote: (0, "dstack-tdx"),
    GcpTdxQuote: (1, "dstack-gcp-tdx"),
    NitroEnclaveQuote: (2, NITRO_ENCLAVE),
    SevSnpQuote: (3, "dstack-amd-sev-snp"),
    NitroTpmQuote: (4, "dstack-aws-nitro-tpm"),
}


class Attestation(msgspec.Struct, frozen=True):
    """A decoded envelope. `report_data` is 64 bytes, `config` the attester's JSON text (section 1.5).

    `report_data_payload` is the text behind report_data of stack kind `dstack-pod`
    (`check_pod_payload`), None for kind `dstack`.
    """

    quote: Quote
    runtime_events: tuple[RuntimeEvent, ...]
    report_data: bytes
    config: str
    report_data_payload: str | None = None

    @property
    def tee_variant(self) -> str:
        """Upstream's name of the platform, as in BootInfo."""
        return _VARIANTS[type(self.quote)][1]


def decode_envelope(data: bytes) -> Attestation:
    """Decode an envelope of either version; every byte must be accounted for.

    Raises `InvalidEvidence`: `envelope.size`, `envelope.empty`, `envelope.version.unknown`,
    `envelope.variant.unknown`, `envelope.platform.unknown`, a `scale.*` code for the layout of V0, and for
    V1 those of `envelope_v1.decode_v1`.
    """
    if len(data) > MAX_ENVELOPE:
        raise InvalidEvidence(
            "envelope.size", f"envelope has {len(data)} bytes, at most {MAX_ENVELOPE} are read"
        )
    if not data:
        raise InvalidEvidence("envelope.empty", "envelope is empty, expected at least a version byte")
    if 0x80 <= data[0] <= 0x8F or data[0] in _WIDE_MAPS:
        from shared.attestation.envelope_v1 import decode_v1  # noqa: PLC0415 - it imports the model above

        return decode_v1(data)
    reader = Reader(data)
    if (version := reader.u8("envelope version")) != _V0:
        raise InvalidEvidence(
            "envelope.version.unknown",
            f"envelope starts with byte {version:#04x}, expected 0x00 or a messagepack map",
        )
    attestation = Attestation(
        quote=_read_quote(reader),
        runtime_events=reader.list_of(_read_runtime_event, "runtime_events", smallest=2),
        report_data=reader.take(REPORT_DATA_LENGTH, "report_data"),
        config=reader.string("config"),
    )
    reader.finish()
    return attestation


def encode_envelope(attestation: Attestation) -> bytes:
    """Encode an envelope in the form that carries all of it: V0, or V1 where V0 would lose something.

    Raises `InvalidEvidence("envelope.report_data.length")` when report_data is not 64 bytes.
    """
    if needs_v1(attestation):
        from shared.attestation.envelope_v1 import encode_v1  # noqa: PLC0415 - it imports the model above

        return encode_v1(attestation)
    return encode_v0(attestation)


def needs_v1(attestation: Attestation) -> bool:
    """Say whether an event has a version or preimage, or the stack a kind, that V0 has no place for."""
    tdx = _tdx_events(attestation.quote)
    return (
        attestation.report_data_payload is not None
        or any(event.version != 1 for event in attestation.runtime_events)
        or any(event.version != 1 or event.preimage is not None for event in tdx)
    )


def check_report_data(attestation: Attestation) -> None:
    """Refuse report_data of another length than 64, `InvalidEvidence("envelope.report_data.length")`."""
    if len(attestation.report_data) != REPORT_DATA_LENGTH:
        raise InvalidEvidence(
            "envelope.report_data.length",
            f"report_data has {len(attestation.report_data)} bytes, expected {REPORT_DATA_LENGTH}",
        )


def encode_v0(attestation: Attestation) -> bytes:
    """Encode an envelope as V0, the exact inverse of `decode_envelope`.

    Raises `InvalidEvidence`: `envelope.event.version` for events that V0 cannot carry (another version than
    1, a preimage), `envelope.stack.kind` for stack kind `dstack-pod`, `envelope.report_data.length`.
    """
    check_report_data(attestation)
    if attestation.report_data_payload is not None:
        raise InvalidEvidence(
            "envelope.stack.kind", "the stack is dstack-pod, envelope v0 carries dstack alone"
        )
    if needs_v1(attestation):
        raise InvalidEvidence(
            "envelope.event.version", "an event has version 2 or a preimage, envelope v0 carries version 1"
        )
    return (
        bytes([_V0, _VARIANTS[type(attestation.quote)][0]])
        + _write_quote(attestation.quote)
        + scale.list_of(attestation.runtime_events, lambda e: scale.string(e.event) + scale.bytes_(e.payload))
        + attestation.report_data
        + scale.string(attestation.config)
    )


def check_pod_payload(attestation: Attestation) -> None:
    """Check that report_data of stack kind `dstack-pod` is the hash of its payload; kind `dstack` passes.

    It must be sha512("app-data:" || payload). Raises `InvalidEvidence("envelope.pod.report_data")`.
    """
    payload = attestation.report_data_payload
    if payload is not None and attestation.report_data != _hash_of(payload):
        raise InvalidEvidence(
            "envelope.pod.report_data",
            f"report_data begins {attestation.report_data[:16].hex()}, which is not the hash of its payload",
        )


def _hash_of(pod_payload: str) -> bytes:
    # not through `report_data`, whose other hashes need a library that a verifier lacks
    return hashlib.sha512(b"app-data:" + pod_payload.encode()).digest()


def _tdx_events(quote: Quote) -> tuple[TdxEvent, ...]:
    match quote:
        case TdxQuote():
            return quote.event_log
        case GcpTdxQuote():
            return quote.tdx.event_log
        case _:
            return ()


def _read_quote(reader: Reader) -> Quote:
    variant = reader.u8("quote variant")
    match variant:
        case 0:
            return _read_tdx(reader)
        case 1:
            return GcpTdxQuote(_read_tdx(reader), _read_tpm(reader))
        case 2:
            return NitroEnclaveQuote(reader.bytes_("nsm_quote"))
        case 3:
            return SevSnpQuote(
                reader.bytes_("report"),
                reader.list_of(lambda r: r.bytes_("certificate"), "cert_chain", smallest=1),
                reader.string("mr_config"),
            )
        case 4:
            return NitroTpmQuote(reader.bytes_("attestation_doc"))
        case _:
            raise InvalidEvidence("envelope.variant.unknown", f"quote variant is {variant}, expected 0 to 4")


def _read_tdx(reader: Reader) -> TdxQuote:
    return TdxQuote(reader.bytes_("quote"), reader.list_of(_read_tdx_event, "event_log", smallest=11))


def _read_tdx_event(reader: Reader) -> TdxEvent:
    return TdxEvent(
        imr=reader.u32("imr"),
        event_type=reader.u32("event_type"),
        digest=reader.bytes_("digest"),
        event=reader.string("event"),
        event_payload=reader.bytes_("event_payload"),
    )


def _read_tpm(reader: Reader) -> TpmQuote:
    message = reader.bytes_("tpm message")
    signature = reader.bytes_("tpm signature")
    pcr_values = reader.list_of(
        lambda r: PcrValue(r.u32("pcr index"), r.string("pcr algorithm"), r.bytes_("pcr value")),
        "pcr_values",
        smallest=6,
    )
    ak_cert = reader.bytes_("ak_cert")
    platform = reader.u8("tpm platform")
    if platform >= len(TPM_PLATFORMS):
        raise InvalidEvidence("envelope.platform.unknown", f"tpm platform is {platform}, expected 0 to 3")
    event_log = reader.list_of(
        lambda r: TpmEvent(r.u32("pcr_index"), r.bytes_("digest")), "tpm event_log", smallest=5
    )
    return TpmQuote(message, signature, pcr_values, ak_cert, TPM_PLATFORMS[platform], event_log)


def _read_runtime_event(reader: Reader) -> RuntimeEvent:
    return RuntimeEvent(reader.string("event name"), reader.bytes_("event payload"))


def _write_quote(quote: Quote) -> bytes:
    match quote:
        case TdxQuote():
            return _write_tdx(quote)
        case GcpTdxQuote():
            return _write_tdx(quote.tdx) + _write_tpm(quote.tpm)
        case NitroEnclaveQuote():
            return scale.bytes_(quote.nsm_quote)
        case SevSnpQuote():
            return (
                scale.bytes_(quote.report)
                + scale.list_of(quote.cert_chain, scale.bytes_)
                + scale.string(quote.mr_config)
            )
    return scale.bytes_(quote.attestation_doc)


def _write_tdx(quote: TdxQuote) -> bytes:
    return scale.bytes_(quote.quote) + scale.list_of(
        quote.event_log,
        lambda e: (
            scale.u32(e.imr)
            + scale.u32(e.event_type)
            + scale.bytes_(e.digest)
            + scale.string(e.event)
            + scale.bytes_(e.event_payload)
        ),
    )


def _write_tpm(quote: TpmQuote) -> bytes:
    return (
        scale.bytes_(quote.message)
        + scale.bytes_(quote.signature)
        + scale.list_of(
            quote.pcr_values, lambda p: scale.u32(p.index) + scale.string(p.algorithm) + scale.bytes_(p.value)
        )
        + scale.bytes_(quote.ak_cert)
        + bytes([TPM_PLATFORMS.index(quote.platform)])
        + scale.list_of(quote.event_log, lambda e: scale.u32(e.pcr_index) + scale.bytes_(e.digest))
    )

"""The V1 envelope in MessagePack (spec attestation section 1.4).

Written byte for byte as upstream writes it; read with keys in any order and with byte fields in either of
their two spellings. A key that the section does not name, or lacks, is refused.
"""

from collections.abc import Callable
from typing import Final, NoReturn, TypeVar

from shared.attestation import messagepack
from shared.attestation.envelope import (
    TPM_PLATFORMS,
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    NitroTpmQuote,
    PcrValue,
    Quote,
    RuntimeEvent,
    SevSnpQuote,
    TdxEvent,
    TdxQuote,
    TpmEvent,
    TpmQuote,
    check_report_data,
)
from shared.attestation.messagepack import Value, array, bin_, byte_array, map_, string, uint
from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex

T = TypeVar("T")

_VERSION: Final = 1
_EVENT_VERSIONS: Final = (1, 2)
_STACK: Final = "dstack"
_POD: Final = "dstack-pod"
_MAX_U32: Final = (1 << 32) - 1


def decode_v1(data: bytes) -> Attestation:
    """Decode a V1 envelope; `envelope.decode_envelope` has checked its size and first byte.

    Raises `InvalidEvidence`: a `msgpack.*` code for the encoding, `envelope.version.unknown`,
    `envelope.variant.unknown` and `envelope.stack.kind` for a kind of platform or stack that is not known,
    `envelope.platform.unknown` for a TPM's, `envelope.fields` for a missing or unknown key, `envelope.type`
    for a value of another type or range, `envelope.event.version`, `envelope.preimage`,
    `envelope.report_data.length`.
    """
    top = _Map(messagepack.decode_strict(data), "envelope", ("version", "platform", "stack"))
    if (version := top.uint("version")) != _VERSION:
        raise InvalidEvidence(
            "envelope.version.unknown", f"messagepack envelope has version {version}, expected {_VERSION}"
        )
    platform = top.map("platform", ("kind", "data"))
    stack = top.map("stack", ("kind", "data"))
    quote = _read_platform(platform)
    match stack.text("kind"):
        case "dstack":
            body = stack.map("data", ("report_data", "runtime_events", "config"))
            payload = None
        case "dstack-pod":
            keys = ("report_data", "runtime_events", "config", "report_data_payload")
            body = stack.map("data", keys)
            payload = body.text("report_data_payload")
        case kind:
            raise InvalidEvidence(
                "envelope.stack.kind", f"stack kind is {kind[:32]!r}, expected {_STACK} or {_POD}"
            )
    attestation = Attestation(
        quote=quote,
        runtime_events=body.list("runtime_events", _read_runtime_event),
        report_data=body.bytes("report_data"),
        config=body.text("config"),
        report_data_payload=payload,
    )
    check_report_data(attestation)
    return attestation


class _Map:
    """A map whose keys were checked, and typed access to its values."""

    def __init__(
        self, value: Value, what: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> None:
        if not isinstance(value, dict):
            raise InvalidEvidence("envelope.type", f"{what} is not a map")
        missing = [key for key in required if key not in value]
        unknown = [key[:32] for key in value if key not in required and key not in optional]
        if missing or unknown:
            raise InvalidEvidence(
                "envelope.fields", f"{what} lacks the keys {missing} or has the unknown keys {unknown[:8]}"
            )
        self._entries = value
        self._what = what

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def uint(self, key: str) -> int:
        value = self._entries[key]
        if not isinstance(value, int) or value > _MAX_U32:
            self._refuse(key, "a number below 2^32")
        return value

    def text(self, key: str) -> str:
        value = self._entries[key]
        if not isinstance(value, str):
            self._refuse(key, "text")
        return value

    def bytes(self, key: str) -> bytes:
        return _bytes(self._entries[key], f"{key} of {self._what}")

    def map(self, key: str, required: tuple[str, ...]) -> "_Map":
        return _Map(self._entries[key], key, required)

    def list(self, key: str, item: Callable[[Value], T]) -> tuple[T, ...]:
        value = self._entries[key]
        if not isinstance(value, list):
            self._refuse(key, "a list")
        return tuple(map(item, value))

    def event_version(self) -> int:
        version = self.uint("version") if "version" in self else 1
        if version not in _EVENT_VERSIONS:
            raise InvalidEvidence(
                "envelope.event.version", f"{self._what} has version {version}, expected 1 or 2"
            )
        return version

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        raise InvalidEvidence("envelope.type", f"{key} of {self._what} is not {wanted}")


def _bytes(value: Value, what: str) -> bytes:
    if value == []:
        return b""
    if not isinstance(value, bytes):
        raise InvalidEvidence("envelope.type", f"{what} is not bytes")
    return value


def _read_platform(platform: _Map) -> Quote:
    match platform.text("kind"):
        case "tdx":
            return _read_tdx(platform.map("data", ("quote", "event_log")))
        case "gcp-tdx":
            data = platform.map("data", ("quote", "event_log", "tpm_quote"))
            return GcpTdxQuote(_read_tdx(data), _read_tpm(data))
        case "nitro-enclave":
            return NitroEnclaveQuote(platform.map("data", ("nsm_quote",)).bytes("nsm_quote"))
        case "aws-nitro-tpm":
            return NitroTpmQuote(platform.map("data", ("attestation_doc",)).bytes("attestation_doc"))
        case "sev-snp":
            data = platform.map("data", ("report", "cert_chain", "mr_config"))
            chain = data.list("cert_chain", lambda value: _bytes(value, "certificate"))
            return SevSnpQuote(data.bytes("report"), chain, data.text("mr_config"))
        case kind:
            raise InvalidEvidence(
                "envelope.variant.unknown", f"platform kind is {kind[:32]!r}, expected one of section 1.4"
            )


def _read_tdx(data: _Map) -> TdxQuote:
    return TdxQuote(data.bytes("quote"), data.list("event_log", _read_tdx_event))


def _read_tdx_event(value: Value) -> TdxEvent:
    event = _Map(
        value,
        "tdx event",
        ("imr", "event_type", "event", "event_payload"),
        ("digest", "version", "preimage"),
    )
    return TdxEvent(
        imr=event.uint("imr"),
        event_type=event.uint("event_type"),
        digest=event.bytes("digest") if "digest" in event else b"",
        event=event.text("event"),
        event_payload=event.bytes("event_payload"),
        version=event.event_version(),
        preimage=_preimage(event.text("preimage")) if "preimage" in event else None,
    )


def _preimage(text: str) -> bytes:
    try:
        return decode_hex(text, what="preimage of a tdx event", prefix=False)
    except ProtocolError as error:
        raise InvalidEvidence("envelope.preimage", error.message) from error


def _read_tpm(data: _Map) -> TpmQuote:
    quote = data.map("tpm_quote", ("message", "signature", "pcr_values", "ak_cert", "platform", "event_log"))
    platform = quote.text("platform")
    if platform not in TPM_PLATFORMS:
        raise InvalidEvidence(
            "envelope.platform.unknown",
            f"tpm platform is {platform[:32]!r}, expected one of {', '.join(TPM_PLATFORMS)}",
        )
    return TpmQuote(
        message=quote.bytes("message"),
        signature=quote.bytes("signature"),
        pcr_values=quote.list("pcr_values", _read_pcr),
        ak_cert=quote.bytes("ak_cert"),
        platform=platform,
        event_log=quote.list("event_log", _read_tpm_event),
    )


def _read_pcr(value: Value) -> PcrValue:
    pcr = _Map(value, "pcr value", ("index", "algorithm", "value"))
    return PcrValue(pcr.uint("index"), pcr.text("algorithm"), pcr.bytes("value"))


def _read_tpm_event(value: Value) -> TpmEvent:
    event = _Map(value, "tpm event", ("pcr_index", "digest"))
    return TpmEvent(event.uint("pcr_index"), event.bytes("digest"))


def _read_runtime_event(value: Value) -> RuntimeEvent:
    event = _Map(value, "runtime event", ("event", "payload"), ("version",))
    return RuntimeEvent(event.text("event"), event.bytes("payload"), event.event_version())


def encode_v1(attestation: Attestation) -> bytes:
    """Encode an envelope as V1, byte for byte as upstream does.

    Raises `InvalidEvidence("envelope.report_data.length")` when report_data is not 64 bytes.
    """
    check_report_data(attestation)
    kind, data = _write_platform(attestation.quote)
    stack = {
        "report_data": byte_array(attestation.report_data),
        "runtime_events": array([_write_runtime_event(event) for event in attestation.runtime_events]),
        "config": string(attestation.config),
    }
    if attestation.report_data_payload is not None:
        stack["report_data_payload"] = string(attestation.report_data_payload)
    stack_kind = _STACK if attestation.report_data_payload is None else _POD
    return map_(
        {
            "version": uint(_VERSION),
            "platform": map_({"kind": string(kind), "data": map_(data)}),
            "stack": map_({"kind": string(stack_kind), "data": map_(stack)}),
        }
    )


def _write_platform(quote: Quote) -> tuple[str, dict[str, bytes]]:
    match quote:
        case TdxQuote():
            return "tdx", _write_tdx(quote)
        case GcpTdxQuote():
            return "gcp-tdx", {**_write_tdx(quote.tdx), "tpm_quote": _write_tpm(quote.tpm)}
        case NitroEnclaveQuote():
            return "nitro-enclave", {"nsm_quote": byte_array(quote.nsm_quote)}
        case SevSnpQuote():
            return "sev-snp", {
                "report": byte_array(quote.report),
                "cert_chain": array([byte_array(certificate) for certificate in quote.cert_chain]),
                "mr_config": string(quote.mr_config),
            }
    return "aws-nitro-tpm", {"attestation_doc": byte_array(quote.attestation_doc)}


def _write_tdx(quote: TdxQuote) -> dict[str, bytes]:
    return {
        "quote": byte_array(quote.quote),
        "event_log": array([_write_tdx_event(event) for event in quote.event_log]),
    }


def _write_tdx_event(event: TdxEvent) -> bytes:
    entries = {
        "imr": uint(event.imr),
        "event_type": uint(event.event_type),
        "digest": bin_(event.digest),
        "event": string(event.event),
        "event_payload": bin_(event.event_payload),
    }
    if event.version != 1:
        entries["version"] = uint(event.version)
    if event.preimage is not None:
        entries["preimage"] = string(event.preimage.hex())
    return map_(entries)


def _write_tpm(quote: TpmQuote) -> bytes:
    return map_(
        {
            "message": bin_(quote.message),
            "signature": bin_(quote.signature),
            "pcr_values": array(
                [
                    map_(
                        {
                            "index": uint(pcr.index),
                            "algorithm": string(pcr.algorithm),
                            "value": bin_(pcr.value),
                        }
                    )
                    for pcr in quote.pcr_values
                ]
            ),
            "ak_cert": bin_(quote.ak_cert),
            "platform": string(quote.platform),
            "event_log": array(
                [
                    map_({"pcr_index": uint(event.pcr_index), "digest": bin_(event.digest)})
                    for event in quote.event_log
                ]
            ),
        }
    )


def _write_runtime_event(event: RuntimeEvent) -> bytes:
    entries = {"event": string(event.event), "payload": bin_(event.payload)}
    if event.version != 1:
        entries["version"] = uint(event.version)
    return map_(entries)

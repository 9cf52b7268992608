"""Who this guest is, read from its own evidence (spec guest-agent section 2.8).

The evidence comes from the guest's own devices a moment ago: nothing is verified here, and nobody who is told
the result is asked to believe it. A relying party verifies evidence of its own asking.
"""

import hashlib
import json
from typing import Any, Final

import msgspec

from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    NitroTpmQuote,
    TdxEvent,
    TdxQuote,
)
from shared.attestation.event_log import replay, system_events
from shared.attestation.event_log_json import event_fields, getquote_log
from shared.attestation.image import claimed_config, os_image_hash_of
from shared.errors import ConfigError

NO_REGISTER: Final = "0" * 96
"""Stands for a register that this kind of guest has not: released SDKs want 96 digits, and not null."""

_NOBODYS_DEVICE: Final = hashlib.sha256(b"").digest()
"""The device id of every guest that cannot tell its machine's: only a verifier learns that."""

_REGISTERS: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")


class OwnIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What Info tells: raw bytes, empty where the guest recorded nothing; registers as hex.

    `config` is the text of the evidence, which names the image.
    """

    tee_variant: str
    app_id: bytes
    instance_id: bytes
    compose_hash: bytes
    device_id: bytes
    mr_aggregated: bytes
    os_image_hash: bytes
    key_provider_info: str
    registers: tuple[str, ...]
    event_log: tuple[TdxEvent, ...]
    config: str

    def tcb_info(self, app_compose: str) -> str:
        """Return the JSON text that Info carries, laid out as upstream's; `app_compose` goes in as it is."""
        document: dict[str, Any] = dict(zip(_REGISTERS, self.registers, strict=True))
        document |= {
            "mr_aggregated": self.mr_aggregated.hex(),
            "os_image_hash": self.os_image_hash.hex(),
            "compose_hash": self.compose_hash.hex(),
            "device_id": self.device_id.hex(),
            "event_log": [event_fields(event) for event in self.event_log],
            "app_compose": app_compose,
        }
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)


def read_identity(evidence: Attestation, *, whole_log: bool = False) -> OwnIdentity:
    """Return the identity that evidence of this guest tells.

    `whole_log` keeps the event log as it is in the evidence; it is cut down as GetQuote's otherwise. Raises
    `InvalidEvidence`: `event_log.*`, `vm_config.*`, `nitro.*`, `tdx.quote.*`; and
    `ConfigError("agent.platform")`.
    """
    events = system_events(evidence.runtime_events)
    claimed = claimed_config(evidence).os_image_hash if evidence.config else b""
    compose_hash = events.compose_hash
    registers: tuple[str, ...] = (NO_REGISTER,) * len(_REGISTERS)
    match evidence.quote:
        case TdxQuote() as tdx:
            registers, aggregated = _of_tdx(evidence, tdx)
        case GcpTdxQuote(tdx=tdx):
            registers, _ = _of_tdx(evidence, tdx)
            values = {pcr.index: pcr.value for pcr in evidence.quote.tpm.pcr_values}
            aggregated = _sha256(values[0], values[2], replay(evidence.runtime_events, "sha256"))
        case NitroEnclaveQuote(nsm_quote=document):
            aggregated = _of_enclave(document)
            claimed = claimed or aggregated
            compose_hash = claimed
        case NitroTpmQuote(attestation_doc=document):
            aggregated = _of_instance(evidence, document)
        case _:
            raise ConfigError("agent.platform", f"no agent runs on {evidence.tee_variant}")
    log = tdx_log(evidence)
    return OwnIdentity(
        tee_variant=evidence.tee_variant,
        app_id=events.app_id,
        instance_id=events.instance_id,
        compose_hash=compose_hash,
        device_id=_NOBODYS_DEVICE,
        mr_aggregated=aggregated,
        os_image_hash=claimed,
        key_provider_info=events.key_provider.decode(errors="replace"),
        registers=registers,
        event_log=log if whole_log else getquote_log(log, keep_digests=True),
        config=evidence.config,
    )


def tdx_half(evidence: Attestation) -> TdxQuote | None:
    """Return the TDX quote of evidence, None where there is none."""
    match evidence.quote:
        case TdxQuote() as tdx:
            return tdx
        case GcpTdxQuote(tdx=tdx):
            return tdx
        case _:
            return None


def tdx_log(evidence: Attestation) -> tuple[TdxEvent, ...]:
    """Return the TDX event log of evidence, empty where there is none."""
    half = tdx_half(evidence)
    return () if half is None else half.event_log


def _of_tdx(evidence: Attestation, tdx: TdxQuote) -> tuple[tuple[str, ...], bytes]:
    # PLC0415: an enclave has no such quote, and does not load what reads one
    from shared.attestation.tdx_quote import parse_quote  # noqa: PLC0415

    report = parse_quote(tdx.quote).report
    configured = report.mr_config_id + report.mr_owner + report.mr_owner_config
    aggregated = _sha256(
        report.mrtd,
        *report.rtmrs[:3],
        replay(evidence.runtime_events, "sha384"),
        configured if any(configured) else b"",
    )
    return tuple(value.hex() for value in (report.mrtd, *report.rtmrs)), aggregated


def _of_enclave(document: bytes) -> bytes:
    from shared.attestation.nitro import parse_document  # noqa: PLC0415 - as above

    return os_image_hash_of(parse_document(document).pcrs)


def _of_instance(evidence: Attestation, document: bytes) -> bytes:
    from shared.attestation.nitro_tpm import parse_tpm_document  # noqa: PLC0415 - as above
    from shared.measurement.images import AWS_BOOT_PCRS  # noqa: PLC0415 - as above

    pcrs = parse_tpm_document(document).pcrs
    return _sha256(*(pcrs[index] for index in AWS_BOOT_PCRS), replay(evidence.runtime_events, "sha384"))


def _sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()

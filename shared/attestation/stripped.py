"""The stripped form of an envelope, small enough for a certificate (spec attestation section 1.7)."""

from collections.abc import Sequence

import msgspec

from shared.attestation.envelope import Attestation, GcpTdxQuote, TdxEvent, TdxQuote
from shared.attestation.event_log import RUNTIME_EVENT_TYPE, RUNTIME_RTMR, is_acpi_marker

BOOT_RTMR = 1
"""Where a guest's firmware measures the partition table and every program that it loads."""

PARTITION_TABLE = b"EFI PART"
"""How the text of a partition table's event begins."""


def strip(attestation: Attestation, *, keep_boot: bool = False) -> Attestation:
    """Return the evidence with its TDX event log cut down to what the quote alone cannot give back.

    RTMR3 events stay, and in a plain TDX guest the ACPI markers of RTMR0. A runtime event loses digest and
    preimage, which its name and payload give back. All else is unchanged, and so is evidence of the other
    platforms. Stripping twice changes nothing more.

    `keep_boot`, which upstream has not and reads over, leaves a Google Cloud guest the events of RTMR1: their
    digests, and the partition table's text. With them a verifier sees what was loaded before and after the
    image (`shared.attestation.image`).
    """
    match attestation.quote:
        case TdxQuote() as quote:
            log = _stripped(quote.event_log, keep_acpi=True)
            return msgspec.structs.replace(attestation, quote=msgspec.structs.replace(quote, event_log=log))
        case GcpTdxQuote() as quote:
            log = _stripped(quote.tdx.event_log, keep_acpi=False)
            if keep_boot:
                boot = (event for event in quote.tdx.event_log if event.imr == BOOT_RTMR)
                log = (*map(_without_text, boot), *log)
            tdx = msgspec.structs.replace(quote.tdx, event_log=log)
            return msgspec.structs.replace(attestation, quote=msgspec.structs.replace(quote, tdx=tdx))
        case _:
            return attestation


def _stripped(events: Sequence[TdxEvent], *, keep_acpi: bool) -> tuple[TdxEvent, ...]:
    return tuple(
        msgspec.structs.replace(event, digest=b"", preimage=None)
        if event.event_type == RUNTIME_EVENT_TYPE
        else event
        for event in events
        if event.imr == RUNTIME_RTMR or (keep_acpi and is_acpi_marker(event))
    )


def _without_text(event: TdxEvent) -> TdxEvent:
    if event.event_payload.startswith(PARTITION_TABLE):
        return event
    return msgspec.structs.replace(event, event_payload=b"")

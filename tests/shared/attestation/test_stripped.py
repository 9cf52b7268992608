import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    Quote,
    RuntimeEvent,
    TdxEvent,
    TdxQuote,
    TpmEvent,
    TpmQuote,
    decode_envelope,
    encode_envelope,
)
from shared.attestation.event_log import check_event_lists
from shared.attestation.stripped import strip
from tests.shared.attestation.test_event_log import LADDER, logged

ACPI = TdxEvent(0, 10, b"\x01" * 48, "acpi-loader", b"ACPI DATA")
LOG = (
    TdxEvent(0, 4, bytes(48), "", b"x"),
    ACPI,
    TdxEvent(1, 10, bytes(48), "", b"ACPI DATA"),
    TdxEvent(0, 10, bytes(48), "", b"other"),
    TdxEvent(2, 6, bytes(48), "", b"x"),
    *map(logged, LADDER),
)
TPM = TpmQuote(b"m", b"s", (), b"c", "gcp", (TpmEvent(0, bytes(32)),))


def stripped(quote: Quote, events: tuple[RuntimeEvent, ...] = LADDER) -> Attestation:
    once = strip(Attestation(quote, events, bytes(64), "{}"))
    assert strip(once) == once
    assert decode_envelope(encode_envelope(once)) == once
    return once


def test_a_tdx_envelope_keeps_acpi_markers_and_runtime_events_without_digest() -> None:
    log = (ACPI, *(logged(event, stripped=True) for event in LADDER))
    assert stripped(TdxQuote(b"q", LOG)) == Attestation(TdxQuote(b"q", log), LADDER, bytes(64), "{}")
    check_event_lists(log, LADDER)


def test_a_gcp_envelope_keeps_runtime_events_and_the_whole_tpm_log() -> None:
    log = tuple(logged(event, stripped=True) for event in LADDER)
    assert stripped(GcpTdxQuote(TdxQuote(b"q", LOG), TPM)).quote == GcpTdxQuote(TdxQuote(b"q", log), TPM)


def test_another_platform_is_unchanged() -> None:
    quote = NitroEnclaveQuote(b"document")
    assert stripped(quote) == Attestation(quote, LADDER, bytes(64), "{}")


def test_a_version_2_event_loses_its_preimage_and_still_passes() -> None:
    events = tuple(RuntimeEvent(event.event, event.payload, 2) for event in LADDER)
    kept = stripped(TdxQuote(b"q", tuple(map(logged, events))), events)
    assert isinstance(kept.quote, TdxQuote)
    assert all(event.version == 2 and event.preimage is None for event in kept.quote.event_log)
    check_event_lists(kept.quote.event_log, events)


def test_an_rtmr3_event_of_another_type_keeps_its_digest() -> None:
    odd = TdxEvent(3, 4, b"\x05" * 48, "", b"")
    kept = stripped(TdxQuote(b"q", (odd,)))
    assert kept.quote == TdxQuote(b"q", (odd,))


def test_a_real_stripped_envelope_is_what_stripping_its_full_log_gives(
    shared_data: Callable[[str], Path],
) -> None:
    folder = "attestation/upstream/verifier/"
    body = json.loads(shared_data(folder + "tdx-lite-attestation.json").read_bytes())
    attestation = decode_envelope(bytes.fromhex(body["attestation"]))
    assert strip(attestation) == attestation
    full = decode_envelope(shared_data("attestation/upstream/tdx/v0_tdx_attestation.bin").read_bytes())
    assert isinstance(full.quote, TdxQuote)
    reduced = strip(full)
    assert isinstance(reduced.quote, TdxQuote)
    assert {event.imr for event in reduced.quote.event_log} <= {0, 3}
    assert msgspec.structs.replace(reduced, quote=full.quote) == full


def test_a_guests_own_certificate_keeps_the_digests_of_rtmr1_and_the_partition_table() -> None:
    table = TdxEvent(1, 0x80000006, b"\x02" * 48, "", b"EFI PART and the rest")
    program = TdxEvent(1, 0x80000003, b"\x03" * 48, "", b"a path")
    quote = GcpTdxQuote(TdxQuote(b"q", (table, program, *LOG)), TPM)
    kept = strip(Attestation(quote, LADDER, bytes(64), "{}"), keep_boot=True)
    assert isinstance(kept.quote, GcpTdxQuote)
    assert kept.quote.tdx.event_log == (
        table,
        msgspec.structs.replace(program, event_payload=b""),
        msgspec.structs.replace(LOG[2], event_payload=b""),
        *(logged(event, stripped=True) for event in LADDER),
    )
    assert strip(kept, keep_boot=True) == kept
    assert {event.imr for event in strip(kept).quote.tdx.event_log} == {3}

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from shared.attestation.envelope import GcpTdxQuote, TdxEvent, TpmEvent, decode_envelope
from shared.attestation.event_log import MAX_EVENTS, replay_registers
from shared.attestation.tcg_log import (
    EV_NO_ACTION,
    MAX_LOG,
    TcgRecord,
    ccel_events,
    parse_tcg_log,
    replay_pcrs,
    tpm_events,
)
from tests.shared.attestation.forgery import refuses

DATA = Path(__file__).parents[2] / "data" / "tcg"
SHA1, SHA256, SHA384 = 4, 0xB, 0xC
SIZES = {SHA1: 20, SHA256: 32, SHA384: 48, 0xD: 64}
END = b"\xff" * 4


def le(value: int, width: int = 4) -> bytes:
    return value.to_bytes(width, "little")


def header(
    algorithms: Iterable[int] = (SHA384,), *, signature: bytes = b"Spec ID Event03\0", tail: bytes = b"\x00"
) -> bytes:
    listed = list(algorithms)
    spec = signature + bytes([0, 0, 0, 0, 0, 2, 0, 2]) + le(len(listed))
    spec += b"".join(le(each, 2) + le(SIZES.get(each, 32), 2) for each in listed) + tail
    return le(0) + le(EV_NO_ACTION) + bytes(20) + le(len(spec)) + spec


def record(
    index: int = 1, event_type: int = 4, algorithms: Iterable[int] = (SHA384,), data: bytes = b"d"
) -> bytes:
    listed = list(algorithms)
    digests = b"".join(le(each, 2) + bytes([each]) * SIZES.get(each, 32) for each in listed)
    return le(index) + le(event_type) + le(len(listed)) + digests + le(len(data)) + data


# ---- real logs


def test_a_real_tpm_log_replays_to_the_registers_of_its_boot() -> None:
    data = (DATA / "ovmf_tcg_eventlog.bin").read_bytes()
    want = json.loads((DATA / "ovmf_tcg_eventlog.json").read_bytes())
    assert len(parse_tcg_log(data, kind="tpm")) == want["events"]
    registers = want["replay_matches_pcrs"]
    replayed = replay_pcrs(tpm_events(data), registers)
    assert registers == list(range(10))
    assert {index: replayed[index].hex() for index in registers} == {
        index: want["pcr_sha256"][str(index)] for index in registers
    }


def test_a_google_cloud_log_replays_to_the_firmware_register(shared_data: Callable[[str], Path]) -> None:
    data = shared_data("attestation/upstream/tpm/tpm_eventlog.bin").read_bytes()
    assert len(parse_tcg_log(data, kind="tpm")) == 45
    events = tpm_events(data)
    assert len(events) == 43
    expected = json.loads(shared_data("attestation/synthetic/expected.json").read_bytes())["gcp"]
    replayed = replay_pcrs(events, (0, 2))
    assert (replayed[0].hex(), replayed[1 + 1].hex()) == (expected["pcr0"], expected["pcr2"])
    boot = [event.digest.hex() for event in events if event.pcr_index == 2]
    assert len(boot) == 4
    assert boot[2].startswith("9ab14a46")
    envelope = shared_data("attestation/synthetic/envelopes/v0_gcp_tdx.bin").read_bytes()
    quote = decode_envelope(envelope).quote
    assert isinstance(quote, GcpTdxQuote)
    assert quote.tpm.event_log == events[: len(quote.tpm.event_log)]


def test_a_real_ccel_replays_and_names_its_acpi_records(shared_data: Callable[[str], Path]) -> None:
    data = shared_data("attestation/upstream/tdx/ccel.bin").read_bytes()
    events = ccel_events(data)
    assert len(events) == 18
    registers = replay_registers(events)
    assert set(registers) == {0, 1}
    assert registers[0].hex().startswith("274c2344")
    assert registers[1].hex().endswith("6b26")
    assert [event.event for event in events if event.event] == ["acpi-loader", "acpi-rsdp", "acpi-tables"]


# ---- made logs


def test_records_are_as_written() -> None:
    data = header([SHA1, SHA256]) + record(9, 0x80000007, [SHA256, SHA1], b"data")
    want = TcgRecord(9, 0x80000007, {SHA1: bytes([SHA1]) * 20, SHA256: bytes([SHA256]) * 32}, b"data")
    assert parse_tcg_log(data, kind="tpm") == (want,)
    assert parse_tcg_log(data + END + b"anything", kind="tpm") == (want,)
    assert parse_tcg_log(data + END, kind="ccel") == (want,)


def test_vendor_data_in_the_header_is_skipped() -> None:
    assert parse_tcg_log(header(tail=b"\x03abc"), kind="tpm") == ()


def test_a_ccel_counts_registers_from_one_and_drops_number_zero() -> None:
    acpi = record(1, 10, data=b"ACPI DATA")
    elsewhere = record(2, 10, data=b"ACPI DATA")
    log = header() + record(0) + elsewhere + acpi + record(1, 10, data=b"x") + acpi * 3 + END
    digest = bytes([SHA384]) * 48
    assert ccel_events(log) == (
        TdxEvent(1, 10, digest, "", b"ACPI DATA"),
        TdxEvent(0, 10, digest, "acpi-loader", b"ACPI DATA"),
        TdxEvent(0, 10, digest, "", b"x"),
        TdxEvent(0, 10, digest, "acpi-rsdp", b"ACPI DATA"),
        TdxEvent(0, 10, digest, "acpi-tables", b"ACPI DATA"),
        TdxEvent(0, 10, digest, "", b"ACPI DATA"),
    )


def test_a_tpm_log_drops_what_extends_nothing() -> None:
    log = header([SHA256]) + record(0, EV_NO_ACTION, [SHA256]) + record(23, 4, [SHA256])
    assert tpm_events(log) == (TpmEvent(23, bytes([SHA256]) * 32),)


def test_replay_extends_each_asked_register_in_order() -> None:
    one, two = b"\x01" * 32, b"\x02" * 32
    events = (TpmEvent(2, one), TpmEvent(7, b"short"), TpmEvent(2, two))
    first = hashlib.sha256(bytes(32) + one).digest()
    assert replay_pcrs(events, (2, 14)) == {2: hashlib.sha256(first + two).digest(), 14: bytes(32)}


# ---- refusals


def test_a_digest_of_another_length_is_refused() -> None:
    with refuses("tcg_log.digest"):
        replay_pcrs((TpmEvent(2, bytes(48)),), (2,))


def test_n03_refuses_an_oversize_log() -> None:
    with refuses("tcg_log.size"):
        parse_tcg_log(bytes(MAX_LOG + 1), kind="tpm")


@pytest.mark.parametrize("kind", ["tpm", "ccel"])
def test_n03_refuses_a_log_cut_anywhere(kind: str) -> None:
    whole = header() + record() + (END if kind == "ccel" else b"")
    assert parse_tcg_log(whole, kind=kind)  # type: ignore[arg-type]
    for length in range(len(whole)):
        if kind == "tpm" and length == len(header()):
            continue  # a TPM log may end between two records
        with refuses("tcg_log.truncated"):
            parse_tcg_log(whole[:length], kind=kind)  # type: ignore[arg-type]


def test_n03_refuses_a_length_beyond_the_input() -> None:
    with refuses("tcg_log.truncated"):
        parse_tcg_log(header() + record()[:-5] + le(0xFFFFFFFF) + b"d", kind="tpm")


@pytest.mark.parametrize(
    "data",
    [
        header(signature=b"Spec ID Event02\0"),
        header([]),
        header([SHA384] * 5),
        header([SHA384, SHA384]),
        header(tail=b"\x00\x00"),
        header().replace(le(EV_NO_ACTION), le(4), 1),
    ],
)
def test_n02_refuses_another_header(data: bytes) -> None:
    with refuses("tcg_log.header"):
        parse_tcg_log(data + record(), kind="tpm")


def test_n03_refuses_an_algorithm_count_beyond_the_input() -> None:
    log = bytearray(header())
    log[32 + 24 : 32 + 28] = le(0xFFFFFFFF)
    with refuses("tcg_log.header"):
        parse_tcg_log(bytes(log), kind="tpm")


@pytest.mark.parametrize(
    "data",
    [
        header([0x12]),
        header().replace(le(SHA384, 2) + le(48, 2), le(SHA384, 2) + le(32, 2)),
        header() + record(algorithms=[SHA256]),
    ],
)
def test_refuses_a_hash_algorithm_that_is_not_known_or_announced(data: bytes) -> None:
    with refuses("tcg_log.algorithm"):
        parse_tcg_log(data, kind="tpm")


def test_n10_refuses_records_with_more_or_fewer_digests_than_announced() -> None:
    for algorithms in ([], [SHA384] * 5000):
        with refuses("tcg_log.digests"):
            parse_tcg_log(header() + record(algorithms=algorithms), kind="tpm")


def test_refuses_two_digests_of_one_algorithm() -> None:
    with refuses("tcg_log.digests"):
        parse_tcg_log(header([SHA1, SHA256]) + record(algorithms=[SHA1, SHA1]), kind="tpm")


@pytest.mark.parametrize("algorithms", [[SHA256], [SHA256, SHA384]])
def test_refuses_a_ccel_record_with_another_set_of_digests(algorithms: list[int]) -> None:
    with refuses("tcg_log.digests"):
        ccel_events(header(algorithms) + record(algorithms=algorithms) + END)


def test_refuses_a_tpm_log_without_sha256() -> None:
    with refuses("tcg_log.digests"):
        tpm_events(header([SHA1]) + record(algorithms=[SHA1]))


def test_n10_refuses_more_records_than_any_firmware_writes() -> None:
    log = header() + record() * MAX_EVENTS
    assert len(parse_tcg_log(log, kind="tpm")) == MAX_EVENTS
    with refuses("tcg_log.count"):
        parse_tcg_log(log + record(), kind="tpm")


def test_n10_a_hundred_thousand_events_are_refused_before_replay() -> None:
    with refuses("event_log.count"):
        replay_pcrs([TpmEvent(2, bytes(32))] * 100_000, (2,))

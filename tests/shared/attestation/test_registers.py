import msgspec
import pytest

from shared.attestation.envelope import RuntimeEvent
from shared.attestation.event_log import replay
from shared.attestation.registers import check_boot_log, check_rtmr3
from shared.attestation.tdx_quote import TdReport, parse_quote
from shared.attestation.verdict import Status
from tests.shared.attestation.forgery import refuses
from tests.shared.attestation.guest_forgery import EVENTS, TdxGuest, boot_log, runtime_log


@pytest.fixture
def report(tdx_guest: TdxGuest) -> TdReport:
    """What a lite guest's quote says."""
    return parse_quote(tdx_guest.attestation().quote.quote).report  # type: ignore[union-attr] # a TDX quote


def test_runtime_events_replay_to_rtmr3(report: TdReport) -> None:
    check_rtmr3(report.rtmrs[3], EVENTS)
    check_rtmr3(bytes(48), ())


def test_n09_other_events_do_not(report: TdReport) -> None:
    for events in ((), EVENTS[:-1], EVENTS[::-1], (*EVENTS, RuntimeEvent("x", b""))):
        with refuses("tdx.rtmr3"):
            check_rtmr3(report.rtmrs[3], events)


def test_a_digest_of_sha256_is_not_rtmr3s() -> None:
    with refuses("tdx.rtmr3"):
        check_rtmr3(replay(EVENTS, "sha256"), EVENTS)


def test_a_complete_log_is_verified(report: TdReport) -> None:
    assert check_boot_log(report, [*boot_log(), *runtime_log(EVENTS)]).status is Status.VERIFIED


@pytest.mark.parametrize(
    ("kept", "missing"),
    [((0,), "RTMR1, RTMR2"), ((0, 1), "RTMR2"), ((2,), "RTMR0, RTMR1"), ((), "RTMR0, RTMR1, RTMR2")],
)
def test_a_stripped_log_names_the_registers_that_it_lacks(
    kept: tuple[int, ...], missing: str, report: TdReport
) -> None:
    lane = check_boot_log(report, [event for event in boot_log() if event.imr in kept])
    assert lane.status is Status.SKIPPED
    assert f"log of {missing} was" in lane.reason


def test_acpi_markers_alone_are_a_stripped_log(report: TdReport) -> None:
    log = [event for event in boot_log() if event.event.startswith("acpi-")]
    assert "RTMR0" in check_boot_log(report, log).reason


def test_n22_a_log_with_another_digest_is_refused(report: TdReport) -> None:
    for index in range(len(boot_log())):
        log = boot_log()
        log[index] = msgspec.structs.replace(log[index], digest=b"\x01" * 48)
        with refuses("tdx.boot_log"):
            check_boot_log(report, log)


def test_n22_a_digest_of_another_length_is_refused(report: TdReport) -> None:
    log = boot_log()
    log[0] = msgspec.structs.replace(log[0], digest=bytes(32))
    with refuses("event_log.digest"):
        check_boot_log(report, log)

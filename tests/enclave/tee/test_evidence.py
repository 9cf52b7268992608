"""Who asks from outside does not hold up the guest's own app."""

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import pytest

from enclave.tee.evidence import MAX_WAITING, BoundedAttestor, SerialAttestor
from shared.errors import UnavailableError
from tests.enclave.event_log import PATIENCE
from tests.shared.refusal import refuses


class SlowDevice:
    """Answers when it is let; notes who is at it at once."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.begun = threading.Semaphore(0)
        self.order: list[bytes] = []
        self._busy = threading.Lock()

    def attest(self, report_data: bytes) -> bytes:
        assert self._busy.acquire(blocking=False), "two at once"
        try:
            self.order.append(report_data)
            self.begun.release()
            assert self.may_answer.wait(PATIENCE)
        finally:
            self._busy.release()
        return report_data


@pytest.fixture
def device() -> SlowDevice:
    return SlowDevice()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2 * MAX_WAITING) as found:
        yield found


def test_devices_are_asked_one_at_a_time(device: SlowDevice, pool: ThreadPoolExecutor) -> None:
    attestor = SerialAttestor(device)
    asked = [pool.submit(attestor.attest, bytes([number])) for number in range(8)]
    device.may_answer.set()
    assert [one.result(PATIENCE) for one in asked] == [bytes([number]) for number in range(8)]


def test_few_wait_from_outside(device: SlowDevice, pool: ThreadPoolExecutor) -> None:
    attestor = BoundedAttestor(SerialAttestor(device))
    asked = [pool.submit(attestor.attest, b"outside") for _ in range(MAX_WAITING + 1)]
    done, _ = wait(asked, PATIENCE, return_when=FIRST_COMPLETED)
    (refused,) = done
    device.may_answer.set()
    with refuses("attestor.busy", UnavailableError):
        refused.result()
    answered = [one for one in asked if one is not refused]
    assert [one.result(PATIENCE) for one in answered] == [b"outside"] * MAX_WAITING


def test_the_guests_own_request_waits_for_one_from_outside(
    device: SlowDevice, pool: ThreadPoolExecutor
) -> None:
    serial = SerialAttestor(device)
    outside = BoundedAttestor(serial)
    asked = [pool.submit(outside.attest, b"outside") for _ in range(MAX_WAITING)]
    assert device.begun.acquire(timeout=PATIENCE)
    own = pool.submit(serial.attest, b"own")
    assert outside._lock.locked()
    device.may_answer.set()
    assert own.result(PATIENCE) == b"own"
    assert [one.result(PATIENCE) for one in asked] == [b"outside"] * MAX_WAITING


def test_places_are_given_back(device: SlowDevice) -> None:
    attestor = BoundedAttestor(device)
    device.may_answer.set()
    assert [attestor.attest(b"") for _ in range(2 * MAX_WAITING)] == [b""] * (2 * MAX_WAITING)

import time
from collections.abc import Callable

import pytest

from enclave.devices.clock import RENEW_AFTER, SystemClock, TrustedClock
from enclave.devices.nsm import Nsm
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence, UnavailableError

START = 1_767_225_600.0
PCRS = {index: bytes([0xA0 + index]) * 48 for index in (0, 1, 2)}
AUTHORITY = SimulatedAuthority.create()
ANCHORS = TrustAnchors.production().with_extra(AUTHORITY.root_pem)


class Hands:
    """The two clocks that a test turns: the module's and the monotonic one."""

    def __init__(self) -> None:
        self.module = START
        self.monotonic = 1000.0
        self.documents = 0

    def read_module(self) -> float:
        self.documents += 1
        return self.module

    def read_monotonic(self) -> float:
        return self.monotonic


@pytest.fixture
def hands() -> Hands:
    """Clocks at their start."""
    return Hands()


def clock(hands: Hands, anchors: TrustAnchors = ANCHORS) -> TrustedClock:
    nsm = Nsm(SimulatedNsm(PCRS, AUTHORITY, clock=hands.read_module))
    return TrustedClock(nsm, anchors, monotonic=hands.read_monotonic)


def test_tells_the_modules_time(hands: Hands) -> None:
    assert clock(hands).now() == int(START)


def test_is_advanced_by_the_monotonic_clock(hands: Hands) -> None:
    trusted = clock(hands)
    trusted.now()
    hands.monotonic += RENEW_AFTER - 1
    assert trusted.now() == int(START) + RENEW_AFTER - 1
    assert hands.documents == 1


def test_is_renewed_every_minute(hands: Hands) -> None:
    trusted = clock(hands)
    trusted.now()
    hands.monotonic += RENEW_AFTER
    hands.module += RENEW_AFTER + 7
    assert trusted.now() == int(START) + RENEW_AFTER + 7
    assert hands.documents == 2


def test_never_goes_backwards(hands: Hands) -> None:
    trusted = clock(hands)
    trusted.now()
    hands.monotonic += RENEW_AFTER
    hands.module -= 500
    assert trusted.now() == int(START)
    hands.monotonic += RENEW_AFTER
    hands.module += 600
    assert trusted.now() == int(START) + 100


def test_n40_the_systems_clock_plays_no_part(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    for skew in (-86400, 86400):
        monkeypatch.setattr(time, "time", lambda skew=skew: START + skew)
        assert clock(hands).now() == int(START)


def test_names_a_simulated_source(hands: Hands) -> None:
    assert clock(hands).source == "nsm (simulated)"


def test_refuses_a_module_that_it_does_not_trust(hands: Hands) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        clock(hands, TrustAnchors.production()).now()
    assert caught.value.code == "nitro.chain.anchor"


def test_refuses_a_document_that_was_made_for_another_question(hands: Hands) -> None:
    """A replayed document is genuine, but answers an old nonce."""
    device = SimulatedNsm(PCRS, AUTHORITY, clock=hands.read_module)
    old = Nsm(device).attestation(nonce=b"\x01" * 32)

    class Replaying(Nsm):
        def attestation(self, *_: object, **__: object) -> bytes:
            return old

    with pytest.raises(InvalidEvidence) as caught:
        TrustedClock(Replaying(device), ANCHORS, monotonic=hands.read_monotonic).now()
    assert caught.value.code == "nitro.nonce"


def test_stops_when_the_module_does_not_answer(hands: Hands) -> None:
    device = SimulatedNsm(PCRS, AUTHORITY, clock=hands.read_module)
    answer: Callable[[bytes], bytes] = device.transact

    class Dying:
        dead = False

        def transact(self, request: bytes) -> bytes:
            if self.dead:
                raise UnavailableError("nsm.ioctl", "nsm driver failed")
            return answer(request)

    dying = Dying()
    trusted = TrustedClock(Nsm(dying), ANCHORS, monotonic=hands.read_monotonic)
    trusted.now()
    dying.dead = True
    hands.monotonic += RENEW_AFTER
    with pytest.raises(UnavailableError) as caught:
        trusted.now()
    assert caught.value.code == "nsm.ioctl"


# --- the system's clock of a guest with secure_time ---


def system_clock(*readings: float) -> SystemClock:
    return SystemClock(wall=iter(readings).__next__)


def test_the_system_clock_tells_whole_seconds() -> None:
    assert system_clock(START + 0.9).now() == int(START)


def test_the_system_clock_names_its_source() -> None:
    assert SystemClock().source == "system (secure_time)"
    assert SystemClock().now() > 0


def test_the_system_clock_never_goes_backwards() -> None:
    clock = system_clock(START, START - 500, START + 1)
    assert [clock.now() for _ in range(3)] == [int(START), int(START), int(START) + 1]


def test_the_system_clock_is_never_below_its_floor() -> None:
    clock = system_clock(START - 500, START - 500, START + 1)
    clock.raise_floor(int(START))
    assert clock.now() == int(START)
    clock.raise_floor(int(START) - 1000)
    assert [clock.now(), clock.now()] == [int(START), int(START) + 1]

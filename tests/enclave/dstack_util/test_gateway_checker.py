"""When `gateway-checker` registers again, by a clock that only it moves (spec deploy section 6.1)."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave.dstack_util.gateway_checker import GatewayChecker, Pace
from enclave.dstack_util.machine import Completed
from enclave.dstack_util.tunnel import CONFIG_PATH
from shared.errors import UnavailableError
from tests.enclave.dstack_util.machine import RecordedMachine

EPOCH = 1_900_000_000


class StopError(Exception):
    """The test has seen enough."""


class World:
    """A guest whose machine says when it last shook hands. `asked` are seconds, and whether by force."""

    def __init__(self, root: Path) -> None:
        self.machine = RecordedMachine(root)
        self.seconds = 0
        self.end = 0
        self.asked: list[tuple[int, bool]] = []
        self.fails = False
        self.handshake: Callable[[], int] = lambda: EPOCH + self.seconds
        self.on_register: Callable[[], None] = lambda: None

    def configure(self) -> None:
        path = self.machine.path(CONFIG_PATH)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def run(self, seconds: int) -> list[tuple[int, bool]]:
        """Let the checker run for so long."""
        self.end = seconds
        pace = Pace(
            sleep=self._sleep, monotonic=lambda: float(self.seconds), wall=lambda: EPOCH + self.seconds
        )
        with pytest.raises(StopError):
            GatewayChecker(self.machine, self._register, pace).run()
        return self.asked

    def _sleep(self, seconds: float) -> None:
        self.seconds += int(seconds)
        if self.seconds > self.end:
            raise StopError
        text = b"key=\t%d\n" % self.handshake()
        self.machine.answers["wg", "show", "dstack-wg0", "latest-handshakes"] = Completed(0, text)

    def _register(self, force: bool) -> None:  # noqa: FBT001 - as the checker calls it
        self.asked.append((self.seconds, force))
        self.on_register()
        if self.fails:
            raise UnavailableError("net.timeout", "the peer did not answer in time")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_registers_again_every_three_minutes(world: World) -> None:
    world.configure()
    assert world.run(560) == [(180, False), (360, False), (540, False)]


def test_looks_every_ten_seconds(world: World) -> None:
    world.configure()
    world.run(100)
    assert len(world.machine.argv) == 10


def test_a_tunnel_that_falls_silent_is_made_anew_once_in_three_minutes(world: World) -> None:
    world.configure()
    world.handshake = lambda: EPOCH + min(world.seconds, 200)
    assert world.run(800) == [(180, False), (360, False), (380, True), (560, True), (740, True)]


def test_a_tunnel_that_never_was_is_given_three_minutes(world: World) -> None:
    world.configure()
    world.handshake = lambda: 0
    assert world.run(370) == [(180, True), (360, True)]


def test_a_handshake_in_the_future_is_one(world: World) -> None:
    world.configure()
    world.handshake = lambda: EPOCH + 10**6
    assert world.run(200) == [(180, False)]


def test_without_an_interface_there_is_no_handshake(world: World) -> None:
    world.configure()
    world.machine.answers["wg",] = Completed(1)
    world.handshake = lambda: 0
    assert world.run(200) == [(180, True)]


def test_a_guest_that_no_gateway_knows_asks_less_and_less_often(world: World) -> None:
    world.fails = True
    assert world.run(600) == [(30, True), (90, True), (210, True), (330, True), (450, True), (570, True)]


def test_the_first_success_ends_the_waiting(world: World) -> None:
    world.on_register = world.configure
    assert world.run(400) == [(30, True), (210, False), (390, False)]


def test_a_failure_is_said_and_does_not_end_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.configure()
    world.fails = True
    assert world.run(360) == [(180, False), (360, False)]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["code"]) for line in lines] == [
        ("gateway.refresh_failed", "net.timeout")
    ] * 2

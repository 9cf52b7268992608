"""The runner is killed at every write of the record and around every call of the cloud, one run for each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from functions.deploy.engine import LEASE_SECONDS
from functions.deploy.record import Goal, Step
from tests.functions.deploy.memory_cloud import Killed, some_deployment, want
from tests.functions.deploy.test_engine import Bench


def whole_life(bench: Bench) -> None:
    """From nothing to running, stopped, started and removed, with a new runner after each death."""
    for goal, end in (
        (Goal.RUNNING, Step.RUNNING),
        (Goal.STOPPED, Step.STOPPED),
        (Goal.RUNNING, Step.RUNNING),
        (Goal.REMOVED, Step.REMOVED),
    ):
        for _ in range(5):
            try:
                if bench.store.get("web").goal is not goal:
                    want(bench.store, "web", goal)
                bench.run()
            except Killed:
                bench.clock.now += LEASE_SECONDS
            else:
                break
        assert bench.step is end
        instances = [name for kind, name in bench.cloud.things if kind == "instance"]
        assert len(instances) == (0 if goal is Goal.REMOVED else 1)
    assert bench.cloud.things == {}


def counted(bench: Bench) -> tuple[int, int]:
    """Return how many points there are: around calls of the cloud, and around writes of the store."""
    calls, writes = [0], [0]

    def on_call(_call: str, _when: str) -> None:
        calls[0] += 1

    bench.cloud.on_call = on_call
    bench.store.replace = _around(bench.store.replace, lambda: writes.__setitem__(0, writes[0] + 1))  # type: ignore[method-assign] # a wire tap
    whole_life(bench)
    return calls[0], writes[0]


def _around(write: Callable[..., None], tell: Callable[[], object]) -> Callable[..., None]:
    def replace(*arguments: object) -> None:
        tell()
        write(*arguments)
        tell()

    return replace


def _deadly(number: int) -> Callable[..., None]:
    left = [number]

    def tell(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return tell


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    bench = Bench(tmp_path_factory.mktemp("count"))
    bench.store.create(some_deployment())
    return counted(bench)


def test_survives_a_death_around_every_call_of_the_cloud(points: tuple[int, int], tmp_path: Path) -> None:
    calls, _ = points
    assert calls > 50
    for number in range(1, calls + 1):
        bench = Bench(tmp_path / str(number))
        bench.store.create(some_deployment())
        bench.cloud.on_call = _deadly(number)
        whole_life(bench)


def test_survives_a_death_around_every_write_of_the_record(points: tuple[int, int], tmp_path: Path) -> None:
    _, writes = points
    assert writes > 50
    for number in range(1, writes + 1):
        bench = Bench(tmp_path / str(number))
        bench.store.create(some_deployment())
        bench.store.replace = _around(bench.store.replace, _deadly(number))  # type: ignore[method-assign] # a wire tap
        whole_life(bench)

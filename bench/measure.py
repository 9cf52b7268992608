"""How to time on a machine that others share.

Three habits keep the ratios steady where absolute times drift by 15 % and more. Ours and the reference
alternate in short rounds, so that both meet the same neighbours. A round counts CPU time, which waiting for a
core does not change. And the quietest round of each counts, because neighbours (shared caches, a shared core)
only ever add; the median ratio of the rounds is reported beside it.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import msgspec

T = TypeVar("T")


class Bar(msgspec.Struct, frozen=True):
    """The ratio to hold: `at most` it, or `at least` it."""

    sense: Literal["at most", "at least"]
    ratio: float

    def holds(self, ratio: float) -> bool:
        """Tell whether a measured ratio passes."""
        return ratio <= self.ratio if self.sense == "at most" else ratio >= self.ratio


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. `ours` and `reference` are seconds of CPU per operation, of their best rounds,
    or bytes where `unit` says so.

    `bar` None means reported only. `detail` holds what else was seen, for people and `results.json`.
    """

    name: str
    what: str
    ours: float
    reference: float
    ratio: float
    bar: Bar | None
    detail: dict[str, float] = {}
    unit: Literal["ms", "MiB"] = "ms"

    @property
    def passed(self) -> bool | None:
        """Whether the bar was held; None without one."""
        return None if self.bar is None else self.bar.holds(self.ratio)


class Timing(msgspec.Struct, frozen=True):
    """Seconds per operation of one round."""

    cpu: float
    wall: float


def timed(operation: Callable[[], object], count: int) -> Timing:
    """Run `operation` `count` times; the CPU time is the whole process's."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        operation()
    return Timing((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count)


def alternate(ours: Callable[[], T], reference: Callable[[], T], rounds: int) -> list[tuple[T, T]]:
    """Run both by turns, after one round that is thrown away; who begins alternates too."""
    ours(), reference()
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = reference()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), reference()))
    return pairs


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the median over the rounds of first / second."""
    return statistics.median(first / second for first, second in pairs)


def compare(
    name: str,
    what: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    *,
    bar: Bar | None,
    rounds: int = 40,
    count: int = 20,
) -> Result:
    """Compare two callables in this process: ratio = ours / reference in CPU time."""
    pairs = alternate(lambda: timed(ours, count), lambda: timed(reference, count), rounds)
    return Result(
        name=name,
        what=what,
        ours=min(our.cpu for our, _ in pairs),
        reference=min(ref.cpu for _, ref in pairs),
        ratio=min(our.cpu for our, _ in pairs) / min(ref.cpu for _, ref in pairs),
        bar=bar,
        detail={
            "median ratio": median_ratio([(our.cpu, ref.cpu) for our, ref in pairs]),
            "median wall ms": statistics.median(our.wall for our, _ in pairs) * 1e3,
            "median reference wall ms": statistics.median(ref.wall for _, ref in pairs) * 1e3,
        },
    )

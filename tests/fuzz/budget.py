"""The time budget that every fuzz target shares, and bytes worth trying.

A target says how bytes are made and what happens to them:

    @fuzz(st.binary(max_size=4096) | mutated(VALID))
    def test_decode_envelope(data: bytes) -> None:
        outcome(decode_envelope, data)

By default a target runs for `DEFAULT_SECONDS`. With the environment variable `FUZZ_SECONDS` set, each target
runs for that many seconds. One example may take `SLOWEST_EXAMPLE` seconds of processor time, whatever the
input; a failing example is shrunk and printed by hypothesis as usual.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, given, settings

from shared.errors import DstackError

T = TypeVar("T")

DEFAULT_SECONDS = 0.5  # of eighty targets or so: `make fuzz` and CI give each more
# The largest inputs take tens of milliseconds: far above any of them, far below what an attacker would want.
SLOWEST_EXAMPLE = 3.0

_ROUND = 100  # examples of one hypothesis run; runs follow each other until the time is up
_INTERESTING = [
    bytes([0x00]),
    bytes([0x7F]),
    bytes([0x80]),
    bytes([0xFF]),
    bytes(4),
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff\xff\xff\x7f",
    bytes(8),
    b"\xff" * 8,
]


def seconds() -> float:
    """Return how long each target runs."""
    return float(os.environ.get("FUZZ_SECONDS", DEFAULT_SECONDS))


def fuzz(strategy: st.SearchStrategy[T]) -> Callable[[Callable[[T], None]], Callable[[], None]]:
    """Make a test that runs its function on examples of `strategy` until the time is up."""

    def decorate(function: Callable[[T], None]) -> Callable[[], None]:
        def target() -> None:
            deadline = time.monotonic() + seconds()
            failed = False

            @settings(
                max_examples=_ROUND,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )
            @given(strategy)
            def one_round(example: T) -> None:
                nonlocal failed
                # an example that failed once must fail again, or hypothesis calls it flaky
                if not failed and time.monotonic() > deadline:
                    return
                started = time.process_time()
                try:
                    function(example)
                    spent = time.process_time() - started
                    assert spent < SLOWEST_EXAMPLE, f"one example took {spent:.1f} s of processor time"
                except Exception:
                    failed = True
                    raise

            while time.monotonic() < deadline:
                one_round()

        target.__name__ = function.__name__
        target.__doc__ = function.__doc__
        target.__module__ = function.__module__
        return target

    return decorate


def outcome(function: Callable[..., T], *arguments: Any, **named: Any) -> T | None:
    """Return what the call returned, or None where it refused; anything but a `DstackError` propagates."""
    try:
        return function(*arguments, **named)
    except DstackError:
        return None


@st.composite
def mutated(draw: st.DrawFn, valid: Sequence[bytes]) -> bytes:
    """Bytes close to one of `valid`: cut, repeated, overwritten, shifted, in up to four places."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 5)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                spot = draw(st.sampled_from(_INTERESTING))
                data[at : at + len(spot)] = spot
            case 2:
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case 3:
                del data[at : at + draw(st.integers(1, 64))]
            case 4:
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case _:
                del data[at:]
    return bytes(data)

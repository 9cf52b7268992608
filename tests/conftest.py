"""Fixtures that every room's tests share."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import StreamRequestHandler

import pytest
from hypothesis import HealthCheck, settings

from cli.devchain.launcher import Chain, start_chain

REPOSITORY = Path(__file__).resolve().parent.parent


RECURSION_LIMIT = 1000
QUICK_BLOCKS = 0.1
"""Seconds between anvil's blocks, where a test waits for some of them to become final."""
CHAIN_ENGINE = os.environ.get("CHAIN_ENGINE", "auto")
"""What users of the chain are tested on. Those of the chain itself and of the contracts take both engines."""

settings.register_profile("dstack", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dstack")

# The library's HTTP servers write head and body one by one: the body would wait until the head is
# acknowledged, which a client delays for 40 ms.
StreamRequestHandler.disable_nagle_algorithm = True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n auto` starts: more than cores, as each waits for a third of its time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 2


@pytest.fixture(autouse=True)
def own_recursion_limit() -> None:
    """Run each test at Python's own limit: importing py-evm raises it for the whole process."""
    sys.setrecursionlimit(RECURSION_LIMIT)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return a function from a name below ../shared/data to its path; it skips where that is absent."""

    def find(name: str) -> Path:
        path = REPOSITORY.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"upstream evidence ../shared/data/{name} is not on this machine")
        return path

    return find


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """A development chain whose blocks become final, one for the session: anvil where present or py-evm."""
    with start_chain(CHAIN_ENGINE, block_time=QUICK_BLOCKS) as running:
        yield running

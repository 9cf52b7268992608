"""Fixtures that every room's tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return a function from a name below ../shared/data to its path; it skips where that is absent."""

    def find(name: str) -> Path:
        path = REPOSITORY.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"upstream evidence ../shared/data/{name} is not on this machine")
        return path

    return find

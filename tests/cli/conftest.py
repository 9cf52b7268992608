"""What tests of commands share."""

from collections.abc import Iterator

import pytest

from tests.functions.conftest import unsynced

__all__ = ["unsynced"]


@pytest.fixture(scope="session", autouse=True)
def quick_receipts() -> Iterator[None]:
    """Have `gov` ask for a receipt again at once: the tests' chains mine sooner than its pause."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("cli.gov.sending.POLL_SECONDS", 0.02)
        yield

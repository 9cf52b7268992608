"""How a test expects a refusal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from shared.errors import DstackError, InvalidEvidence


@contextmanager
def refuses(
    code: str, kind: type[DstackError] = InvalidEvidence
) -> Iterator[pytest.ExceptionInfo[DstackError]]:
    """Expect a refusal with exactly this code, and a short sentence without a full stop that can be sent."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code
    assert 0 < len(caught.value.message.encode()) < 500
    assert not caught.value.message.endswith(".")


class Unread(Sequence[Any]):
    """A list so long that it must be refused by its length: whoever reads an item of it fails the test."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: object) -> Any:
        raise AssertionError("an item was read before the length was refused")

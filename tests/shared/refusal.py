"""How a test expects a refusal."""

from collections.abc import Iterator
from contextlib import contextmanager

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

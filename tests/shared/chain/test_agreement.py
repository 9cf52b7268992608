"""When enough of several say the same: as many as must, and more than half of those that answer."""

import pytest

from shared.chain.agreement import is_agreed, majority


@pytest.mark.parametrize(
    ("votes", "given", "quorum", "decides"),
    [
        (1, 1, 1, True),
        (2, 2, 2, True),
        (2, 3, 2, True),
        (1, 2, 1, False),
        (2, 4, 2, False),
        (2, 3, 3, False),
        (3, 4, 2, True),
        (0, 0, 1, False),
    ],
)
def test_a_quorum_and_more_than_half_decide(votes: int, given: int, quorum: int, decides: bool) -> None:  # noqa: FBT001
    assert is_agreed(votes, given, quorum) is decides


@pytest.mark.parametrize(("asked", "expected"), [(1, 1), (2, 2), (3, 2), (4, 3), (16, 9)])
def test_a_majority_is_more_than_half_and_of_two_both(asked: int, expected: int) -> None:
    assert majority(asked) == expected

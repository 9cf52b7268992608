"""When enough of several that were asked say the same. Pure."""


def is_agreed(votes: int, given: int, quorum: int) -> bool:
    """Whether `votes` of `given` answers decide: as many as must agree, and more than half.

    The second keeps a quorum of two from deciding where four answer and are split.
    """
    return votes >= quorum and 2 * votes > given


def majority(asked: int) -> int:
    """Return how many of `asked` must agree where nobody said: more than half, and of two both."""
    return asked // 2 + 1

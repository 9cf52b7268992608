"""Whether an OS version meets a requirement, by the rules of Rust's semver (spec deploy section 2.1).

`requirements.os_version` is compared with VERSION_ID of os-release. An operator is optional and then means
`^`; comparators are joined by commas; a pre-release counts only where a comparator names one of its version.
"""

import re
from typing import Final

import msgspec

from shared.errors import ProtocolError

_NUMBER: Final = r"(?:0|[1-9][0-9]{0,8})"
_IDENTIFIERS: Final = r"[0-9A-Za-z-]{1,64}(?:\.[0-9A-Za-z-]{1,64}){0,7}"
_VERSION: Final = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIERS}))?(?:\+{_IDENTIFIERS})?"
)
_COMPARATOR: Final = re.compile(
    rf"\s*(=|>=|<=|>|<|~|\^)?\s*({_NUMBER}|[*xX])(?:\.({_NUMBER}|[*xX]))?(?:\.({_NUMBER}|[*xX]))?"
    rf"(?:-({_IDENTIFIERS}))?(?:\+{_IDENTIFIERS})?\s*"
)
_WILD: Final = frozenset("*xX")

# A release comes after all of its pre-releases, numbers before words.
_PreKey = tuple[int, tuple[tuple[int, int, str], ...]]


class _Version(msgspec.Struct, frozen=True):
    major: int
    minor: int
    patch: int
    pre: str

    def key(self) -> tuple[int, int, int, _PreKey]:
        return self.major, self.minor, self.patch, _pre_key(self.pre)


class _Comparator(msgspec.Struct, frozen=True):
    """One comparator; None is a part that is not written, or a wildcard."""

    operator: str
    major: int
    minor: int | None
    patch: int | None
    pre: str

    def matches(self, version: _Version) -> bool:
        match self.operator:
            case ">" | ">=":
                wanted = self._order(version) > 0
            case "<" | "<=":
                wanted = self._order(version) < 0
            case "~":
                wanted = self._is_tilde(version)
            case "^":
                wanted = self._is_caret(version)
            case _:
                return self._is_exact(version)
        return wanted or (self.operator in {">=", "<="} and self._is_exact(version))

    def names_pre_release_of(self, version: _Version) -> bool:
        return bool(self.pre) and (self.major, self.minor, self.patch) == (
            version.major,
            version.minor,
            version.patch,
        )

    def _is_exact(self, version: _Version) -> bool:
        return (
            version.major == self.major
            and self.minor in {None, version.minor}
            and self.patch in {None, version.patch}
            and version.pre == self.pre
        )

    def _order(self, version: _Version) -> int:
        """Return the sign of version minus comparator; a part that is not written decides nothing."""
        for got, wanted in (
            (version.major, self.major),
            (version.minor, self.minor),
            (version.patch, self.patch),
        ):
            if wanted is None:
                return 0
            if got != wanted:
                return 1 if got > wanted else -1
        got_key, wanted_key = _pre_key(version.pre), _pre_key(self.pre)
        return (got_key > wanted_key) - (got_key < wanted_key)

    def _is_tilde(self, version: _Version) -> bool:
        if version.major != self.major or self.minor not in {None, version.minor}:
            return False
        if self.patch is not None and version.patch != self.patch:
            return version.patch > self.patch
        return _pre_key(version.pre) >= _pre_key(self.pre)

    def _is_caret(self, version: _Version) -> bool:
        if version.major != self.major:
            return False
        if self.minor is None:
            return True
        if self.patch is None:
            return version.minor >= self.minor if self.major else version.minor == self.minor
        # what may grow is whatever stands behind the first part that is not zero
        fixed = 1 if self.major else 2 if self.minor else 3
        got = (version.major, version.minor, version.patch)
        wanted = (self.major, self.minor, self.patch)
        if got[:fixed] != wanted[:fixed]:
            return False
        if got != wanted:
            return got > wanted
        return _pre_key(version.pre) >= _pre_key(self.pre)


def meets_requirement(requirement: str, version: str) -> bool:
    """Say whether `version` (a full semver, `0.6.0`) meets `requirement` (`>=0.6, <1`).

    Raises `ProtocolError`: `os_version.version`, `os_version.requirement` for what is neither.
    """
    found = _VERSION.fullmatch(version.strip())
    if found is None:
        raise ProtocolError("os_version.version", f"the os version is {version[:40]!a}, expected like 0.6.0")
    got = _Version(int(found[1]), int(found[2]), int(found[3]), found[4] or "")
    comparators = _comparators(requirement)
    if not all(comparator.matches(got) for comparator in comparators):
        return False
    return not got.pre or any(comparator.names_pre_release_of(got) for comparator in comparators)


def _comparators(requirement: str) -> list[_Comparator]:
    if requirement.strip() in _WILD:
        return []
    return [_comparator(part) for part in requirement.split(",")]


def _comparator(text: str) -> _Comparator:
    found = _COMPARATOR.fullmatch(text)
    if found is None or found[2] in _WILD:
        raise _unfit(text)
    parts = [None if part is None or part in _WILD else int(part) for part in (found[3], found[4])]
    if parts[0] is None and parts[1] is not None:
        raise _unfit(text)
    if found[5] and parts[1] is None:
        raise _unfit(text)
    has_wildcard = not _WILD.isdisjoint(filter(None, (found[3], found[4])))
    operator = found[1] or ("*" if has_wildcard else "^")
    return _Comparator(operator, int(found[2]), parts[0], parts[1], found[5] or "")


def _pre_key(pre: str) -> _PreKey:
    if not pre:
        return (1, ())
    return (
        0,
        tuple((0, int(one), "") if one.isdigit() else (1, 0, one) for one in pre.split(".")),
    )


def _unfit(text: str) -> ProtocolError:
    return ProtocolError("os_version.requirement", f"{text[:40]!a} is no comparator of versions")

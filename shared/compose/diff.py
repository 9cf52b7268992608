"""What changes between two versions of an app-compose.json (SECURITY N-75).

An update that changes nothing, or silently loses a field, is how a deployment goes wrong unnoticed: both are
refusals here, and a dropped field passes only where the caller names it.
"""

import json
from collections.abc import Collection, Iterator
from difflib import unified_diff
from typing import Any, Final, Literal

import msgspec

from shared.compose.app_compose import compose_hash, parse_app_compose
from shared.errors import PolicyDenied

MAX_CHANGES: Final = 1000  # a person reads a screen of them
# difflib is quadratic in lines; a longer text is shown by its size alone.
_MAX_LINES: Final = 2000
_MAX_TEXT: Final = 512 * 1024
_MAX_SHOWN: Final = 120  # characters of a value

ChangeKind = Literal["added", "removed", "changed"]


class Change(msgspec.Struct, frozen=True):
    """One difference. `path` is dotted, `old` and `new` are short, `lines` is a unified diff of texts."""

    path: str
    kind: ChangeKind
    old: str = ""
    new: str = ""
    lines: tuple[str, ...] = ()


class ComposeDiff(msgspec.Struct, frozen=True, kw_only=True):
    """Two versions compared, by bytes and by meaning; `dropped` names the fields that the new one lacks."""

    old_hash: bytes
    new_hash: bytes
    changes: tuple[Change, ...]
    dropped: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether the bytes are the same, hence the compose hash."""
        return self.old_hash == self.new_hash

    @property
    def form_only(self) -> bool:
        """Whether only the form of the bytes differs: another hash, and the same meaning."""
        return not self.identical and not self.changes


def diff_app_compose(old: bytes, new: bytes) -> ComposeDiff:
    """Compare the exact bytes of two documents. Raises what `parse_app_compose` raises for either."""
    before, after = parse_app_compose(old), parse_app_compose(new)
    changes: list[Change] = []
    for change in _changes("", before, after):
        changes.append(change)
        if len(changes) == MAX_CHANGES:
            break
    return ComposeDiff(
        old_hash=compose_hash(old),
        new_hash=compose_hash(new),
        changes=tuple(changes),
        dropped=tuple(_dropped("", before, after)),
    )


def require_progress(diff: ComposeDiff, *, may_drop: Collection[str] = ()) -> None:
    """Refuse an update that changes nothing or drops a field that the caller did not name.

    Raises `PolicyDenied`: `compose.diff.unchanged` (the same bytes), `compose.diff.form_only` (the same
    meaning under another hash), `compose.diff.dropped`.
    """
    if diff.identical:
        raise PolicyDenied(
            "compose.diff.unchanged",
            f"both versions have compose_hash {diff.new_hash.hex()}: nothing changes",
        )
    if diff.form_only:
        raise PolicyDenied(
            "compose.diff.form_only", "the versions mean the same and differ in form: only the hash changes"
        )
    if lost := [path for path in diff.dropped if path not in may_drop]:
        raise PolicyDenied(
            "compose.diff.dropped",
            f"the new version drops {', '.join(path[:_MAX_SHOWN] for path in lost[:8])}",
        )


def _changes(path: str, old: Any, new: Any) -> Iterator[Change]:  # noqa: ANN401 - parsed JSON
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f"{path}.{key}" if path else key
            if key not in new:
                yield Change(below, "removed", old=_shown(old[key]))
            elif key not in old:
                yield Change(below, "added", new=_shown(new[key]))
            else:
                yield from _changes(below, old[key], new[key])
    elif not _same(old, new):
        yield Change(path, "changed", _shown(old), _shown(new), _lines(old, new))


def _same(old: Any, new: Any) -> bool:  # noqa: ANN401 - parsed JSON
    """Compare as JSON does: true is not 1, and 1.0 is written otherwise than 1."""
    return _text(old) == _text(new)


def _lines(old: Any, new: Any) -> tuple[str, ...]:  # noqa: ANN401 - parsed JSON
    if not isinstance(old, str) or not isinstance(new, str) or "\n" not in old + new:
        return ()
    if len(old) + len(new) > _MAX_TEXT:
        return ()
    before, after = old.splitlines(), new.splitlines()
    if len(before) + len(after) > _MAX_LINES:
        return ()
    return tuple(unified_diff(before, after, "old", "new", n=2, lineterm=""))


def _dropped(path: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key in sorted(old):
        below = f"{path}.{key}" if path else key
        if key not in new or (new[key] is None and old[key] is not None):  # the guest reads null as absent
            yield below
        elif isinstance(old[key], dict) and isinstance(new[key], dict):
            yield from _dropped(below, old[key], new[key])


def _shown(value: Any) -> str:  # noqa: ANN401 - parsed JSON
    text = _text(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text)} characters)"


def _text(value: Any) -> str:  # noqa: ANN401 - parsed JSON
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

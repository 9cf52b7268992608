"""What changes between two versions, and which updates are refused."""

import json
from typing import Any

import pytest

from shared.compose import diff
from shared.compose.app_compose import canonical_bytes, compose_hash
from shared.compose.diff import Change, ComposeDiff, diff_app_compose, require_progress
from shared.errors import PolicyDenied, ProtocolError
from tests.shared.refusal import refuses

OLD: dict[str, Any] = {
    "name": "demo",
    "docker_compose_file": "a\nb\nc\n",
    "port_policy": {"ports": [], "restrict_mode": True},
}


def compared(new: dict[str, Any], old: dict[str, Any] = OLD) -> ComposeDiff:
    return diff_app_compose(canonical_bytes(old), json.dumps(new).encode())


def test_names_each_change() -> None:
    found = compared(
        {"name": "other", "docker_compose_file": "a\nB\nc\n", "port_policy": {"ports": [1]}, "new": True}
    )
    assert [(one.path, one.kind) for one in found.changes] == [
        ("docker_compose_file", "changed"),
        ("name", "changed"),
        ("new", "added"),
        ("port_policy.ports", "changed"),
        ("port_policy.restrict_mode", "removed"),
    ]
    assert found.changes[0].lines == ("--- old", "+++ new", "@@ -1,3 +1,3 @@", " a", "-b", "+B", " c")
    assert found.changes[1] == Change("name", "changed", '"demo"', '"other"')
    assert found.dropped == ("port_policy.restrict_mode",)
    assert found.old_hash == compose_hash(canonical_bytes(OLD))


def test_tells_json_values_apart_that_python_holds_equal() -> None:
    found = compared({"a": True, "b": 1.0}, {"a": 1, "b": 1})
    assert [one.path for one in found.changes] == ["a", "b"]


def test_shows_long_values_by_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared({"a": "x" * 500}, {"a": ""}).changes[0].new.endswith("(502 characters)")
    monkeypatch.setattr(diff, "_MAX_LINES", 4)
    assert compared({"a": "x\n" * 5}, {"a": "y\n"}).changes[0].lines == ()
    monkeypatch.setattr(diff, "_MAX_TEXT", 4)
    assert compared({"a": "x\n" * 2}, {"a": "y\n"}).changes[0].lines == ()


def test_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "MAX_CHANGES", 3)
    assert len(compared({f"k{n}": n for n in range(9)}, {}).changes) == 3


def test_a_malformed_document_is_an_error() -> None:
    with refuses("compose.syntax", ProtocolError):
        diff_app_compose(b"{}", b"{")


def test_progress_passes() -> None:
    require_progress(compared(OLD | {"name": "other"}))


def test_n75_an_update_that_changes_nothing_is_refused() -> None:
    raw = canonical_bytes(OLD)
    with refuses("compose.diff.unchanged", PolicyDenied):
        require_progress(diff_app_compose(raw, raw))


def test_n75_an_update_of_the_form_alone_is_refused() -> None:
    found = compared(OLD)
    assert found.form_only
    with refuses("compose.diff.form_only", PolicyDenied):
        require_progress(found)


def test_n75_an_update_that_drops_a_field_is_refused_unless_it_is_named() -> None:
    found = compared({"name": "demo", "docker_compose_file": "a"})
    with refuses("compose.diff.dropped", PolicyDenied):
        require_progress(found)
    require_progress(found, may_drop=["port_policy"])


def test_a_field_that_becomes_null_is_dropped() -> None:
    found = compared({"name": "demo", "docker_compose_file": "a", "port_policy": None})
    assert found.dropped == ("port_policy",)
    assert compared(OLD | {"x": None}, OLD).dropped == ()

"""Version requirements are those of Rust's semver."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.compose.os_version import meets_requirement
from shared.errors import ProtocolError
from tests.shared.refusal import refuses


@pytest.mark.parametrize(
    ("requirement", "matching", "others"),
    [
        ("1.2.3", ["1.2.3", "1.9.0"], ["1.2.2", "2.0.0", "0.9.9"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.2.2", "0.3.0", "1.0.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.2", "0.0.4"]),
        ("^0.2", ["0.2.0", "0.2.9"], ["0.1.9", "0.3.0"]),
        ("^1.2", ["1.2.0", "1.9.9"], ["1.1.0", "2.0.0"]),
        ("^0", ["0.0.1", "0.9.0"], ["1.0.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.2.2", "1.3.0"]),
        ("~1.2", ["1.2.0", "1.2.9"], ["1.3.0"]),
        ("~1", ["1.0.0", "1.9.0"], ["2.0.0"]),
        ("=1.2", ["1.2.0", "1.2.7"], ["1.3.0"]),
        (">1.2", ["1.3.0", "2.0.0"], ["1.2.0", "1.2.9"]),
        (">=1.2", ["1.2.0", "1.3.0"], ["1.1.9"]),
        ("<1.2", ["1.1.9", "0.1.0"], ["1.2.0", "1.2.1"]),
        ("<=1.2", ["1.2.9", "1.1.0"], ["1.3.0"]),
        ("1.*", ["1.0.0", "1.9.9"], ["2.0.0"]),
        ("1.2.*", ["1.2.0", "1.2.9"], ["1.3.0"]),
        ("*", ["0.0.0", "9.9.9"], ["1.0.0-rc.1"]),
        (">=0.6.0, <0.7", ["0.6.0", "0.6.9"], ["0.5.9", "0.7.0"]),
        (">=1.0.0-rc.2", ["1.0.0-rc.2", "1.0.0-rc.10", "1.0.0", "1.0.1"], ["1.0.0-rc.1", "1.0.1-rc.3"]),
        ("<1.0.0-beta", ["1.0.0-alpha", "1.0.0-1"], ["1.0.0-beta", "1.0.0"]),
        ("=1.0.0+build", ["1.0.0", "1.0.0+other"], ["1.0.1"]),
    ],
)
def test_matches_as_rusts_semver_does(requirement: str, matching: list[str], others: list[str]) -> None:
    assert [version for version in matching if meets_requirement(requirement, version)] == matching
    assert [version for version in others if meets_requirement(requirement, version)] == []


@pytest.mark.parametrize("version", ["", "1", "1.2", "v1.2.3", "1.2.3.4", "01.2.3", "1.2.3-"])
def test_refuses_what_is_no_version(version: str) -> None:
    with refuses("os_version.version", ProtocolError):
        meets_requirement("*", version)


@pytest.mark.parametrize("requirement", ["", ">=", "1..2", ">*", "1.*.3", "1.2-rc", "a", "1,"])
def test_refuses_what_is_no_requirement(requirement: str) -> None:
    with refuses("os_version.requirement", ProtocolError):
        meets_requirement(requirement, "1.0.0")


@given(requirement=st.text(alphabet="0123456789.*xX<>=~^, -+ab", max_size=40))
def test_no_text_raises_anything_but_a_refusal(requirement: str) -> None:
    with suppress(ProtocolError):
        meets_requirement(requirement, "1.2.3")

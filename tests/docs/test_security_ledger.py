"""docs/security-ledger.md lists every refusal that is shown, and nothing that is not."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.references import REPOSITORY, all_tests, has_symbol, is_error_code

LEDGER = (REPOSITORY / "docs" / "security-ledger.md").read_text()
REQUIRED = tuple(
    f"N-{number:02}"
    for number in (*range(1, 26), *range(30, 40), 50, 51, 52, *range(54, 63))  # N-40, 41, 53 are told
)
SECTIONS = {
    section[:4]: section
    for section in re.split(r"^## ", LEDGER, flags=re.MULTILINE)
    if section.startswith("N-")
}
ANSWERED, _, UNANSWERED = LEDGER.partition("\n## Upstream's issues\n")[2].partition("Not answered yet")
ISSUE = re.compile(r"#\d+")
ISSUES_PAGES = ("UPSTREAM.md", "spec/kms.md")


def _listed(section: str) -> set[tuple[str, str]]:
    return set(re.findall(r"^- `(tests/[\w/]+\.py)::(test_\w+)`$", section, re.MULTILINE))


@pytest.mark.parametrize("number", REQUIRED)
def test_a_required_refusal_has_words_and_tests(number: str) -> None:
    words, _, tests = SECTIONS[number].partition("\n- ")
    assert len(words.splitlines()) >= 3
    assert "Codes: `" in words
    assert tests


def test_every_listed_test_exists() -> None:
    listed = set().union(*map(_listed, SECTIONS.values()))
    assert len(listed) >= 150
    assert not {f"{path}::{name}" for path, name in listed if not has_symbol(path, name)}


def test_every_numbered_test_is_listed_under_its_number() -> None:
    numbered = [
        (f"N-{number}", path, name) for path, name in all_tests() for number in re.findall(r"_n(\d\d)_", name)
    ]
    assert len(numbered) >= 150
    missing = [
        f"{number}: {path}::{name}"
        for number, path, name in numbered
        if (path, name) not in _listed(SECTIONS.get(number, ""))
    ]
    assert not missing


def test_every_section_is_in_the_table() -> None:
    assert re.findall(r"^\| \[(N-\d\d)\]", LEDGER, re.MULTILINE) == sorted(SECTIONS)


def test_every_code_can_be_raised() -> None:
    codes = {
        code
        for section in SECTIONS.values()
        for line in re.findall(r"^Codes: (.*?)\n\n", section, re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`]+)`", line)
    }
    assert len(codes) >= 60
    assert not {code for code in codes if not is_error_code(code)}


def test_the_checks_see_a_code_that_nothing_raises() -> None:
    assert is_error_code("nitro.nonce")
    assert not is_error_code("kms.gone")
    assert not is_error_code("example.com")


def test_every_answer_to_an_upstream_issue_names_its_tests() -> None:
    rows = re.findall(r"^\| (?!Issue|-)(.*?) \| (.*?) \| (.*?) \|$", ANSWERED, re.MULTILINE)
    assert len(rows) >= 20
    for issues, answer, tests in rows:
        assert ISSUE.search(issues), answer
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named, issues
        assert not [name for name in named if not has_symbol(*name)]


@pytest.mark.parametrize("page", ISSUES_PAGES)
def test_every_issue_that_upstreams_users_raised_has_a_line(
    page: str, shared_data: Callable[[str], Path]
) -> None:
    text = shared_data(f"../{page}").read_text()
    if page != "UPSTREAM.md":
        text = text.partition("## Where we can do better")[2]
    assert len(ISSUE.findall(text)) >= 10
    assert not set(ISSUE.findall(text)) - set(ISSUE.findall(ANSWERED + UNANSWERED))

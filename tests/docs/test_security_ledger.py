"""docs/security-ledger.md lists every refusal that is shown, and nothing that is not."""

import re

import pytest

from tests.docs.references import REPOSITORY, all_tests, has_symbol, is_error_code

LEDGER = (REPOSITORY / "docs" / "security-ledger.md").read_text()
REQUIRED = tuple(
    f"N-{number:02}"
    for number in (*range(1, 26), *range(30, 38), 50, 56, 57, 59)  # N-41 is told, not refused
)
SECTIONS = {
    section[:4]: section
    for section in re.split(r"^## ", LEDGER, flags=re.MULTILINE)
    if section.startswith("N-")
}
NUMBERED = [
    (f"N-{number}", path, name) for path, name in all_tests() for number in re.findall(r"_n(\d\d)_", name)
]


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
    assert len(NUMBERED) >= 150
    missing = [
        f"{number}: {path}::{name}"
        for number, path, name in NUMBERED
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

"""docs/governance-function.md has every setting, provider and code of the function, and no other."""

import ast
import re
from pathlib import Path

from functions.governance.providers import PROVIDERS
from functions.governance.secret_source import MAX_SECRETS, MIN_LENGTH
from functions.governance.service import AHEAD_SECONDS, AHEAD_WAITS, LAST_TRY
from functions.governance.settings import DEFAULT_MAX_HEAD_AGE
from tests.docs.references import REPOSITORY

PAGE = (REPOSITORY / "docs" / "governance-function.md").read_text()
FUNCTION = REPOSITORY / "functions" / "governance"
RAISED_ELSEWHERE = {"governance.body.json"}  # with what is wrong behind it


def literals() -> set[str]:
    """Return every text of the function that is one literal."""
    return {
        node.value
        for path in FUNCTION.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def rows(pattern: str) -> set[str]:
    """Return what stands in the first cells of tables."""
    cells = re.findall(r"^\| (`[^|]*`) \|", PAGE.replace("\\|", ""), re.MULTILINE)
    return {one for cell in cells for one in re.findall(f"`({pattern})`", cell)}


def test_has_every_code_and_no_other() -> None:
    codes = {one for one in literals() if re.fullmatch(r"governance(\.[a-z_]+)+", one)}
    assert rows(r"governance[a-z_.]+") == codes | RAISED_ELSEWHERE


def test_has_every_setting_and_no_other() -> None:
    source = (FUNCTION / "settings.py").read_text() + (FUNCTION / "assembly.py").read_text()
    named = set(re.findall(r'"(DSTACK_[A-Z_]+)"', source)) | {"DSTACK_STORE"}
    assert rows(r"DSTACK_[A-Z_]+") == named


def test_has_every_provider_with_its_signature() -> None:
    listed = dict(re.findall(r"^\| `([a-z]+)` \| `([A-Za-z-]+)", PAGE, re.MULTILINE))
    assert {name: header.lower() for name, header in listed.items()} == {
        name: provider.signature for name, provider in PROVIDERS.items()
    }


def test_its_numbers_are_those_of_the_code() -> None:
    assert f"| `DSTACK_GOVERNANCE_MAX_HEAD_AGE` | {DEFAULT_MAX_HEAD_AGE};" in PAGE
    assert f"{MIN_LENGTH} characters or more" in PAGE
    assert (MAX_SECRETS, LAST_TRY) == (2, 30)
    assert f"made again after {AHEAD_SECONDS} seconds, for a\nminute" in PAGE
    assert AHEAD_SECONDS * AHEAD_WAITS == 60


def test_names_no_file_that_is_not_there() -> None:
    linked = re.findall(r"\]\(([\w-]+\.md)\)", PAGE)
    assert linked
    assert not [one for one in linked if not (Path(REPOSITORY) / "docs" / one).is_file()]

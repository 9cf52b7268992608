"""docs/authorize.md has every setting, every code and every policy key of the function, and no other."""

import ast
import json
import re
from pathlib import Path

import pytest

from functions.authorize.policy import PlatformPolicy, TeeVariant
from functions.authorize.settings import settings_from_env
from tests.docs.references import REPOSITORY, is_error_code

PAGE = (REPOSITORY / "docs" / "authorize.md").read_text()
FUNCTION = REPOSITORY / "functions" / "authorize"
CODES = set(re.findall(r"`([a-z_]+(?:\.[a-z0-9_]+)+)`", PAGE.partition("## When it refuses")[2]))


def texts(path: Path) -> set[str]:
    """Return every text in a module that is one literal."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_has_every_setting_and_no_other() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE)
    read = {text for text in texts(FUNCTION / "settings.py") if re.fullmatch(r"[A-Z]+(?:_[A-Z]+)+", text)}
    assert set(rows) == read


def test_gives_the_defaults() -> None:
    defaults = settings_from_env({"ETH_RPC_URL": "https://a.example", "KMS_CONTRACT_ADDR": "0x" + "9f" * 20})
    assert f"| `ETH_MAX_HEAD_AGE` | {defaults.max_head_age} |" in PAGE


def test_has_every_code_of_the_function() -> None:
    raised = {
        text
        for path in FUNCTION.glob("*.py")
        for text in texts(path)
        if re.fullmatch(r"authorize(?:\.[a-z_]+)+", text) and text != "authorize.policy"
    }
    assert raised == {code for code in CODES if code.startswith("authorize.")}


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_can_be_raised(code: str) -> None:
    assert is_error_code(code)


def test_has_every_key_and_variant_of_the_policy() -> None:
    [example] = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    keys = set(re.findall(r"^\| `(allowed\w+)` \|", PAGE, re.MULTILINE))
    assert keys == set(json.loads(example)) == set(PlatformPolicy.__struct_encode_fields__)
    assert set(re.findall(r"`(dstack-[a-z-]+)`", PAGE)) == set(TeeVariant.__args__)  # type: ignore[attr-defined]

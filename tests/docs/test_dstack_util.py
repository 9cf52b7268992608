"""docs/dstack-util.md has every command and every code, and its commands give what it shows."""

import argparse
import re

import pytest

from enclave.dstack_util.commands import boot
from enclave.dstack_util.kms_keys import MAX_DELAY, Waiting
from enclave.dstack_util.main import GROUPS, main
from tests.docs.references import REPOSITORY, is_error_code

PAGE = (REPOSITORY / "docs" / "dstack-util.md").read_text()
SOURCES = [*(REPOSITORY / "enclave/dstack_util").rglob("*.py")]
OWN = re.compile(r'"((?:setup|host_share|luks|dstack_util|tpm_verify)(?:\.[a-z0-9_]+)+)"')


def _codes(text: str) -> set[str]:
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {code for row in rows for code in re.findall(r"`([a-z0-9_]+(?:\.[a-z0-9_]+)+)`", row)}


def test_has_every_command() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    for group in GROUPS:
        group.add(commands)
    table = PAGE.partition("## Commands")[2].partition("## setup")[0]
    assert {name for name in commands.choices if f"`{name}" not in table} == set()


def test_has_every_code_of_its_own() -> None:
    raised = {code for source in SOURCES for code in OWN.findall(source.read_text())}
    logged = {
        "setup.failed",
        "setup.identity",
        "setup.kms_failed",
        "setup.env_skipped",
        "setup.gateway_failed",
    }
    assert raised - logged - _codes(PAGE) == set()


def test_every_code_can_be_raised() -> None:
    codes = _codes(PAGE.partition("## Error codes")[2])
    assert len(codes) >= 50
    assert {code for code in codes if not is_error_code(code)} == set()


def test_gives_the_times_of_waiting() -> None:
    assert f"1, 2, 4, … {MAX_DELAY:g} seconds, for {Waiting().limit:g} seconds" in PAGE


@pytest.mark.parametrize(
    ("argv", "code"), [(["rand", "-n", "0"], 1), (["gateway-checker"], boot.MISCONFIGURED)]
)
def test_commands_give_what_it_shows(capsys: pytest.CaptureFixture[str], argv: list[str], code: int) -> None:
    assert main(argv) == code
    assert f"$ dstack-util {' '.join(argv)}\n{capsys.readouterr().err}exit {code}\n" in PAGE

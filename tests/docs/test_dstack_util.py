"""docs/dstack-util.md has every command and every code, and its commands give what it shows."""

import argparse
import re

import pytest

from enclave.dstack_util import gateway_checker, gateway_client, wireguard
from enclave.dstack_util.commands.gateway import MISCONFIGURED
from enclave.dstack_util.kms_keys import MAX_DELAY, Waiting
from enclave.dstack_util.main import GROUPS, main
from shared.errors import ExitCode
from tests.docs.references import REPOSITORY, is_error_code

PAGE = (REPOSITORY / "docs" / "dstack-util.md").read_text()
SOURCES = [*(REPOSITORY / "enclave/dstack_util").rglob("*.py")]
OWN = re.compile(r'"((?:setup|host_share|luks|dstack_util|tpm_verify|gateway)(?:\.[a-z0-9_]+)+)"')


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
        "gateway.cache_ignored",
        "gateway.failed",
        "gateway.refresh_failed",
        "gateway.registered",
        "gateway.tunnel",
        "gateway.unchecked",
    }
    assert raised - logged - _codes(PAGE) == set()


def test_every_code_can_be_raised() -> None:
    codes = _codes(PAGE.partition("## Error codes")[2])
    assert len(codes) >= 50
    assert {code for code in codes if not is_error_code(code)} == set()


def test_gives_the_times_of_waiting() -> None:
    assert f"1, 2, 4, … {MAX_DELAY:g} seconds, for {Waiting().limit:g} seconds" in PAGE


def test_gives_the_gateway_clients_numbers() -> None:
    page = " ".join(PAGE.partition("## The gateway")[2].partition("## Error codes")[0].split())
    client, checker = gateway_client, gateway_checker
    for words in (
        f"{client.EXCHANGE:g} seconds for each exchange, {client.TOTAL:g} for all",
        f"up to {wireguard.MAX_SERVERS} nodes",
        f"UDP {wireguard.PORT}",
        f"looks every {checker.POLL:g} seconds. It registers again every {checker.REFRESH:g} seconds",
        f"no node shook hands for {checker.SILENCE} seconds",
        f"after {checker.FIRST_DELAY:g} seconds, then {2 * checker.FIRST_DELAY:g}",
        f"then every {checker.LONGEST_DELAY:g}",
        f"would not help, with {MISCONFIGURED}",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("argv", "code"), [(["rand", "-n", "0"], ExitCode.FAILED), (["gateway-checker"], ExitCode.FAILED)]
)
def test_commands_give_what_it_shows(capsys: pytest.CaptureFixture[str], argv: list[str], code: int) -> None:
    assert main(argv) == code
    assert f"$ dstack-util {' '.join(argv)}\n{capsys.readouterr().err}exit {code}\n" in PAGE

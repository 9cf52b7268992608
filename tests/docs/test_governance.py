"""docs/governance.md: its commands are run with a real Safe, and give what it shows."""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import start_chain
from cli.gov.command import COMMANDS
from tests.docs.console_page import Session, Transcript, need_tools, table_codes, wrong
from tests.docs.references import REPOSITORY, is_error_code
from tests.end_to_end.commands import become
from tests.end_to_end.gcp_site import user_environment
from tests.safe.real_safe import RealSafe, need_safe

PAGE = (REPOSITORY / "docs" / "governance.md").read_text()
PAYER, DEPLOYER, OWNERS = 5, 6, slice(1, 4)  # of the chain's funded accounts
SIGNED = re.compile(r"^# two owners sign (\w+)\.json, and it is final$", re.MULTILINE)


class Site:
    """What the page's operator has around: a chain, three people with a Safe, and a key that pays."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        self.chain = stack.enter_context(start_chain("auto"))
        self._payer = Governance(self.chain.url, self.chain.accounts[PAYER])
        self._safe: RealSafe
        key = place / "deployer.key"
        key.write_text(self.chain.accounts[DEPLOYER].private_key.hex() + "\n")
        key.chmod(0o644)  # as an editor leaves it

    def make_safe(self) -> None:
        self._safe = RealSafe(self._payer, self.chain.accounts[OWNERS], threshold=2)
        assert self._safe.address in PAGE

    def sign(self, batch: str) -> None:
        self._safe.execute(self.place / f"{batch}.json", signers=2)


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcript]:
    """Run the page's commands one after another; each with the lines that came."""
    need_tools()
    need_safe()
    place = tmp_path_factory.mktemp("page")
    with ExitStack() as stack:
        site = Site(place, stack)
        stack.enter_context(patch.dict(os.environ))  # for what the page exports
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        become(monkeypatch, user_environment(place), place)
        for name in ("DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CHAIN_ID", "DSTACK_CLOUD_API"):
            monkeypatch.delenv(name, raising=False)
        others = {
            f"# two owners sign {name}.json, and it is final": partial(site.sign, name)
            for name in SIGNED.findall(PAGE)
        }
        others["# three people make a Safe that two of them must sign for"] = site.make_safe
        words = {"https://rpc.example.com": site.chain.url}
        yield Session(place, words=words, others=others).take(PAGE)


def test_each_command_gives_what_the_page_shows(transcript: Transcript) -> None:
    assert wrong(transcript) == []


def test_the_page_goes_from_nothing_to_a_registered_app(transcript: Transcript) -> None:
    typed = [command.text for command, _ in transcript]
    for words in ("deploy", "status", "image add", "kms add-mr", "app deploy", "watch"):
        assert any(f"gov {words}" in one for one in typed), words


def test_the_page_names_every_command() -> None:
    assert [name for name in COMMANDS if f"gov {name}" not in PAGE] == []


def test_every_code_of_the_table_can_be_raised() -> None:
    codes = table_codes(PAGE, "## When it does not work")
    assert len(codes) >= 15
    assert [code for code in codes if not is_error_code(code)] == []

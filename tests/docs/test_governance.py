"""docs/governance.md: its commands are run with a real Safe, and give what it shows."""

import json
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
from cli.gov.deploy import deploy
from cli.gov.image import image
from cli.gov.status import status
from tests.conftest import CHAIN_ENGINE, QUICK_BLOCKS
from tests.docs.console_page import Session, Transcript, need_tools, table_codes, wrong
from tests.docs.references import REPOSITORY, is_error_code
from tests.end_to_end.commands import become
from tests.end_to_end.gcp_site import user_environment
from tests.safe.real_safe import RealSafe, need_safe
from tests.safe.transaction_service import told, transaction_service

add = image.commands["add"]
PAGE = (REPOSITORY / "docs" / "governance.md").read_text()
SAFE = ("DSTACK_SAFE_SERVICE", "DSTACK_SAFE_API_KEY", "DSTACK_RPC_QUORUM")
PAYER, DEPLOYER, OWNERS = 5, 6, slice(1, 4)  # of the chain's funded accounts
SIGNED = re.compile(r"^# two owners sign (\w+)\.json, and it is final$", re.MULTILINE)


class Site:
    """What the page's operator has around: a chain, three people with a Safe, and a key that pays."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        self.chain = stack.enter_context(start_chain(CHAIN_ENGINE, block_time=QUICK_BLOCKS))
        self._payer = Governance(self.chain.url, self.chain.accounts[PAYER])
        self._safe: RealSafe
        self.service = stack.enter_context(transaction_service())
        key = place / "deployer.key"
        key.write_text(self.chain.accounts[DEPLOYER].private_key.hex() + "\n")
        key.chmod(0o644)  # as an editor leaves it

    def make_safe(self) -> None:
        self._safe = RealSafe(self._payer, self.chain.accounts[OWNERS], threshold=2)
        assert self._safe.address in PAGE

    def propose(self, batch: str) -> None:
        """Sign a file as one owner, and have the service keep it."""
        safe = self._safe
        document = json.loads((self.place / f"{batch}.json").read_text())
        asked = safe.batch([(one["to"], bytes.fromhex(one["data"][2:])) for one in document["transactions"]])
        functions = safe.contract.functions
        nonce = functions.nonce().call()
        digest = safe.hash_of(asked, nonce)
        fields = {"to": asked[0], "data": asked[2], "operation": asked[3], "nonce": nonce}
        self.service.transactions[safe.address] = [
            told(safe.address, fields, digest, safe.signatures(digest, 1))
        ]
        self.service.infos[safe.address] = {
            "address": safe.address,
            "nonce": str(nonce),
            "threshold": functions.getThreshold().call(),
            "owners": functions.getOwners().call(),
        }

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
        for name in ("DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CHAIN_ID", "DSTACK_CLOUD_API", *SAFE):
            monkeypatch.delenv(name, raising=False)
        others = {
            f"# two owners sign {name}.json, and it is final": partial(site.sign, name)
            for name in SIGNED.findall(PAGE)
        }
        others["# an owner proposes allow.json in the Safe's app"] = partial(site.propose, "allow")
        others["# three people make a Safe that two of them must sign for"] = site.make_safe
        words = {"https://rpc.example.com": site.chain.url, "https://safe.example.com": site.service.url}
        yield Session(place, words=words, others=others).take(PAGE)


def test_each_command_gives_what_the_page_shows(transcript: Transcript) -> None:
    assert wrong(transcript) == []


def test_the_page_goes_from_nothing_to_a_registered_app(transcript: Transcript) -> None:
    typed = [command.text for command, _ in transcript]
    for words in ("deploy", "status", "image add", "kms add-mr", "app deploy", "watch"):
        assert any(f"gov {words}" in one for one in typed), words


def test_the_page_names_every_command() -> None:
    assert [name for name in COMMANDS if f"gov {name}" not in PAGE] == []


def test_the_options_are_those_of_the_commands() -> None:
    section = PAGE.partition("## Options")[2].partition("\n## ")[0]
    parameters = [one for command in (deploy, status, add) for one in command.params]
    known = {name for one in parameters for name in one.opts}
    variables = {one.envvar for one in parameters if one.envvar}
    shared = {name for one in add.params if one.param_type_name == "option" for name in one.opts}
    listed = set(re.findall(r"`(--[a-z0-9-]+)`", section))
    assert (listed - known, shared - listed) == (set(), set())
    assert set(re.findall(r"`(DSTACK_\w+)`", section)) == variables - {"DSTACK_CLOUD_API"}


def test_every_code_of_a_command_is_in_the_table() -> None:
    rooms = (REPOSITORY / "cli" / "gov").glob("*.py")
    raised = {code for file in rooms for code in re.findall(r'"(gov\.[a-z_0-9.]+)"', file.read_text())}
    # what a batch that cannot be read comes to is a danger among the proposals
    assert raised - set(table_codes(PAGE, "## When it does not work")) == {"gov.safe_batch"}


def test_every_code_of_the_table_can_be_raised() -> None:
    codes = table_codes(PAGE, "## When it does not work")
    assert len(codes) >= 15
    assert [code for code in codes if not is_error_code(code)] == []

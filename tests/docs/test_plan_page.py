"""docs/plan.md: its project is written, its commands are run, and give what it shows."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import start_chain
from shared.chain.abi import checksum_address
from tests.conftest import CHAIN_ENGINE
from tests.docs.console_page import Session, Transcript, send_planned, wrong
from tests.docs.references import REPOSITORY
from tests.functions.plan.projects import write_os_image
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar

PAGE = (REPOSITORY / "docs" / "plan.md").read_text()
SENDING = "# both calls are sent, by a wallet or a Safe"


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcript]:
    """Run the page's commands one after another in its project; each with the lines that came."""
    place = tmp_path_factory.mktemp("page")
    _write_inputs(place)
    with start_chain(CHAIN_ENGINE, block_time=0) as chain, pytest.MonkeyPatch.context() as monkeypatch:
        owner = Governance(chain.url, chain.accounts[0])
        kms = checksum_address(owner.deploy().kms)
        for name, value in {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(place / "cache"),
            "DSTACK_CLOUD_CONFIG": str(place / "config.json"),
            "RPC": chain.url,
            "KMS": kms,
            "OWNER": owner.address,
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(place)
        options = ("--rpc", chain.url, "--kms-contract", kms, "--app-owner", owner.address)
        yield Session(place, others={SENDING: lambda: send_planned(owner, *options)}).take(PAGE)


def _write_inputs(place: Path) -> None:
    (place / "boot").mkdir()
    for name in ("bzImage", "init", "nsm.ko"):
        (place / "boot" / name).write_bytes(f"{name} of the page".encode())
    Layout(layer_tar(directory("etc"), file("app", b"#!/bin/sh\n", mode=0o755))).write(place / "layout")
    write_os_image(place / "images")
    (place / "config.json").write_text('{"image_search_paths": ["../images"]}')
    data = REPOSITORY / "tests" / "data" / "deploy" / "app-compose.cli.json"
    (place / "app-compose.json").write_bytes(data.read_bytes())


def test_each_command_gives_what_the_page_shows(transcript: Transcript) -> None:
    assert wrong(transcript) == []


def test_the_page_shows_every_exit_code_that_it_can(transcript: Transcript) -> None:
    exits = {line for _, came in transcript for line in came if line.startswith("exit ")}
    assert {"exit 0", "exit 3", "exit 4", "exit 5"} <= exits

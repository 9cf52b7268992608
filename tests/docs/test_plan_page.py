"""docs/plan.md: its project is written, its commands are run, and give what it shows."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import start_chain
from shared.chain.abi import checksum_address
from tests.docs.references import REPOSITORY
from tests.functions.plan.projects import write_os_image
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar

PAGE = REPOSITORY / "docs" / "plan.md"
FILES = re.compile(r"^```\w+ (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
GAP = "…"
SENDING = "# both calls are sent, by a wallet or a Safe"


@dataclass
class Command:
    """One command of the page, and the lines that it shows of the output."""

    text: str
    shown: list[str] = field(default_factory=list)


def commands() -> list[Command]:
    found: list[Command] = []
    for block in BLOCK.findall(PAGE.read_text()):
        for line in block.splitlines():
            if line.startswith("$ ") or line == SENDING:
                found.append(Command(line.removeprefix("$ ")))
            else:
                found[-1].shown.append(line)
    return found


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Command, list[str]]]]:
    """Run the page's commands one after another in its project; each with the lines that came."""
    place = tmp_path_factory.mktemp("page")
    for name, text in FILES.findall(PAGE.read_text()):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    _write_inputs(place)
    with start_chain("auto", block_time=0) as chain:
        owner = Governance(chain.url, chain.accounts[0])
        kms = checksum_address(owner.deploy().kms)
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(place / "cache"),
            "DSTACK_CLOUD_CONFIG": str(place / "config.json"),
            "RPC": chain.url,
            "KMS": kms,
            "OWNER": owner.address,
        }
        done = []
        for command in commands():
            if command.text == SENDING:
                _send(place, owner, environment)
                continue
            ran = subprocess.run(
                ["bash", "-c", command.text],
                cwd=place,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            done.append((command, ran.stdout.splitlines()))
        yield done


def _write_inputs(place: Path) -> None:
    (place / "boot").mkdir()
    for name in ("bzImage", "init", "nsm.ko"):
        (place / "boot" / name).write_bytes(f"{name} of the page".encode())
    Layout(layer_tar(directory("etc"), file("app", b"#!/bin/sh\n", mode=0o755))).write(place / "layout")
    write_os_image(place / "images")
    (place / "config.json").write_text('{"image_search_paths": ["../images"]}')
    data = REPOSITORY / "tests" / "data" / "deploy" / "app-compose.cli.json"
    (place / "app-compose.json").write_bytes(data.read_bytes())


def _send(place: Path, owner: Governance, environment: dict[str, str]) -> None:
    ran = subprocess.run(
        ["bash", "-c", "dstack-cloud plan --json --rpc $RPC --kms-contract $KMS --app-owner $OWNER"],
        cwd=place,
        env=environment,
        capture_output=True,
        check=False,
    )
    for call in json.loads(ran.stdout)["approval"]["calls"]:
        owner.settle(owner.send(RawCall(call["to"], call["calldata"])))


@dataclass
class RawCall:
    """Calldata in the shape that the sender takes."""

    to: str
    data: str

    def build_transaction(self, parameters: dict[str, object]) -> dict[str, object]:
        return parameters | {"to": self.to, "data": self.data, "value": 0}


def matches(shown: list[str], came: list[str]) -> bool:
    """Whether the shown lines came; a gap stands for any lines, or for any text within one."""
    if not shown:
        return not came
    if shown[0] == GAP:
        return any(matches(shown[1:], came[at:]) for at in range(len(came) + 1))
    pattern = ".*".join(re.escape(part) for part in shown[0].split(GAP))
    return bool(came) and re.fullmatch(pattern, came[0]) is not None and matches(shown[1:], came[1:])


def test_each_command_gives_what_the_page_shows(transcript: list[tuple[Command, list[str]]]) -> None:
    wrong = [
        (command.text, command.shown, came)
        for command, came in transcript
        if not matches(command.shown, came)
    ]
    assert not wrong


def test_the_page_shows_every_exit_code_that_it_can(transcript: list[tuple[Command, list[str]]]) -> None:
    exits = {line for _, came in transcript for line in came if line.startswith("exit ")}
    assert {"exit 0", "exit 3", "exit 4", "exit 5"} <= exits

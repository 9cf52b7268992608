"""docs/reproducible-builds.md: its commands are run, from a tag to a contract, and give what it shows."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import start_chain
from shared.chain.abi import checksum_address
from tests.conftest import CHAIN_ENGINE
from tests.docs.console_page import matches
from tests.docs.references import REPOSITORY, is_error_code

PAGE = (REPOSITORY / "docs" / "reproducible-builds.md").read_text()
FILES = re.compile(r"^```\w+ (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOOLS = ("bash", "git", "tar", "curl", "xxd", "sha256sum", "cmp", "tee")
SENDING = "# the owner sends that"

Step = tuple[str, list[str]]


def steps() -> list[Step]:
    """Return the page's commands, each with the lines that it shows."""
    found: list[Step] = []
    for line in "".join(BLOCK.findall(PAGE)).splitlines():
        if line.startswith("$ ") or line == SENDING:
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Step, list[str]]]]:
    """Run the commands in one shell; each with the lines that came."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the page's commands need {', '.join(missing)}")
    place = tmp_path_factory.mktemp("page")
    for name, text in FILES.findall(PAGE):
        (place / name).write_text(text)
    with start_chain(CHAIN_ENGINE, block_time=0) as chain:
        owner = Governance(chain.url, chain.accounts[0])
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(place / "cache"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "RPC": chain.url,
            "KMS": checksum_address(owner.deploy().kms),
        }
        with subprocess.Popen(
            ["bash"],
            cwd=place,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as shell:
            done = []
            for step in steps():
                if step[0] == SENDING:
                    owner.settle(owner.add_os_image(bytes.fromhex((place / "hash").read_text().strip())))
                else:
                    done.append((step, _run(shell, step[0])))
            shell.kill()
        yield done


def _run(shell: "subprocess.Popen[str]", command: str) -> list[str]:
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(f"{command}\necho '@@end'\n")
    shell.stdin.flush()
    lines = []
    while (line := shell.stdout.readline()) and line != "@@end\n":
        lines.append(line.rstrip("\n"))
    return lines


def test_the_commands_give_what_the_page_shows(transcript: list[tuple[Step, list[str]]]) -> None:
    wrong = [(command, shown, came) for (command, shown), came in transcript if not matches(shown, came)]
    assert not wrong


def test_the_page_goes_all_the_way(transcript: list[tuple[Step, list[str]]]) -> None:
    commands = " ".join(command for (command, _), _ in transcript)
    for word in ("git", "pack.sh", "image build", "image inspect", "sha256sum", "curl"):
        assert word in commands


def test_every_code_of_the_table_can_be_raised() -> None:
    section = PAGE.partition("## What is refused")[2]
    codes = [
        code
        for row in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
        for code in re.findall(r"`([a-z0-9_.]+)`", row)
    ]
    assert len(codes) >= 15
    assert [code for code in codes if not is_error_code(code)] == []

"""Pages whose console blocks are run: the files and commands that a page shows, and what came of them."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from web3.types import RPCEndpoint

from cli.devchain.governance import Governance
from cli.main import main

GAP = "…"
TOOLS = ("bash", "curl", "openssl", "xxd", "sha512sum", "cut")
"""What the quickstarts' own verification is typed with, besides `dstack-cloud`."""

_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_EXIT = '; echo "exit $?"'
_NOT_PLAIN = re.compile(r"[|;&<>`()~]|\$(?![A-Z_])")


@dataclass
class File:
    """A file of the page, to be written where the page comes to it."""

    name: str
    text: str


@dataclass
class Command:
    """One command of the page, and the lines that it shows of the output."""

    text: str
    shown: list[str] = field(default_factory=list)


Transcript = list[tuple[Command, list[str]]]
"""Commands, each with the lines that came."""


def steps(page: str, *others: str) -> list[File | Command]:
    """Return a page's files and commands, in its order.

    A file is a block with a name behind its language. A line of `others` in a console block is a command too:
    something that people do elsewhere.
    """
    found: list[File | Command] = []
    for language, name, text in _BLOCK.findall(page):
        if name:
            found.append(File(name, text))
        elif language == "console":
            found += _commands(text, others)
    return found


def files(page: str) -> dict[str, str]:
    """Return a page's files by their names; of two the last."""
    return {name: text for _, name, text in _BLOCK.findall(page) if name}


def wrong(transcript: Transcript) -> list[tuple[str, list[str], list[str]]]:
    """Return the commands whose output the page does not show: each with what is shown, and what came."""
    return [
        (command.text, command.shown, came)
        for command, came in transcript
        if not matches(command.shown, came)
    ]


def table_codes(page: str, heading: str) -> list[str]:
    """Return the error codes in the first column of the table below a heading."""
    section = page.partition(heading)[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    return [code for row in rows for code in re.findall(r"`([a-z0-9_.]+)`", row)]


def matches(shown: Sequence[str], came: Sequence[str]) -> bool:
    """Tell whether the shown lines came; a gap stands for any lines, or for any text within one."""
    if not shown:
        return not came
    if shown[0] == GAP:
        return any(matches(shown[1:], came[at:]) for at in range(len(came) + 1))
    pattern = ".*".join(re.escape(part) for part in shown[0].split(GAP))
    return bool(came) and re.fullmatch(pattern, came[0]) is not None and matches(shown[1:], came[1:])


class Session:
    """A user at a terminal: what is typed changes the directory, the environment and files, in order.

    `words` are what a page writes for what this computer has, such as addresses. `others` are commands that
    something else carries out, by their first words. The environment is this process's, with `environment`
    put over it by whoever makes the session.
    """

    def __init__(
        self,
        place: Path,
        words: Mapping[str, str] | None = None,
        others: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        self.place = place
        self._words = dict(words or {})
        self._others = dict(others or {})

    def take(self, page: str) -> Transcript:
        """Write a page's files and run its commands; return each command with the lines that came."""
        done = []
        for step in steps(page, *self._others):
            if isinstance(step, File):
                path = self.place / step.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._real(step.text))
            else:
                done.append((step, self.type(step.text)))
        return done

    def type(self, text: str) -> list[str]:
        """Run one command; return the lines that came on both outputs."""
        for begin, act in self._others.items():
            if text.startswith(begin):
                act()
                return []
        if text.startswith("cd "):
            os.chdir(Path(text[3:]).expanduser())
            return []
        if text.startswith("export "):
            name = text[7:].partition("=")[0]
            os.environ[name] = shell(f'{self._real(text)}; printf %s "${name}"')
            return []
        plain = self._real(text.removesuffix(_EXIT))
        if plain.startswith("dstack-cloud ") and not _NOT_PLAIN.search(plain):
            output, code = call(shlex.split(os.path.expandvars(plain))[1:])
            if text.endswith(_EXIT):
                output += f"exit {code}\n"
        else:
            output = shell(self._real(text))
        return self._written(output).splitlines()

    def _real(self, text: str) -> str:
        for written, real in self._words.items():
            text = text.replace(written, real)
        return text

    def _written(self, text: str) -> str:
        for written, real in self._words.items():
            text = text.replace(real, written)
        return text


def call(words: Sequence[str]) -> tuple[str, int]:
    """Run `dstack-cloud` in this process; return what it printed, errors too, and its exit code."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    before, code = sys.argv, 0
    sys.argv = ["dstack-cloud", *words]
    try:
        with redirect_stdout(out), redirect_stderr(out):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        sys.argv = before
    out.seek(0)
    # simulated machines live in this process, and log to what the command prints to
    return "".join(line for line in out if not line.startswith('{"event"')), code


def need_tools() -> None:
    """Skip where a quickstart's commands cannot be typed."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the page's commands need {', '.join(missing)}: install them from your distribution")


def shell(text: str) -> str:
    """Run a line in bash, in this process's directory; return what came on both outputs."""
    ran = subprocess.run(
        ["bash", "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return ran.stdout


def send_planned(owner: Governance, *options: str, function: str = "") -> None:
    """Send the calls that a plan of the project here lists, or those of one function, as with a wallet."""
    output, _ = call(["plan", "--json", *options])
    calls = [one for one in json.loads(output)["approval"]["calls"] if one["function"].startswith(function)]
    assert calls, output
    for one in calls:
        owner.settle(owner.send(RawCall(one["to"], one["calldata"])))


def send_until_final(owner: Governance, *options: str, function: str = "") -> None:
    """Do the same, and let the chain go on until what was sent is final: until then a deployment waits."""
    send_planned(owner, *options, function=function)
    for _ in range(4):
        owner.web3.provider.make_request(RPCEndpoint("evm_mine"), [])


@dataclass
class RawCall:
    """Calldata in the shape that the sender takes."""

    to: str
    data: str

    def build_transaction(self, parameters: dict[str, object]) -> dict[str, object]:
        return parameters | {"to": self.to, "data": self.data, "value": 0}


def _commands(text: str, others: Sequence[str]) -> list[Command]:
    found: list[Command] = []
    for line in text.splitlines():
        if line.startswith("$ ") or line in others:
            found.append(Command(line.removeprefix("$ ")))
        elif line.startswith("> ") and found and not found[-1].shown:
            found[-1].text += "\n" + line[2:]
        elif found:
            found[-1].shown.append(line)
        else:
            raise ValueError(f"a block begins with {line!r}, which is no command")
    return found

"""Starts a chain as a process of its own, waits until it answers, and stops exactly that process."""

import contextlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cli.devchain.accounts import CHAIN_ID, DevAccount, development_accounts
from cli.devchain.child import with_parent
from shared.errors import ConfigError, UnavailableError

ENGINES = ("auto", "anvil", "py-evm")
# py-evm imports for up to two seconds on a warm disk; a cold one on a loaded machine takes its time.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 5.0
_POLL = 0.02
_NPM_ANVIL = "contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"


class Chain:
    """A running development chain: `url` of its JSON-RPC, `engine` anvil or py-evm, `chain_id`.

    `fallback` says why it is py-evm where anvil would have been taken; it is empty otherwise.
    """

    chain_id = CHAIN_ID

    def __init__(self, url: str, engine: str, process: "subprocess.Popen[bytes]", fallback: str = "") -> None:
        self.url = url
        self.engine = engine
        self.fallback = fallback
        self._process = process

    @property
    def accounts(self) -> tuple[DevAccount, ...]:
        """The ten funded accounts."""
        return development_accounts()

    @property
    def pid(self) -> int:
        """The process id of the node."""
        return self._process.pid

    def wait(self) -> None:
        """Block until the node ends."""
        self._process.wait()


def find_anvil() -> Path | None:
    """Return anvil's binary: the one that npm pinned in contracts/, else the one on PATH."""
    pinned = Path(__file__).resolve().parents[2] / _NPM_ANVIL
    if pinned.is_file():
        return pinned
    found = shutil.which("anvil")
    return None if found is None else Path(found)


@contextlib.contextmanager
def start_chain(engine: str = "auto", *, port: int = 0, block_time: float = 1) -> Iterator[Chain]:
    """Run a chain for the length of a `with` block.

    `auto` is anvil where there is one that starts, else py-evm; `Chain.engine` says which it was. Blocks come
    every `block_time` seconds, `finalized` is two behind the head; 0 mines on each transaction instead. With
    py-evm these are whole seconds, rounded up: each of its blocks is stamped later than its parent.
    Raises `UnavailableError("devchain.start")` when the node ends or stays silent.
    """
    if engine not in ENGINES:
        raise ConfigError("devchain.engine", f"engine {engine!r}, expected one of {', '.join(ENGINES)}")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dstack-devchain-")))
        anvil = None if engine == "py-evm" else find_anvil()
        if anvil is None:
            if engine == "anvil":
                raise UnavailableError("devchain.start", "no anvil in contracts/node_modules nor on PATH")
            fallback = "anvil is absent (install node and npm)" if engine == "auto" else ""
            yield stack.enter_context(_py_evm(directory, port, block_time, fallback))
            return
        try:
            chain = stack.enter_context(_anvil(anvil, directory, port, block_time))
        except UnavailableError as error:
            if engine == "anvil":
                raise
            fallback = f"anvil does not start ({error})"
            chain = stack.enter_context(_py_evm(directory, port, block_time, fallback))
        yield chain


@contextlib.contextmanager
def _anvil(binary: Path, directory: Path, port: int, block_time: float) -> Iterator[Chain]:
    command = [
        str(binary),
        *("--host", "127.0.0.1", "--port", str(port), "--chain-id", str(CHAIN_ID)),
        # one slot per epoch puts `finalized` two blocks behind the head
        *("--slots-in-an-epoch", "1", "--order", "fifo", "--cache-path", str(directory)),
        *(("--block-time", str(block_time)) if block_time else ()),
    ]
    # anvil tells the port it took in its log alone, so it may not run with --silent
    with _process(command, directory / "anvil.log", rb"Listening on (127\.0\.0\.1:\d+)") as (process, ready):
        yield Chain(f"http://{ready[1].decode()}", "anvil", process)


@contextlib.contextmanager
def _py_evm(directory: Path, port: int, block_time: float, fallback: str) -> Iterator[Chain]:
    command = [
        *(sys.executable, "-m", "cli.devchain", "--engine", "py-evm"),
        *("--port", str(port), "--block-time", str(math.ceil(block_time))),
    ]
    with _process(command, directory / "py-evm.log", rb'(\{"url":.*\})\n') as (process, ready):
        yield Chain(json.loads(ready[1])["url"], "py-evm", process, fallback)


@contextlib.contextmanager
def _process(
    command: list[str], log: Path, sign: bytes
) -> Iterator[tuple["subprocess.Popen[bytes]", "re.Match[bytes]"]]:
    """Run a command until the block ends; enter when `sign` is in its log."""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, or the anvil that we found
                with_parent(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise UnavailableError("devchain.start", f"{command[0]} does not run: {error}") from error
    try:
        yield process, _wait_for(process, log, re.compile(sign))
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", log: Path, sign: "re.Pattern[bytes]") -> "re.Match[bytes]":
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        ended = process.poll() is not None
        text = log.read_bytes()
        found = sign.search(text)
        if found and not ended:
            return found
        tail = text[-500:].decode(errors="replace").strip()
        if ended:
            raise UnavailableError("devchain.start", f"the chain ended with {process.returncode}: {tail}")
        if time.monotonic() > deadline:
            raise UnavailableError(
                "devchain.start", f"the chain is not ready after {START_TIMEOUT} s: {tail}"
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)

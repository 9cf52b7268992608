"""`dstack-cloud demo`."""

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from cli.demo.narration import Narrator, Report, StepFailed, print_table
from shared.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from cli.demo.scenario import Kind, Scenario

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CASTS = {
    "nitro": "one app, one KMS, two parents, one chain",
    "gcp": "one app and one KMS, each on a TDX machine with a vTPM, one chain",
}
_OUR_PACKAGES = frozenset({"cli", "contracts", "enclave", "functions", "shared"})


@click.command()
@click.option(
    "--platform",
    type=click.Choice(["nitro", "gcp"]),
    default="nitro",
    show_default=True,
    help="The guests: AWS Nitro Enclaves, or Google Cloud VMs with TDX and a vTPM.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the story.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "anvil", "py-evm"]),
    default="auto",
    show_default=True,
    help="The chain: anvil from npm where there is one, else an in-process EVM.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Work in this new directory and leave it: images, logs, and the KMS's root keys.",
)
def demo(*, platform: "Kind", as_json: bool, engine: str, keep: Path | None) -> None:
    """Run a whole confidential deployment on this machine.

    A chain, the governance contracts, a KMS guest, the authorize function and an app guest run as separate
    processes; on nitro two parents' forwarders too, on gcp a service of simulated Intel's and Google's
    collateral. The guests are simulated; every check is the production one.
    """
    with _unwinding():
        scenario_class = _load_scenario()
        work = _work_directory(keep)
        try:
            scenario = scenario_class(
                work,
                Narrator(quiet=as_json),
                kind=platform,
                engine=engine,
                now=_now,
                stopping=_ignore_signals,
            )
            report = _run(scenario)
        finally:
            if keep is None:
                shutil.rmtree(work, ignore_errors=True)
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        print_table(report)
    if not report.ok:
        sys.exit(ExitCode.FAILED)


@contextlib.contextmanager
def _unwinding() -> Iterator[None]:
    """Have a signal that asks us to end leave the block as `SystemExit`, so that all is stopped and removed.

    SIGINT counts also where it was inherited as ignored, as by a job in a script's background: `kill -INT`
    means it. An ignored SIGHUP stays so, as that is what nohup is for. One signal is enough: another one
    would cut the stopping short.
    """

    def unwind(number: int, _frame: object) -> None:
        _ignore_signals()
        sys.exit(128 + number)

    before = {one: signal.getsignal(one) for one in _SIGNALS}
    for one, handler in before.items():
        if one != signal.SIGHUP or handler != signal.SIG_IGN:
            signal.signal(one, unwind)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _ignore_signals() -> None:
    """From here on things are stopped and removed, which takes a second and is not to be cut short."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)


def _load_scenario() -> "type[Scenario]":
    """Import the story. Raises `ConfigError("demo.extra")` where its packages are not installed."""
    try:
        from cli.demo.scenario import Scenario  # noqa: PLC0415 - loads web3; `--help` need not wait for it
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OUR_PACKAGES:
            raise
        raise ConfigError(
            "demo.extra",
            f"the demo needs the demo extra, {error.name} is absent: pip install 'dstack-cloud[demo]'",
        ) from error
    return Scenario


def _now() -> int:
    return int(time.time())


def _run(scenario: "Scenario") -> Report:
    narrator = scenario.narrator
    narrator.say(f"dstack-cloud demo: {_CASTS[scenario.kind]}. Everything here is simulated.\n")
    try:
        scenario.run()
        ok = True
    except StepFailed:
        ok = False
    return Report(
        ok=ok,
        simulated=True,
        platform=scenario.kind,
        chain_engine=scenario.chain_engine,
        app_id=scenario.app_id,
        keys=scenario.keys,
        steps=narrator.steps,
    )


def _work_directory(keep: Path | None) -> Path:
    if keep is None:
        # a short path: the sockets below it have 108 bytes for their names
        return Path(tempfile.mkdtemp(prefix="dstack-demo-"))
    try:
        keep.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise ConfigError("demo.keep", f"{keep} cannot be made: {error.strerror}") from error
    return keep.resolve()

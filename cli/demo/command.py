"""`dstack-cloud demo`."""

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec

from cli.demo.narration import Narrator, Report, StepFailed, print_table
from shared.errors import ConfigError, ExitCode


@click.command()
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
def demo(*, as_json: bool, engine: str, keep: Path | None) -> None:
    """Run a whole confidential deployment on this machine.

    A chain, the governance contracts, a KMS enclave, two parents' forwarders, the authorize function and an
    app enclave run as separate processes. The enclaves are simulated; every check is the production one.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so all is stopped
    work = _work_directory(keep)
    try:
        report = _run(work, engine, Narrator(quiet=as_json))
    finally:
        if keep is None:
            shutil.rmtree(work, ignore_errors=True)
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        print_table(report)
    if not report.ok:
        sys.exit(ExitCode.FAILED)


def _run(work: Path, engine: str, narrator: Narrator) -> Report:
    from cli.demo.scenario import Scenario  # noqa: PLC0415 - loads web3, which `--help` need not wait for

    scenario = Scenario(work, narrator, engine=engine, now=lambda: int(time.time()))
    narrator.say(
        "dstack-cloud demo: one app, one KMS, two parents, one chain. Everything here is simulated.\n"
    )
    try:
        scenario.run()
        ok = True
    except StepFailed:
        ok = False
    return Report(
        ok=ok,
        simulated=True,
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

"""`status`, `logs`, `stop`, `start`, `remove`, `list`: what is deployed, and what becomes of it."""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.deploy_options import Chosen, api_options, chain_options, deployments_of, take_chosen
from cli.deploy_output import Progress, console_text, lines, outcome
from cli.deployments import Deployments, View
from cli.places import config_path, project_option
from cli.state_file import record_deployment
from functions.deploy.record import Step
from functions.deploy.runner import WaitOver
from functions.plan.project_files import read_config, read_project
from shared.compose.project import GlobalConfig, gcp_settings, nitro_settings
from shared.errors import DstackError, ExitCode

FOLLOW_SECONDS = 2
"""Between two looks at a console; upstream's rhythm."""

_ENDS = {"stop": Step.STOPPED, "start": Step.RUNNING, "remove": Step.REMOVED}
_UNKNOWN = frozenset({"deploy.unknown", "deploy.nothing_there"})

Command = Callable[..., None]


def _deployment_options(command: Command) -> Command:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--name", metavar="NAME", help="The deployment; else the project's own."),
        api_options,
        project_option,
    ):
        command = option(command)
    return command


class _Target:
    """The deployment that a command means."""

    def __init__(self, directory: Path, chosen: Chosen, name: str | None) -> None:
        self.directory = directory
        self.config = read_config(config_path(os.environ))
        self.is_project = name is None
        self.name = name or deployment_name(directory, self.config)
        self.deployments: Deployments = deployments_of(chosen, self.config)

    def record(self, found: View) -> None:
        """Write state.json, where the project is at hand."""
        if self.is_project:
            record_deployment(self.directory, found)


def deployment_name(directory: Path, config: GlobalConfig) -> str:
    """Return the name that a project is deployed under: its machine's."""
    project = read_project(directory).project
    settings = nitro_settings if project.platform == "nitro" else gcp_settings
    return str(settings(project, config).instance_name)


@click.command()
@_deployment_options
def status(directory: Path, api: str, name: str | None, *, as_json: bool) -> None:
    """Show what is deployed, and what the cloud says of its machine now.

    What the cloud says proves nothing; `attested` is what the machine's own evidence proved when it was
    launched.

    Exit codes: 0 known, 1 failed, 2 usage or nothing deployed.
    """
    target = _Target(directory, Chosen(api=api), name)
    found = target.deployments.get(target.name)
    machine: View | None = None
    try:
        machine = target.deployments.machine(target.name)
    except DstackError as error:
        if error.code not in _UNKNOWN:
            click.echo(f"warning: the cloud does not say how the machine is: {error}", err=True)
    target.record(found)
    if as_json:
        click.echo(json.dumps({**found, "machine": machine}, indent=2))
        return
    for line in lines(found):
        click.echo(line)
    if machine is not None:
        click.echo(f"  machine        {machine['status']}, as the cloud says")


@click.command()
@_deployment_options
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@click.option("-n", "--lines", "count", type=click.IntRange(min=0), default=100, show_default=True)
def logs(directory: Path, api: str, name: str | None, *, follow: bool, count: int, as_json: bool) -> None:
    """Print the console of the machine. Anybody between it and you can change what it says.

    Exit codes: 0 printed, 1 failed, 2 usage or nothing deployed.
    """
    target = _Target(directory, Chosen(api=api), name)
    tail, cursor = last_lines(target.deployments, target.name, count)
    if as_json:
        click.echo(json.dumps({"text": tail, "cursor": cursor}, indent=2))
        return
    click.echo(console_text(tail), nl=False)
    while follow:
        text, after = target.deployments.logs(target.name, cursor)
        click.echo(console_text(text), nl=False)
        if after == cursor:
            time.sleep(FOLLOW_SECONDS)
        cursor = after


def last_lines(deployments: Deployments, name: str, count: int) -> tuple[str, str]:
    """Return the last lines of a console and the cursor behind them, holding no more than that of it."""
    tail: list[str] = []
    cursor = ""
    while True:
        text, after = deployments.logs(name, cursor)
        if tail and not tail[-1].endswith("\n"):
            text = tail.pop() + text
        tail = (tail + text.splitlines(keepends=True))[-count:] if count else []
        if after == cursor or not text:
            return "".join(tail), after
        cursor = after


@click.command()
@_deployment_options
@click.option("--timeout", type=click.IntRange(min=1), metavar="SECONDS", help="Wait no longer than this.")
def stop(**given: Any) -> None:  # noqa: ANN401 - click passes options by name
    """Stop the machine; its disks stay.

    Exit codes: 0 stopped, 1 failed, 2 usage or nothing deployed, 6 timed out.
    """
    _act("stop", **given)


@click.command()
@_deployment_options
@chain_options
@click.option("--timeout", type=click.IntRange(min=1), metavar="SECONDS", help="Wait no longer than this.")
def start(**given: Any) -> None:  # noqa: ANN401 - as above
    """Start the machine again, and prove by its evidence that it still runs what was planned.

    Exit codes: 0 running and attested, 1 failed, 2 usage or nothing deployed, 3 refused, 6 timed out.
    """
    _act("start", **given)


@click.command()
@_deployment_options
@click.option("--timeout", type=click.IntRange(min=1), metavar="SECONDS", help="Wait no longer than this.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; a data disk is lost for good.")
def remove(*, yes: bool, **given: Any) -> None:  # noqa: ANN401 - as above
    """Remove the machine and everything that was made for it, disks too.

    Images that other deployments boot from stay.

    Exit codes: 0 nothing is left, 1 failed, 2 usage or nothing deployed, 6 timed out.
    """
    if not yes and sys.stdin.isatty():
        click.confirm("Remove the deployment and its data for good?", abort=True)
    _act("remove", **given)


@click.command("list")
@api_options
@click.option("--all", "everything", is_flag=True, help="Those that were removed too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_deployments(api: str, *, everything: bool, as_json: bool) -> None:
    """List deployments: this machine's, or those of a deploy function that you may read.

    Exit codes: 0 listed, 1 failed, 2 usage.
    """
    deployments = deployments_of(Chosen(api=api), read_config(config_path(os.environ)))
    found = [one for one in deployments.list_all() if everything or one["step"] != "removed"]
    if as_json:
        click.echo(json.dumps({"deployments": found}, indent=2))
        return
    width = max((len(one["name"]) for one in found), default=0)
    for one in found:
        click.echo(f"{one['name']:<{width}}  {one['cloud']:<9}  {one['status']}")


def _act(
    verb: str,
    *,
    directory: Path,
    name: str | None,
    timeout: int | None,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - as above
) -> None:
    target = _Target(directory, take_chosen(given), name)
    target.deployments.act(target.name, verb, secrets.token_hex(16))
    progress = Progress(quiet=as_json)
    try:
        found = target.deployments.follow(target.name, progress, timeout=timeout)
        code = outcome(found, _ENDS[verb])
    except WaitOver:
        found, code = target.deployments.get(target.name), ExitCode.TIMED_OUT
    target.record(found)
    if as_json:
        click.echo(json.dumps({**found, "exit_code": int(code)}, indent=2))
    else:
        for line in lines(found):
            click.echo(line)
    sys.exit(code)

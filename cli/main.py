"""`dstack-cloud`: the command and its subcommands, each loaded only when it is called."""

import itertools
import json
import sys
import traceback
from pathlib import Path

import click

from cli.lazy_group import LazyGroup
from shared.errors import DstackError

SUBCOMMANDS = {
    "config-edit": ("cli.config_edit:config_edit", "Edit your own settings."),
    "compose": ("cli.compose:compose", "Hash, lint and compare app-compose documents."),
    "deploy": ("cli.deploy:deploy", "Deploy the project, and prove that it runs."),
    "doctor": ("cli.doctor:doctor", "Look for what would stop a deployment."),
    "fw": ("cli.firewall:fw", "Open and close ports of a machine."),
    "list": ("cli.lifecycle:list_deployments", "List deployments."),
    "logs": ("cli.lifecycle:logs", "Print the machine's console."),
    "remove": ("cli.lifecycle:remove", "Remove the machine and everything made for it."),
    "start": ("cli.lifecycle:start", "Start the machine again."),
    "status": ("cli.lifecycle:status", "Show what is deployed."),
    "stop": ("cli.lifecycle:stop", "Stop the machine."),
    "demo": ("cli.demo.command:demo", "Run a whole confidential deployment on this machine, simulated."),
    "gov": ("cli.gov.command:gov", "Show and change what the contracts allow."),
    "image": ("cli.image:image", "Build, measure and push images."),
    "new": ("cli.new:new", "Make a project."),
    "prepare": ("cli.prepare:prepare", "Write the files of the config disk into shared/."),
    "pull": ("cli.pull:pull", "Download an OS image."),
    "plan": ("cli.plan:plan", "Show what a deployment would run, and what must be approved."),
    "simulator": ("cli.simulator:simulator", "Run a simulated guest agent for dstack's SDKs."),
    "verify": ("cli.verify:verify", "Verify evidence of any platform, in any form."),
    "verify-kms": ("cli.verify_kms:verify_kms", "Verify a running key server: evidence, keys, contract."),
}


@click.command(cls=LazyGroup, table=SUBCOMMANDS)
@click.version_option(package_name="dstack-cloud")
@click.option(
    "-C",
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Project directory.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show where an error came from.")
def cli(directory: Path | None, *, verbose: bool) -> None:
    """Deploy compose apps into confidential VMs and enclaves, and prove what runs.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 refused, 4 changes pending, 5 needs approval on chain, 6 timed out.
    """
    del directory, verbose  # the subcommands and `main` look at them


def main() -> None:
    """Run the command; turn our errors into a line on standard error, what to do, and an exit code."""
    try:
        cli()
    except DstackError as error:
        if _is_verbose(sys.argv[1:]):
            traceback.print_exc()
        click.echo(f"dstack-cloud: {error} [{error.code}]", err=True)
        hint = getattr(error, "hint", "")
        if hint:
            click.echo(f"what to do: {hint}", err=True)
        if "--json" in sys.argv[1:]:
            told = {"error": error.message, "code": error.code, "exit_code": int(error.exit_code)}
            click.echo(json.dumps(told | ({"hint": hint} if hint else {}), indent=2))
        sys.exit(error.exit_code)


def _is_verbose(arguments: list[str]) -> bool:
    """Tell whether the options before the subcommand's name ask for it."""
    before = itertools.takewhile(lambda argument: argument not in SUBCOMMANDS, arguments)
    return any(argument in {"-v", "--verbose"} for argument in before)

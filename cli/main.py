"""`dstack-cloud`: the command and its subcommands, each loaded only when it is called."""

import sys
from importlib import import_module

import click

from shared.errors import DstackError

SUBCOMMANDS = {
    "compose": ("cli.compose:compose", "Hash, lint and compare app-compose documents."),
    "demo": ("cli.demo.command:demo", "Run a whole confidential deployment on this machine, simulated."),
    "image": ("cli.image:image", "Measure enclave images."),
    "plan": ("cli.plan:plan", "Show what a deployment would run, and what must be approved."),
    "verify": ("cli.verify:verify", "Verify evidence of any platform, in any form."),
}


class LazyGroup(click.Group):
    """A group that lists its subcommands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands."""
        del ctx
        return sorted(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand."""
        del ctx
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _, name = SUBCOMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{name} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands with their one-line help."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUBCOMMANDS[name][1]) for name in sorted(SUBCOMMANDS)])


@click.command(cls=LazyGroup)
@click.version_option(package_name="dstack-cloud")
def cli() -> None:
    """Deploy compose apps into confidential VMs and enclaves, and prove what runs.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 refused, 4 changes pending, 5 needs approval on chain.
    """


def main() -> None:
    """Run the command; turn our errors into one line on standard error and an exit code."""
    try:
        cli()
    except DstackError as error:
        click.echo(f"dstack-cloud: {error} [{error.code}]", err=True)
        sys.exit(error.exit_code)

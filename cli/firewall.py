"""`dstack-cloud fw`: which ports of a machine are reached, and from where."""

import json
import os
import re
from pathlib import Path
from typing import Any, Final, Literal

import click

from cli.deploy_options import Chosen, api_options, deployments_of
from cli.deployments import Deployments
from cli.lifecycle import deployment_name
from cli.places import config_path, project_option
from functions.deploy.request import RuleBody
from functions.plan.project_files import read_config
from shared.errors import ConfigError

_PORT: Final = re.compile(r"([0-9]{1,5})(?:/([a-z]+))?")


@click.group()
def fw() -> None:
    """Open and close ports of a machine. A firewall is the cloud's: it keeps nothing from the cloud."""


@fw.command()
@click.argument("port")
@click.option("-s", "--source", "sources", multiple=True, metavar="CIDR", help="From where; may be repeated.")
@click.option("--anywhere", is_flag=True, help="From the whole internet.")
@project_option
@api_options
@click.option("-i", "--instance", metavar="NAME", help="The deployment; else the project's own.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def allow(port: str, sources: tuple[str, ...], *, anywhere: bool, **given: Any) -> None:  # noqa: ANN401 - click passes options by name
    """Allow PORT, as 443 or 53/udp.

    Exit codes: 0 done, 1 failed, 2 usage, such as no --source.
    """
    if not sources and not anywhere:
        raise click.UsageError("say from where with --source CIDR, or --anywhere")
    _set("allow", port, sources, anywhere=anywhere, **given)


@fw.command()
@click.argument("port")
@click.option("-s", "--source", "sources", multiple=True, metavar="CIDR", help="From where; may be repeated.")
@project_option
@api_options
@click.option("-i", "--instance", metavar="NAME", help="The deployment; else the project's own.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def deny(port: str, sources: tuple[str, ...], **given: Any) -> None:  # noqa: ANN401 - as above
    """Deny PORT, from everywhere where no --source is given. It counts before any rule that allows.

    Exit codes: 0 done, 1 failed, 2 usage.
    """
    _set("deny", port, sources, anywhere=True, **given)


@fw.command()
@click.argument("port")
@project_option
@api_options
@click.option("-i", "--instance", metavar="NAME", help="The deployment; else the project's own.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def remove(port: str, directory: Path, api: str, instance: str | None, *, as_json: bool) -> None:
    """Remove the rules of PORT.

    Exit codes: 0 done, also where there was none, 1 failed, 2 usage.
    """
    protocol, number = parse_port(port)
    deployments, name = _target(directory, api, instance)
    had = deployments.clear_firewall(name, protocol, number)
    if as_json:
        click.echo(json.dumps({"protocol": protocol, "port": number, "removed": had}, indent=2))
        return
    click.echo(f"{protocol} {number}: {'no rule any more' if had else 'there was no rule'}")


@fw.command("list")
@project_option
@api_options
@click.option("-i", "--instance", metavar="NAME", help="The deployment; else the project's own.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_rules(directory: Path, api: str, instance: str | None, *, as_json: bool) -> None:
    """List the rules.

    Exit codes: 0 listed, 1 failed, 2 usage.
    """
    deployments, name = _target(directory, api, instance)
    rules = deployments.firewall(name)
    if as_json:
        click.echo(json.dumps({"rules": rules}, indent=2))
        return
    for rule in rules:
        click.echo(f"{rule['action']:<5}  {rule['protocol']} {rule['port']:<5}  {', '.join(rule['sources'])}")


def parse_port(text: str) -> tuple[Literal["tcp", "udp"], int]:
    """Read `443` or `53/udp`. Raises `ConfigError`: `fw.port`, `fw.protocol`."""
    matched = _PORT.fullmatch(text)
    if matched is None or not 1 <= int(matched[1]) <= 65535:
        raise ConfigError("fw.port", f"port is {text[:40]!a}, expected 1 to 65535, as 443 or 53/udp")
    match matched[2]:
        case None | "tcp":
            return "tcp", int(matched[1])
        case "udp":
            return "udp", int(matched[1])
        case other:
            raise ConfigError("fw.protocol", f"protocol is {other[:20]!a}, expected tcp or udp")


def _target(directory: Path, api: str, instance: str | None) -> tuple[Deployments, str]:
    config = read_config(config_path(os.environ))
    return deployments_of(Chosen(api=api), config), instance or deployment_name(directory, config)


def _set(
    action: Literal["allow", "deny"],
    port: str,
    sources: tuple[str, ...],
    *,
    directory: Path,
    api: str,
    instance: str | None,
    anywhere: bool,
    as_json: bool,
) -> None:
    protocol, number = parse_port(port)
    deployments, name = _target(directory, api, instance)
    rule = RuleBody(
        action=action, port=number, protocol=protocol, sources=sources or ("0.0.0.0/0",), anywhere=anywhere
    )
    made = deployments.set_firewall(name, rule)
    if as_json:
        click.echo(json.dumps(made, indent=2))
        return
    click.echo(f"{made['action']} {made['protocol']} {made['port']} from {', '.join(made['sources'])}")

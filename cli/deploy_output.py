"""How commands about deployments show what happens, and which exit code it ends with."""

import sys
from typing import Any, TextIO

import click

from cli.compose import visible
from cli.deployments import View
from functions.deploy.record import Step
from functions.plan.standing import MISSING, NOT_FINAL, REVOKED
from shared.errors import ExitCode


class Progress:
    """Tells events as they come, one line each, on standard error; `calls` are what governance must make."""

    def __init__(self, *, quiet: bool, stream: TextIO | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self._quiet = quiet
        self._stream = stream or sys.stderr

    def __call__(self, event: View) -> None:
        """Tell one event."""
        data = event.get("data") or {}
        if isinstance(calls := data.get("calls"), list):
            self.calls = calls
        if self._quiet:
            return
        code = f" [{event['code']}]" if event.get("code") else ""
        click.echo(f"{event['step']:<18} {visible(event['message'])}{code}", file=self._stream)


def outcome(found: View, wanted: Step) -> ExitCode:
    """Return the exit code for where a deployment is: only where it was `wanted` is a success."""
    failure = found.get("failure")
    if found["step"] == Step.FAILED and failure is not None:
        if failure["code"] in {MISSING, NOT_FINAL, REVOKED}:
            return ExitCode.NEEDS_APPROVAL
        return ExitCode.REFUSED if failure["refused"] else ExitCode.FAILED
    if found["step"] == Step.AWAIT_APPROVAL:
        return ExitCode.NEEDS_APPROVAL
    return ExitCode.OK if found["step"] == wanted else ExitCode.FAILED


def missing_calls(found: View, progress: Progress) -> list[dict[str, Any]]:
    """Return the governance calls that are missing still: what was told before may be made by now."""
    approved = found.get("approved")
    return progress.calls if approved is None or approved["calls"] else []


def lines(found: View) -> list[str]:
    """Return what there is to say of a deployment, for people."""
    shown = [f"{found['name']} on {found['cloud']}: {found['status']}"]
    planned, running, failure = found.get("planned"), found.get("running"), found.get("failure")
    if planned is not None:
        shown += [
            f"  app_id         {planned['app_id'] or 'none'}",
            f"  compose_hash   {planned['compose_hash']}",
            f"  os_image_hash  {planned['os_image_hash']}",
        ]
    if (approved := found.get("approved")) is not None:
        if approved.get("asked") == 1:
            shown.append("  approval       by the word of one endpoint")
        if found["step"] == Step.AWAIT_APPROVAL and approved.get("code"):
            shown.append(f"  waits          {visible(approved['why'])} [{approved['code']}]")
    if running is not None:
        if running["external_ip"] or running["internal_ip"]:
            shown.append(f"  address        {running['external_ip'] or running['internal_ip']}")
        if running["attested_at"]:
            word = "simulated evidence" if running["simulated"] else "evidence"
            shown.append(f"  attested       {word} of what was planned")
    if told := found.get("unverified_progress"):
        last = told[-1]
        code = f" [{visible(last['code'])}]" if last["code"] else ""
        shown.append(f"  progress       unverified: {visible(last['step'])} {visible(last['status'])}{code}")
    if failure is not None:
        shown.append(f"  failed         {visible(failure['message'])} [{failure['code']}]")
        shown.append(f"  what to do     {visible(failure['hint'])}")
    return shown


def call_lines(calls: list[dict[str, Any]]) -> list[str]:
    """Return the governance calls that are missing, as a wallet or a Safe wants them."""
    shown = []
    for number, call in enumerate(calls, 1):
        arguments = ", ".join(f"{one['name']}={one['value']}" for one in call["arguments"])
        shown += [
            f"call {number}: {call['function'].partition('(')[0]}({arguments})",
            f"    why          {call['why']}",
            f"    to           {call['to'] or 'the contract, whose address is not known here'}",
            f"    data         {call['calldata']}",
        ]
    return shown


def console_text(text: str) -> str:
    """Return a console's text as it may be shown: what would steer a terminal is made visible.

    Lines and tabs stay; a serial port's CR before each LF goes.
    """
    return "".join(
        char if char in "\n\t" or char.isprintable() else ascii(char)[1:-1]
        for char in text.replace("\r\n", "\n")
    )

"""What the demo says: one line per step, then a table; or one JSON object."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import msgspec

from shared.errors import DstackError


class Step(msgspec.Struct, kw_only=True):
    """One finished step. `seconds` is wall time, `detail` says what was checked."""

    name: str
    ok: bool
    seconds: float
    detail: str


class StepFailed(Exception):  # noqa: N818 - it ends the scenario, it is not an error type of ours
    """A step failed; it has been recorded and said."""


class Running:
    """The step that is under way; its code may add to what will be said."""

    def __init__(self) -> None:
        self.detail = ""

    def say(self, detail: str) -> None:
        """Set the line's text: what was checked."""
        self.detail = detail


class Narrator:
    """Records steps, and prints each as it ends unless `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self.steps: list[Step] = []
        self._quiet = quiet

    @contextmanager
    def step(self, name: str) -> Iterator[Running]:
        """Time the body as one step. An error of ours fails the step and ends the scenario."""
        started = time.monotonic()
        running = Running()
        try:
            yield running
        except DstackError as error:
            self._record(name, started, f"{error} [{error.code}]", ok=False)
            raise StepFailed(name) from error
        self._record(name, started, running.detail, ok=True)

    def _record(self, name: str, started: float, detail: str, *, ok: bool) -> None:
        step = Step(name=name, ok=ok, seconds=round(time.monotonic() - started, 3), detail=detail)
        self.steps.append(step)
        if not self._quiet:
            mark = click.style("ok  ", fg="green") if ok else click.style("FAIL", fg="red")
            click.echo(f"{mark} {step.seconds:5.1f}s  {click.style(name, bold=True)}: {detail}")

    def say(self, text: str) -> None:
        """Print a line that is not a step."""
        if not self._quiet:
            click.echo(text)


class Report(msgspec.Struct, kw_only=True):
    """The object that `--json` prints."""

    ok: bool
    simulated: bool
    platform: str
    chain_engine: str
    app_id: str
    keys: dict[str, str]
    steps: list[Step]


def print_table(report: Report) -> None:
    """Print the closing table."""
    from rich.console import Console  # noqa: PLC0415 - rich is slow to load
    from rich.table import Table  # noqa: PLC0415 - as above

    guests = {"nitro": "Nitro enclaves", "gcp": "GCP TDX guests"}[report.platform]
    table = Table(
        title=f"dstack-cloud demo, platform {report.platform} (simulated {guests}, throw-away roots)"
    )
    table.add_column("step")
    table.add_column("result")
    table.add_column("seconds", justify="right")
    for step in report.steps:
        table.add_row(step.name, "ok" if step.ok else "FAILED", f"{step.seconds:.1f}")
    table.add_section()
    table.add_row("total", "ok" if report.ok else "FAILED", f"{sum(s.seconds for s in report.steps):.1f}")
    console = Console()
    console.print(table)
    for name, value in report.keys.items():
        console.print(f"  {name}: sha256 {value}…")

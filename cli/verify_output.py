"""How `dstack-cloud verify` shows a report to a person."""

from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from cli.verify import Report
from shared.attestation.verdict import Status, Verdict
from shared.errors import ExitCode

_SHOWN_INFO = ("os_image_hash", "compose_hash", "app_id", "instance_id", "mr_aggregated", "device_id")
_STYLE = {Status.VERIFIED: "green", Status.SELF_ASSERTED: "yellow"}


def print_report(report: Report, *, at_given: bool) -> None:
    """Print the outcome, the facts, the lanes, and what the policy let pass."""
    console = Console(highlight=False, soft_wrap=True)
    verdict = report.verdict
    if verdict is None:
        word = "FAILED" if report.exit_code is ExitCode.FAILED else "REFUSED"
        console.print(Text.assemble((word, "bold red"), f"  {plain(report.reason or '')} [{report.code}]"))
        console.print(Text(f"hint: {report.hint}"))
        return
    judged = when(report.judged_at) + (" (--at)" if at_given else "")
    title = Text.assemble(("VERIFIED", "bold green"), f"  {verdict.platform}, judged at {judged}")
    if report.simulated:
        title.append("  SIMULATED: an anchor is not the vendor's root", "bold yellow")
    console.print(title)
    for name, value in _facts(report, verdict):
        console.print(Text(f"  {name:<14} {value}"))
    console.print(Text(f"  {'lane':<20}  {'status':<14}  why", "bold"))
    for name, lane in verdict.lanes.items():
        status = (f"{lane.status.value:<14}", _STYLE.get(lane.status, "dim"))
        console.print(Text.assemble(f"  {name:<20}  ", status, f"  {lane.reason}"))
    for check in verdict.disabled_checks:
        console.print(Text(f"  relaxed: {check}", "bold yellow"))


def _facts(report: Report, verdict: Verdict) -> list[tuple[str, str]]:
    info = report.app_info or {}
    facts = [("anchor", f"{', '.join(verdict.anchors)}{' (simulated)' if report.simulated else ''}")]
    if verdict.made_at is not None:
        facts.append(("made at", f"{when(verdict.made_at)}, {report.judged_at - verdict.made_at} s before"))
    if verdict.tcb_status:
        facts.append(("tcb_status", " ".join((verdict.tcb_status, *verdict.advisory_ids))))
    if report.module_id is not None:
        facts.append(("module_id", plain(report.module_id)))
    facts.append(("report_data", report.report_data or "none"))
    facts += report.registers.items()
    for name in _SHOWN_INFO:
        if info.get(name):
            label = " (self-asserted)" if name in info.get("self_asserted", ()) else ""
            facts.append((name, f"{info[name]}{label}"))
    return facts


def when(seconds: int) -> str:
    """Return a time for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def plain(text: str) -> str:
    """Return text that says nothing to a terminal: it may quote whoever made the evidence."""
    return ascii(text)[1:-1] if not text.isascii() or not text.isprintable() else text

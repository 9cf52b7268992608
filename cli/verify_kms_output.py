"""How `dstack-cloud verify-kms` shows a report to a person."""

import json
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from cli.kms_audit import Status
from cli.kms_report import KmsReport
from cli.verify_output import plain, when
from shared.errors import ExitCode

_WORDS: Final = {ExitCode.OK: "VERIFIED", ExitCode.REFUSED: "REFUSED", ExitCode.FAILED: "FAILED"}
_STYLE: Final = {
    Status.VERIFIED: "green",
    Status.SELF_ASSERTED: "yellow",
    Status.REFUSED: "bold red",
    Status.FAILED: "bold red",
}
_MAX_VALUE: Final = 120  # characters of a value that the KMS tells
_SHOWN_INFO: Final = ("os_image_hash", "compose_hash", "mr_aggregated", "device_id")


def print_kms_report(report: KmsReport) -> None:
    """Print the outcome and what it leaves open, the facts, the lanes, and how lax the KMS is."""
    console = Console(highlight=False, soft_wrap=True)
    for line in _head(report):
        console.print(line)
    for name, value in _facts(report):
        console.print(Text(f"  {name:<16} {value}"))
    console.print(Text(f"  {'lane':<18}  {'status':<14}  why", "bold"))
    for name, lane in report.lanes.items():
        status = (f"{lane.status.value:<14}", _STYLE.get(lane.status, "dim"))
        code = "" if lane.code is None else f" [{lane.code}]"
        console.print(Text.assemble(f"  {name:<18}  ", status, f"  {plain(lane.reason)}{code}"))
    for line in _strictness(report):
        console.print(line)


def _head(report: KmsReport) -> list[Text]:
    word = _WORDS[report.exit_code]
    if report.is_valid:
        first, *more = report.caveats or ("",)
        title = Text.assemble((word, "bold green"), f", {first}" if first else f"  {_where(report)}")
    else:
        more = []
        title = Text.assemble((word, "bold red"), f"  {plain(report.reason or '')} [{report.code}]")
    if report.simulated:
        title.append("  SIMULATED: an anchor is not the vendor's root", "bold yellow")
    lines = [title, *(Text(f"also {caveat}", "bold yellow") for caveat in more)]
    if report.hint is not None:
        lines.append(Text(f"hint: {report.hint}"))
    if not report.is_valid or report.caveats:
        lines.append(Text(_where(report)))
    return lines


def _where(report: KmsReport) -> str:
    return f"{plain(report.url)}, judged at {when(report.judged_at)}"


def _facts(report: KmsReport) -> list[tuple[str, str]]:
    facts = []
    if (verdict := report.verdict) is not None:
        facts.append(("platform", f"{verdict.platform}, {', '.join(verdict.anchors)}"))
        if verdict.tcb_status:
            facts.append(("tcb_status", " ".join((verdict.tcb_status, *verdict.advisory_ids))))
        facts += [("relaxed", check) for check in verdict.disabled_checks]
    info = report.app_info or {}
    facts += [(name, str(info[name])) for name in _SHOWN_INFO if info.get(name)]
    if (told := report.kms) is not None:
        facts.append(("root CA", told.ca_pubkey))
        facts.append(("k256 key", told.k256_pubkey))
        if told.kms_contract is not None:
            facts.append(("names contract", f"{told.kms_contract}, chain {told.chain_id}"))
    if (chain := report.chain) is not None:
        block = "" if chain.finalized_block is None else f", final in block {chain.finalized_block}"
        facts.append(("asked", f"{', '.join(map(plain, chain.hosts))}{block}"))
    return facts


def _strictness(report: KmsReport) -> list[Text]:
    lines = [
        Text(f"  lax: {setting.name} = {_value(setting.value)}: {setting.meaning}", "bold yellow")
        for setting in report.lax
    ]
    if (told := report.kms) is None:
        return lines
    if told.policy is None:
        lines.append(Text("  policy unknown: how strict this KMS is, it does not say", "bold yellow"))
        return lines
    lax = {setting.name for setting in report.lax}
    lines += [
        Text(f"  tells: {plain(name)} = {_value(value)}")
        for name, value in told.policy.items()
        if name not in lax
    ]
    lines += [Text(f"  not told: {name}") for name in told.unreported]
    lines += [Text(f"  unknown: {plain(name)} = {_value(value)}") for name, value in told.other.items()]
    return lines


def _value(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Return a value that the KMS told, in one short line that says nothing to a terminal."""
    text = plain(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}.."

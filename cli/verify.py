"""`dstack-cloud verify`: is this evidence real, whose is it, and if refused, what would have to change."""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from shared.attestation.cose import MAX_COSE
from shared.attestation.envelope import MAX_ENVELOPE, Attestation, NitroEnclaveQuote, decode_envelope
from shared.attestation.identity import app_info, check_image, os_image_hash_of
from shared.attestation.nitro import NitroDocument, parse_document
from shared.attestation.trust import NitroAnchors
from shared.attestation.verdict import Status, Verdict
from shared.attestation.verify import verify_attestation, verify_bare_document
from shared.errors import ConfigError, DstackError, ExitCode, InvalidEvidence

# Hex doubles the size, and a text file may end lines.
MAX_INPUT = 2 * MAX_ENVELOPE + 4096
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")

_AT_ITS_TIME = "judge it at its own time with --at {made_at}"
_DAMAGED = "get the evidence from the enclave again"

# What to change, by the longest matching prefix of the refusal's code.
_HINTS = {
    "nitro.stale": f"ask the enclave for a fresh document, or {_AT_ITS_TIME}",
    "nitro.future": f"check this machine's clock, or {_AT_ITS_TIME}",
    "nitro.chain.anchor": "evidence of a simulated enclave needs --trust-anchor with its root.pem",
    "nitro.chain.signature": f"the certificates do not belong together, by damage or by forgery: {_DAMAGED}",
    "nitro.chain.expired": f"ask the enclave for a fresh document, or {_AT_ITS_TIME}",
    "nitro.chain": f"this is no certificate chain that an NSM makes: {_DAMAGED}",
    "nitro.debug": "run the enclave without debug mode: a debug enclave cannot be attested",
    "nitro.user_data": f"report_data of the envelope belongs to another document: {_DAMAGED}",
    "identity.os_image": "the config names another image: rebuild the envelope around this document",
    "identity": f"the envelope's config or events were altered: {_DAMAGED}",
    "cose.signature": f"the document was altered after it was signed: {_DAMAGED}",
    "envelope.version.unsupported": "ask the guest for a version 0 envelope (version-1 event logs only)",
    "attestation.platform": "only Nitro enclave evidence is verified by this release",
    "": "the file is damaged or no evidence: pass an envelope, a Nitro document, or hex of either",
}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one run found. `made_at` and `judged_at` are unix seconds."""

    is_valid: bool
    kind: str
    simulated: bool | None = None
    judged_at: int
    made_at: int | None = None
    code: str | None = None
    reason: str | None = None
    hint: str | None = None
    report_data: str | None = None
    module_id: str | None = None
    pcrs: dict[str, str] = {}
    app_info: dict[str, Any] | None = None
    verdict: Verdict | None = None


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--at", type=click.IntRange(min=0), metavar="UNIX", help="Judge at this time instead of now.")
@click.option(
    "--trust-anchor",
    "trust_anchors",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="PEM",
    help="Also trust this root; what it signed is reported as simulated. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(file: BinaryIO, at: int | None, trust_anchors: tuple[Path, ...], *, as_json: bool) -> None:
    """Verify evidence: an attestation envelope, a bare Nitro document, or hex of either.

    FILE may be - for standard input. Exit codes: 0 verified, 3 refused, 2 usage.
    """
    anchors = NitroAnchors.production()
    for path in trust_anchors:
        anchors = anchors.with_extra(path.read_bytes())
    report = judge(_read(file), now=int(time.time()) if at is None else at, anchors=anchors)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        _print(report, at_given=at is not None)
    sys.exit(ExitCode.OK if report.is_valid else ExitCode.REFUSED)


def judge(data: bytes, *, now: int, anchors: NitroAnchors) -> Report:
    """Verify evidence at `now`; a refusal is a report too."""
    kind, document = "unknown", None
    try:
        data = _unhexed(data)
        if _is_cose(data):
            kind = "nitro-document"
            document = parse_document(data)
            bare = verify_bare_document(data, now=now, anchors=anchors)
            return _verified(kind, document, bare.verdict, None)
        kind = "envelope"
        attestation = decode_envelope(data)
        if isinstance(attestation.quote, NitroEnclaveQuote):
            document = parse_document(attestation.quote.nsm_quote)
        verified = check_image(verify_attestation(attestation, now=now, anchors=anchors))
        info = app_info(verified).to_json()
        return _verified(kind, verified.document, verified.verdict, attestation, info)
    except InvalidEvidence as error:
        return _refused(kind, document, now, error)


def _verified(
    kind: str,
    document: NitroDocument,
    verdict: Verdict,
    attestation: Attestation | None,
    info: dict[str, Any] | None = None,
) -> Report:
    data = attestation.report_data if attestation else document.user_data
    return Report(
        is_valid=True,
        kind=kind,
        simulated=verdict.simulated,
        judged_at=verdict.verified_at,
        made_at=verdict.made_at,
        report_data=data.hex() if data is not None else None,
        module_id=document.module_id,
        pcrs={str(index): value.hex() for index, value in sorted(document.pcrs.items()) if any(value)},
        app_info=info or {"os_image_hash": os_image_hash_of(document.pcrs).hex()},
        verdict=verdict,
    )


def _refused(kind: str, document: NitroDocument | None, now: int, error: DstackError) -> Report:
    prefix = max((p for p in _HINTS if error.code.startswith(p)), key=len)
    made_at = document.timestamp if document else None
    return Report(
        is_valid=False,
        kind=kind,
        judged_at=now,
        made_at=made_at,
        code=error.code,
        reason=error.message,
        hint=_HINTS[prefix].format(made_at=made_at),
    )


def _read(file: BinaryIO) -> bytes:
    data = file.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise ConfigError("verify.file.size", f"file is larger than {MAX_INPUT} bytes, no evidence is")
    return data


def _unhexed(data: bytes) -> bytes:
    """Return the bytes that hex text stands for, or the data as it is when it is not hex."""
    digits = b"".join(data.split()).removeprefix(b"0x")
    if digits and len(digits) % 2 == 0 and _HEX_DIGITS.issuperset(digits):
        return bytes.fromhex(digits.decode())
    return data


def _is_cose(data: bytes) -> bool:
    """Tell a COSE_Sign1 (an array of four, or tag 18) from an envelope, whose version 1 is a map of three."""
    return data[:1] in (b"\x84", b"\xd2") and len(data) <= MAX_COSE


def _print(report: Report, *, at_given: bool) -> None:
    from rich.console import Console  # noqa: PLC0415 - loading rich takes longer than verifying
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    console = Console(highlight=False, soft_wrap=True)
    verdict = report.verdict
    if verdict is None:
        console.print(Text.assemble(("REFUSED", "bold red"), f"  {report.reason} [{report.code}]"))
        console.print(Text(f"hint: {report.hint}"))
        return
    when = _when(report.judged_at) + (" (--at)" if at_given else "")
    title = Text.assemble(("VERIFIED", "bold green"), f"  {verdict.platform}, judged at {when}")
    if report.simulated:
        title.append("  SIMULATED: the anchor is not AWS's root", "bold yellow")
    console.print(title)
    for name, value in _facts(report, verdict):
        console.print(Text(f"  {name:<14} {value}"))
    lanes = Table("lane", "status", "why", box=None)
    style = {Status.VERIFIED: "green", Status.SELF_ASSERTED: "yellow"}
    for lane in verdict.lanes:
        lanes.add_row(lane.name, Text(lane.status.value, style.get(lane.status, "dim")), Text(lane.reason))
    console.print(lanes)


def _facts(report: Report, verdict: Verdict) -> list[tuple[str, str]]:
    info = report.app_info or {}
    facts = [
        ("anchor", f"{', '.join(verdict.anchors)}{' (simulated)' if report.simulated else ''}"),
        ("made at", f"{_when(verdict.made_at)}, {report.judged_at - verdict.made_at} s before"),
        ("module_id", ascii(report.module_id)[1:-1]),
        ("report_data", report.report_data or "none"),
        *((f"PCR{index}", value) for index, value in report.pcrs.items()),
    ]
    for name in ("os_image_hash", "compose_hash", "mr_aggregated", "device_id", "app_id"):
        if info.get(name):
            label = " (self-asserted)" if name in info.get("self_asserted", ()) else ""
            facts.append((name, f"{info[name]}{label}"))
    return facts


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

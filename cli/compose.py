"""`dstack-cloud compose`: hash, rewrite, lint and compare app-compose documents."""

import json
import sys
from pathlib import Path
from typing import BinaryIO, Final

import click
import msgspec

from shared.compose.app_compose import MAX_COMPOSE_BYTES, canonical_bytes, compose_hash, parse_app_compose
from shared.compose.diff import ComposeDiff, diff_app_compose, require_progress
from shared.compose.findings import Finding, has_errors
from shared.compose.lint import lint_app_compose
from shared.errors import ConfigError, ExitCode, PolicyDenied, StorageError

_FILE: Final = click.File("rb")


@click.group()
def compose() -> None:
    """Work with app-compose.json, whose exact bytes are what a contract allows."""


@compose.command("hash")
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def hash_(file: BinaryIO, *, as_json: bool) -> None:
    """Print the compose hash of FILE: the SHA-256 of its bytes as they are.

    The app id beside it is what a guest derives where the project has none.
    """
    digest = compose_hash(_read(file)).hex()
    if as_json:
        click.echo(json.dumps({"compose_hash": digest, "app_id": digest[:40]}))
        return
    click.echo(digest)


@compose.command()
@click.argument("file", type=_FILE)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write there instead of to standard output.",
)
def canonical(file: BinaryIO, output: Path | None) -> None:
    """Write FILE in canonical form: sorted, compact, raw UTF-8, and no final newline.

    Nulls and fractions are refused, because tools write them in different ways.
    """
    raw = canonical_bytes(parse_app_compose(_read(file)))
    if output is None:
        click.echo(raw, nl=False)
    else:
        try:
            output.write_bytes(raw)
        except OSError as error:
            raise StorageError(
                "compose.output", f"cannot write {output}: {error.strerror or error}"
            ) from error


@compose.command()
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def lint(file: BinaryIO, *, as_json: bool) -> None:
    """Say what should be known about FILE before anybody approves its hash.

    Exit codes: 0 no errors, 2 usage, 3 errors.
    """
    raw = _read(file)
    findings = lint_app_compose(raw)
    if as_json:
        click.echo(
            json.dumps(
                {"compose_hash": compose_hash(raw).hex(), "findings": msgspec.to_builtins(findings)}, indent=2
            )
        )
    else:
        print_findings(findings)
    sys.exit(ExitCode.REFUSED if has_errors(findings) else ExitCode.OK)


@compose.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@click.option(
    "--allow-drop", "may_drop", multiple=True, metavar="FIELD", help="Let this field go. May be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def diff(old: BinaryIO, new: BinaryIO, may_drop: tuple[str, ...], *, as_json: bool) -> None:
    """Show what changes from OLD to NEW.

    An update that changes nothing, or loses a field that --allow-drop does not name, is refused.

    Exit codes: 0 there are changes, 1 a document is malformed, 2 usage, 3 refused.
    """
    found = diff_app_compose(_read(old), _read(new))
    refusal: PolicyDenied | None = None
    try:
        require_progress(found, may_drop=may_drop)
    except PolicyDenied as error:
        refusal = error
    if as_json:
        click.echo(json.dumps(_diff_json(found, refusal), indent=2))
        sys.exit(ExitCode.OK if refusal is None else refusal.exit_code)
    print_diff(found)
    if refusal is not None:
        raise refusal


def print_findings(findings: tuple[Finding, ...]) -> None:
    """Print findings, one line each, and code that they show, indented."""
    for finding in findings:
        where = visible(finding.where)
        click.echo(f"{finding.severity.value:<7}  {where}: {visible(finding.message)} [{finding.code}]")
        for line in finding.detail.splitlines():
            click.echo(f"         | {visible(line)}")


def print_diff(found: ComposeDiff) -> None:
    """Print both hashes and the changes."""
    click.echo(f"compose_hash  {found.old_hash.hex()}")
    click.echo(f"           -> {found.new_hash.hex()}")
    for change in found.changes:
        click.echo(change_line(change.path, change.kind, change.old, change.new, change.lines))


def change_line(path: str, kind: str, old: str, new: str, lines: tuple[str, ...]) -> str:
    """Return one change as text: a line, or a line with a diff below it."""
    sign = {"added": "+", "removed": "-", "changed": "~"}[kind]
    head = f"{sign} {visible(path)}"
    if lines:
        return "\n".join((head, *(f"    {visible(line)}" for line in lines[2:])))
    return f"{head}: {' -> '.join(visible(side) for side in (old, new) if side)}"


def visible(text: str) -> str:
    """Return text in which control characters show, so that a document cannot write on the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _diff_json(found: ComposeDiff, refusal: PolicyDenied | None) -> dict[str, object]:
    return {
        "old_hash": found.old_hash.hex(),
        "new_hash": found.new_hash.hex(),
        "changes": msgspec.to_builtins(found.changes),
        "dropped": list(found.dropped),
        "refused": None if refusal is None else {"code": refusal.code, "reason": refusal.message},
    }


def _read(file: BinaryIO) -> bytes:
    raw = file.read(MAX_COMPOSE_BYTES + 1)
    if len(raw) > MAX_COMPOSE_BYTES:
        raise ConfigError("compose.size", f"the file has more than {MAX_COMPOSE_BYTES} bytes")
    return raw

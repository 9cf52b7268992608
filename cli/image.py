"""`dstack-cloud image`: enclave images, measured before anything runs."""

import json
import sys
import time
from pathlib import Path

import click
import msgspec


@click.group()
def image() -> None:
    """Measure enclave images (EIF)."""


@image.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--at",
    type=click.IntRange(min=0),
    metavar="UNIX",
    help="Judge the signing certificate's dates at this time instead of now.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file: Path, at: int | None, *, as_json: bool) -> None:
    """Print what an enclave image holds and what it measures.

    FILE is an EIF, of any builder. OS_IMAGE_HASH is what governance approves; PCR0, PCR1 and PCR2 are what
    nitro-cli prints. A signature is verified if there is one.

    Exit codes: 0 ok, 2 usage, 3 refused: the file is no whole EIF, or its signature does not hold.
    """
    from cli.image_report import inspect_image, lines  # noqa: PLC0415 - the other commands do not need it

    with file.open("rb") as content:
        if not content.seekable():
            raise click.UsageError(f"{file} is a pipe: pass a file, it is read twice")
        report = inspect_image(content, at=int(time.time()) if at is None else at)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        for line in lines(report):
            click.echo(line)
    sys.exit(report.exit_code)

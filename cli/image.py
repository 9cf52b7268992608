"""`dstack-cloud image`: enclave images and OS images, measured before anything runs."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from cli.places import project_option


@click.group()
def image() -> None:
    """Build and measure enclave images (EIF), check OS images."""


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


@image.command(short_help="Check an OS image's files, and print its hash.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(directory: Path, *, as_json: bool) -> None:
    """Check a dstack OS image's directory, and print the hash that governance approves.

    Every file that sha256sum.txt names must match. The measurement documents are made again from the files
    that are there: firmware, kernel and initrd for TDX, disk.raw for Google Cloud, the replay file for AWS.

    Exit codes: 0 ok, 2 usage, 3 refused: a file is another one than the list or a document says.
    """
    from cli.image_directory import check_directory, lines  # noqa: PLC0415 - see above

    report = check_directory(directory)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        for line in lines(report):
            click.echo(line)
    sys.exit(report.exit_code)


@image.command()
@click.argument("source")
@click.option("--kernel", required=True, metavar="PLACE", help="The kernel (bzImage or Image).")
@click.option("--init", required=True, metavar="PLACE", help="The bootstrap's init.")
@click.option("--nsm-ko", required=True, metavar="PLACE", help="The bootstrap's kernel module nsm.ko.")
@click.option("--cmdline", metavar="TEXT", help="Kernel command line; nitro-cli's by default.")
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The EIF to write."
)
@click.option("--arch", type=click.Choice(["x86_64", "aarch64"]), default="x86_64", show_default=True)
@click.option(
    "--argv",
    "argv_mode",
    type=click.Choice(["oci", "nitro-cli"]),
    default="oci",
    show_default=True,
    help="What runs: Entrypoint and Cmd, or nitro-cli's choice, Cmd without Entrypoint.",
)
@click.option(
    "--epoch",
    type=click.IntRange(0, (1 << 32) - 1),
    default=0,
    metavar="UNIX",
    help="The time of every file and of the build; measured. 0 by default.",
)
@click.option("--name", default="enclave", show_default=True, help="ImageName in the metadata; not measured.")
@click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Keep builds here."
)
@click.option("--user", metavar="NAME", help="User at the registry.")
@click.option("--password", envvar="DSTACK_REGISTRY_PASSWORD", hidden=True)
@click.option("--plain-loopback", is_flag=True, help="Speak plain http with a registry on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(*, as_json: bool, **request: Any) -> None:  # noqa: ANN401 - click passes options by name
    """Build an enclave image from a container image, without a daemon.

    SOURCE is a directory in OCI layout, a tar of one or of docker save, or a reference with a digest
    (host/repository@sha256:...); a local one may have @sha256:... behind it, to be checked. PLACE is a path,
    or an https URL with @sha256:... behind it. DSTACK_REGISTRY_PASSWORD holds the registry's password.

    Equal inputs give equal bytes on every machine; the page docs/reproducible-builds.md says what counts.

    Exit codes: 0 ok, 1 failed: an input is damaged or unreachable, 2 usage, 3 refused.
    """
    from cli.image_build import BuildRequest, as_object, lines, run_build  # noqa: PLC0415 - see above

    built = run_build(BuildRequest(**request))
    if as_json:
        click.echo(json.dumps(as_object(built), indent=2))
        return
    for line in lines(built):
        click.echo(line)


@image.command(short_help="Put an OS image's boot disk into a bucket.")
@click.argument("image_name", metavar="[IMAGE]", required=False)
@click.option("--bucket", required=True, metavar="NAME", help="The bucket of Google Cloud Storage.")
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def push(image_name: str | None, bucket: str, directory: Path, *, as_json: bool) -> None:
    """Put the boot disk of an OS image into a bucket, for deployments that others carry out.

    IMAGE is a name in your image_search_paths, or a directory; without one it is the project's os_image. The
    disk must be what the image's own documents measure. An image that is there already is left as it is.

    Exit codes: 0 it is there, 1 the cloud failed, 2 usage, 3 refused: the image is not what it says.
    """
    from cli.image_push import push_image  # noqa: PLC0415 - heavy

    pushed = push_image(image_name, bucket, directory)
    if as_json:
        told = {
            "object": f"gs://{bucket}/{pushed.key}",
            "os_image_hash": pushed.os_image_hash.hex(),
            "was_there": pushed.was_there,
        }
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"gs://{bucket}/{pushed.key}")
    click.echo(f"os_image_hash {pushed.os_image_hash.hex()}")
    click.echo("was there already" if pushed.was_there else "uploaded")

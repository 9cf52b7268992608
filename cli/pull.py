"""`dstack-cloud pull`: download an OS image into the first search path (spec deploy section 1.6)."""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urljoin

import click

from cli.image_directory import Directory
from cli.places import config_path
from functions.plan.project_files import located, read_config
from shared.errors import ConfigError, ProtocolError, StorageError, UnavailableError
from shared.hex import decode_hex_setting
from shared.measurement.os_image_directory import check_image_directory
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.image_archive import unpack

RELEASES: Final = (
    "https://github.com/Dstack-TEE/dstack/releases/download/guest-os-v{version}/{name}-uki.tar.gz"
)
OLD_RELEASES: Final = (
    "https://github.com/Dstack-TEE/meta-dstack/releases/download/v{version}/{name}-uki.tar.gz"
)
FIRST_NEW: Final = (0, 6, 0)

MAX_DOWNLOAD: Final = 8 << 30
MAX_UNPACKED: Final = 32 << 30  # a disk of some GB, most of it empty
MAX_REDIRECTS: Final = 5
TIMEOUT: Final = 3600

_NAME: Final = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,80})-([0-9]+)\.([0-9]+)\.([0-9]+)([-.][A-Za-z0-9.]+)?"
)


@click.command()
@click.argument("image")
@click.option(
    "--hash", "expected", metavar="HEX", help="The image's os_image_hash; another image is refused."
)
@click.option("--yes", "-y", is_flag=True, help="Download again over an image that is here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pull(image: str, expected: str | None, *, yes: bool, as_json: bool) -> None:
    """Download the OS image IMAGE, a release's name or a URL of its tar.gz.

    It is unpacked below the first of your image_search_paths. Its files must agree with each other; whether
    it is the image that governance means is told by its hash, which is printed: pass it as --hash.

    Exit codes: 0 it is there, 1 the download failed, 2 usage, 3 refused: it is not what it says.
    """
    config = read_config(config_path(os.environ))
    if not config.image_search_paths:
        raise ConfigError("pull.search_path", "no image_search_paths are configured: run `config-edit`")
    name, url = source_of(image)
    target = located(Path(), config.image_search_paths[0]) / name
    wanted = (
        None if expected is None else decode_hex_setting(expected, what="--hash", length=32, code="pull.hash")
    )
    if target.exists() and not yes:
        if not sys.stdin.isatty():
            raise ConfigError("pull.exists", f"{target} exists: pass --yes to download it again")
        if not click.confirm("Download again to overwrite?"):
            return
    digest = download(url, name, target, wanted)
    if as_json:
        told = {"name": name, "directory": str(target), "os_image_hash": digest.hex()}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{name} is in {target}")
    click.echo(f"os_image_hash {digest.hex()}")


def source_of(image: str) -> tuple[str, str]:
    """Return an image's name and the URL of its archive. Raises `ConfigError("pull.name")`."""
    name, url = image, ""
    if image.startswith(("http://", "https://")):
        name = image.rpartition("/")[2].partition("?")[0]
        name, url = name.removesuffix(".tar.gz").removesuffix("-uki"), image
    matched = _NAME.fullmatch(name)
    if matched is None:
        raise ConfigError(
            "pull.name", f"image is {image[:120]!a}, expected NAME-X.Y.Z as dstack-0.6.0, or a url of one"
        )
    number = tuple(int(matched[at]) for at in (2, 3, 4))
    version = name.removeprefix(f"{matched[1]}-")
    template = RELEASES if number >= FIRST_NEW else OLD_RELEASES
    return name, url or template.format(version=version, name=name)


def download(
    url: str, name: str, target: Path, expected: bytes | None = None, http: HttpClient | None = None
) -> bytes:
    """Download an archive, check its files, and put them at `target`; returns the os_image_hash.

    Raises `UnavailableError`: `pull.status`, `pull.timeout`; `ProtocolError`: `pull.redirects`, `pull.hash`;
    `StorageError("pull.storage")`; what the client, the archive and `check_image_directory` raise.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as work:
            archive, unpacked = Path(work) / "image.tar.gz", Path(work) / "image"
            with archive.open("xb") as file:
                _fetch(http or HttpClient(DirectDialer()), url, _sink(file))
            unpacked.mkdir()
            unpack(archive, Path(work) / "image.tar", unpacked, _in_time(), max_unpacked=MAX_UNPACKED)
            # the archive has one directory of the image's name, or the files themselves
            found = unpacked / name if (unpacked / name).is_dir() else unpacked
            digest = _check(found, expected)
            if target.exists():
                target.rename(Path(work) / "old")
            found.rename(target)
    except OSError as error:
        raise StorageError("pull.storage", f"cannot keep the image at {target}: {error.strerror}") from error
    return digest


def _fetch(http: HttpClient, url: str, write: Callable[[bytes], object]) -> None:
    for _ in range(MAX_REDIRECTS):
        answer = http.download(url, write, max_bytes=MAX_DOWNLOAD, timeout=TIMEOUT)
        if answer.status == 200:
            return
        if answer.status not in {301, 302, 303, 307, 308}:
            raise UnavailableError("pull.status", f"got status {answer.status} for {url}")
        url = _redirected(url, answer.headers.get("location", ""))
    raise ProtocolError("pull.redirects", f"got more than {MAX_REDIRECTS} redirects")


def _sink(file: BinaryIO) -> Callable[[bytes], object]:
    def write(part: bytes) -> None:
        try:
            file.write(part)
        except OSError as error:  # not the server's: the client would take it for a broken connection
            raise StorageError("pull.storage", f"cannot write the image: {error.strerror}") from error

    return write


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    if url.startswith("https://") and not target.startswith("https://"):
        raise ProtocolError("pull.redirects", "the download is redirected away from https")
    return target


def _in_time() -> Callable[[], None]:
    deadline = time.monotonic() + TIMEOUT

    def check() -> None:
        if time.monotonic() > deadline:
            raise UnavailableError("pull.timeout", f"the image was not unpacked in {TIMEOUT} s")

    return check


def _check(image: Path, expected: bytes | None) -> bytes:
    found = check_image_directory(Directory(image))
    if expected is not None and found.os_image_hash != expected:
        raise ProtocolError(
            "pull.hash", f"the image's hash is {found.os_image_hash.hex()}, expected {expected.hex()}"
        )
    if not found.measurements:
        click.echo("warning: the image has no measurement document: it cannot be deployed", err=True)
    return found.os_image_hash

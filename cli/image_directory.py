"""What `dstack-cloud image check` finds in a dstack OS image's directory, and how it shows it to a person."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from shared.errors import ExitCode, InvalidEvidence
from shared.measurement.os_image_directory import check_image_directory


class OsImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose files agree; hashes are hex.

    `measurements` are its documents by kind, raw; those in `rebuilt` were made again from the image's files.
    `pcr2` is what a vTPM measures of the GCP boot disk, where that is there.
    """

    os_image_hash: str
    version: str | None
    measurements: dict[str, str]
    rebuilt: tuple[str, ...]
    absent: tuple[str, ...]
    uki_auth: str | None
    pcr2: str | None


class DirectoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one run found. Where the directory is refused, `code` and `reason` say why; `image` is None."""

    is_valid: bool
    exit_code: ExitCode
    code: str | None = None
    reason: str | None = None
    image: OsImage | None = None


class Directory(msgspec.Struct, frozen=True):
    """The regular files of a directory, by plain names."""

    path: Path

    def open(self, name: str) -> BinaryIO:
        """Open a file; a link, a pipe or a device raises `InvalidEvidence("os_image.file")`."""
        place = self.path / name
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InvalidEvidence("os_image.file", f"cannot read {name!a}: {error.strerror}") from None
        if not stat.S_ISREG(mode):
            raise InvalidEvidence("os_image.file", f"{name!a} is no regular file")
        try:
            return os.fdopen(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except OSError as error:
            raise InvalidEvidence("os_image.file", f"cannot read {name!a}: {error.strerror}") from None


def check_directory(path: Path) -> DirectoryReport:
    """Check every file that the directory's checksum list names, and rebuild the documents it can."""
    try:
        found = check_image_directory(Directory(path))
    except InvalidEvidence as error:
        return DirectoryReport(
            is_valid=False, exit_code=ExitCode.REFUSED, code=error.code, reason=error.message
        )
    image = OsImage(
        os_image_hash=found.os_image_hash.hex(),
        version=None if found.metadata is None else found.metadata.version,
        measurements={kind: raw.hex() for kind, raw in found.measurements.items()},
        rebuilt=found.rebuilt,
        absent=found.absent,
        uki_auth=None if found.boot is None else found.boot.uki_auth.hex(),
        pcr2=None if found.boot is None else found.boot.pcr2.hex(),
    )
    return DirectoryReport(is_valid=True, exit_code=ExitCode.OK, image=image)


def lines(report: DirectoryReport) -> Iterator[str]:
    """Yield the report's lines."""
    image = report.image
    if image is None:
        yield f"REFUSED  {report.reason} [{report.code}]"
        return
    yield f"dstack OS image{'' if image.version is None else f' {image.version}'}"
    yield f"  os_image_hash  {image.os_image_hash}"
    for kind in image.measurements:
        how = "rebuilt from the files, equal" if kind in image.rebuilt else "listed; its files are not here"
        yield f"  {kind:<15}{how}"
    if image.uki_auth is not None:
        yield f"  UKI            {image.uki_auth}"
        yield f"  PCR2           {image.pcr2}  (SHA-256, of disk.raw)"
    for name in image.absent:
        yield f"  not here       {name}"

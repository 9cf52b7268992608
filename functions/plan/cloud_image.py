"""Finds a dstack OS image on this machine and reads what it will measure (spec deploy 1.3, 1.5)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from functions.plan.assembly import ImageFacts
from functions.plan.project_files import located, read_file
from shared.compose.shared_files import ImageKind
from shared.errors import ConfigError
from shared.measurement.documents import (
    MAX_MEASUREMENT_BYTES,
    MeasurementDocument,
    bound_measurement,
    parse_aws_measurement,
    parse_gcp_measurement,
)
from shared.measurement.os_image import MAX_SUMS_BYTES, SUMS_NAME

DIGEST_NAME: Final = "digest.txt"
_MAX_DIGEST: Final = 1024


def find_image(name: str, search_paths: Sequence[str], directory: Path) -> Path:
    """Return the image's directory; relative search paths are the project's, `~` is the user's home.

    Raises `ConfigError`: `plan.os_image.name` (a path instead of a name), `plan.os_image.missing`,
    and as `located`.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise ConfigError("plan.os_image.name", f"os_image is {name[:80]!a}, expected the name of an image")
    for entry in search_paths:
        found = located(located(directory, entry), name)
        if found.is_dir():
            return found
    raise ConfigError(
        "plan.os_image.missing",
        f"no image {name[:80]!a} below {', '.join(search_paths) or 'any search path'}: download it first",
    )


def read_image(image: Path, kind: ImageKind) -> tuple[ImageFacts, MeasurementDocument]:
    """Read an image's identity, once its files agree with each other.

    The checksum list must name the measurement, and digest.txt must be the list's hash.
    Raises `ConfigError("plan.os_image.digest")`, and `InvalidEvidence` as `bound_measurement` does.
    """
    document = MeasurementDocument(
        read_file(image / SUMS_NAME, MAX_SUMS_BYTES),
        read_file(image / f"measurement.{kind}.cbor", MAX_MEASUREMENT_BYTES),
    )
    digest = document.os_image_hash
    stated = read_file(image / DIGEST_NAME, _MAX_DIGEST).decode("ascii", "replace").strip()
    if stated.lower() != digest.hex():
        raise ConfigError(
            "plan.os_image.digest",
            f"{DIGEST_NAME} says {stated[:64]!a}, the image's {SUMS_NAME} has the hash {digest.hex()}",
        )
    raw = bound_measurement(document, kind, digest)
    if kind == "gcp":
        registers = {"uki_auth": parse_gcp_measurement(raw).uki_auth}
    else:
        registers = {"boot_pcr_digest": parse_aws_measurement(raw).boot_pcr_digest}
    return ImageFacts(os_image_hash=digest, source=image.name, registers=registers), document

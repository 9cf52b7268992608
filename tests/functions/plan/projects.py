"""Projects for the tests: directories as a user would have them, and a builder that builds nothing."""

import json
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

from functions.plan.assembly import ImageFacts
from shared.compose.project import NitroConfig
from shared.measurement.documents import aws_measurement_document, gcp_measurement_document

PINNED = "nginx@sha256:" + "ab" * 32
APP_ID = "22" * 20
SEED = "33" * 20
ENCLAVE = f"services:\n  web:\n    image: {PINNED}\n"


def write_project(directory: Path, compose: str = ENCLAVE, **fields: Any) -> Path:
    """Write app.json and a compose file; fields that are `...` are left out."""
    directory.mkdir(exist_ok=True)
    document = {
        "name": "demo",
        "platform": "gcp",
        "os_image": "dstack-0.6.0",
        "app_id": APP_ID,
        "instance_id_seed": SEED,
        "public_logs": False,
    } | fields
    kept = {key: value for key, value in document.items() if value is not ...}
    (directory / "app.json").write_text(json.dumps(kept, indent=2))
    (directory / "docker-compose.yaml").write_text(compose)
    return directory


def write_os_image(directory: Path, kind: str = "gcp", name: str = "dstack-0.6.0", fill: int = 0x5A) -> bytes:
    """Write what a plan reads of an OS image, and return its os_image_hash."""
    make = gcp_measurement_document if kind == "gcp" else aws_measurement_document
    sums, measurement, digest = make(bytes([fill]) * 32)
    image = directory / name
    image.mkdir(parents=True)
    (image / "sha256sum.txt").write_bytes(sums)
    (image / f"measurement.{kind}.cbor").write_bytes(measurement)
    (image / "digest.txt").write_text(digest.hex() + "\n")
    return digest


class FakeBuilder:
    """Measures the name of an image instead of the image; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, image: str, settings: NitroConfig, directory: Path) -> ImageFacts:
        del settings, directory
        self.asked.append(image)
        seen = Path(image).read_bytes() if Path(image).is_file() else image.encode()
        pcr = sha384(seen).digest()
        return ImageFacts(
            os_image_hash=sha256(pcr * 3).digest(),
            source=image,
            registers={"PCR0": pcr, "PCR1": pcr, "PCR2": pcr},
        )

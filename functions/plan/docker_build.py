"""Builds a service's Dockerfile with docker, where there is one (deploy spec 5B.2)."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shared.errors import ConfigError, UnavailableError

BUILD_TIMEOUT: Final = 3600.0  # seconds for `docker compose build`, which may compile
SAVE_TIMEOUT: Final = 600.0
_PROJECT: Final = "dstack-plan"
_SHOWN: Final = 300  # characters of docker's last words that an error repeats


@contextmanager
def docker_image(compose_file: Path, service: str, image: str | None) -> Iterator[Path]:
    """Build `service` and yield the tar of its image, for as long as the block runs.

    `image` is what the service calls its image, if it does. Raises `ConfigError("plan.nitro.docker")` where
    no docker with compose is installed, `UnavailableError("plan.nitro.build")` where it fails or takes too
    long.
    """
    docker = shutil.which("docker")
    if docker is None:
        raise ConfigError(
            "plan.nitro.docker",
            f"service {service[:40]} is built from a Dockerfile, and no docker is here: build the image "
            "elsewhere and name it by digest, or give nitro_config.image an OCI layout or a docker save tar",
        )
    compose = [docker, "compose", "--file", str(compose_file), "--project-name", _PROJECT]
    with tempfile.TemporaryDirectory(prefix=f"{_PROJECT}-") as scratch:
        tar = Path(scratch) / "image.tar"
        _run([*compose, "build", "--", service], BUILD_TIMEOUT)
        # Compose names an image that has no name after project and service
        _run(
            [docker, "image", "save", "--output", str(tar), "--", image or f"{_PROJECT}-{service}"],
            SAVE_TIMEOUT,
        )
        yield tar


def _run(command: list[str], timeout: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=timeout)  # noqa: S603 - no shell
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError("plan.nitro.build", f"docker did not run: {type(error).__name__}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-_SHOWN:]
        if "unknown flag: --file" in words or "'compose' is not a docker command" in words:
            raise ConfigError("plan.nitro.docker", "this docker has no compose plugin: install it")
        text = "".join(char if char.isprintable() else " " for char in words)
        raise UnavailableError("plan.nitro.build", f"docker ended with {done.returncode}: {text}")

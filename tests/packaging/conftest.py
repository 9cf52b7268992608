"""The built artefacts, each built once for all workers of a test run."""

import fcntl
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from functions.packaging.aws_zip import Package, Runtime, build_zip, install, install_command, runtime_of
from functions.packaging.gcp_source import Source, stage_source
from functions.packaging.own_code import REPOSITORY
from functions.packaging.targets import AWS_FUNCTIONS, GCP_FUNCTIONS
from shared.errors import StorageError
from tests.functions.authorize.conftest import allowed_body, golden_chain, goldens
from tests.functions.conftest import aws, aws_server
from tests.packaging.runtime_api import runtime_directory

__all__ = ["allowed_body", "aws", "aws_server", "golden_chain", "goldens"]


class Artefacts:
    """Builds what is asked for, and keeps it below a directory that the workers share."""

    def __init__(self, directory: Path, runtime: Runtime) -> None:
        self.directory = directory
        self.runtime = runtime

    def zip(self, name: str) -> tuple[Package, Path]:
        """Return an AWS package and its file."""
        function = next(one for one in AWS_FUNCTIONS if one.name == name)
        record = self.directory / f"{name}.json"
        with self._once(f"zip-{name}") as done:
            if not done:
                record.write_bytes(
                    msgspec.json.encode(build_zip(function, self.runtime, self.directory / "aws"))
                )
        return msgspec.json.decode(record.read_bytes(), type=Package), self.directory / "aws" / f"{name}.zip"

    def unpacked(self, name: str) -> Path:
        """Return a directory with what the zip of an AWS package holds."""
        _, path = self.zip(name)
        target = self.directory / "var-task" / name
        with self._once(f"unpacked-{name}") as done:
            if not done:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(target)
        return target

    def source(self, name: str) -> tuple[Source, Path]:
        """Return a staged Google Cloud directory."""
        function = next(one for one in GCP_FUNCTIONS if one.name == name)
        record = self.directory / f"source-{name}.json"
        with self._once(f"source-{name}") as done:
            if not done:
                source = stage_source(function, self.runtime, self.directory / "gcp")
                record.write_bytes(msgspec.json.encode(source))
        return msgspec.json.decode(record.read_bytes(), type=Source), self.directory / "gcp" / name

    def requirements(self, name: str) -> Path:
        """Return a directory with the packages of a staged directory's requirements."""
        _, source = self.source(name)
        target = self.directory / "requirements" / name
        with self._once(f"requirements-{name}") as done:
            if not done:
                target.mkdir(parents=True)
                install(source / "requirements.txt", target, self.runtime)
        return target

    def wheel(self) -> Path:
        """Return a directory with what the project's wheel holds."""
        target = self.directory / "wheel"
        with self._once("wheel") as done:
            if not done:
                built = self.directory / "dist"
                command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
                subprocess.run([*command, str(built)], cwd=REPOSITORY, capture_output=True, check=True)
                (path,) = built.glob("*.whl")
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(target)
        return target

    def awslambdaric(self) -> Path:
        """Return a directory with the Lambda runtime's Python part."""
        target = self.directory / "var-runtime"
        with self._once("awslambdaric") as done:
            if not done:
                target.mkdir()
                runtime_directory(target)
        return target

    def resolve(self, locks: Iterable[Path], target: Path, runtime: Runtime) -> None:
        """Find the wheels of some locks for another runtime, all at once, and download none."""

        def find(lock: Path) -> "subprocess.CompletedProcess[str]":
            command = [*install_command(lock, target, runtime), "--dry-run"]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        with ThreadPoolExecutor() as pool:
            for done in pool.map(find, locks):
                if done.returncode != 0 and _unreachable(done.stderr):
                    # what a registry has cannot be told without it
                    why = " ".join(done.stderr.split())[-300:]
                    pytest.skip(f"the package registry is unreachable: {why}")
                assert done.returncode == 0, done.stderr

    @contextmanager
    def _once(self, what: str) -> Iterator[bool]:
        """Hold the lock of one artefact: the first to hold it makes it, and all skip where that failed."""
        marker = self.directory / f"{what}.done"
        with (self.directory / f"{what}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if marker.exists() and (reason := json.loads(marker.read_text())):
                pytest.skip(reason)
            try:
                yield marker.exists()
            except StorageError as error:
                if error.code != "package.command" or not _unreachable(error.message):
                    raise
                reason = f"the package registry is unreachable: {error.message}"
                marker.write_text(json.dumps(reason))
                pytest.skip(reason)
            marker.write_text('""')


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """The artefacts of this run."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "artefacts"
    directory.mkdir(exist_ok=True)
    return Artefacts(directory, runtime_of())


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


def _unreachable(said: str) -> bool:
    causes = ("error sending request", "failed to fetch", "dns error", "connection refused", "timed out")
    return any(cause in said.lower() for cause in causes)

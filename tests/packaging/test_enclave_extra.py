"""A guest that installed `dstack-cloud[enclave]` and nothing else has all that its programs import."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grimp
import pytest

from shared.errors import StorageError
from tests.packaging.conftest import Artefacts

PROGRAMS = [
    "enclave.agent",
    "enclave.compose",
    "enclave.dstack_util",
    "enclave.simulator",
    "enclave.simulator.agent",
    "enclave.vsock",
]

FIND = (
    "import importlib.util, sys\n"
    "print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))\n"
)


@pytest.fixture(scope="module")
def places(artefacts: Artefacts, repository: Path) -> str:
    """The import path of such a guest: the extra's packages and our wheel."""
    target = artefacts.directory / "enclave-extra"
    with artefacts._once("enclave-extra") as done:
        if not done:
            _install(repository / "locks/enclave.txt", target)
    return f"{target}{os.pathsep}{artefacts.wheel()}"


def _install(lock: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile"]
    done = subprocess.run(
        [*command, "--target", str(target), "--requirement", str(lock)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StorageError("package.command", " ".join(done.stderr.split())[-300:])


def _run(places: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-S", "-P", "-B", *arguments]
    return subprocess.run(
        command, env={"PYTHONPATH": places, "PATH": os.defpath}, capture_output=True, text=True, check=False
    )


def _foreign() -> Sequence[str]:
    """Return the packages that the enclave's modules import, inside functions too, with those of `shared`."""
    graph = grimp.build_graph(
        "enclave",
        "shared",
        include_external_packages=True,
        exclude_type_checking_imports=True,
        cache_dir=None,
    )
    found: set[str] = set()
    wanted = [module for module in graph.modules if module.partition(".")[0] == "enclave"]
    while wanted:
        module = wanted.pop()
        if module not in found:
            found.add(module)
            wanted += graph.find_modules_directly_imported_by(module)
    names = {module.partition(".")[0] for module in found} - {"enclave", "shared"}
    return sorted(names - sys.stdlib_module_names)


def test_it_has_every_package_that_a_program_of_the_guest_imports(places: str) -> None:
    foreign = _foreign()
    assert {"yaml", "starlette", "OpenSSL"} <= set(foreign)
    done = _run(places, "-c", FIND, *foreign)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_starts(places: str, program: str) -> None:
    done = _run(places, "-m", program, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("program", ["enclave.kms", "enclave.init"])
def test_a_program_that_starts_on_a_guest_alone_is_whole(places: str, program: str) -> None:
    done = _run(places, "-c", f"import {program}.__main__")
    assert done.returncode == 0, done.stderr


def test_the_console_script_starts(places: str) -> None:
    done = _run(
        places,
        "-c",
        "import sys; sys.argv[1:] = ['--help']; from enclave.dstack_util.__main__ import run; run()",
    )
    assert done.returncode == 0, done.stderr


def test_orphans_are_found_where_a_compose_file_is_read(places: str, tmp_path: Path) -> None:
    (compose := tmp_path / "docker-compose.yaml").write_text("name: app\nservices:\n  web:\n    image: x\n")
    gone = tmp_path / "docker/containers" / ("b" * 64)
    gone.mkdir(parents=True)
    labels = {"com.docker.compose.project": "app", "com.docker.compose.service": "old"}
    (gone / "config.v2.json").write_text(json.dumps({"Config": {"Labels": labels}}))
    options = ("-f", str(compose), "--no-dockerd", "-d", str(tmp_path / "docker"))
    done = _run(places, "-m", "enclave.dstack_util", "remove-orphans", *options)
    assert done.returncode == 0, done.stderr
    assert not gone.exists()

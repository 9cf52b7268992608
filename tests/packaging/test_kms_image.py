"""enclave/kms/Dockerfile: what its steps put into the image, how that starts, and an enclave image of it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from cli.demo.oci_layout import ImageFile, write_oci_layout
from functions.builder.blobs import BootBlob, BootBlobs
from functions.builder.cache import BuildCache
from functions.builder.nitro_image import DEFAULT_CMDLINES, BuiltImage, build_nitro_image
from functions.builder.sources import OciLayoutSource
from functions.packaging.aws_zip import Runtime, files_of
from tests.packaging.conftest import Artefacts
from tests.packaging.dockerfile import Stage, build, instructions

HOME = "/opt/dstack"
ALONE = (getattr(sys, "_base_executable", sys.executable), "-S")
"""The interpreter without the packages of any environment."""


@pytest.fixture(scope="session")
def image(artefacts: Artefacts, repository: Path) -> Stage:
    """The image's own files, made by the Dockerfile's steps."""
    return _built(artefacts, repository, "kms-image")


def _built(artefacts: Artefacts, repository: Path, name: str) -> Stage:
    record = artefacts.directory / f"{name}.json"
    with artefacts._once(name) as done:
        if not done:
            made = build(_dockerfile(repository), repository, artefacts.directory / name)
            record.write_text(json.dumps([made.environment, made.entrypoint]))
    environment, entrypoint = json.loads(record.read_text())
    root = artefacts.directory / name / "image"
    return Stage("", root, environment=environment, entrypoint=tuple(entrypoint))


def _dockerfile(repository: Path) -> Path:
    return repository / "enclave/kms/Dockerfile"


def _digests(image: Stage) -> dict[str, str]:
    home = image.place(HOME)
    return {
        path.relative_to(home).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files_of(home)
    }


def _run(image: Stage, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = image.environment | {"PYTHONPATH": str(image.place(HOME))}
    return subprocess.run([*ALONE, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_the_base_and_every_package_are_named_by_their_hashes(repository: Path) -> None:
    steps = instructions(_dockerfile(repository))
    (base,) = [text for name, text in steps if name == "ARG" and text.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=docker\.io/library/python:[a-z0-9.-]+@sha256:[0-9a-f]{64}", base)
    assert {text.partition(" AS ")[0] for name, text in steps if name == "FROM"} == {"${PYTHON_IMAGE}"}
    installs = [text for name, text in steps if name == "RUN" and " pip install " in text]
    assert len(installs) == 3
    for text in installs:
        assert "--no-cache-dir" in text
        assert "--require-hashes" in text or "--no-index" in text


def test_it_holds_the_kms_and_neither_the_simulator_nor_other_rooms(image: Stage) -> None:
    home = image.place(HOME)
    assert (home / "enclave/kms/daemon.py").is_file()
    assert (home / "enclave/kms/onboarding.html").is_file()  # what one of its modules reads
    assert not [path for path in _digests(image) if "simulator" in path]
    for name in ("functions", "cli", "contracts", "tests", "bin", "web3", "boto3", "hatchling", "pip"):
        assert not (home / name).exists()
    assert [path.name for path in home.parent.iterdir()] == ["dstack"]
    assert [path.name for path in image.root.iterdir()] == ["opt"]


def test_a_second_build_elsewhere_makes_the_same_files(
    image: Stage, artefacts: Artefacts, repository: Path
) -> None:
    again = _built(artefacts, repository, "kms-image-elsewhere")
    assert _digests(image) == _digests(again)


def test_every_module_has_bytecode_that_is_used_unchecked(image: Stage) -> None:
    sources = list(image.place(HOME).rglob("*.py"))
    assert len(sources) > 500
    for source in sources:
        head = Path(importlib.util.cache_from_source(str(source))).read_bytes()[:8]
        assert head == importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little"), source


def test_no_module_can_be_changed_by_who_serves_requests(image: Stage) -> None:
    assert not [path for path in files_of(image.place(HOME)) if path.stat().st_mode & 0o022]


@pytest.mark.skipif(
    os.path.exists("/dev/nsm") or os.path.exists("/dev/tdx_guest"),  # noqa: PTH110 - read before any test runs
    reason="this machine is a TEE: the KMS would start on it",
)
def test_outside_of_a_tee_it_ends_for_want_of_a_device(image: Stage) -> None:
    before = _digests(image)
    started = _run(image, *image.entrypoint[1:])
    assert "[platform.device]" in started.stderr, started.stderr
    assert started.stderr.count("\n") == 1
    assert started.returncode == 1
    assert _digests(image) == before


def test_what_it_imports_on_either_platform_is_of_the_image_or_of_python(image: Stage) -> None:
    modules = (
        "enclave.kms.daemon, enclave.tee.nitro, enclave.tee.gcp, shared.attestation.gcp, dcap_qvl, uvloop"
    )
    ask = (
        f"import sys, sysconfig, {modules}\n"
        "for module in list(sys.modules.values()):\n"
        "    print(getattr(module, '__file__', None) or sysconfig.get_path('stdlib'))\n"
        "print(sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib'))\n"
    )
    done = _run(image, "-c", ask)
    assert done.returncode == 0, done.stderr
    *places, own = done.stdout.splitlines()
    roots = (str(image.place(HOME)), *own.split())
    assert not [place for place in places if not place.startswith(roots) or "dist-packages" in place]


@pytest.mark.parametrize("architecture", ["x86_64", "arm64"])
def test_the_bases_python_has_a_wheel_of_every_package(
    artefacts: Artefacts, repository: Path, tmp_path: Path, architecture: str
) -> None:
    found = re.search(r"library/python:(\d)\.(\d+)[.-]", _dockerfile(repository).read_text())
    assert found
    runtime = Runtime(sys.executable, (int(found[1]), int(found[2])), architecture)
    locks = [repository / f"locks/{name}.txt" for name in ("enclave", "build")]
    artefacts.resolve(locks, tmp_path, runtime)


@pytest.fixture(scope="module")
def enclave(image: Stage, tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    """The same files as an image in OCI layout, as `docker buildx build` writes one, and an EIF of it."""
    place = tmp_path_factory.mktemp("enclave")
    files = {
        f"/{path.relative_to(image.root).as_posix()}": ImageFile(path.read_bytes())
        for path in files_of(image.root)
    }
    files["/usr/local/bin/python"] = ImageFile(b"the base's interpreter", 0o755)
    files["/etc/kms/kms.toml"] = ImageFile(b"# what an operator adds\n")
    digest = write_oci_layout(place / "layout", files, entrypoint=image.entrypoint)
    blobs = [BootBlob(name, sha256(name).digest()) for name in (b"kernel", b"init", b"nsm.ko")]
    return build_nitro_image(
        OciLayoutSource(place / "layout", digest),
        BootBlobs(*blobs, DEFAULT_CMDLINES["x86_64"]),
        cache=BuildCache(place / "cache"),
        output=place / "kms.eif",
    )


def test_as_an_enclave_it_runs_the_kms(enclave: BuiltImage, image: Stage) -> None:
    assert enclave.built.argv == image.entrypoint == ("/usr/local/bin/python", "-m", "enclave.kms")
    assert enclave.built.warnings == ()


def test_its_measurement_as_an_enclave_is_what_a_reader_of_the_file_finds(enclave: BuiltImage) -> None:
    command = [sys.executable, "-m", "cli", "image", "inspect", "--json", str(enclave.path)]
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["image"]
    pcrs = bytes.fromhex(said["pcr0"] + said["pcr1"] + said["pcr2"])
    assert sha256(pcrs).digest() == enclave.measurement.os_image_hash

"""What the packages hold, that they come out the same twice, and that a package too large is refused."""

import importlib.util
import marshal
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import CodeType

import msgspec
import pytest

from functions.packaging import __main__, aws_zip
from functions.packaging.aws_zip import Runtime, build_zip, runtime_of
from functions.packaging.gcp_source import stage_source
from functions.packaging.own_code import modules_of
from functions.packaging.targets import ARCHITECTURES, AWS_FUNCTIONS, AWS_SERVICES, GCP_FUNCTIONS, PYTHONS
from shared.errors import ConfigError, StorageError
from tests.packaging.conftest import Artefacts
from tests.shared.refusal import refuses

ZIPS = [function.name for function in AWS_FUNCTIONS]
SOURCES = [function.name for function in GCP_FUNCTIONS]
AUTHORIZE = next(function for function in AWS_FUNCTIONS if function.name == "authorize")

# by DEPENDENCIES.md, what a function must not pay for at start
HEAVY = (
    "web3",
    "eth",
    "grpc",
    "pydantic",
    "google.cloud.compute_v1",
    "boto3",
    "botocore.session",
    "rich",
    "dcap_qvl",
)
FOREIGN = ("tests", "cli", "enclave", "bench", "contracts", "functions/packaging", "functions/clouds/local")


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_keeps_to_its_budget(artefacts: Artefacts, name: str) -> None:
    package, path = artefacts.zip(name)
    with zipfile.ZipFile(path) as archive:
        unzipped = sum(entry.file_size for entry in archive.infolist())
    assert unzipped == package.unzipped <= package.budget
    assert path.stat().st_size == package.zipped < 50 * 10**6  # what Lambda takes without a bucket


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_holds_our_rooms_and_no_others(artefacts: Artefacts, name: str) -> None:
    _, path = artefacts.zip(name)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert not [one for one in names if one.startswith(FOREIGN)]
    assert not [one for one in names if "/tests/" in one and one.startswith(("shared/", "functions/"))]
    others = {"verify", "authorize", "deploy"} - {name}
    foreign = tuple(f"functions/{other}/" for other in others)
    if name == "governance":  # which has deployments stopped, and calls no cloud that they run on
        foreign = ("functions/authorize/", "functions/clouds/", "functions/builder/", "functions/verify/")
    if name != "deploy":  # which plans, and may verify
        assert not [one for one in names if one.startswith(foreign)]
    assert not [one for one in names if one.startswith(("pycparser", "Crypto/Cipher", "Crypto/PublicKey"))]
    assert not [one for one in names if one.endswith(("/RECORD", "/INSTALLER", ".pyi", "/direct_url.json"))]
    described = {
        one.split("/")[2] for one in names if one.startswith("botocore/data/") and one.count("/") > 2
    }
    assert described <= AWS_SERVICES


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_says_nothing_of_when_and_where_it_was_built(artefacts: Artefacts, name: str) -> None:
    _, path = artefacts.zip(name)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
        stage = str(artefacts.directory).encode()
        assert not [entry.filename for entry in entries if stage in archive.read(entry)]


@pytest.mark.parametrize("name", ZIPS)
def test_every_module_of_a_zip_has_bytecode_that_is_used_unchecked(artefacts: Artefacts, name: str) -> None:
    package = artefacts.unpacked(name)
    sources = list(package.rglob("*.py"))
    assert len(sources) > 100
    for source in sources:
        bytecode = Path(importlib.util.cache_from_source(str(source)))
        head = bytecode.read_bytes()[:8]
        assert head == importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little"), source
    own = package / "functions" / name / "__pycache__" / f"aws.{sys.implementation.cache_tag}.pyc"
    code = marshal.loads(own.read_bytes()[16:])  # noqa: S302 - of our own build
    assert isinstance(code, CodeType)
    assert code.co_filename == f"/var/task/functions/{name}/aws.py"


def test_the_same_zip_comes_out_elsewhere_at_another_time(artefacts: Artefacts, tmp_path: Path) -> None:
    wanted = artefacts.zip("authorize")[0].sha256
    script = (
        "from pathlib import Path; from functions.packaging import aws_zip, targets; "
        f"one = next(one for one in targets.AWS_FUNCTIONS if one.name == 'authorize'); "
        f"print(aws_zip.build_zip(one, aws_zip.runtime_of(), Path({str(tmp_path / 'a b')!r})).sha256)"
    )
    environment = {
        **os.environ,
        "TZ": "Asia/Tokyo",
        "PYTHONHASHSEED": "77",
        "SOURCE_DATE_EPOCH": "1700000000",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        umask=0o077,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == wanted


@pytest.mark.parametrize("name", ZIPS)
def test_a_cold_start_loads_nothing_heavy(artefacts: Artefacts, name: str) -> None:
    package = artefacts.unpacked(name)
    entries = next(one.entries for one in AWS_FUNCTIONS if one.name == name)
    loaded = loaded_modules([package], entries)
    assert set(entries) <= loaded
    assert not [heavy for heavy in HEAVY if heavy in loaded]
    # Powertools asks botocore for its version where it is installed: a millisecond
    assert name in {"deploy", "governance"} or "botocore" not in loaded


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_holds_our_rooms_and_no_others(artefacts: Artefacts, name: str) -> None:
    source, directory = artefacts.source(name)
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert {"main.py", "requirements.txt", "setup.sh", "deploy.sh", ".gcloudignore"} <= names
    assert not [one for one in names if one.startswith(FOREIGN)]
    assert {one.split("/")[0] for one in names if "/" in one} == {"shared", "functions", "__pycache__"}
    assert source.size <= source.budget


@pytest.mark.parametrize("name", SOURCES)
def test_the_requirements_of_a_source_are_locked_and_name_no_host(artefacts: Artefacts, name: str) -> None:
    _, directory = artefacts.source(name)
    text = (directory / "requirements.txt").read_text()
    requirements = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(requirements) > 10
    assert all("==" in line and line.endswith("\\") for line in requirements)
    assert text.count("--hash=sha256:") >= len(requirements)
    assert "://" not in text


@pytest.mark.parametrize("name", SOURCES)
def test_a_cold_start_of_a_source_loads_nothing_heavy(artefacts: Artefacts, name: str) -> None:
    _, directory = artefacts.source(name)
    loaded = loaded_modules([directory, artefacts.requirements(name)], ["main"])
    assert next(one.entry for one in GCP_FUNCTIONS if one.name == name) in loaded
    assert not [heavy for heavy in HEAVY if heavy in loaded]


def loaded_modules(path: list[Path], modules: tuple[str, ...] | list[str]) -> set[str]:
    """Import modules in an interpreter that sees the standard library and this path alone."""
    script = (
        f"import sys; sys.path[:0] = {[str(one) for one in path]!r}; "
        f"before = set(sys.modules); import {', '.join(modules)}; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.fixture
def wheels(artefacts: Artefacts) -> None:
    """The wheels of one package, in uv's cache: without them there is nothing to refuse."""
    artefacts.zip("authorize")


@pytest.mark.usefixtures("wheels")
class TestRefusals:
    def test_of_a_package_beyond_its_budget_nothing_is_left(self, tmp_path: Path) -> None:
        small = msgspec.structs.replace(AUTHORIZE, budget=10**6)
        with refuses("package.budget", StorageError) as caught:
            build_zip(small, runtime_of(), tmp_path)
        assert "the largest parts in MB: aws_lambda_powertools" in caught.value.message
        assert not list(tmp_path.glob("*.zip"))

    def test_of_an_older_zip_nothing_is_left_either(self, tmp_path: Path) -> None:
        (tmp_path / "authorize.zip").write_bytes(b"older")
        with refuses("package.entry", ConfigError):
            build_zip(
                msgspec.structs.replace(AUTHORIZE, entries=("functions.nothing",)), runtime_of(), tmp_path
            )
        assert not list(tmp_path.glob("*.zip"))

    def test_of_a_source_beyond_its_budget(self, tmp_path: Path) -> None:
        small = msgspec.structs.replace(GCP_FUNCTIONS[0], budget=10**5)
        with refuses("package.budget", StorageError):
            stage_source(small, runtime_of(), tmp_path)

    def test_of_a_package_that_is_not_the_locked_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lock = (aws_zip.REPOSITORY / AUTHORIZE.lock).read_text()
        wrong = "".join(
            f"{line[: line.index('sha256:') + 7]}{'0' * 64}{line[line.index('sha256:') + 71 :]}\n"
            if "sha256:" in line
            else f"{line}\n"
            for line in lock.splitlines()
        )
        (tmp_path / "locks").mkdir()
        (tmp_path / AUTHORIZE.lock).write_text(wrong)
        monkeypatch.setattr(aws_zip, "REPOSITORY", tmp_path)
        with refuses("package.command", StorageError) as caught:
            build_zip(AUTHORIZE, runtime_of(), tmp_path / "out")
        assert "Computed: sha256:" in caught.value.message

    @pytest.mark.parametrize("interpreter", ["/nonexistent/python", "/bin/false", "/bin/echo"])
    def test_of_no_interpreter(self, interpreter: str) -> None:
        with refuses("package.python", ConfigError):
            runtime_of(interpreter)

    def test_of_a_version_that_no_runtime_has(self, tmp_path: Path) -> None:
        old = tmp_path / "python3.8"
        old.write_text("#!/bin/sh\necho 3 8\n")
        old.chmod(0o755)
        with refuses("package.python", ConfigError) as caught:
            runtime_of(str(old))
        assert "is python 3.8, expected one of 3.11" in caught.value.message

    def test_of_an_architecture_that_lambda_has_not(self) -> None:
        with refuses("package.architecture", ConfigError):
            runtime_of(architecture="riscv64")

    def test_the_command_tells_a_refusal_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert __main__.main(["--out", str(tmp_path), "--python", "/bin/false"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert "(package.python)" in said.err


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("version", PYTHONS)
def test_every_runtime_has_wheels_for_every_lock(
    artefacts: Artefacts, tmp_path: Path, version: tuple[int, int], architecture: str
) -> None:
    runtime = Runtime(sys.executable, version, architecture)
    artefacts.resolve([aws_zip.REPOSITORY / one.lock for one in AWS_FUNCTIONS], tmp_path, runtime)


def test_modules_are_found_that_are_imported_late_and_for_typing_alone_are_not() -> None:
    modules = modules_of(["functions.verify.aws"])
    assert {"shared", "functions", "functions.verify", "shared.net.endorsement_source"} <= modules
    assert not [
        module for module in modules if module.startswith(("functions.deploy", "functions.packaging"))
    ]
    with refuses("package.entry", ConfigError):
        modules_of(["functions.verify.azure"])


def test_a_machine_without_uv_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functions.packaging.aws_zip.sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr("functions.packaging.aws_zip.which", lambda _: None)
    with refuses("package.uv", ConfigError):
        aws_zip.install_command(tmp_path / "lock", tmp_path, runtime_of(sys.executable, "x86_64"))

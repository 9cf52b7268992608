"""The zip of an AWS function: locked packages, our modules, bytecode. The same input gives the same bytes."""

import os
import platform
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path, PurePosixPath
from shutil import rmtree, which
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from functions.clouds.nitro_bundle import make_forwarder
from functions.packaging.own_code import REPOSITORY, copy_modules
from functions.packaging.targets import ARCHITECTURES, AWS_SERVICES, PYTHONS, AwsFunction
from shared.errors import ConfigError, StorageError

# cffi needs pycparser to read C declarations, which no package of ours has it do; pycryptodome has a module
# for each cipher and key format, of which we hash alone; boto3's own data is of its object-oriented interface
_UNUSED_TREES: Final = ("bin", "pycparser", "boto3/data", "boto3/examples")
_UNUSED_SUFFIXES: Final = (".pyi", ".h", ".pxd", ".pyx")
_PYCRYPTODOME: Final = frozenset({"__init__.py", "Hash", "Util"})
# who installed it, and from where: neither is the package's own
_OF_THE_INSTALLER: Final = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})

FORWARDER: Final = "forwarder.tar.gz"
"""Where `AwsFunction.forwarder` is, in the zip."""

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_COMMAND_SECONDS: Final = 600
_ON_LAMBDA: Final = "/var/task"


class Runtime(msgspec.Struct, frozen=True):
    """What a zip is built for. The interpreter is one of the runtime's version: it writes the bytecode."""

    interpreter: str
    version: tuple[int, int]
    architecture: str

    @property
    def identifier(self) -> str:
        """Lambda's name of it."""
        return "python{}.{}".format(*self.version)


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A finished zip. Sizes are in bytes; `sha256` is hex."""

    name: str
    runtime: str
    architecture: str
    sha256: str
    zipped: int
    unzipped: int
    budget: int


def runtime_of(interpreter: str = sys.executable, architecture: str = "") -> Runtime:
    """Return the runtime that an interpreter builds for, on this machine's architecture if none is named.

    Raises `ConfigError`: `package.python` for an interpreter that does not run or a version that we do not
    deploy to, `package.architecture`.
    """
    ask = "import sys; print(*sys.version_info[:2])"
    try:
        answer = _run([interpreter, "-I", "-c", ask]).split()
        version = int(answer[0]), int(answer[1])
    except (OSError, StorageError, ValueError, IndexError) as error:
        raise ConfigError("package.python", f"{interpreter} is no python that runs: {error}") from error
    if version not in PYTHONS:
        known = ", ".join("{}.{}".format(*one) for one in PYTHONS)
        raise ConfigError(
            "package.python", "{} is python {}.{}, expected one of {}".format(interpreter, *version, known)
        )
    machine = architecture or {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    if machine not in ARCHITECTURES:
        raise ConfigError(
            "package.architecture",
            f"the architecture is {machine}, expected one of {', '.join(ARCHITECTURES)}",
        )
    return Runtime(interpreter, version, machine)


def build_zip(function: AwsFunction, runtime: Runtime, directory: Path) -> Package:
    """Build `<name>.zip` in a directory; what it is made of is left beside it, in `<name>/`.

    Raises `StorageError`: `package.command` where uv or the compiler failed, `package.budget` for a package
    that has become too large; then no zip is left.
    """
    stage, path = directory / function.name, directory / f"{function.name}.zip"
    path.unlink(missing_ok=True)
    if stage.exists():
        rmtree(stage)
    stage.mkdir(parents=True)
    install(REPOSITORY / function.lock, stage, runtime)
    _trim(stage)
    copy_modules(function.entries, stage)
    if function.forwarder:
        _add_forwarder(stage)
    compile_bytecode(stage, runtime.interpreter, _ON_LAMBDA)
    unzipped = check_budget(function.name, stage, function.budget)
    write_zip(stage, path)
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    return Package(
        name=function.name,
        runtime=runtime.identifier,
        architecture=runtime.architecture,
        sha256=digest,
        zipped=path.stat().st_size,
        unzipped=unzipped,
        budget=function.budget,
    )


def install(lock: Path, target: Path, runtime: Runtime) -> None:
    """Install the wheels of a lock, by their hashes, without running any code of theirs.

    Raises `StorageError("package.command")`, `ConfigError("package.uv")`.
    """
    _run(install_command(lock, target, runtime))


def install_command(lock: Path, target: Path, runtime: Runtime) -> list[str]:
    """Return the command of `install`. Raises `ConfigError("package.uv")` without uv."""
    wheels = f"{ARCHITECTURES[runtime.architecture]}-{PYTHONS[runtime.version]}"
    version = "{}.{}".format(*runtime.version)
    return [
        *(_uv(), "pip", "install", "--quiet", "--target", str(target)),
        *("--require-hashes", "--only-binary", ":all:", "--no-compile", "--link-mode", "copy"),
        *("--python", runtime.interpreter, "--python-version", version, "--python-platform", wheels),
        *("--requirement", str(lock)),
    ]


def compile_bytecode(tree: Path, interpreter: str, runs_in: str) -> None:
    """Write bytecode that Python uses without looking at its source, as if the tree were at `runs_in`."""
    _run(
        [
            *(interpreter, "-I", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"),
            *("-s", str(tree), "-p", runs_in, str(tree)),
        ]
    )


def check_budget(name: str, tree: Path, budget: int) -> int:
    """Return the size of a tree's files. Raises `StorageError("package.budget")` beyond the budget."""
    size = sum(path.stat().st_size for path in files_of(tree))
    if size > budget:
        largest = sorted(
            ((sum(path.stat().st_size for path in files_of(one)), one.name) for one in tree.iterdir()),
            reverse=True,
        )
        named = ", ".join(f"{one} {bytes_ / 10**6:.1f}" for bytes_, one in largest[:5])
        raise StorageError(
            "package.budget",
            f"{name} has {size / 10**6:.1f} MB unzipped, expected at most {budget / 10**6:.0f}; "
            f"the largest parts in MB: {named}",
        )
    return size


def files_of(tree: Path) -> Iterator[Path]:
    """Yield the files of a tree in the order of their names, or the tree itself where it is a file."""
    if tree.is_file():
        yield tree
    else:
        found = (path for path in tree.rglob("*") if path.is_file())
        yield from sorted(found, key=lambda path: path.relative_to(tree).as_posix())


def write_zip(tree: Path, path: Path, below: str = "") -> None:
    """Write a zip of a tree's files, `below` a directory: in order, of one time and one mode."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in files_of(tree):
            entry = zipfile.ZipInfo(PurePosixPath(below, file.relative_to(tree)).as_posix(), _EPOCH)
            entry.create_system = 3  # Unix, whose modes the next line is of
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes(), compresslevel=6)


def _add_forwarder(stage: Path) -> None:
    """Write the bundle that parents of enclaves run, with the msgspec of the package itself."""
    with TemporaryDirectory() as directory:
        wheel = Path(directory) / "msgspec.whl"
        write_zip(stage / "msgspec", wheel, "msgspec")
        bundle = make_forwarder(wheel, REPOSITORY)
    (stage / FORWARDER).write_bytes(bundle.content)


def _trim(stage: Path) -> None:
    for name in _UNUSED_TREES:
        rmtree(stage / name, ignore_errors=True)
    for one in (*stage.glob("pycparser-*"), *stage.glob("Crypto/*"), *stage.glob("botocore/data/*/")):
        described = one.parent.name == "data" and one.name in AWS_SERVICES
        kept = one.parent.name == "Crypto" and one.name in _PYCRYPTODOME
        if described or kept:
            continue
        if one.is_dir():
            rmtree(one)
        else:
            one.unlink()
    for path in list(files_of(stage)):
        of_the_installer = path.parent.suffix == ".dist-info" and path.name in _OF_THE_INSTALLER
        if of_the_installer or path.suffix in _UNUSED_SUFFIXES or path == stage / ".lock":
            path.unlink()


def _uv() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "uv"
    found = str(beside) if beside.is_file() else which("uv")
    if found is None:
        raise ConfigError("package.uv", "uv is not installed, expected it in the development environment")
    return found


def _run(command: list[str]) -> str:
    # the order of sets must not reach the bytecode
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(  # noqa: S603 - commands of this module's
        command, capture_output=True, text=True, check=False, env=environment, timeout=_COMMAND_SECONDS
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).split()
        raise StorageError(
            "package.command",
            f"{Path(command[0]).name} failed with status {done.returncode}: {' '.join(said)[-300:]}",
        )
    return done.stdout

"""Upstream's own SDK suites, unmodified, against our simulator: `python -m tests.sdk.run_suites CHECKOUT`.

CHECKOUT is a working copy of Dstack-TEE/dstack at the commit of the specification. Each suite runs from it,
with the fixture directory that it brings, where the language's tools and packages are there: nothing is
installed, but `--install` has pip and npm do so below the work directory. Prints a line for each suite.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.sdk.simulated_agent import copy_fixture, running

PYTHON_PACKAGES = (
    "httpx",
    "pydantic",
    "cryptography",
    "eth-keys",
    "eth-utils",
    "solders",
    "eth-account",
    "pytest",
    "pytest-asyncio",
    "evidence-api",
    "mypy",
)


@dataclass
class Result:
    """What one suite said. `counts` is its own closing line."""

    passed: bool
    counts: str


class Suites:
    """The suites of one checkout. `work` keeps what is installed."""

    def __init__(self, sdk: Path, work: Path, variables: Mapping[str, str], *, install: bool) -> None:
        self._sdk = sdk
        self._work = work
        self._variables = dict(variables)
        self._install = install

    def python(self) -> Result | None:
        """Return None where the suite's packages are not there."""
        place = self._work / "python"
        python = place / "bin/python"
        if self._install and not python.exists():
            venv.create(place, with_pip=True)
            self._run([str(python), "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES], self._work)
        if not python.exists():
            return None
        said = self._run([str(python), "-m", "pytest", "tests", "-q"], self._sdk / "python", PYTHONPATH="src")
        return _result(said, r"^=*\s*(\d+ passed.*?)\s*=*$")

    def js(self) -> Result | None:
        """See `python`."""
        if shutil.which("npm") is None:
            return None
        place = self._sdk / "js"
        if self._install and not (place / "node_modules").exists():
            self._run(["npm", "install", "--silent", "--no-package-lock"], place)
        if not (place / "node_modules/.bin/vitest").exists():
            return None
        said = self._run(["node_modules/.bin/vitest", "--run"], place, NO_COLOR="1")
        return _result(said, r"^\s*Tests\s+(.*)$")

    def go(self) -> Result | None:
        """See `python`."""
        if shutil.which("go") is None:
            return None
        place = self._sdk / "go"
        tappd = self._variables["TAPPD_SIMULATOR_ENDPOINT"]
        said = [
            self._run(["go", "test", "-count=1", "-v", "./dstack"], place),
            self._run(["go", "test", "-count=1", "-v", "./tappd"], place, DSTACK_SIMULATOR_ENDPOINT=tappd),
        ]
        return _counted(said, r"^\s*--- (PASS|FAIL|SKIP)", "PASS")

    def rust(self) -> Result | None:
        """See `python`. Upstream's pin of a toolchain is not followed."""
        if shutil.which("cargo") is None:
            return None
        place = self._sdk / "rust"
        examples = ("tappd_client_usage", "dstack_client_usage")
        said = [self._run(["cargo", "test"], place, RUSTUP_TOOLCHAIN="stable")]
        said += [
            self._run(["cargo", "run", "--example", name], place, RUSTUP_TOOLCHAIN="stable")
            for name in examples
        ]
        return _counted(said, r"^test .*? \.\.\. (\w+)", "ok")

    def _run(self, command: list[str], place: Path, **more: str) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, **self._variables, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        log = self._work / f"{Path(command[0]).name}-{place.name}.log"
        with log.open("a") as file:
            file.write(f"$ {' '.join(command)}\n{ran.stdout}\n")
        return ran


def _result(said: subprocess.CompletedProcess[str], counts: str) -> Result:
    found = re.findall(counts, said.stdout, re.MULTILINE)
    return Result(said.returncode == 0, found[-1] if found else f"exit {said.returncode}")


def _counted(said: list[subprocess.CompletedProcess[str]], line: str, good: str) -> Result:
    words = [word for one in said for word in re.findall(line, one.stdout, re.MULTILINE)]
    others = {word: words.count(word) for word in sorted({*words} - {good})}
    counts = f"{words.count(good)} passed" + "".join(f", {count} {word}" for word, count in others.items())
    return Result(all(one.returncode == 0 for one in said), counts)


def main() -> int:
    """Run what can be run; return 1 if a suite failed, or none ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--work", type=Path, help="where to install and to log (a temporary directory)")
    parser.add_argument("--install", action="store_true", help="install the suites' packages first")
    parser.add_argument("--only", choices=("python", "js", "go", "rust"), action="append")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="sdk-suites-"))
    work.mkdir(parents=True, exist_ok=True)
    sdk = arguments.checkout.resolve() / "sdk"
    results: dict[str, Result | None] = {}
    with (
        tempfile.TemporaryDirectory(prefix="sdk-") as place,
        running(copy_fixture(sdk / "simulator", Path(place))) as variables,
    ):
        suites = Suites(sdk, work.resolve(), variables, install=arguments.install)
        named: dict[str, Callable[[], Result | None]] = {
            "python": suites.python,
            "js": suites.js,
            "go": suites.go,
            "rust": suites.rust,
        }
        for name in arguments.only or named:
            results[name] = result = named[name]()
            word = "not run: its tools or packages are not here" if result is None else result.counts
            verdict = "" if result is None or result.passed else "  FAILED"
            sys.stdout.write(f"{name:8}{word}{verdict}\n")
            sys.stdout.flush()
    sys.stdout.write(f"logs in {work}\n")
    ran = [result for result in results.values() if result is not None]
    return 0 if ran and all(result.passed for result in ran) else 1


if __name__ == "__main__":
    sys.exit(main())

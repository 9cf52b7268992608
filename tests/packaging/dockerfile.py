"""Builds a Dockerfile's stages without Docker: the few instructions that ours has, in directories.

A stage begins empty, as no base image is pulled here; its `python` is this environment's. So a RUN may only
use paths below the stage's WORKDIR, in which it is started.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from shared.errors import StorageError

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass
class Stage:
    """What a stage has become: its files below `root`, and what its image says to run."""

    base: str
    root: Path
    workdir: str = "/"
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()

    def place(self, path: str) -> Path:
        """Return where a path of the stage lies."""
        return self.root / (Path(self.workdir) / path).as_posix().lstrip("/")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return (instruction, rest of its line); no instruction may go over several lines."""
    lines = (line.strip() for line in dockerfile.read_text().splitlines())
    found = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(name, rest) for name, rest in found]


def build(dockerfile: Path, context: Path, work: Path) -> Stage:
    """Build below `work`, which must not exist; returns the last stage.

    Raises `StorageError("package.command")` where a RUN failed.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage = None
    for name, rest in instructions(dockerfile):
        text = _VARIABLE.sub(lambda found: arguments[found[1]], rest)
        if name == "FROM":
            base, _, label = text.partition(" AS ")
            stage = Stage(base, work / (label or "image"))
            stage.root.mkdir(parents=True)
            stages[label or "image"] = stage
        elif stage is None:
            assert name == "ARG"
            key, _, arguments[key] = text.partition("=")
        else:
            _carry_out(stage, name, text, context, stages)
    assert stage is not None
    return stage


def _carry_out(stage: Stage, name: str, text: str, context: Path, stages: dict[str, Stage]) -> None:
    match name:
        case "ARG":
            key, _, stage.arguments[key] = text.partition("=")
        case "ENV":
            stage.environment |= dict(one.split("=", 1) for one in shlex.split(text))
        case "WORKDIR":
            stage.workdir = text
            stage.place("").mkdir(parents=True)
        case "COPY":
            _copy(stage, text.split(), context, stages)
        case "RUN":
            _run(stage, text)
        case "ENTRYPOINT":
            stage.entrypoint = tuple(json.loads(text))
        case _:
            raise AssertionError(f"{name} is not interpreted here")


def _copy(stage: Stage, words: list[str], context: Path, stages: dict[str, Stage]) -> None:
    *sources, target = words
    if sources[0].startswith("--from="):
        taken, *sources = sources
        source = stages[taken.removeprefix("--from=")]
        shutil.copytree(source.place(sources[0]), stage.place(target))
        return
    rules = (context / "enclave/kms/Dockerfile.dockerignore").read_text().split()
    for name in sources:
        into = stage.place(target)
        into = into / Path(name).name if target.endswith("/") else into
        for path in sorted((context / name).rglob("*")) if (context / name).is_dir() else [context / name]:
            inner = path.relative_to(context)
            if path.is_file() and not _ignored(inner, rules):
                place = into / path.relative_to(context / name) if path != context / name else into
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)


def _ignored(path: Path, rules: list[str]) -> bool:
    """Tell whether a file is left out of the context: the last rule that fits it decides."""
    is_ignored = False
    parents = [path.as_posix(), *(parent.as_posix() for parent in path.parents)][:-1]
    for rule in rules:
        pattern = rule.removeprefix("!")
        named = [Path(one).name for one in parents] if pattern.startswith("**/") else parents
        if any(fnmatch(one, pattern.removeprefix("**/")) for one in named):
            is_ignored = not rule.startswith("!")
    return is_ignored


def _run(stage: Stage, text: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", text],
        cwd=stage.place(""),
        env=os.environ | {"PATH": path} | stage.arguments | stage.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StorageError(
            "package.command", f"{text[:60]}… failed: {done.stderr[-600:] or done.stdout[-600:]}"
        )

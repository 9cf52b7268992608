"""`remove-orphans`: containers of a compose project whose service the compose file no longer has.

A container that stays would run beside what is measured today: an update that drops a service drops its
containers before anything starts.
"""

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec

from enclave.dstack_util.machine import Machine, run_checked
from enclave.dstack_util.tools import Tools
from shared.compose.yaml_document import read_yaml
from shared.errors import ConfigError, StorageError
from shared.strict_json import decode_json

MAX_COMPOSE = 50 * 1024 * 1024
DOCKER_ROOT = Path("/var/lib/docker")

_MAX_CONTAINER = 4 * 1024 * 1024  # config.v2.json, a few kilobytes
_PROJECT = "com.docker.compose.project"
_SERVICE = "com.docker.compose.service"
_ID = re.compile(r"[0-9a-f]{64}")
_NOT_IN_NAMES = re.compile(r"[^-_a-z0-9]")


class Project(msgspec.Struct, frozen=True):
    """A compose project: its name, and the services that it has."""

    name: str
    services: frozenset[str]


class _Container(msgspec.Struct, frozen=True):
    id: str
    labels: dict[str, str]

    def is_orphan_of(self, project: Project) -> bool:
        service = self.labels.get(_SERVICE)
        return (
            self.labels.get(_PROJECT) == project.name
            and service is not None
            and service not in project.services
        )


def add(commands: Any) -> None:  # noqa: ANN401 - argparse names no type for it
    """Add the subcommand."""
    one = commands.add_parser("remove-orphans", help="remove containers whose service is gone")
    one.add_argument("-f", "--file", type=Path, required=True, metavar="COMPOSE")
    one.add_argument("-n", "--dry-run", action="store_true", help="only print them")
    one.add_argument("--no-dockerd", action="store_true", help="docker does not run: work on its files")
    one.add_argument("-d", "--docker-root", type=Path, default=DOCKER_ROOT)
    one.set_defaults(run=_remove_orphans)


def _remove_orphans(arguments: argparse.Namespace, tools: Tools) -> None:
    project = _project(arguments.file, tools.read_file(arguments.file, MAX_COMPOSE))
    if arguments.no_dockerd:
        containers = _stored(arguments.docker_root / "containers", tools)
    else:
        containers = _running(tools.machine, project)
    for container in containers:
        if not container.is_orphan_of(project):
            continue
        tools.write(f"{container.id[:12]} {container.labels[_SERVICE]}\n".encode())
        if arguments.dry_run:
            continue
        if arguments.no_dockerd:
            _remove_stored(arguments.docker_root / "containers" / container.id)
        else:
            run_checked(tools.machine, "docker", "rm", "--force", container.id)


def _project(path: Path, raw: bytes) -> Project:
    """Name a project as docker compose does: by the file, else by its directory."""
    try:
        document = read_yaml(raw.decode())
    except UnicodeDecodeError as error:
        raise ConfigError("remove_orphans.compose", f"{path} is not utf-8") from error
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(services, dict) or not services:
        raise ConfigError("remove_orphans.compose", f"{path} has no services")
    name = document.get("name") or path.absolute().parent.name
    cleaned = _NOT_IN_NAMES.sub("", str(name).lower()).lstrip("-_")
    if not cleaned:
        raise ConfigError("remove_orphans.compose", f"{path} gives its project no name")
    return Project(cleaned, frozenset(map(str, services)))


def _stored(directory: Path, tools: Tools) -> list[_Container]:
    if not directory.is_dir():
        return []
    found = []
    for one in sorted(directory.iterdir()):
        if not _ID.fullmatch(one.name) or one.is_symlink() or not (one / "config.v2.json").is_file():
            continue
        raw = tools.read_file(one / "config.v2.json", _MAX_CONTAINER)
        document = decode_json(
            raw, what=f"container {one.name[:12]}", code="remove_orphans.json", max_bytes=_MAX_CONTAINER
        )
        found.append(_Container(one.name, _labels(document)))
    return found


def _labels(document: object) -> dict[str, str]:
    config = document.get("Config") if isinstance(document, dict) else None
    labels = config.get("Labels") if isinstance(config, dict) else None
    return {str(key): str(value) for key, value in labels.items()} if isinstance(labels, dict) else {}


def _running(machine: Machine, project: Project) -> list[_Container]:
    form = f'{{{{.ID}}}} {{{{.Label "{_SERVICE}"}}}}'
    listed = run_checked(
        machine,
        *("docker", "ps", "--all", "--no-trunc"),
        *("--filter", f"label={_PROJECT}={project.name}", "--format", form),
    )
    rows = [line.split(" ", 1) for line in listed.decode("utf-8", "replace").splitlines()]
    return [
        _Container(row[0], {_PROJECT: project.name, _SERVICE: row[1]})
        for row in rows
        if len(row) == 2 and row[1] and _ID.fullmatch(row[0])
    ]


def _remove_stored(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise StorageError("remove_orphans.write", f"{path} cannot be removed: {error.strerror}") from error

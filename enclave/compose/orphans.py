"""Containers of services that the measured compose file no longer has (spec guest-agent section 7).

A data disk outlives an update, and dockerd starts old containers again before anything of ours runs. So they
are removed twice: from docker's files before dockerd starts, and through docker while it runs.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from enclave.compose.programs import Programs
from enclave.log import log_event
from shared.compose.services import read_compose_file
from shared.compose.yaml_document import read_yaml
from shared.errors import ConfigError, StorageError, UnavailableError

DOCKER_ROOT: Final = Path("/var/lib/docker")
PROJECT_LABEL: Final = "com.docker.compose.project"
SERVICE_LABEL: Final = "com.docker.compose.service"

MAX_CONFIG: Final = 4 << 20
"""Bytes of one container's file; they have some ten KiB."""

_ID: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*")
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9_-]")


class Project(msgspec.Struct, frozen=True):
    """A compose project, and the services that it has now."""

    name: str
    services: frozenset[str]

    def is_orphan(self, labels: Mapping[str, str]) -> bool:
        """Tell whether these are the labels of a container of a service that is gone.

        What names no service is not compose's own, and nobody knows whether it is still wanted.
        """
        service = labels.get(SERVICE_LABEL)
        return labels.get(PROJECT_LABEL) == self.name and bool(service) and service not in self.services


class _Labels(msgspec.Struct, frozen=True):
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _Container(msgspec.Struct, frozen=True):
    config: _Labels = msgspec.field(name="Config", default=_Labels())


def read_project(text: str, directory: Path) -> Project:
    """Return the project of a compose file: its `name`, or else its directory's, as compose writes it.

    Raises `ConfigError("compose.project")` for a file whose services or name are decided elsewhere
    (`include`, a name with a variable): a service that cannot be seen would look like an orphan. Raises what
    `read_compose_file` raises.
    """
    file = read_compose_file(text)
    document = read_yaml(text)
    named = document.get("name") if isinstance(document, dict) else None
    if file.has_include:
        raise ConfigError("compose.project", "the compose file includes others, whose services are not known")
    implied = _NOT_IN_NAMES.sub("", directory.name.lower()).lstrip("_-")
    name = implied if named is None else str(named)
    if not _NAME.fullmatch(name):
        raise ConfigError("compose.project", f"the compose project's name is {name[:40]!a}")
    return Project(name, frozenset(service.name for service in file.services))


def remove_orphans_offline(
    project: Project, docker_root: Path = DOCKER_ROOT, *, dry_run: bool = False
) -> tuple[str, ...]:
    """Remove orphans' directories while dockerd does not run; returns their ids, 64 hex digits each.

    A container whose file cannot be read is left, and told. Raises `StorageError("compose.orphans")`.
    """
    found = tuple(_offline(project, docker_root / "containers"))
    for container in () if dry_run else found:
        directory = docker_root / "containers" / container
        try:
            shutil.rmtree(directory)
        except OSError as error:
            raise StorageError(
                "compose.orphans", f"cannot remove container {container}: {error.strerror}"
            ) from error
    _tell(found, dry_run=dry_run)
    return found


def remove_orphans_online(
    project: Project, programs: Programs, *, environment: Mapping[str, str], dry_run: bool = False
) -> tuple[str, ...]:
    """Remove orphans with their anonymous volumes through docker; returns their ids.

    Raises `UnavailableError`: `compose.program.failed`, `compose.orphans`.
    """
    listing = (
        *("docker", "ps", "--all", "--no-trunc", "--filter", f"label={PROJECT_LABEL}={project.name}"),
        *("--format", f'{{{{.ID}}}} {{{{.Label "{SERVICE_LABEL}"}}}}'),
    )
    printed = programs.output(listing, environment=environment).decode(errors="replace")
    found = tuple(_online(project, printed.splitlines()))
    if found and not dry_run:
        command = ("docker", "rm", "--force", "--volumes", *found)
        if code := programs.run(command, environment=environment):
            raise UnavailableError("compose.orphans", f"docker rm ended with exit code {code}")
    _tell(found, dry_run=dry_run)
    return found


def _offline(project: Project, containers: Path) -> Iterator[str]:
    try:
        paths = sorted(containers.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError("compose.orphans", f"cannot list {containers}: {error.strerror}") from error
    for path in paths:
        if not _ID.fullmatch(path.name) or path.is_symlink():
            continue
        try:
            with (path / "config.v2.json").open("rb") as file:
                content = file.read(MAX_CONFIG + 1)
            labels = msgspec.json.decode(content[:MAX_CONFIG], type=_Container).config.labels or {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            log_event("compose.orphan_unreadable", container=path.name)
            continue
        if project.is_orphan(labels):
            yield path.name


def _online(project: Project, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        container, _, service = line.partition(" ")
        labels = {PROJECT_LABEL: project.name, SERVICE_LABEL: service}
        if _ID.fullmatch(container) and project.is_orphan(labels):
            yield container


def _tell(found: Iterable[str], *, dry_run: bool) -> None:
    for container in found:
        log_event("compose.orphan", container=container, removed=not dry_run)

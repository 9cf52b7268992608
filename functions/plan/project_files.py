"""Reads a project directory: the files that upstream's command line makes, each within its limit."""

from pathlib import Path
from typing import Final

import msgspec
from msgspec import UnsetType

from shared.compose.app_compose import MAX_COMPOSE_BYTES
from shared.compose.env_file import MAX_FILE_BYTES, EnvFile, parse_env_file
from shared.compose.project import (
    MAX_APP_JSON_BYTES,
    AppProject,
    GlobalConfig,
    read_app_json,
    read_global_config,
    with_defaults,
)
from shared.compose.shared_files import APP_COMPOSE, USER_CONFIG
from shared.compose.state import MAX_STATE_BYTES, State, read_state
from shared.errors import ConfigError
from shared.measurement.config_disk import MAX_BYTES

APP_JSON: Final = "app.json"
STATE_JSON: Final = "state.json"
SHARED: Final = "shared"
MAX_SCRIPT_BYTES: Final = 1024 * 1024  # of a compose file or a script, which end up in one JSON document


class ProjectFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A project as it lies in its directory; `project` has every default filled in.

    `app_compose` is the document to ship byte for byte, where the project names one. `prepared` is the
    app-compose that an earlier `prepare` or `deploy` left in shared/.
    """

    directory: Path
    project: AppProject
    docker_compose: str | None
    pre_launch_script: str | None
    env: EnvFile | None
    app_compose: bytes | None
    user_config: bytes | None
    state: State | None
    prepared: bytes | None


def read_project(directory: Path) -> ProjectFiles:
    """Read the files of a project.

    Raises `ConfigError`: `plan.project.missing` (no app.json), `plan.file.missing` (a file that app.json
    names), `plan.file.unreadable`, `plan.file.too_large`, `plan.file.encoding`, and what the readers raise.
    """
    raw = _read(directory / APP_JSON, MAX_APP_JSON_BYTES)
    if raw is None:
        raise ConfigError("plan.project.missing", f"no {APP_JSON} in {directory}: run this in a project")
    project = with_defaults(read_app_json(raw))
    verbatim = _named(project.app_compose_file)
    env = _read(directory / _named(project.env_file), MAX_FILE_BYTES) if project.env_file else None
    state = _read(directory / STATE_JSON, MAX_STATE_BYTES)
    return ProjectFiles(
        directory=directory,
        project=project,
        docker_compose=_text(directory, _named(project.docker_compose_file), needed=not verbatim),
        pre_launch_script=_text(directory, _named(project.prelaunch_script), needed=False),
        env=None if env is None else parse_env_file(env),
        app_compose=_needed(directory / verbatim, MAX_COMPOSE_BYTES) if verbatim else None,
        user_config=_read(directory / USER_CONFIG, MAX_BYTES[USER_CONFIG]),
        state=None if state is None else read_state(state),
        prepared=_read(directory / SHARED / APP_COMPOSE, MAX_COMPOSE_BYTES),
    )


def read_config(path: Path) -> GlobalConfig:
    """Read the global config; where there is none, upstream's defaults. Raises as `read_project` does."""
    raw = _read(path, MAX_APP_JSON_BYTES)
    return GlobalConfig() if raw is None else read_global_config(raw)


def read_file(path: Path, limit: int) -> bytes:
    """Read a file that must be there. Raises `ConfigError`: `plan.file.missing` and as `read_project`."""
    return _needed(path, limit)


def located(directory: Path, place: str) -> Path:
    """Return where a place of the project or of its operator is: below `directory`, `~` is a user's home.

    Raises `ConfigError("plan.file.place")` for a user whom nobody knows, or a name that no file can have.
    """
    try:
        path = directory / Path(place).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ConfigError("plan.file.place", f"{place[:80]!a} can be no file: {reason}") from error
    return path


def _named(name: str | UnsetType) -> str:
    return name or ""


def _text(directory: Path, name: str, *, needed: bool) -> str | None:
    if not name:
        return None
    path = directory / name
    raw = _needed(path, MAX_SCRIPT_BYTES) if needed else _read(path, MAX_SCRIPT_BYTES)
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError("plan.file.encoding", f"{path} is not utf-8 at byte {error.start}") from None


def _needed(path: Path, limit: int) -> bytes:
    raw = _read(path, limit)
    if raw is None:
        raise ConfigError("plan.file.missing", f"{path} does not exist, and the project needs it")
    return raw


def _read(path: Path, limit: int) -> bytes | None:
    """Read at most `limit` bytes; None where there is no such file."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # a directory, no permission, a NUL in the name
        raise ConfigError("plan.file.unreadable", f"cannot read {path}: {error}") from error
    if len(raw) > limit:
        raise ConfigError("plan.file.too_large", f"{path} has more than {limit} bytes")
    return raw

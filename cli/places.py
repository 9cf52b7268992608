"""Where the operator's own files are: settings and caches, named as upstream and the desktop do."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import click

from shared.errors import ConfigError

CONFIG_VARIABLE: Final = "DSTACK_CLOUD_CONFIG"


def config_path(environment: Mapping[str, str]) -> Path:
    """Return where the operator's global config is. Raises `ConfigError("place.home")` without a home."""
    named = environment.get(CONFIG_VARIABLE)
    return _home(named or "~/.config/dstack-cloud/config.json")


def cache_path(environment: Mapping[str, str]) -> Path:
    """Return the directory of the cache of built images; raises as `config_path`."""
    base = environment.get("XDG_CACHE_HOME", "")
    # the desktop's rule: a relative path there is ignored, or each directory would have a cache
    return (Path(base) if base.startswith("/") else _home("~/.cache")) / "dstack-cloud" / "images"


def _home(place: str) -> Path:
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise ConfigError("place.home", f"{place[:120]!a} is in a home that nobody knows") from error


def state_path(environment: Mapping[str, str]) -> Path:
    """Return the directory of what this machine deployed: its store and its simulated machines."""
    base = environment.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else _home("~/.local/state")) / "dstack-cloud"


def project_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `-C`, the project's directory: its own, else the one before the command's name."""

    def chosen(context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path:
        root = context.find_root().params.get("directory")
        return value or root or Path()

    return click.option(
        "-C",
        "--directory",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        callback=chosen,
        help="Project directory.",
    )(command)

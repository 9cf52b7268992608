"""Where the operator's own files are: settings and caches, named as upstream and the desktop do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

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

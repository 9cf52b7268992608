"""What the host gives a guest in a shared directory (spec attestation section 1.5)."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from shared.compose.app_compose import MAX_COMPOSE_BYTES
from shared.errors import ConfigError

DEFAULT_DIRECTORY = Path("/dstack/.host-shared")
DIRECTORY_VARIABLE = "DSTACK_HOST_SHARED_DIR"

# Upstream's limit for this file.
MAX_SYS_CONFIG = 32 * 1024


class _SysConfig(msgspec.Struct, frozen=True):
    vm_config: str  # the many other keys are for other readers


class HostShared:
    """The shared directory. Its files come from the host and prove nothing until something measured does."""

    def __init__(self, directory: Path = DEFAULT_DIRECTORY) -> None:
        self._directory = directory

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "HostShared":
        """Return the directory that `DSTACK_HOST_SHARED_DIR` names, or the default one."""
        return cls(Path(environment.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY))

    def app_compose(self) -> bytes:
        """Return the bytes of app-compose.json, empty when there is no such file.

        Whoever acts by it compares its hash with the recorded one first. Raises `ConfigError`:
        `app_compose.size`, `app_compose.unreadable`.
        """
        path = self._directory / "app-compose.json"
        try:
            with path.open("rb") as file:
                content = file.read(MAX_COMPOSE_BYTES + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ConfigError("app_compose.unreadable", f"cannot read {path}: {error.strerror}") from error
        if len(content) > MAX_COMPOSE_BYTES:
            raise ConfigError("app_compose.size", f"{path} is larger than {MAX_COMPOSE_BYTES} bytes")
        return content

    def vm_config(self) -> str:
        """Return the `vm_config` text of `.sys-config.json`, empty when there is no such file.

        Raises `ConfigError`: `sys_config.size`, `sys_config.unreadable`, `sys_config.malformed`.
        """
        path = self._directory / ".sys-config.json"
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SYS_CONFIG + 1)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise ConfigError("sys_config.unreadable", f"cannot read {path}: {error.strerror}") from error
        if len(content) > MAX_SYS_CONFIG:
            raise ConfigError("sys_config.size", f"{path} is larger than {MAX_SYS_CONFIG} bytes")
        try:
            return msgspec.json.decode(content, type=_SysConfig).vm_config
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(
                "sys_config.malformed", f"{path} is not a json object with the text vm_config"
            ) from error

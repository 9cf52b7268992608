"""The agent's configuration file: TOML or JSON over built-in defaults, in upstream's profiles.

[default.core]
keys_file = "/dstack/.host-shared/.appkeys.json"
compose_file = "/dstack/.host-shared/app-compose.json"
sys_config_file = "/dstack/.host-shared/.sys-config.json"
data_disks = ["/"]
quote_without_tdx = "refuse"                # or "attestation": GetQuote as upstream's first 0.6 answered it
[default.limits]
Sign = 1048576                              # bytes of one method's request; 10 MiB where nothing is said
[internal]
address = "unix:/var/run/dstack/dstack.sock"
[internal-v0]
address = "unix:/var/run/dstack/tappd.sock"
[external]
address = "0.0.0.0"
port = 8090
[guest-api]
address = "vsock:0xffffffff"
port = 8000

What upstream's files say besides (workers, log levels) is read over.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import msgspec

from shared.errors import ConfigError

MAX_CONFIG: Final = 1 << 20
"""Upstream's guest writes one line."""

UNIX_PREFIX: Final = "unix:"
VSOCK_PREFIX: Final = "vsock:"

_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Bytes = Annotated[int, msgspec.Meta(ge=0)]
_HOST_SHARED: Final = "/dstack/.host-shared"


class Core(msgspec.Struct, frozen=True, kw_only=True):
    """`[default.core]`: where the guest's files are, as absolute paths in the guest."""

    keys_file: str = f"{_HOST_SHARED}/.appkeys.json"
    compose_file: str = f"{_HOST_SHARED}/app-compose.json"
    sys_config_file: str = f"{_HOST_SHARED}/.sys-config.json"
    data_disks: tuple[str, ...] = ("/",)
    quote_without_tdx: Literal["refuse", "attestation"] = "refuse"


class Default(msgspec.Struct, frozen=True, kw_only=True):
    """`[default]`."""

    core: Core = Core()
    limits: dict[str, _Bytes] = {}


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """Where one service is answered: `unix:` and a path, or an address and a port. 0 is any free port."""

    address: str
    port: _Port = 0

    def unix_path(self) -> str | None:
        """Return the path of a unix socket, None for another kind."""
        return self.address.removeprefix(UNIX_PREFIX) if self.address.startswith(UNIX_PREFIX) else None


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    default: Default = Default()
    internal: Listener = Listener(address="unix:/var/run/dstack/dstack.sock")
    internal_v0: Listener = msgspec.field(
        default=Listener(address="unix:/var/run/dstack/tappd.sock"), name="internal-v0"
    )
    external: Listener = Listener(address="0.0.0.0", port=8090)
    guest_api: Listener = msgspec.field(
        default=Listener(address="vsock:0xffffffff", port=8000), name="guest-api"
    )

    @property
    def core(self) -> Core:
        """The files."""
        return self.default.core

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read a file over the defaults; None is the defaults alone.

        Raises `ConfigError`: `agent.config.unreadable`, `agent.config.size`, `agent.config.syntax`,
        `agent.config.field`.
        """
        if path is None:
            return cls()
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_CONFIG + 1)
        except OSError as error:
            raise ConfigError("agent.config.unreadable", f"cannot read {path}: {error.strerror}") from error
        if len(raw) > MAX_CONFIG:
            raise ConfigError("agent.config.size", f"{path} is larger than {MAX_CONFIG} bytes")
        document = _merged(msgspec.to_builtins(cls()), _parse(raw, path))
        try:
            return msgspec.convert(document, cls)
        except msgspec.ValidationError as error:
            raise ConfigError("agent.config.field", f"{path}: {error}") from error


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        if raw.lstrip().startswith(b"{"):
            return msgspec.json.decode(raw, type=dict[str, Any])
        return tomllib.loads(raw.decode())
    except (msgspec.DecodeError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError("agent.config.syntax", f"{path} is neither toml nor a json object") from error


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        if isinstance(under, dict) and isinstance(value, dict):
            value = _merged(under, value)  # noqa: PLW2901 - what lies below stays where nothing is said
        merged[name] = value
    return merged

"""`[boot]` of `/etc/dstack/enclave.toml`: what our init starts, and what the app may be told. Measured."""

import ipaddress
import re
from typing import Annotated

import msgspec

from shared.compose.enclave_toml import ENV_PORT
from shared.errors import ConfigError
from shared.hex import decode_hex_setting
from shared.keys.env_encryption import EnvPolicy

MAX_PORTS = 64

_VsockPort = Annotated[int, msgspec.Meta(ge=1, lt=0xFFFF_FFFF)]
_TARGET = re.compile(r"([0-9.]{7,15}):([0-9]{1,5})")


class Port(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[boot.ports]]`: a vsock port that leads to a TCP port of the app, on loopback."""

    listen: _VsockPort
    target: str


class Boot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[boot]`.

    `command` is the app's whole argv, never a shell line. `user` is `name`, `uid` or `uid:gid` of the image;
    empty is root. `allowed_envs` are the variables that the app takes from the encrypted environment; where
    it names none, the parent is not asked for one. `env_signer` (Ed25519, hex) and `env_min_version` are
    app-compose's. `proxy_port` is where the app finds the parent's CONNECT proxy on loopback, 0 for nowhere.
    `progress_url` is told of each step; empty tells nobody, `parent` whom the parent names. `key_attempts`
    bounds the wait for a KMS.
    """

    command: tuple[str, ...] = ()
    user: str = ""
    directory: str = "/"
    allowed_envs: tuple[str, ...] = ()
    env_signer: str = ""
    env_min_version: Annotated[int, msgspec.Meta(ge=0)] = 0
    env_port: _VsockPort = ENV_PORT
    proxy_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 3128
    ports: Annotated[tuple[Port, ...], msgspec.Meta(max_length=MAX_PORTS)] = ()
    progress_url: str = ""
    key_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 12

    def check(self) -> None:
        """Raise `ConfigError("init.config")` for what types cannot say."""
        if not self.command or not self.command[0].startswith("/"):
            raise ConfigError("init.config", "boot.command must be the app's argv, and begin with a path")
        if any("\0" in part for part in (*self.command, self.directory)):
            raise ConfigError("init.config", "boot.command holds a nul")
        if not self.directory.startswith("/"):
            raise ConfigError("init.config", f"boot.directory is {self.directory!r}, expected a whole path")
        if self.env_signer and not self.allowed_envs:
            raise ConfigError(
                "init.config", "boot.env_signer is set, and boot.allowed_envs names no variable"
            )
        for port in self.ports:
            _check_target(port.target)
        self.env_policy()

    def env_policy(self) -> EnvPolicy:
        """Return what the app takes of the environment, and from whom."""
        signer = b""
        if self.env_signer:
            signer = decode_hex_setting(
                self.env_signer, what="boot.env_signer", length=32, code="init.config"
            )
        return EnvPolicy(
            allowed=frozenset(self.allowed_envs), env_signer=signer, min_version=self.env_min_version
        )


def _check_target(target: str) -> None:
    match = _TARGET.fullmatch(target)
    try:
        is_loopback = match is not None and ipaddress.ip_address(match[1]).is_loopback
    except ValueError:
        is_loopback = False
    if match is None or not is_loopback or not 0 < int(match[2]) <= 65535:
        raise ConfigError("init.config", f"boot.ports.target is {target[:40]!r}, expected 127.0.0.1:PORT")

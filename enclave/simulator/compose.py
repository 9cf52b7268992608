"""The part of docker compose that decides here: the `configs` of an app-compose become files.

app-compose.json is what a guest measures on Google Cloud. Files that steer a daemon stand in it as docker
compose `configs` with inline `content`, so the compose hash covers them; docker puts them into the container.
"""

from pathlib import Path

import msgspec

from enclave.tee.boot_events import KeyProvider
from shared.compose.app_compose import parse_app_compose
from shared.errors import ConfigError


class _Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    target: str


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: str


class _Service(msgspec.Struct, frozen=True):
    configs: tuple[_Mount, ...] = ()


class _ComposeFile(msgspec.Struct, frozen=True):
    """A compose file that is JSON, which is YAML too."""

    services: dict[str, _Service]
    configs: dict[str, _Content] = {}


class GuestCompose(msgspec.Struct, frozen=True):
    """What a guest does by its app-compose: `files` by absolute path, instance id or not, source of keys."""

    files: dict[str, bytes]
    no_instance_id: bool
    key_provider: KeyProvider


def read_compose(raw: bytes) -> GuestCompose:
    """Read app-compose.json. Raises `ProtocolError("compose.*")`, `ConfigError("simulator.compose")`."""
    document = parse_app_compose(raw)
    try:
        compose = msgspec.json.decode(document.get("docker_compose_file", ""), type=_ComposeFile)
        mounts = [mount for service in compose.services.values() for mount in service.configs]
        files = {mount.target: compose.configs[mount.source].content.encode() for mount in mounts}
    except (msgspec.DecodeError, TypeError, KeyError) as error:
        raise ConfigError(
            "simulator.compose",
            f"docker_compose_file is not json whose services mount configs with content: {error}",
        ) from error
    for path in files:
        if not path.startswith("/") or ".." in Path(path).parts:
            raise ConfigError("simulator.compose", f"config is mounted at {path!r}, expected a plain path")
    provider = document.get("key_provider", "none")
    if provider not in {"none", "tpm", "kms"}:
        raise ConfigError("simulator.compose", f"key_provider is {provider!r}, expected none, tpm or kms")
    return GuestCompose(files, document.get("no_instance_id") is True, provider)


def materialise(files: dict[str, bytes], root: Path) -> None:
    """Write the files below `root`, which must not exist."""
    root.mkdir(mode=0o700)
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

"""The part of docker compose that decides here: the `configs` of an app-compose become files.

app-compose.json is what a guest measures on Google Cloud. Files that steer a daemon stand in it as docker
compose `configs` with inline `content`, so the compose hash covers them; docker puts them into the container.
A simulated guest has no containers: of the services it knows the names.
"""

from pathlib import Path

import msgspec

from enclave.tee.boot_events import KeyProvider
from shared.compose.app_compose import parse_app_compose
from shared.compose.model import AppCompose, model_of
from shared.compose.yaml_document import read_yaml
from shared.errors import ConfigError, ProtocolError


class _Mount(msgspec.Struct, frozen=True):
    source: str
    target: str


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: str


class _Service(msgspec.Struct, frozen=True):
    image: str | None = None
    configs: tuple[_Mount | str, ...] = ()

    def mounts(self) -> list[_Mount]:
        """Return the configs in the long form; a bare name is mounted at the root."""
        return [_Mount(one, f"/{one}") if isinstance(one, str) else one for one in self.configs]


class _ComposeFile(msgspec.Struct, frozen=True):
    services: dict[str, _Service]
    configs: dict[str, _Content] = {}


class GuestCompose(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest does by its app-compose.

    `files` by absolute path, `services` with their images (empty for one that would be built), and what is
    recorded at boot. `storage_fs` is empty where the document leaves it to the guest.
    """

    files: dict[str, bytes]
    services: dict[str, str]
    runner: str
    no_instance_id: bool
    key_provider: KeyProvider
    init_script_hashes: tuple[bytes, ...]
    gpu_policy_hash: bytes
    storage_fs: str


def read_compose(raw: bytes) -> GuestCompose:
    """Read app-compose.json. Raises `ProtocolError("compose.*")`, `ConfigError("simulator.compose")`."""
    model = model_of(parse_app_compose(raw))
    compose = _compose_file(model)
    if not compose.services and model.runner != "bash":
        raise ConfigError("simulator.compose", "docker_compose_file has no services, expected one or more")
    try:
        mounts = [mount for service in compose.services.values() for mount in service.mounts()]
        files = {mount.target: compose.configs[mount.source].content.encode() for mount in mounts}
    except KeyError as error:
        raise ConfigError(
            "simulator.compose", f"a service mounts a config that there is not: {error}"
        ) from error
    for path in files:
        if not path.startswith("/") or ".." in Path(path).parts:
            raise ConfigError("simulator.compose", f"config is mounted at {path!r}, expected a plain path")
    provider = model.effective_key_provider
    if provider == "local":
        raise ConfigError("simulator.compose", "key_provider is 'local', expected none, tpm or kms")
    return GuestCompose(
        files=files,
        services={name: service.image or "" for name, service in compose.services.items()},
        runner=model.runner,
        no_instance_id=model.no_instance_id,
        key_provider=provider,
        init_script_hashes=model.init_script_hashes,
        gpu_policy_hash=model.gpu_policy_hash,
        storage_fs=model.storage_fs or "",
    )


def materialise(files: dict[str, bytes], root: Path) -> None:
    """Write the files below `root`, which must not exist."""
    root.mkdir(mode=0o700)
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _compose_file(model: AppCompose) -> _ComposeFile:
    """Read the compose file as the JSON that a program wrote, else as the YAML that a person did."""
    if model.runner == "bash":
        return _ComposeFile({})
    text = model.docker_compose_file or ""
    try:
        compose = msgspec.json.decode(text, type=_ComposeFile)
    except msgspec.ValidationError as error:
        raise _unfit(error) from error
    except msgspec.DecodeError:
        compose = _from_yaml(text)
    return compose


def _from_yaml(text: str) -> _ComposeFile:
    try:
        document = read_yaml(text)
    except ProtocolError as error:
        raise ConfigError("simulator.compose", f"docker_compose_file is no yaml: {error}") from error
    try:
        return msgspec.convert(document, _ComposeFile)
    except msgspec.ValidationError as error:
        raise _unfit(error) from error


def _unfit(error: Exception) -> ConfigError:
    return ConfigError(
        "simulator.compose",
        f"docker_compose_file does not have services whose configs have inline content: {error}",
    )

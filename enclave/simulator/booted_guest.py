"""What simulated virtual machines do alike at boot: the host's files, and the record of who the guest is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from enclave.devices.host_shared import HostShared
from enclave.devices.runtime_events import RuntimeEventLog
from enclave.simulator.compose import GuestCompose
from enclave.simulator.config_disk import GuestConfig
from enclave.tee.boot_events import STORAGE_FS, identity_events, make_instance_id, provider_events, record
from shared.attestation.envelope import RuntimeEvent
from shared.compose.app_compose import compose_hash
from shared.compose.shared_files import (
    APP_COMPOSE,
    INSTANCE_INFO,
    SYS_CONFIG,
    InstanceInfo,
    encode_instance_info,
)

CONFIG_DISK: Final = "config-disk"
"""Below the guest's own disk: what a guest that boots by itself finds on the config disk."""

MEASURED: Final = ".measured"
EVENTS: Final = "run/log/dstack"

_HOST_SHARED: Final = "dstack/.host-shared"
_SEED_LENGTH: Final = 20


class GuestFiles(msgspec.Struct, frozen=True):
    """What a guest is started from: the OS image's directory, app-compose.json, and its own writable disk."""

    image: Path
    app_compose: Path
    writable: Path


def host_config(
    app_compose: bytes, app_id: bytes, vm_config: str, sys_config: Mapping[str, object] | None
) -> GuestConfig:
    """Return what a host gives the guest of an app; `sys_config` are further fields of that file."""
    encoded = msgspec.json.encode({"vm_config": vm_config, **(sys_config or {})})
    instance_info = encode_instance_info(InstanceInfo(b"", app_id))
    return GuestConfig({APP_COMPOSE: app_compose, SYS_CONFIG: encoded, INSTANCE_INFO: instance_info})


def lay_config(config: GuestConfig, writable: Path, *, boots_itself: bool) -> HostShared:
    """Write the host's files to where the guest finds them, and return where its daemons look for them."""
    shared = writable / _HOST_SHARED
    given = writable / CONFIG_DISK if boots_itself else shared
    given.mkdir(parents=True)
    for name, content in config.files.items():
        (given / name).write_bytes(content)
    return HostShared(shared)


def record_boot(log: RuntimeEventLog, config: GuestConfig, compose: GuestCompose, binding: bytes) -> bytes:
    """Record who the guest is, as its boot does, and return its instance id, which may be empty.

    Raises what the log does.
    """
    log.set_version(1)
    app_id, instance_id = config.app_id(), b""
    if not compose.no_instance_id:
        instance_id = make_instance_id(_seed(config, compose), app_id, binding)
    digest = compose_hash(config.app_compose)
    record(log, boot_events(compose, app_id=app_id, compose_hash=digest, instance_id=instance_id))
    return instance_id


def boot_events(
    compose: GuestCompose, *, app_id: bytes, compose_hash: bytes, instance_id: bytes
) -> tuple[RuntimeEvent, ...]:
    """Return what a guest records before its daemon runs: the whole boot, unless a KMS has the keys."""
    identity = identity_events(
        app_id=app_id,
        compose_hash=compose_hash,
        instance_id=instance_id,
        init_script_hashes=compose.init_script_hashes,
        gpu_policy_hash=compose.gpu_policy_hash,
    )
    if compose.key_provider == "kms":
        return identity
    return (*identity, *provider_events(compose.key_provider, storage_fs=compose.storage_fs or STORAGE_FS))


def _seed(config: GuestConfig, compose: GuestCompose) -> bytes:
    """Return the host's seed; a guest whose keys last for one boot is another instance at each."""
    seed = b"" if compose.key_provider == "none" else config.instance_id_seed()
    return seed or os.urandom(_SEED_LENGTH)

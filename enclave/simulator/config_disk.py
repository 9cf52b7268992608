"""The config disk as a guest reads it at boot: a FAT volume labelled DSTACKSHR (spec deploy 1.5 and 4)."""

from pathlib import Path

import msgspec

from shared.compose.app_compose import compose_hash
from shared.compose.shared_files import (
    APP_COMPOSE,
    INSTANCE_INFO,
    SYS_CONFIG,
    InstanceInfo,
    parse_instance_info,
)
from shared.errors import ConfigError
from shared.measurement.config_disk import LABEL, MAX_BYTES, REQUIRED
from shared.measurement.documents import MeasurementDocument
from shared.measurement.fat_reader import FatVolume
from shared.measurement.vm_config import parse_vm_config
from shared.strict_json import decode_json

_NOBODY = InstanceInfo(b"", b"")


class GuestConfig(msgspec.Struct, frozen=True):
    """What the host gives a guest: the files of the config disk, by name. They prove nothing."""

    files: dict[str, bytes]

    @classmethod
    def read(cls, disk: Path) -> "GuestConfig":
        """Read a disk's files, each within the guest's limit; other files are not copied.

        Raises `ConfigError`: `simulator.config_disk.unreadable`, `.label`, `.missing`; `InvalidEvidence`:
        `fat.*`, `file.truncated`.
        """
        try:
            with disk.open("rb") as file:
                volume = FatVolume(file)
                if volume.label != LABEL:
                    raise ConfigError(
                        "simulator.config_disk.label",
                        f"the disk is called {volume.label!a}, expected {LABEL}",
                    )
                found = {
                    name: volume.read(name, limit)
                    for name, limit in MAX_BYTES.items()
                    if name in volume.entries
                }
        except OSError as error:
            raise ConfigError(
                "simulator.config_disk.unreadable", f"cannot read {disk}: {error.strerror}"
            ) from error
        if missing := [name for name in REQUIRED if name not in found]:
            raise ConfigError("simulator.config_disk.missing", f"the disk lacks {', '.join(missing)}")
        return cls(found)

    @property
    def app_compose(self) -> bytes:
        """The bytes of app-compose.json."""
        return self.files[APP_COMPOSE]

    def app_id(self) -> bytes:
        """Return the app's id, 20 bytes: the host's, else the first of the compose hash (deploy 2.3).

        Raises `ProtocolError("instance_info.*")`.
        """
        return self._instance_info().app_id or compose_hash(self.app_compose)[:20]

    def instance_id_seed(self) -> bytes:
        """Return 20 bytes, or none where the guest makes its own; raises as `app_id` does."""
        return self._instance_info().seed

    def measurement(self) -> MeasurementDocument:
        """Return the document of the image that the host says this is.

        Raises `ConfigError("simulator.config_disk.image")` where it says nothing; `ProtocolError`:
        `sys_config.*`; `InvalidEvidence`: `vm_config.*`.
        """
        name = SYS_CONFIG
        document = decode_json(self.files[name], what=name, code="sys_config", max_bytes=MAX_BYTES[name])
        text = document.get("vm_config") if isinstance(document, dict) else None
        found = parse_vm_config(text).gcp_measurement if isinstance(text, str) else None
        if found is None:
            raise ConfigError(
                "simulator.config_disk.image", f"{name} has no vm_config with a gcp_measurement"
            )
        return found

    def _instance_info(self) -> InstanceInfo:
        raw = self.files.get(INSTANCE_INFO)
        return _NOBODY if raw is None else parse_instance_info(raw)

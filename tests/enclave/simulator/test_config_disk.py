"""A guest reads exactly the files of its config disk, within its limits, whoever wrote the disk."""

from pathlib import Path

import pytest

from enclave.simulator.config_disk import GuestConfig
from shared.compose.app_compose import compose_hash
from shared.compose.project import Services
from shared.compose.shared_files import (
    APP_COMPOSE,
    INSTANCE_INFO,
    SYS_CONFIG,
    InstanceInfo,
    encode_instance_info,
    encode_sys_config,
    encode_vm_config,
)
from shared.errors import ConfigError, InvalidEvidence, ProtocolError
from shared.measurement.config_disk import MAX_BYTES, config_disk
from shared.measurement.documents import MeasurementDocument, gcp_measurement_document
from shared.measurement.fat import FIRST_TIME, MIN_VOLUME, FatFile, fat32_volume
from tests.enclave.gcp import app_compose
from tests.shared.refusal import refuses

APP_ID, SEED = b"\x22" * 20, b"\x33" * 20
SUMS, MEASUREMENT, IMAGE = gcp_measurement_document(b"\x5a" * 32)
DOCUMENT = MeasurementDocument(SUMS, MEASUREMENT)
FILES = {
    APP_COMPOSE: app_compose({}),
    SYS_CONFIG: encode_sys_config(Services(), encode_vm_config("gcp", DOCUMENT)),
    INSTANCE_INFO: encode_instance_info(InstanceInfo(SEED, APP_ID)),
}


def write(path: Path, files: dict[str, bytes], label: str = "DSTACKSHR") -> Path:
    """Write a volume as somebody who keeps to no rule of ours."""
    listed = [FatFile(name, content) for name, content in files.items()]
    with path.open("wb") as file:
        fat32_volume(MIN_VOLUME, label, listed, serial=1, timestamp=FIRST_TIME).write_to(file)
    return path


def test_what_a_deployment_writes_is_what_a_guest_reads(tmp_path: Path) -> None:
    files = FILES | {".encrypted-env": b"sealed", ".user-config": b"{}"}
    path = tmp_path / "disk"
    with path.open("wb") as file:
        config_disk(files).write_to(file)
    config = GuestConfig.read(path)
    assert config.files == files
    assert (config.app_id(), config.instance_id_seed()) == (APP_ID, SEED)
    assert config.measurement() == DOCUMENT


def test_without_an_id_the_app_is_its_compose_hash(tmp_path: Path) -> None:
    for info in ({}, {INSTANCE_INFO: encode_instance_info(InstanceInfo(b"", b""))}):
        files = {name: FILES[name] for name in (APP_COMPOSE, SYS_CONFIG)} | info
        config = GuestConfig.read(write(tmp_path / "disk", files))
        assert config.app_id() == compose_hash(FILES[APP_COMPOSE])[:20]
        assert config.instance_id_seed() == b""


def test_other_files_are_not_copied(tmp_path: Path) -> None:
    config = GuestConfig.read(write(tmp_path / "disk", FILES | {"startup.sh": b"rm -rf"}))
    assert config.files == FILES


@pytest.mark.parametrize("name", [SYS_CONFIG, INSTANCE_INFO])
def test_refuses_a_file_that_is_too_large(tmp_path: Path, name: str) -> None:
    with refuses("fat.file_size"):
        GuestConfig.read(write(tmp_path / "disk", FILES | {name: bytes(MAX_BYTES[name] + 1)}))


@pytest.mark.parametrize("name", [APP_COMPOSE, SYS_CONFIG])
def test_refuses_a_disk_without_what_every_guest_needs(tmp_path: Path, name: str) -> None:
    files = {one: content for one, content in FILES.items() if one != name}
    with refuses("simulator.config_disk.missing", ConfigError):
        GuestConfig.read(write(tmp_path / "disk", files))


def test_refuses_another_disk(tmp_path: Path) -> None:
    with refuses("simulator.config_disk.label", ConfigError):
        GuestConfig.read(write(tmp_path / "disk", FILES, label="DATA"))
    with refuses("simulator.config_disk.unreadable", ConfigError):
        GuestConfig.read(tmp_path / "absent")
    (tmp_path / "junk").write_bytes(bytes(512))
    with refuses("fat.boot_sector"):
        GuestConfig.read(tmp_path / "junk")


@pytest.mark.parametrize(
    ("sys_config", "code", "kind"),
    [
        (b"[]", "simulator.config_disk.image", ConfigError),
        (b"{}", "simulator.config_disk.image", ConfigError),
        (b'{"vm_config": "{}"}', "simulator.config_disk.image", ConfigError),
        (b'{"vm_config": {}}', "simulator.config_disk.image", ConfigError),
        (b'{"vm_config": "]"}', "vm_config.syntax", InvalidEvidence),
        (b"{", "sys_config.syntax", ProtocolError),
    ],
)
def test_refuses_a_host_that_names_no_image(sys_config: bytes, code: str, kind: type) -> None:
    with refuses(code, kind):
        GuestConfig(FILES | {SYS_CONFIG: sys_config}).measurement()


def test_refuses_ids_that_are_none() -> None:
    with refuses("instance_info.field", ProtocolError):
        GuestConfig(FILES | {INSTANCE_INFO: b'{"app_id": "22"}'}).app_id()

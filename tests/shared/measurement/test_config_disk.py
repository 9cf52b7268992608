import io
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.measurement.config_disk import LABEL, MAX_BYTES, config_disk, config_disk_size
from shared.measurement.disk_image import MIB
from shared.measurement.fat_reader import FatVolume
from tests.shared.refusal import refuses

FILES = {
    ".user-config": b"anything",
    "app-compose.json": b'{"manifest_version":2}',
    ".sys-config.json": b'{"vm_config":"{}"}',
    ".instance_info": b'{"app_id":"00"}',
    ".encrypted-env": bytes(range(256)),
}


def image(files: dict[str, bytes]) -> bytes:
    return b"".join(config_disk(files).chunks())


def test_the_guest_finds_its_files_at_the_root() -> None:
    volume = FatVolume(io.BytesIO(image(FILES)))
    assert volume.label == LABEL == "DSTACKSHR"
    assert {name: volume.read(name, 1 << 20) for name in volume.entries} == FILES


def test_the_disk_depends_on_names_and_bytes_alone() -> None:
    assert image(FILES) == image(dict(sorted(FILES.items())))


def test_another_configuration_has_another_serial() -> None:
    first, second = (
        FatVolume(io.BytesIO(image({**FILES, ".user-config": data}))) for data in (b"one", b"two")
    )
    assert first.serial != second.serial


def test_optional_files_are_left_out() -> None:
    needed = {name: FILES[name] for name in ("app-compose.json", ".sys-config.json")}
    assert set(FatVolume(io.BytesIO(image(needed))).entries) == set(needed)


def test_the_size_is_that_of_the_files_and_4_mib_in_whole_mib() -> None:
    assert config_disk_size(0) == 33 * MIB
    assert config_disk_size(29 * MIB) == 33 * MIB
    assert config_disk_size(29 * MIB + 1) == 34 * MIB
    assert config_disk_size(50 * MIB) == 54 * MIB


def test_the_largest_configuration_fits() -> None:
    largest = {name: b"\x01" * limit for name, limit in MAX_BYTES.items()}
    volume = FatVolume(io.BytesIO(image(largest)))
    assert {name: entry.size for name, entry in volume.entries.items()} == dict(MAX_BYTES)


def test_no_partition_table_is_in_front() -> None:
    assert image(FILES)[3:11] == b"MSWIN4.1"


def test_blkid_and_mtools_find_the_label(tmp_path: Path) -> None:
    blkid = shutil.which("blkid") or shutil.which("blkid", path="/usr/sbin:/sbin")
    if blkid is None or shutil.which("mdir") is None:
        pytest.skip("blkid or mtools is not installed")
    path = tmp_path / "config.img"
    path.write_bytes(image(FILES))
    shown = subprocess.run([blkid, str(path)], check=True, capture_output=True, text=True).stdout
    assert ' LABEL="DSTACKSHR"' in shown
    assert 'TYPE="vfat"' in shown
    listing = subprocess.run(
        ["mdir", "-a", "-b", "-i", str(path), "::"], check=True, capture_output=True, text=True
    ).stdout
    assert set(listing.split()) == {f"::/{name}" for name in FILES}


def test_refuses_a_file_that_the_guest_does_not_read() -> None:
    with refuses("config_disk.file", ConfigError):
        config_disk({**FILES, "docker-compose.yaml": b""})


@pytest.mark.parametrize("name", ["app-compose.json", ".sys-config.json"])
def test_refuses_a_disk_without_what_the_guest_needs(name: str) -> None:
    with refuses("config_disk.missing", ConfigError):
        config_disk({other: data for other, data in FILES.items() if other != name})


@pytest.mark.parametrize("name", MAX_BYTES)
def test_refuses_more_than_the_guest_takes(name: str) -> None:
    with refuses("config_disk.size", ConfigError):
        config_disk({**FILES, name: bytes(MAX_BYTES[name] + 1)})

"""`dstack-cloud image check` over the click runner: a made image, whole and with one fault each."""

import json
import os
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.image import image
from shared.measurement.boot_disk import gcp_boot_disk
from shared.measurement.disk_image import DiskImage
from shared.measurement.os_image_directory import finish_image
from tests.shared.measurement.made_disks import make_kernel, make_uki
from tests.shared.measurement.test_os_image_directory import QEMU_FILES, UKI, Files, replay


def check(path: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(image, ["check", str(path), *arguments])
    return result.exit_code, result.stdout


def refusal(path: Path) -> str:
    exit_code, out = check(path, "--json")
    found = json.loads(out)
    assert exit_code == 3
    assert found["image"] is None
    code: str = found["code"]
    return code


def boot_disk(uki: bytes) -> DiskImage:
    return gcp_boot_disk(BytesIO(uki), BytesIO(b"rootfs"))


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    disk = b"".join(boot_disk(UKI).chunks())
    files = Files({**QEMU_FILES, "disk.raw": disk, "measurement.aws.replay.json": replay()})
    return {**files, **finish_image(files)}


@pytest.fixture
def directory(made: dict[str, bytes], tmp_path: Path) -> Path:
    for name, data in made.items():
        if name != "disk.raw":
            (tmp_path / name).write_bytes(data)
    with (tmp_path / "disk.raw").open("wb") as file:
        boot_disk(UKI).write_to(file)  # with holes, where a copy would write zeros
    return tmp_path


def test_a_whole_image_shows_its_hash_and_what_was_rebuilt(directory: Path) -> None:
    expected = sha256((directory / "sha256sum.txt").read_bytes()).hexdigest()
    exit_code, out = check(directory)
    assert exit_code == 0
    assert f"os_image_hash  {expected}" in out
    assert out.count("rebuilt from the files, equal") == 3
    found: dict[str, Any] = json.loads(check(directory, "--json")[1])
    assert found["image"]["os_image_hash"] == expected
    assert found["image"]["rebuilt"] == ["tdx", "gcp", "aws"]
    assert found["image"]["absent"] == []


def test_a_cloud_bundle_names_what_is_not_there(directory: Path) -> None:
    for name in ("ovmf.fd", "bzImage"):
        (directory / name).unlink()
    exit_code, out = check(directory)
    assert exit_code == 0
    assert "not here       ovmf.fd" in out
    assert "tdx            listed; its files are not here" in out


def test_another_file_is_refused(directory: Path) -> None:
    (directory / "initramfs.cpio.gz").write_bytes(b"another")
    assert refusal(directory) == "os_image.file"
    exit_code, out = check(directory)
    assert exit_code == 3
    assert out.startswith("REFUSED  initramfs.cpio.gz has sha256 ")


def test_another_boot_disk_is_refused(directory: Path) -> None:
    other = make_uki(make_kernel()[:-1] + b"?")
    with (directory / "disk.raw").open("wb") as file:
        boot_disk(other).write_to(file)
    assert refusal(directory) == "os_image.measurement"


def test_another_digest_is_refused(directory: Path) -> None:
    (directory / "digest.txt").write_text("00" * 32 + "\n")
    assert refusal(directory) == "os_image.digest"


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "os_image.missing"


def test_a_link_is_refused_although_its_target_matches(directory: Path, tmp_path: Path) -> None:
    (directory / "bzImage").rename(tmp_path / "elsewhere")
    (directory / "bzImage").symlink_to(tmp_path / "elsewhere")
    assert refusal(directory) == "os_image.file"


def test_a_pipe_is_refused_and_not_waited_for(directory: Path) -> None:
    (directory / "bzImage").unlink()
    os.mkfifo(directory / "bzImage")
    assert refusal(directory) == "os_image.file"


def test_a_file_that_cannot_be_read_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", fails)
    assert refusal(directory) == "os_image.file"

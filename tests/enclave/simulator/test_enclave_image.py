"""A simulated enclave measures its image (EIF) as a real one does, and has the files that are in it."""

import hashlib
import io
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from enclave.simulator.enclave_image import read_registers, unpack_root
from shared.errors import ConfigError, InvalidEvidence
from shared.measurement.cpio import CpioEntry
from shared.measurement.eif_signature import KeySigner
from tests.shared.measurement.made_eif import (
    BOOT,
    CMDLINE,
    KERNEL,
    archive,
    image,
    signing_certificate,
)

DIRECTORY, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o600, stat.S_IFLNK | 0o777
ROOT = (CpioEntry(b"rootfs", DIRECTORY), b"")


def _file(path: bytes, content: bytes = b"") -> tuple[CpioEntry, bytes]:
    return CpioEntry(path, FILE, size=len(content)), content


def _link(path: bytes, target: bytes) -> tuple[CpioEntry, bytes]:
    return CpioEntry(path, LINK, size=len(target)), target


def _directory(path: bytes) -> tuple[CpioEntry, bytes]:
    return CpioEntry(path, DIRECTORY), b""


def _unpacked(place: Path, *entries: tuple[CpioEntry, bytes]) -> Path:
    made, _ = image(ramdisks=(BOOT, archive(*entries)))
    unpack_root(io.BytesIO(made), place / "root")
    return place / "root"


def _refusal(place: Path, *entries: tuple[CpioEntry, bytes]) -> str:
    with pytest.raises(ConfigError) as caught:
        _unpacked(place, *entries)
    return caught.value.code


def test_the_registers_are_those_of_an_enclave() -> None:
    """Computed here by the rule of the platform's documentation alone."""
    customer = archive(ROOT, _file(b"rootfs/a", b"1"))
    made, _ = image(ramdisks=(BOOT, customer))

    def register(content: bytes) -> bytes:
        return hashlib.sha384(bytes(48) + hashlib.sha384(content).digest()).digest()

    assert read_registers(io.BytesIO(made)) == {
        0: register(KERNEL + CMDLINE + BOOT + customer),
        1: register(KERNEL + CMDLINE + BOOT),
        2: register(customer),
    }


def test_a_signed_image_has_pcr8() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    made, measured = image(signer=KeySigner(key, signing_certificate(key)))
    assert measured.pcr8 is not None
    assert read_registers(io.BytesIO(made))[8] == measured.pcr8


def test_a_changed_byte_is_no_image() -> None:
    made = bytearray(image()[0])
    made[-600] ^= 1
    with pytest.raises(InvalidEvidence) as caught:
        read_registers(io.BytesIO(bytes(made)))
    assert caught.value.code == "eif.crc"


def test_the_root_file_system_is_the_customers(tmp_path: Path) -> None:
    root = _unpacked(
        tmp_path,
        ROOT,
        _directory(b"rootfs/etc"),
        _directory(b"rootfs/etc"),  # as linuxkit writes it
        _file(b"rootfs/etc/config", b"measured"),
        _file(b"cmd", b"/app\n"),
        _file(b"rootfsx", b"not below it"),
    )
    assert {path.relative_to(root).as_posix() for path in root.rglob("*")} == {"etc", "etc/config"}
    assert (root / "etc" / "config").read_bytes() == b"measured"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_links_lead_where_they_do_in_the_enclave(tmp_path: Path) -> None:
    root = _unpacked(
        tmp_path,
        ROOT,
        _directory(b"rootfs/etc"),
        _file(b"rootfs/etc/config", b"measured"),
        _link(b"rootfs/etc/absolute", b"/etc/config"),
        _link(b"rootfs/etc/relative", b"../etc/config"),
        _link(b"rootfs/top", b"/"),
        _link(b"rootfs/etc/dangling", b"/proc/mounts"),
        _link(b"rootfs/loop", b"loop"),
    )
    for name in ("etc/absolute", "etc/relative", "top/etc/config", "top/top/etc/relative"):
        assert (root / name).read_bytes() == b"measured"
    assert not (root / "etc" / "dangling").exists()


@pytest.mark.parametrize(
    "links",
    [
        [(b"rootfs/out", b"..")],
        [(b"rootfs/out", b"/../../etc/passwd")],
        [(b"rootfs/d/up", b"/"), (b"rootfs/out", b"d/up/../etc/passwd")],
        [(b"rootfs/nul", b"/a\0b")],
        [(b"rootfs/nul", b"a\0b")],
    ],
)
def test_refuses_links_out_of_the_image(links: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    made = [_link(*link) for link in links]
    assert _refusal(tmp_path, ROOT, _directory(b"rootfs/d"), *made) == "simulator.image.link"


def test_refuses_devices_and_pipes(tmp_path: Path) -> None:
    pipe = CpioEntry(b"rootfs/pipe", stat.S_IFIFO | 0o600), b""
    assert _refusal(tmp_path, ROOT, pipe) == "simulator.image.entry"


@pytest.mark.parametrize("root", [_file(b"rootfs"), _link(b"rootfs", b"/etc"), _file(b"cmd")])
def test_refuses_an_image_without_a_root(root: tuple[CpioEntry, bytes], tmp_path: Path) -> None:
    assert _refusal(tmp_path, root) == "simulator.image.root"
    assert not (tmp_path / "root").is_symlink()


@pytest.mark.parametrize("count", [1, 3])
def test_refuses_other_numbers_of_ramdisks(count: int, tmp_path: Path) -> None:
    made, _ = image(ramdisks=[archive(ROOT)] * count)
    with pytest.raises(ConfigError) as caught:
        unpack_root(io.BytesIO(made), tmp_path / "root")
    assert caught.value.code == "simulator.image.ramdisks"


def test_writes_into_no_directory_that_exists(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(FileExistsError):
        _unpacked(tmp_path, ROOT)

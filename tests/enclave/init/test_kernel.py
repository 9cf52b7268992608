"""Mounts, loopback and entropy, on a kernel that is a list of calls."""

import errno
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from enclave.init.kernel import MOUNTS, SECRETS, LinuxKernel, Mount, prepare
from shared.errors import ConfigError, UnavailableError
from tests.shared.refusal import refuses

RANDOM = bytes(range(64))


class FakeKernel:
    """Has some mounts, and remembers what it was asked for, in order."""

    def __init__(self, **mounted: str) -> None:
        self._mounted = {f"/{name}": kind for name, kind in mounted.items()}
        self.calls: list[Any] = []

    def mounted(self) -> Mapping[str, str]:
        return self._mounted

    def mount(self, mount: Mount) -> None:
        self.calls.append(mount.target)

    def raise_loopback(self) -> None:
        self.calls.append("lo")

    def add_entropy(self, random: bytes) -> None:
        self.calls.append(random)


def test_mounts_all_that_is_missing_then_raises_lo_and_seeds() -> None:
    kernel = FakeKernel()
    prepare(kernel, lambda: RANDOM)
    assert kernel.calls == [*(mount.target for mount in MOUNTS), "lo", RANDOM]


def test_leaves_what_is_mounted() -> None:
    kernel = FakeKernel(proc="proc", sys="sysfs", run="tmpfs", tmp="tmpfs")
    prepare(kernel, lambda: RANDOM)
    assert kernel.calls[0] == SECRETS


@pytest.mark.parametrize("kind", ["ext4", "9p", "overlay"])
def test_n74_refuses_a_place_for_secrets_that_is_not_memory(kind: str) -> None:
    with refuses("init.mount.kind", ConfigError):
        prepare(FakeKernel(dstack=kind), lambda: RANDOM)


def test_takes_a_ramfs_for_memory() -> None:
    kernel = FakeKernel(dstack="ramfs")
    prepare(kernel, lambda: RANDOM)
    assert SECRETS not in kernel.calls


def test_secrets_are_kept_where_root_alone_lists_them_and_nothing_runs() -> None:
    (secrets,) = (mount for mount in MOUNTS if mount.target == SECRETS)
    assert (secrets.kind, secrets.flags) == ("tmpfs", 2 | 4 | 8)
    assert "mode=0711" in secrets.data


class Calls:
    """An ioctl that answers with flags, or fails."""

    def __init__(self, *, fails: int = 0) -> None:
        self.made: list[tuple[int, bytes | int]] = []
        self._fails = fails

    def __call__(self, descriptor: int, request: int, argument: bytes | int) -> object:
        assert descriptor >= 0
        self.made.append((request, argument))
        if self._fails:
            raise OSError(self._fails, "refused")
        return struct.pack("16sh14x", b"lo", 0x8) if request == 0x8913 else b""


def test_lo_is_brought_up_and_keeps_its_flags() -> None:
    calls = Calls()
    LinuxKernel(ioctl=calls).raise_loopback()
    assert [request for request, _ in calls.made] == [0x8913, 0x8914]
    assert struct.unpack("16sh14x", calls.made[1][1])[1] == 0x8 | 1  # type: ignore[arg-type]


def test_a_kernel_that_leaves_lo_down_is_told() -> None:
    with refuses("init.loopback", UnavailableError):
        LinuxKernel(ioctl=Calls(fails=errno.EPERM)).raise_loopback()


def test_random_bytes_are_credited_and_used_at_once(tmp_path: Path) -> None:
    device = tmp_path / "random"
    device.touch()
    calls = Calls()
    LinuxKernel(ioctl=calls, random_device=str(device)).add_entropy(RANDOM)
    pool = struct.pack("ii", 8 * len(RANDOM), len(RANDOM)) + RANDOM
    assert calls.made == [(0x40085203, pool), (0x5207, 0)]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_kernel_that_takes_no_entropy_is_told(tmp_path: Path, is_there: bool) -> None:  # noqa: FBT001
    device = tmp_path / "random"
    if is_there:
        device.touch()
    kernel = LinuxKernel(ioctl=Calls(fails=errno.EPERM), random_device=str(device))
    with refuses("init.entropy", UnavailableError):
        kernel.add_entropy(RANDOM)


def test_reads_what_is_mounted_last(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("rootfs / rootfs rw 0 0\nproc /proc proc rw 0 0\ntmpfs / tmpfs rw 0 0\n\n")
    assert LinuxKernel(mounts=mounts).mounted() == {"/": "tmpfs", "/proc": "proc"}


def test_without_proc_nothing_is_known_to_be_mounted(tmp_path: Path) -> None:
    assert LinuxKernel(mounts=tmp_path / "absent").mounted() == {}


def test_a_list_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with refuses("init.mount", UnavailableError):
        LinuxKernel(mounts=tmp_path).mounted()


def test_mounts_with_flags_and_data_into_a_new_directory(tmp_path: Path) -> None:
    made: list[tuple[Any, ...]] = []
    kernel = LinuxKernel(mount=lambda *arguments: made.append(arguments) or 0)  # type: ignore[func-returns-value]
    target = str(tmp_path / "new/place")
    kernel.mount(Mount("tmpfs", target, 6, "mode=0700"))
    assert made == [("tmpfs", target, "tmpfs", 6, "mode=0700")]
    assert Path(target).is_dir()


def test_a_mount_that_fails_is_told(tmp_path: Path) -> None:
    with refuses("init.mount", UnavailableError):
        LinuxKernel(mount=lambda *_: errno.EPERM).mount(Mount("tmpfs", str(tmp_path), 0))


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refuses("init.mount", UnavailableError):
        LinuxKernel(mount=lambda *_: 0).mount(Mount("tmpfs", str(tmp_path / "file/below"), 0))

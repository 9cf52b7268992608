"""What the host puts into its share, and how it is read (SECURITY N-70)."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave.dstack_util.host_share import keep_share, mount_share, read_share, unmount_share
from enclave.dstack_util.machine import Completed
from shared.errors import ConfigError, StorageError
from tests.enclave.dstack_util.machine import RecordedMachine
from tests.shared.refusal import refuses


@pytest.fixture
def share(tmp_path: Path) -> Path:
    share = tmp_path / "share"
    share.mkdir()
    (share / "app-compose.json").write_bytes(b"{}")
    (share / ".sys-config.json").write_bytes(b"{}")
    return share


def test_reads_the_files_that_a_guest_knows_and_no_other(share: Path) -> None:
    (share / ".user-config").write_bytes(b"u")
    (share / "other").write_bytes(b"o")
    assert read_share(share) == {"app-compose.json": b"{}", ".sys-config.json": b"{}", ".user-config": b"u"}


@pytest.mark.parametrize("name", ["app-compose.json", ".user-config"])
def test_n70_refuses_a_symbolic_link(share: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (share / name).unlink(missing_ok=True)
    (share / name).symlink_to(secret)
    with refuses("host_share.kind", ConfigError):
        read_share(share)


def test_n70_refuses_a_share_that_is_a_link(share: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(share)
    with refuses("host_share.unreadable", ConfigError):
        read_share(link)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("making a device node needs privileges")


@pytest.mark.parametrize("make", [_pipe, _directory, _socket, _device])
def test_n70_refuses_what_is_no_regular_file(share: Path, make: Callable[[Path], None]) -> None:
    make(share / ".user-config")
    with pytest.raises(ConfigError) as refusal:
        read_share(share)
    # a device on a file system without devices cannot even be opened
    assert refusal.value.code in {"host_share.kind", "host_share.unreadable"}


@pytest.mark.parametrize(
    ("name", "limit"),
    [(".sys-config.json", 32 << 10), (".instance_info", 10 << 10), (".encrypted-env", 256 << 10)],
)
def test_n70_refuses_an_oversize_file(share: Path, name: str, limit: int) -> None:
    (share / name).write_bytes(bytes(limit))
    assert len(read_share(share)[name]) == limit
    (share / name).write_bytes(bytes(limit + 1))
    with refuses("host_share.size", ConfigError):
        read_share(share)


def test_n70_never_reads_more_of_an_endless_file_than_the_limit(share: Path) -> None:
    asked: list[int] = []

    def endless(_descriptor: int, size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    with refuses("host_share.size", ConfigError):
        read_share(share, endless)
    assert sum(asked) <= (50 << 20) + 1


@pytest.mark.parametrize("how", ["in place", "longer", "shorter"])
def test_n70_refuses_a_file_that_is_written_to_while_it_is_read(share: Path, how: str) -> None:
    target = share / "app-compose.json"
    target.write_bytes(b"a" * 4096)

    def racing(descriptor: int, size: int) -> bytes:
        chunk = os.read(descriptor, min(size, 1024))
        if how == "in place":
            with target.open("r+b") as file:
                file.write(b"b" * 4096)
            os.utime(target, ns=(1, 1))
        elif how == "longer":
            target.write_bytes(b"b" * 8192)
        else:
            target.write_bytes(b"b")
        return chunk

    with refuses("host_share.changed", ConfigError):
        read_share(share, racing)


def test_n70_a_name_that_is_swapped_after_it_was_opened_changes_nothing(share: Path, tmp_path: Path) -> None:
    target = share / "app-compose.json"
    swapped = tmp_path / "swapped"
    swapped.write_bytes(b'{"evil":1}')

    def racing(descriptor: int, size: int) -> bytes:
        if target.read_bytes() == b"{}":
            kept = tmp_path / "kept"
            os.link(target, kept)
            mark = os.fstat(descriptor)
            swapped.replace(target)
            kept.unlink()
            assert os.fstat(descriptor).st_ino == mark.st_ino
        return os.read(descriptor, size)

    # the link count changed under the descriptor: what was read is whole, and still it is not taken
    with refuses("host_share.changed", ConfigError):
        read_share(share, racing)


@pytest.mark.parametrize("name", ["app-compose.json", ".sys-config.json"])
def test_refuses_a_share_without_a_required_file(share: Path, name: str) -> None:
    (share / name).unlink()
    with refuses("host_share.missing", ConfigError):
        read_share(share)


def test_a_file_that_was_taken_away_does_not_stay(tmp_path: Path) -> None:
    machine, work = RecordedMachine(tmp_path / "root"), tmp_path / "work"
    keep_share(machine, {"app-compose.json": b"{}", ".encrypted-env": b"old"}, work)
    keep_share(machine, {"app-compose.json": b"{}"}, work)
    assert not (work / ".host-shared/.encrypted-env").exists()


def test_takes_the_hypervisors_share_where_there_is_no_disk(tmp_path: Path) -> None:
    machine = RecordedMachine(tmp_path / "root")
    machine.answers["mount",] = Completed(0)
    mount_share(machine, tmp_path / "mnt")
    assert machine.argv[-1][:3] == ("mount", "-t", "9p")
    assert machine.argv[-1][4].startswith("ro,nosuid,nodev,noexec")


def test_says_that_there_is_no_share(tmp_path: Path) -> None:
    machine = RecordedMachine(tmp_path / "root")
    machine.answers["mount",] = Completed(32)
    with refuses("setup.share", StorageError):
        mount_share(machine, tmp_path / "mnt")


def test_unmounts_what_is_mounted_and_nothing_else(share: Path, tmp_path: Path) -> None:
    machine = RecordedMachine(tmp_path / "root")
    (machine.root / "dev/disk/by-label/DSTACKSHR").symlink_to(share)
    mount_share(machine, tmp_path / "mnt")
    unmount_share(machine, tmp_path / "mnt")
    unmount_share(machine, tmp_path / "mnt")
    assert [argv[0] for argv in machine.argv] == ["mount", "umount"]

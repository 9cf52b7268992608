"""The data disk is made once and opened ever after, whatever fails between (spec deploy 6.3 steps 9-11)."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from enclave.dstack_util.data_device import choose_device
from enclave.dstack_util.data_disk import DataDisk, DiskOptions, disk_options
from enclave.dstack_util.luks_header import PAYLOAD_OFFSET, check_luks_header, has_luks_magic
from enclave.dstack_util.machine import Completed, LinuxMachine
from shared.errors import ConfigError, DstackError, StorageError, UnavailableError
from tests.enclave.dstack_util.machine import RecordedMachine, luks_header
from tests.shared.refusal import refuses

PASSPHRASE = b"aa" * 32
CRYPTSETUP = shutil.which("cryptsetup", path="/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.fixture
def machine(tmp_path: Path) -> RecordedMachine:
    return RecordedMachine(tmp_path / "root")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(20 << 20)
    return path


def _disk(machine: LinuxMachine, device: Path, **options: object) -> DataDisk:
    memory = device.parent / "memory"
    memory.mkdir(exist_ok=True)
    return DataDisk(
        machine,
        device=device,
        mount_point=device.parent / "mnt",
        memory=memory,
        passphrase=PASSPHRASE,
        options=DiskOptions(**{"file_system": "ext4", **options}),  # type: ignore[arg-type]
    )


def _start(device: Path) -> bytes:
    with device.open("rb") as file:
        return file.read(PAYLOAD_OFFSET)


@pytest.mark.parametrize(
    ("storage_fs", "cmdline", "tools", "expected"),
    [
        ("ext4", "", {"zpool", "zfs"}, "ext4"),
        ("ZFS", "", {"zpool", "zfs"}, "zfs"),
        (None, "dstack.storage_fs=ext4", {"zpool", "zfs"}, "ext4"),
        ("zfs", "dstack.storage_fs=ext4", {"zpool", "zfs"}, "zfs"),
        (None, "", {"zpool", "zfs"}, "zfs"),
        (None, "", set(), "ext4"),
    ],
)
def test_app_compose_chooses_the_file_system_before_the_command_line(
    machine: RecordedMachine, storage_fs: str | None, cmdline: str, tools: set[str], expected: str
) -> None:
    machine.tools = tools
    options = disk_options(machine, storage_fs=storage_fs, swap_size=0, cmdline=cmdline)
    assert (options.file_system, options.is_encrypted) == (expected, True)


@pytest.mark.parametrize(
    ("storage_fs", "cmdline"), [("zfs", ""), (None, "dstack.storage_fs=zfs"), (None, "dstack.storage_fs=xfs")]
)
def test_refuses_a_file_system_that_it_cannot_make(
    machine: RecordedMachine, storage_fs: str | None, cmdline: str
) -> None:
    with refuses("setup.storage_fs", ConfigError):
        disk_options(machine, storage_fs=storage_fs, swap_size=0, cmdline=cmdline)


@pytest.mark.parametrize("word", ["0", "false", "no", "off", "OFF"])
def test_only_the_measured_command_line_turns_encryption_off(machine: RecordedMachine, word: str) -> None:
    cmdline = f"quiet dstack.storage_encrypted={word}"
    assert not disk_options(machine, storage_fs="ext4", swap_size=0, cmdline=cmdline).is_encrypted


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (8192, 8192),
        ("8192", 8192),
        ("8K", 8192),
        ("2G", 2 << 30),
        ("1 MiB", 1 << 20),
        ("5000b", 4096),
    ],
)
def test_reads_a_swap_size(machine: RecordedMachine, size: int | str, expected: int) -> None:
    assert disk_options(machine, storage_fs="ext4", swap_size=size, cmdline="").swap == expected


@pytest.mark.parametrize("size", [-1, "", "x", "1P", "1.5G", "-1G", "5T"])
def test_refuses_a_senseless_swap_size(machine: RecordedMachine, size: int | str) -> None:
    with refuses("setup.swap_size", ConfigError):
        disk_options(machine, storage_fs="ext4", swap_size=size, cmdline="")


def test_a_new_disk_gets_its_header_after_its_file_system(machine: RecordedMachine, device: Path) -> None:
    states: list[bool] = []
    act = machine._mkfs_ext4

    def watching(argv: tuple[str, ...], stdin: bytes) -> Completed:
        states.append(has_luks_magic(_start(device)))
        return act(argv, stdin)

    machine._mkfs_ext4 = watching  # type: ignore[method-assign]
    _disk(machine, device).prepare()
    assert states == [False]
    check_luks_header(_start(device))


def test_the_header_in_memory_does_not_stay(machine: RecordedMachine, device: Path) -> None:
    _disk(machine, device).prepare()
    assert list((device.parent / "memory").iterdir()) == []


@pytest.mark.parametrize("number", range(1, 7))
def test_a_failure_before_the_header_leaves_an_empty_disk(
    machine: RecordedMachine, device: Path, number: int
) -> None:
    machine.failing = number
    try:
        _disk(machine, device).prepare()
    except DstackError:
        if not machine.is_mounted(device.parent / "mnt"):
            machine.failing = 0
            machine.reboot()
    _disk(machine, device).prepare()
    assert machine.is_mounted(device.parent / "mnt")


def test_a_header_whose_first_block_was_not_written_is_none(device: Path, machine: RecordedMachine) -> None:
    with device.open("r+b") as file:
        file.seek(4096)
        file.write(luks_header()[4096:])
    _disk(machine, device).prepare()
    assert machine.words().count("cryptsetup luksFormat") == 1


def test_closes_what_an_earlier_attempt_left_open(machine: RecordedMachine, device: Path) -> None:
    (machine.root / "dev/mapper/dstack_data_disk").write_text(str(device))
    _disk(machine, device).prepare()
    assert machine.words()[0] == "cryptsetup luksClose"


def test_a_file_system_that_cannot_be_repaired_stops_the_boot(machine: RecordedMachine, device: Path) -> None:
    _disk(machine, device).prepare()
    machine.reboot()
    machine.answers["e2fsck",] = Completed(4, stderr=b"UNEXPECTED INCONSISTENCY")
    with refuses("setup.command", StorageError):
        _disk(machine, device).prepare()


def test_a_cryptsetup_that_fails_says_so(machine: RecordedMachine, device: Path) -> None:
    machine.answers["cryptsetup", "luksOpen"] = Completed(5, stderr=b"Device is busy.")
    with refuses("setup.command", StorageError):
        _disk(machine, device).prepare()


def test_a_disk_that_is_not_there_is_said(machine: RecordedMachine, device: Path) -> None:
    with refuses("setup.disk.unreadable", StorageError):
        _disk(machine, device.with_name("gone")).prepare()


def test_without_encryption_the_disk_is_the_file_systems(machine: RecordedMachine, device: Path) -> None:
    _disk(machine, device, is_encrypted=False).prepare()
    assert machine.words()[:2] == ["blkid -o", "mkfs.ext4 -F"]
    machine.reboot()
    machine.argv.clear()
    machine.answers["blkid",] = Completed(0, b"ext4\n")
    _disk(machine, device, is_encrypted=False).prepare()
    assert "mkfs.ext4 -F" not in machine.words()


def test_a_new_pool_is_made_and_a_present_one_imported(machine: RecordedMachine, device: Path) -> None:
    machine.answers["zpool", "list"] = Completed(1)
    _disk(machine, device, file_system="zfs").prepare()
    assert machine.words()[-4:] == ["zpool create", "zfs create", "sync", "zfs mount"]
    machine.reboot()
    machine.argv.clear()
    _disk(machine, device, file_system="zfs").prepare()
    assert machine.words()[-3:] == ["zpool import", "zpool online", "zfs mount"]


def test_a_pool_that_was_left_imported_is_exported(machine: RecordedMachine, device: Path) -> None:
    _disk(machine, device, file_system="zfs").prepare()
    assert machine.words()[:2] == ["zpool list", "zpool export"]


def test_swap_is_made_anew_on_the_pool(machine: RecordedMachine, device: Path) -> None:
    _disk(machine, device, file_system="zfs", swap=8192).make_swap()
    assert machine.words() == [
        "swapoff /dev/zvol/dstack/swap",
        "zfs list",
        "zfs destroy",
        "zfs create",
        "udevadm settle",
        "mkswap /dev/zvol/dstack/swap",
        "swapon /dev/zvol/dstack/swap",
    ]


def test_swap_of_an_earlier_boot_goes_where_none_is_wanted(machine: RecordedMachine, device: Path) -> None:
    _disk(machine, device).make_swap()
    assert machine.words() == [f"swapoff {device.parent}/mnt/swapfile", "rm -f"]


def test_the_measured_command_line_names_the_device(machine: RecordedMachine) -> None:
    for place in ("dev/vdz", "dev/disk/by-partlabel/mine", "dev/disk/by-partuuid/1234"):
        (machine.root / place).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / place).touch()
    for name, place in (("/dev/vdz", "vdz"), ("PARTLABEL=mine", "mine"), ("PARTUUID=1234", "1234")):
        (machine.root / "proc/cmdline").write_text(f"quiet dstack.data_device={name}\n")
        assert choose_device(machine, {"DSTACK_DATA_DEVICE": "/dev/other"}).name == place


def test_the_environment_names_the_device_where_the_command_line_does_not(machine: RecordedMachine) -> None:
    (machine.root / "dev/vdz").touch()
    assert choose_device(machine, {"DSTACK_DATA_DEVICE": "/dev/vdz"}) == machine.root / "dev/vdz"


@pytest.mark.parametrize("name", ["vdz", "/etc/passwd", "/dev/../etc", "PARTLABEL=a/b", "LABEL=x"])
def test_refuses_a_name_that_is_no_devices(machine: RecordedMachine, name: str) -> None:
    with refuses("setup.device.name", ConfigError):
        choose_device(machine, {"DSTACK_DATA_DEVICE": name})


@pytest.mark.parametrize("environment", [{}, {"DSTACK_DATA_DEVICE": "/dev/gone"}])
def test_says_that_there_is_no_device(machine: RecordedMachine, environment: dict[str, str]) -> None:
    with refuses("setup.device.absent", ConfigError):
        choose_device(machine, environment)


def test_the_labelled_partition_comes_before_the_second_disk(machine: RecordedMachine) -> None:
    (machine.root / "dev/vdb").touch()
    labelled = machine.root / "dev/disk/by-partlabel/dstack-data"
    labelled.parent.mkdir()
    labelled.touch()
    assert choose_device(machine, {}) == labelled


def test_an_empty_second_disk_gets_a_partition(machine: RecordedMachine) -> None:
    (machine.root / "dev/vdb").write_bytes(bytes(4096))
    assert choose_device(machine, {}) == machine.root / "dev/vdb1"
    assert machine.words() == ["sfdisk --quiet", "udevadm settle"]
    assert b"dstack-data" in machine.inputs[0]


def test_an_encrypted_second_disk_is_taken_whole(machine: RecordedMachine) -> None:
    (machine.root / "dev/vdb").write_bytes(luks_header()[:4096])
    assert choose_device(machine, {}) == machine.root / "dev/vdb"


def test_a_second_disk_with_something_on_it_is_not_ours(machine: RecordedMachine) -> None:
    (machine.root / "dev/vdb").write_bytes(b"data")
    with refuses("setup.device.taken", ConfigError):
        choose_device(machine, {})


def test_a_command_that_is_not_installed_is_said(tmp_path: Path) -> None:
    with refuses("setup.tool", UnavailableError):
        LinuxMachine(tmp_path).run("no-such-command-here")


def test_a_command_that_does_not_end_is_said_without_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_arguments: object, **_options: object) -> None:
        raise subprocess.TimeoutExpired("cryptsetup", 600, output=b"secret")

    monkeypatch.setattr(subprocess, "run", endless)
    with refuses("setup.command.timeout", UnavailableError) as refusal:
        LinuxMachine(tmp_path).run("cryptsetup", stdin=b"secret")
    assert refusal.value.__cause__ is None


def test_a_place_in_memory_that_is_not_there_is_said(machine: RecordedMachine, device: Path) -> None:
    disk = _disk(machine, device)
    (device.parent / "memory").rmdir()
    with refuses("setup.disk.write", StorageError):
        disk.prepare()


def test_a_commands_input_is_not_in_its_words_or_environment(tmp_path: Path) -> None:
    shown = LinuxMachine(tmp_path).run("sh", "-c", "cat; env; cat /proc/$$/cmdline", stdin=b"")
    assert b"secret" not in shown.stdout
    assert LinuxMachine(tmp_path).run("cat", stdin=b"secret").stdout == b"secret"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    machine = LinuxMachine(tmp_path)
    machine.write(tmp_path / "a/b", b"one", 0o600)
    machine.write(tmp_path / "a/b", b"two", 0o600)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with refuses("setup.write", StorageError):
        machine.write(tmp_path / "a/b/c", b"x", 0o600)
    with refuses("setup.write", StorageError):
        machine.link(tmp_path / "gone/link", tmp_path)


class _RealCryptsetup(RecordedMachine):
    """Formats for real and tries the passphrase for real; the mapping itself needs a kernel that has one."""

    def _cryptsetup(self, argv: tuple[str, ...], stdin: bytes) -> Completed:
        if argv[1] == "luksClose":
            return super()._cryptsetup(argv, stdin)
        real = list(argv)
        if argv[1] == "luksOpen":
            real = [*argv[:2], "--test-passphrase", *argv[2:-1]]
        done = subprocess.run(
            real, input=stdin, capture_output=True, check=False, env={"PATH": os.defpath + ":/usr/sbin:/sbin"}
        )
        if done.returncode == 0 and argv[1] == "luksOpen":
            (self.root / "dev/mapper" / argv[-1]).write_text(argv[-2])
        return Completed(done.returncode, done.stdout, done.stderr)


@pytest.mark.skipif(CRYPTSETUP is None, reason="cryptsetup is not installed (apt-get install cryptsetup-bin)")
def test_a_real_cryptsetup_makes_opens_and_refuses_the_disk(tmp_path: Path, device: Path) -> None:
    machine = _RealCryptsetup(tmp_path / "root")
    try:
        _disk(machine, device).prepare()
    except StorageError as error:
        if "luksFormat" in error.message:
            pytest.skip(f"cryptsetup cannot format a file here: {error.message[:90]}")
        raise
    assert check_luks_header(_start(device)).uuid
    before = hashlib.sha256(_start(device)).digest()
    machine.reboot()
    _disk(machine, device).prepare()
    assert hashlib.sha256(_start(device)).digest() == before
    machine.reboot()
    with refuses("setup.disk.key", StorageError):
        other = _disk(machine, device)
        other._passphrase = b"bb" * 32
        other.prepare()

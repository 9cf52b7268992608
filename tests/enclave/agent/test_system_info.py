"""What the kernel says of a machine, in the units of SysInfo (spec guest-agent section 2.12)."""

import os
from pathlib import Path

import pytest

from enclave.agent.system_info import SystemReader
from shared.rpc import guest_api_pb2 as pb
from tests.enclave.agent.machines import lay_machine, statvfs

DATA = "/var/volatile/my data"


def read(root: Path, *disks: str) -> pb.SystemInfo:
    return SystemReader(disks, root=root, statvfs=statvfs).read()


def test_reads_a_machine(tmp_path: Path) -> None:
    kib = 1024
    assert read(lay_machine(tmp_path), DATA, "/") == pb.SystemInfo(
        os_name="dstack",
        os_version="0.5.4",
        kernel_version="6.9.0-dstack",
        cpu_model="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz @2699 MHz",
        num_cpus=2,
        total_memory=2027288 * kib,
        available_memory=1501000 * kib,
        used_memory=(2027288 - 1501000) * kib,
        free_memory=901212 * kib,
        total_swap=524288 * kib,
        used_swap=100000 * kib,
        free_swap=424288 * kib,
        uptime=4125,
        loadavg_one=7,
        loadavg_five=125,
        loadavg_fifteen=1000,
        disks=[
            pb.DiskInfo(name="overlay", mount_point="/", total_size=4096000, free_size=1024000),
            pb.DiskInfo(name="dstack/data", mount_point=DATA, total_size=4096000, free_size=1024000),
        ],
    )


def test_tells_of_no_disk_that_is_not_configured(tmp_path: Path) -> None:
    assert [disk.mount_point for disk in read(lay_machine(tmp_path), "/").disks] == ["/"]


def test_tells_of_no_disk_that_is_not_mounted(tmp_path: Path) -> None:
    assert not read(lay_machine(tmp_path), "/data").disks


def test_leaves_out_a_disk_that_does_not_answer(tmp_path: Path) -> None:
    def fails(_path: str) -> os.statvfs_result:
        raise OSError

    assert not SystemReader(["/"], root=lay_machine(tmp_path), statvfs=fails).read().disks


def test_a_machine_that_says_nothing_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path, "/") == pb.SystemInfo()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("proc/meminfo", "MemTotal: many kB\nMemFree: -1 kB\nSwapTotal: 99999999999999999999 kB\n"),
        ("proc/loadavg", "nan -1 1e9"),
        ("proc/uptime", "\xff"),
        ("proc/uptime", ".5"),
        ("proc/cpuinfo", "processor"),
        ("proc/self/mounts", "\n\n/\n"),
        ("etc/os-release", "NAME\n="),
    ],
)
def test_reads_over_what_no_kernel_writes(tmp_path: Path, path: str, text: str) -> None:
    found = read(lay_machine(tmp_path, {path: text}), "/")
    assert found.kernel_version == "6.9.0-dstack"


def test_reads_the_release_where_distributions_keep_it(tmp_path: Path) -> None:
    lay_machine(tmp_path, {"etc/os-release": None, "usr/lib/os-release": "NAME='Alpine Linux'\n"})
    assert read(tmp_path).os_name == "Alpine Linux"


def test_reads_the_kernels_version_from_either_place(tmp_path: Path) -> None:
    lay_machine(
        tmp_path,
        {"proc/sys/kernel/osrelease": None, "proc/version": "Linux version 6.9.1 (gcc 13) #1 SMP\n"},
    )
    assert read(tmp_path).kernel_version == "6.9.1"


def test_a_processor_without_a_name_has_upstreams(tmp_path: Path) -> None:
    lay_machine(tmp_path, {"proc/cpuinfo": "processor : 0\nBogoMIPS : 50.00\n"})
    found = read(tmp_path)
    assert (found.cpu_model, found.num_cpus) == ("cpu0 @0 MHz", 1)


def test_reads_the_machine_that_the_tests_run_on() -> None:
    found = SystemReader(["/"]).read()
    assert 0 < found.available_memory <= found.total_memory
    assert found.num_cpus == os.cpu_count()
    assert found.uptime > 0

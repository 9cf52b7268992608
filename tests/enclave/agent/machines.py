"""The files of a guest's kernel, as a machine of two processors had them."""

import os
from collections.abc import Mapping
from pathlib import Path

CPU = """processor\t: {number}
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
cpu MHz\t\t: 2699.998
cache size\t: 107520 KB
flags\t\t: fpu vme de pse tdx_guest

"""

FILES: Mapping[str, str] = {
    "etc/os-release": 'NAME="dstack"\nVERSION_ID="0.5.4"\n# a comment\nPRETTY_NAME="dstack 0.5.4"\n',
    "proc/sys/kernel/osrelease": "6.9.0-dstack\n",
    "proc/cpuinfo": CPU.format(number=0) + CPU.format(number=1),
    "proc/meminfo": (
        "MemTotal:        2027288 kB\nMemFree:          901212 kB\nMemAvailable:    1501000 kB\n"
        "Buffers:           12 kB\nSwapTotal:        524288 kB\nSwapFree:         424288 kB\n"
        "HugePages_Total:       0\n"
    ),
    "proc/uptime": "4125.37 8100.11\n",
    "proc/loadavg": "0.07 1.25 10.00 1/123 4567\n",
    "proc/self/mounts": (
        "overlay / overlay rw 0 0\n"
        "proc /proc proc rw 0 0\n"
        "/dev/vdb /var/volatile/my\\040data ext4 rw 0 0\n"
        "dstack/data /var/volatile/my\\040data zfs rw 0 0\n"
    ),
    "etc/resolv.conf": (
        "# made by systemd\nnameserver 10.0.2.3\nnameserver fd00::3\nsearch lan\nnameserver\n"
    ),
    "proc/net/route": (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0202000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "eth0\t0002000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
        "eth1\t00000000\t00000000\t0001\t0\t0\t100\t00000000\t0\t0\t0\n"
    ),
    "proc/net/ipv6_route": (
        "00000000000000000000000000000000 00 00000000000000000000000000000000 00 "
        "fe800000000000000000000000000002 00000400 00000001 00000000 00000003     eth0\n"
        "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 "
        "00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n"
    ),
}

INTERFACES = ("lo", "eth0", "enp0s1", "dstack-wg0", "docker0", "br-5e1f", "veth0a1b2c")


def lay_machine(root: Path, changes: Mapping[str, str | None] | None = None) -> Path:
    """Write the files below `root`; a change to None leaves one out."""
    for path, text in {**FILES, **(changes or {})}.items():
        if text is not None:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    for index, name in enumerate(INTERFACES, 1):
        directory = root / "sys/class/net" / name
        (directory / "statistics").mkdir(parents=True)
        (directory / "ifindex").write_text(f"{index}\n")
        for count, counter in enumerate(("rx_bytes", "tx_bytes", "rx_errors", "tx_errors")):
            (directory / "statistics" / counter).write_text(f"{index * 1000 + count}\n")
    return root


def statvfs(_path: str) -> os.statvfs_result:
    """Return a file system of 1000 blocks of 4 KiB, of which 300 are free and 250 for programs."""
    return os.statvfs_result((4096, 4096, 1000, 300, 250, 0, 0, 0, 0, 255))

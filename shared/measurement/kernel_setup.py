"""The changes that QEMU makes to a kernel before the firmware measures it (spec measurement 4.7).

QEMU up to 10.1 fills the setup header of the kernel that `-kernel` names. Later versions leave it alone for
confidential guests, so that their RTMR1 differs (trap 9): they are not predicted here.
"""

import struct
from typing import Final

from shared.errors import InvalidEvidence
from shared.measurement.tdx_registers import LITE_MEMORY, LITE_MEMORY_FROM

HEAD_BYTES: Final = 0x1000
"""All changes lie in these first bytes of a kernel."""

_PROTOCOL: Final = 0x206
_LOADER: Final = 0x210
_FLAGS: Final = 0x211
_LOADED_HIGH: Final = 0x01
_CAN_USE_HEAP: Final = 0x80
_RAMDISK: Final = 0x218
_HEAP_END: Final = 0x224
_CMDLINE: Final = 0x228
_MAX_RAMDISK: Final = 0x22C
_EXTENDED_FLAGS: Final = 0x236
_ABOVE_4G: Final = 0x40

_QEMU_LOADER: Final = 0xB0
_LOW: Final = (0x90000, 0x9A000)  # the old place of a kernel's setup code and its command line
_HIGH: Final = (0x10000, 0x20000)
_OLD_CMDLINE: Final = 0x20
_OLD_MAGIC: Final = 0xA33F
_USUAL_MAX: Final = 0x37FF_FFFF
_ANY_MAX: Final = 0xFFFF_FFFF
_ACPI_ROOM: Final = 0x28000


def patch_kernel(head: bytes, *, initrd_size: int, memory_size: int) -> bytes:
    """Return the first 4096 bytes of a kernel as QEMU hands it to the firmware.

    `head` is the start of the kernel's file. `initrd_size` and `memory_size` count bytes. Raises
    `InvalidEvidence`: `kernel.truncated` for less than 4096 bytes, `kernel.initrd` when the initrd does not
    fit below the memory's end.
    """
    if len(head) < HEAD_BYTES:
        raise InvalidEvidence("kernel.truncated", f"kernel has {len(head)} bytes, expected {HEAD_BYTES}")
    patched = bytearray(head[:HEAD_BYTES])
    protocol = int.from_bytes(head[_PROTOCOL : _PROTOCOL + 2], "little")
    old = protocol < 0x200 or not head[_FLAGS] & _LOADED_HIGH
    real, cmdline = _LOW if old else _HIGH
    if protocol >= 0x200:
        patched[_LOADER] = _QEMU_LOADER
    if protocol >= 0x201:
        patched[_FLAGS] |= _CAN_USE_HEAP
        struct.pack_into("<I", patched, _HEAP_END, cmdline - real - 0x200)
    if protocol >= 0x202:
        struct.pack_into("<I", patched, _CMDLINE, cmdline)
    else:
        struct.pack_into("<HH", patched, _OLD_CMDLINE, _OLD_MAGIC, (cmdline - real) & 0xFFFF)
    address = _initrd_address(head, protocol, initrd_size, memory_size)
    struct.pack_into("<II", patched, _RAMDISK, address, initrd_size)
    return bytes(patched)


def _initrd_address(head: bytes, protocol: int, initrd_size: int, memory_size: int) -> int:
    highest = _USUAL_MAX
    if protocol >= 0x20C:
        if int.from_bytes(head[_EXTENDED_FLAGS : _EXTENDED_FLAGS + 2], "little") & _ABOVE_4G:
            highest = _ANY_MAX
    elif protocol >= 0x203:
        highest = int.from_bytes(head[_MAX_RAMDISK : _MAX_RAMDISK + 4], "little") or _USUAL_MAX
    # Small guests have all their memory below 4 GiB, others the first 2 GiB of it.
    low = LITE_MEMORY_FROM if memory_size < LITE_MEMORY_FROM else LITE_MEMORY
    available = min(low, memory_size) - _ACPI_ROOM
    if highest >= available:
        highest = available - 1
    if initrd_size >= highest:
        raise InvalidEvidence(
            "kernel.initrd", f"an initrd of {initrd_size} bytes does not fit below {highest:#x}"
        )
    return (highest - initrd_size) & ~4095

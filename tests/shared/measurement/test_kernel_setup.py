from struct import unpack_from

import pytest

from shared.measurement.kernel_setup import HEAD_BYTES, patch_kernel
from tests.shared.refusal import refuses

MIB = 1 << 20


def head(*, protocol: int = 0x20C, flags: int = 1, extended: int = 0x40, limit: int = 0) -> bytes:
    data = bytearray(HEAD_BYTES)
    data[0x206:0x208] = protocol.to_bytes(2, "little")
    data[0x211] = flags
    data[0x22C:0x230] = limit.to_bytes(4, "little")
    data[0x236:0x238] = extended.to_bytes(2, "little")
    return bytes(data)


def address(patched: bytes) -> int:
    return int(unpack_from("<I", patched, 0x218)[0])


def patched(memory: int = 1 << 31, initrd: int = MIB, **fields: int) -> bytes:
    return patch_kernel(head(**fields), initrd_size=initrd, memory_size=memory)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (0x7FFFF000, 0x7FED6000),
        (0x80000000, 0x7FED7000),
        (0xB0000000, 0x7FED7000),
        (1 << 40, 0x7FED7000),
        (0xAFFFF000, 0xAFED6000),
    ],
)
def test_the_initrd_lies_where_the_specification_says(memory: int, expected: int) -> None:
    assert address(patched(memory)) == expected


def test_a_document_holds_for_2_gib_and_from_2816_mib_on() -> None:
    assert patched(0x80000000) == patched(0xB0000000) == patched(1 << 36)
    assert patched(0x80000000) != patched(0x7FFFF000)


def test_a_modern_kernel_is_changed_in_these_fields_alone() -> None:
    result = patched()
    assert result[0x210] == 0xB0
    assert result[0x211] == 0x81
    assert unpack_from("<I", result, 0x224)[0] == 0x20000 - 0x10000 - 0x200
    assert unpack_from("<I", result, 0x228)[0] == 0x20000
    assert unpack_from("<I", result, 0x21C)[0] == MIB
    changed = {at for at, (a, b) in enumerate(zip(result, head(), strict=True)) if a != b}
    assert changed <= {0x210, 0x211, *range(0x218, 0x220), *range(0x224, 0x22C)}


def test_a_kernel_that_is_not_loaded_high_gets_the_old_places() -> None:
    result = patched(flags=0)
    assert unpack_from("<I", result, 0x228)[0] == 0x9A000
    assert unpack_from("<I", result, 0x224)[0] == 0x9A000 - 0x90000 - 0x200


def test_an_ancient_kernel_has_its_command_line_elsewhere() -> None:
    result = patched(protocol=0x1FF)
    assert unpack_from("<HH", result, 0x20) == (0xA33F, 0xA000)
    assert result[0x210] == 0
    assert result[0x211] == 1


def test_protocol_2_00_has_a_loader_and_no_heap() -> None:
    result = patched(protocol=0x200)
    assert result[0x210] == 0xB0
    assert result[0x211] == 1


def test_protocol_2_01_has_a_heap_and_an_old_command_line() -> None:
    result = patched(protocol=0x201)
    assert result[0x211] == 0x81
    assert unpack_from("<HH", result, 0x20) == (0xA33F, 0)  # 0x10000, in 16 bits


@pytest.mark.parametrize(
    ("fields", "highest"),
    [
        ({"protocol": 0x20C, "extended": 0}, 0x37FFFFFF),
        ({"protocol": 0x203, "limit": 0x1FFFFFFF}, 0x1FFFFFFF),
        ({"protocol": 0x20B, "limit": 0}, 0x37FFFFFF),
        ({"protocol": 0x202, "limit": 0x1FFFFFFF}, 0x37FFFFFF),
    ],
)
def test_the_initrd_stays_below_what_the_kernel_takes(fields: dict[str, int], highest: int) -> None:
    assert address(patched(**fields)) == (highest - MIB) & ~4095


def test_refuses_a_kernel_without_a_setup_header() -> None:
    with refuses("kernel.truncated"):
        patch_kernel(bytes(HEAD_BYTES - 1), initrd_size=1, memory_size=1 << 31)


@pytest.mark.parametrize(("initrd", "memory"), [(1 << 31, 1 << 31), (1, 0x28000), (0, 0)])
def test_refuses_an_initrd_that_does_not_fit(initrd: int, memory: int) -> None:
    with refuses("kernel.initrd"):
        patched(memory, initrd)

from zlib import crc32

import pytest

from shared.measurement.crc32 import joined_crc32


@pytest.mark.parametrize("size", [0, 1, 2, 255, 4096, 100_003])
def test_joins_as_zlib_counts_the_whole(size: int) -> None:
    first, second = b"header", bytes(index % 251 for index in range(size))
    assert joined_crc32(crc32(first), crc32(second), size) == crc32(first + second)

import gzip
import io
import tarfile
from hashlib import sha512

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.errors import ConfigError
from shared.measurement.disk_image import (
    MIB,
    DiskImage,
    Extent,
    FileRange,
    disk_image,
    range_of,
    write_disk_archive,
)
from tests.shared.refusal import refuses

CONTENT = bytes(range(256)) * 12_000  # about 3 MiB


def made() -> tuple[DiskImage, bytes]:
    """Return a disk with holes before, between and behind its extents, and all its bytes."""
    file = io.BytesIO(b"??" + CONTENT + b"??")
    image = disk_image(
        12 * MIB,
        [
            Extent(8 * MIB, b"last"),
            Extent(100, FileRange(file, 2, len(CONTENT))),
            Extent(6 * MIB, b"\x01" * (MIB + 1)),
            Extent(3, b""),
        ],
    )
    whole = bytearray(12 * MIB)
    whole[100 : 100 + len(CONTENT)] = CONTENT
    whole[6 * MIB : 7 * MIB + 1] = b"\x01" * (MIB + 1)
    whole[8 * MIB : 8 * MIB + 4] = b"last"
    return image, bytes(whole)


def archive(image: DiskImage, **named: int) -> bytes:
    parts: list[bytes] = []
    write_disk_archive(image, parts.append, **named)
    return b"".join(parts)


def test_chunks_are_the_disk_with_its_holes() -> None:
    image, whole = made()
    chunks = list(image.chunks())
    assert b"".join(chunks) == whole
    assert max(map(len, chunks)) <= MIB


def test_parts_leave_the_holes_out() -> None:
    image, whole = made()
    parts = list(image.parts())
    assert sum(len(data) for _, data in parts) == len(CONTENT) + MIB + 5
    assert all(whole[offset : offset + len(data)] == data for offset, data in parts)


def test_a_written_file_is_the_disk() -> None:
    image, whole = made()
    file = io.BytesIO()
    image.write_to(file)
    assert file.getvalue().ljust(image.size, b"\0") == whole
    assert file.seek(0, io.SEEK_END) <= image.size


@given(st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=50)), max_size=8))
def test_any_extents_that_fit_come_out_at_their_places(listed: list[tuple[int, bytes]]) -> None:
    expected = bytearray(400)
    taken: set[int] = set()
    extents = []
    for offset, data in listed:
        places = set(range(offset, offset + len(data)))
        if not places & taken:
            taken |= places
            extents.append(Extent(offset, data))
            expected[offset : offset + len(data)] = data
    image = disk_image(400, extents)
    assert b"".join(image.chunks()) == expected
    tar = gzip.decompress(archive(image))
    assert tar[512:912] == expected


def test_a_disk_that_is_full_to_its_end_has_no_hole() -> None:
    image = disk_image(4, [Extent(0, b"full")])
    assert list(image.pieces()) == [b"full"]


def test_extents_that_touch_have_no_hole_between() -> None:
    image = disk_image(6, [Extent(0, b"one"), Extent(3, b"two")])
    assert list(image.pieces()) == [b"one", b"two"]


def test_refuses_extents_that_overlap() -> None:
    with refuses("disk.extents", ConfigError):
        disk_image(100, [Extent(0, b"12345"), Extent(4, b"1")])


def test_refuses_extents_beyond_the_end() -> None:
    with refuses("disk.extents", ConfigError):
        disk_image(4, [Extent(0, b"12345")])


def test_the_archive_holds_the_disk_under_the_name_that_is_imported() -> None:
    image, whole = made()
    with tarfile.open(fileobj=io.BytesIO(archive(image)), mode="r:gz") as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        assert content.read() == whole
    assert (member.name, member.mtime, member.uid, member.gid) == ("disk.raw", 0, 0, 0)


def test_the_archive_fills_whole_records() -> None:
    image, _ = made()
    assert len(gzip.decompress(archive(image))) % 10240 == 0


def test_the_archive_is_the_same_each_time_and_dated_on_request() -> None:
    image, _ = made()
    assert archive(image) == archive(image)
    with tarfile.open(fileobj=io.BytesIO(archive(image, mtime=1_700_000_000)), mode="r:gz") as tar:
        assert tar.getmembers()[0].mtime == 1_700_000_000


def test_holes_cost_little_in_an_archive() -> None:
    assert len(archive(disk_image(1024 * MIB, [Extent(0, b"x")]))) < 2 * MIB


def test_an_archive_of_data_alone_has_no_hole() -> None:
    # no compressor can hold much of it back
    noise = b"".join(sha512(number.to_bytes(4, "big")).digest() for number in range(2 * MIB // 64))
    image = disk_image(2 * MIB, [Extent(0, noise)])
    with tarfile.open(fileobj=io.BytesIO(archive(image)), mode="r:gz") as tar:
        content = tar.extractfile("disk.raw")
        assert content is not None
        assert content.read() == noise


def test_a_range_reads_within_itself() -> None:
    part = FileRange(io.BytesIO(b"0123456789"), 2, 6)
    assert part.read_at(1, 3) == b"345"
    assert part.part(2, 2).read_at(0, 2) == b"45"
    assert part.with_head(b"ab").read_at(0, 4) == b"ab45"
    assert part.with_head(b"ab").read_at(0, 2) == b"ab"
    assert part.with_head(b"ab").part(1, 3).read_at(0, 3) == b"b45"
    assert range_of(part) is part


@pytest.mark.parametrize(("offset", "length"), [(5, 2), (7, 0), (0, 7)])
def test_a_range_does_not_read_beyond_itself(offset: int, length: int) -> None:
    with refuses("file.truncated"):
        FileRange(io.BytesIO(b"0123456789"), 2, 6).read_at(offset, length)


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    with refuses("file.truncated"):
        FileRange(io.BytesIO(b"0123"), 0, 6).read_at(0, 6)

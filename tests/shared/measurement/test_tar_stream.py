"""Tar headers of strangers: what is taken, and what is refused with which code."""

import io
import tarfile
from collections.abc import Iterator

import pytest

from shared.errors import ProtocolError
from shared.measurement.tar_stream import MAX_EXTENSION, TarEntry, read_tar
from tests.shared.measurement.image_making import directory, file, hard_link, layer_tar, special, symlink

KINDS = [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
PLAIN = layer_tar(file("a", b"12345"), kind=tarfile.USTAR_FORMAT)


def entries(raw: bytes, **limits: bool | int) -> list[TarEntry]:
    return list(read_tar(io.BytesIO(raw), code="t", what="tar", **{"max_blocks": 100, **limits}))  # type: ignore[arg-type]  # both are numbers


def refused(raw: bytes, **limits: bool | int) -> str:
    with pytest.raises(ProtocolError) as caught:
        entries(raw, **limits)
    return caught.value.code


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def changed(at: int, data: bytes, raw: bytes = PLAIN) -> bytes:
    header = bytearray(raw)
    header[at : at + len(data)] = data
    return with_checksum(header)


def pax(*records: bytes, kind: bytes = b"x", then: bytes = PLAIN) -> bytes:
    """Return a tar whose first entry has these records, written as they are."""
    content = b"".join(records)
    header = bytearray(PLAIN[:512])
    header[124:136] = b"%011o\0" % len(content)
    header[156:157] = kind
    return with_checksum(header) + content + bytes(-len(content) % 512) + then


def record(text: bytes) -> bytes:
    size = len(text) + 3
    while len(b"%d %b\n" % (size, text)) != size:
        size += 1
    return b"%d %b\n" % (size, text)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_what_builders_write(kind: int) -> None:
    raw = layer_tar(
        directory("d", mode=0o700),
        file("d/f", b"12345", uid=7, gid=8, mode=0o4755),
        symlink("d/s", "../x"),
        hard_link("d/h", "d/f"),
        special("d/p", tarfile.FIFOTYPE),
        kind=kind,
    )
    found = entries(raw)
    assert [(one.name, one.kind, one.link) for one in found] == [
        (b"d/", b"5", b""),
        (b"d/f", b"0", b""),
        (b"d/s", b"2", b"../x"),
        (b"d/h", b"1", b"d/f"),
        (b"d/p", b"6", b""),
    ]
    assert (found[1].uid, found[1].gid, found[1].mode, found[1].size) == (7, 8, 0o4755, 5)
    assert raw[found[1].offset :][:5] == b"12345"


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_200_bytes_is_read_whole(kind: int) -> None:
    name = "x" * 99 + "/" + "y" * 99
    assert entries(layer_tar(file(name), kind=kind))[0].name == name.encode()


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_targets_are_read_whole(kind: int) -> None:
    name, target = "n" * 1000, "t" * 2000
    found = entries(layer_tar(symlink(name, target), kind=kind))[0]
    assert (found.name, found.link) == (name.encode(), target.encode())


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_large_owners_are_read(kind: int) -> None:
    assert entries(layer_tar(file("a", uid=3_000_000_000, gid=9), kind=kind))[0].uid == 3_000_000_000


def test_the_old_type_of_a_regular_file_is_the_new_one() -> None:
    assert entries(changed(156, b"\0"))[0].kind == b"0"


def test_blank_owners_are_zero() -> None:
    assert entries(changed(108, bytes(16)))[0].uid == 0


def test_extended_attributes_are_counted() -> None:
    raw = pax(record(b"SCHILY.xattr.user.a=1"), record(b"LIBARCHIVE.xattr.user.b=2"), record(b"mtime=1.5"))
    assert entries(raw)[0].attributes == 2


def test_a_global_header_with_a_comment_is_passed_over() -> None:
    assert entries(pax(record(b"comment=x"), kind=b"g"))[0].name == b"a"


def test_an_empty_archive_has_no_entries() -> None:
    assert entries(bytes(1024)) == []


def test_the_caller_may_move_the_file() -> None:
    def reading() -> Iterator[bytes]:
        raw = io.BytesIO(layer_tar(file("a", b"1"), file("b", b"2")))
        for one in read_tar(raw, code="t", what="tar", max_blocks=9):
            raw.seek(one.offset)
            yield raw.read(one.size)

    assert list(reading()) == [b"1", b"2"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"short",
        b"not a tar" * 100,
        PLAIN[:512],
        PLAIN[:1024],
        PLAIN[:1536],
        PLAIN + b"x" * 512,
        b"x" + PLAIN[1:],
        bytes(512),
        bytes(512) + PLAIN,
        changed(257, b"other\0"),
        changed(124, b"77777777777\0"),
        changed(124, b"7777777777x\0"),
        changed(124, bytes(12)),
        changed(124, b"-0000000005\0"),
        changed(124, b"\x80" + b"\xff" * 11),
        changed(100, b"abcdefg\0"),
        PLAIN[:148] + b"99999999" + PLAIN[156:],
    ],
)
def test_a_damaged_archive_is_refused(raw: bytes) -> None:
    assert refused(raw) == "t.archive"


@pytest.mark.parametrize(
    "raw",
    [
        pax(b"7 a=bc\n", b"99 x=y\n"),
        pax(b"x=y\n"),
        pax(b"0 x=y\n"),
        pax(b"2 x=y\n"),
        pax(b"7 x=yyyy"),
        pax(record(b"novalue")),
        pax(record(b"size=-1")),
        pax(record(b"uid=0x10")),
        pax(record(b"path=")),
        pax(record(b"path=a\0b")),
        pax(record(b"linkpath=a\0b")),
        pax(record(b"path=a"), record(b"path=b")),
        pax(record(b"hdrcharset=BINARY")),
        pax(record(b"GNU.sparse.major=1")),
        pax(record(b"path=b"), kind=b"g"),
        pax(record(b"uid=1"), then=pax(record(b"gid=1"))),
        pax(record(b"path=b"), then=pax(b"c\0", kind=b"L")),
        pax(b"", kind=b"L"),
        pax(record(b"uid=1"), then=bytes(1024)),
    ],
)
def test_an_extended_header_that_could_mean_two_things_is_refused(raw: bytes) -> None:
    assert refused(raw) == "t.entry"


def test_a_size_in_an_extended_header_counts() -> None:
    assert entries(pax(record(b"size=5"), then=changed(124, b"00000000000\0")))[0].size == 5


def test_a_size_beyond_the_archive_is_refused() -> None:
    assert refused(pax(record(b"size=9999999999999999999"))) == "t.archive"


def test_n03_a_huge_extended_header_is_refused_before_it_is_read() -> None:
    header = bytearray(PLAIN[:512])
    header[124:136] = b"%011o\0" % (MAX_EXTENSION + 1)
    header[156:157] = b"x"
    assert refused(with_checksum(header), max_blocks=MAX_EXTENSION) == "t.entry"


def test_an_extended_header_that_is_cut_is_refused() -> None:
    assert refused(pax(record(b"comment=" + b"x" * 600))[:900]) == "t.archive"


def test_too_many_headers_are_refused() -> None:
    raw = layer_tar(*(file(str(number)) for number in range(5)))
    assert len(entries(raw, max_blocks=5)) == 5
    assert refused(raw, max_blocks=4) == "t.entries"


def test_n03_what_extended_headers_hold_counts_as_headers() -> None:
    raw = pax(record(b"comment=" + b"x" * 600))
    assert [one.blocks for one in entries(raw, max_blocks=4)] == [4]
    assert refused(raw, max_blocks=3) == "t.entries"


@pytest.mark.parametrize(
    "raw", [pax(record(b"path=b")), pax(record(b"size=5")), pax(b"name\0", kind=b"L"), pax(b"l\0", kind=b"K")]
)
def test_an_entry_is_not_renamed_where_the_caller_forbids_it(raw: bytes) -> None:
    assert refused(raw, renames=False) == "t.entry"


def test_the_prefix_field_is_gnu_s_own_in_its_format() -> None:
    raw = layer_tar(file("a"), kind=tarfile.GNU_FORMAT)
    assert entries(changed(345, b"12345670123\0", raw))[0].name == b"a"

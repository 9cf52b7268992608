import io
from struct import pack, pack_into, unpack_from

import pytest

from shared.measurement import fat_reader
from shared.measurement.disk_image import FileRange
from shared.measurement.fat import MIN_VOLUME, FatFile, fat32_volume
from shared.measurement.fat_reader import FatVolume
from tests.shared.measurement.made_disks import Holes
from tests.shared.refusal import refuses

DATA = b"0123456789" * 200
IMAGE = b"".join(
    fat32_volume(
        MIN_VOLUME,
        "LABEL",
        [
            FatFile("FILE", DATA),
            FatFile("a long name.txt", b"long"),
            FatFile("DIR/INNER", b"in"),
            FatFile("E", b""),
        ],
        serial=7,
        timestamp=0,
    ).chunks()
)
# Only the tables and the first clusters are ever changed; what is behind stays a hole.
TABLE = 32 * 512
ROOT = TABLE + 2 * unpack_from("<I", IMAGE, 36)[0] * 512
USED = IMAGE[: ROOT + 16 * 512]
# entries of the root: label, FILE, two parts of the long name, its alias, DIR, E
LABEL, FILE, PART, LONG, DIR = (ROOT + 32 * index for index in (0, 1, 2, 4, 5))
DIRECTORY = ROOT + 6 * 512  # the root, four clusters of FILE, one of the long name


def volume(*changes: tuple[int, bytes]) -> FatVolume:
    data = bytearray(USED)
    for at, new in changes:
        data[at : at + len(new)] = new
    return FatVolume(Holes(len(IMAGE), {0: bytes(data)}))


def link(cluster: int, following: int) -> tuple[int, bytes]:
    return TABLE + 4 * cluster, pack("<I", following)


def entry(name: bytes, *, attribute: int = 0x20, cluster: int = 0, size: int = 0, case: int = 0) -> bytes:
    return pack("<11sBB7xH4xHI", name.ljust(11), attribute, case, cluster >> 16, cluster & 0xFFFF, size)


def test_reads_paths_sizes_and_content() -> None:
    opened = volume()
    assert opened.label == "LABEL"
    assert opened.serial == 7
    assert {path: item.size for path, item in opened.entries.items()} == {
        "FILE": 2000,
        "a long name.txt": 4,
        "DIR": 0,
        "DIR/INNER": 2,
        "E": 0,
    }
    assert opened.read("FILE", 2000) == DATA
    assert opened.read("E", 0) == b""


def test_a_file_in_one_piece_is_a_range() -> None:
    assert volume().file_range("FILE").read_at(0, 2000) == DATA


def test_a_file_in_several_pieces_is_read_in_order() -> None:
    # 3, 4, 9, 6: cluster 9 lies elsewhere
    opened = volume(link(4, 9), link(9, 6), (ROOT + 7 * 512, b"elsewhere"))
    assert opened.read("FILE", 2000)[1024:1033] == b"elsewhere"
    with refuses("fat.fragmented"):
        opened.file_range("FILE")


def test_an_empty_file_is_no_range() -> None:
    with refuses("fat.fragmented"):
        volume().file_range("E")


def test_windows_marks_lower_case_by_bits() -> None:
    opened = volume((FILE, entry(b"NAME    TXT", case=0x18)))
    assert "name.txt" in opened.entries
    assert "NAME.txt" in volume((FILE, entry(b"NAME    TXT", case=0x10))).entries


def test_deleted_entries_are_passed_over() -> None:
    assert "FILE" not in volume((FILE, b"\xe5")).entries


def test_the_directory_may_fill_its_clusters() -> None:
    names = [entry(b"F%07d" % number) for number in range(14)]
    opened = volume((FILE + 32, b"".join(names)))
    assert len(opened.entries) == 15


def test_a_volume_within_a_disk_is_read_alone() -> None:
    outer = FileRange(io.BytesIO(b"before" + IMAGE), 6, len(IMAGE))
    assert FatVolume(outer).read("DIR/INNER", 9) == b"in"


@pytest.mark.parametrize(
    ("at", "raw"),
    [
        (11, b"\0\x10"),
        (13, b"\0"),
        (13, b"\x03"),
        (14, b"\0\0"),
        (16, b"\0"),
        (16, b"\x03"),
        (17, b"\x01"),
        (19, b"\x01"),
        (22, b"\x01"),
        (40, b"\x01"),
        (42, b"\x01"),
        (510, b"\0"),
        (32, b"\0\0\0\0"),
        (32, b"\xff\xff\xff\xff"),
        (36, b"\xff\xff\xff\xff"),
        (36, b"\x01\0\0\0"),
    ],
)
def test_n03_refuses_a_boot_sector_of_another_or_impossible_volume(at: int, raw: bytes) -> None:
    with refuses("fat.boot_sector"):
        volume((at, raw))


def test_refuses_a_volume_that_is_cut() -> None:
    with refuses("fat.boot_sector"):
        FatVolume(Holes(len(IMAGE) - 512, {0: USED}))
    with refuses("file.truncated"):
        FatVolume(io.BytesIO(IMAGE[:511]))


@pytest.mark.parametrize("cluster", [0, 1, 66_600, 0x0FFFFFF7])
def test_n03_refuses_a_chain_that_leaves_the_volume(cluster: int) -> None:
    with refuses("fat.chain"):
        volume(link(4, cluster)).read("FILE", 2000)


@pytest.mark.parametrize(("at", "following"), [(6, 3), (6, 6), (6, 7), (4, 0x0FFFFFFF)])
def test_n03_refuses_a_chain_of_another_length_than_its_file(at: int, following: int) -> None:
    with refuses("fat.chain"):
        volume(link(at, following)).read("FILE", 2000)


def test_n03_refuses_a_chain_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fat_reader, "MAX_CHAIN", 3)
    with refuses("fat.chain"):
        volume().read("FILE", 2000)


def test_refuses_an_empty_file_with_a_cluster() -> None:
    with refuses("fat.chain"):
        volume((FILE, entry(b"FILE", cluster=3))).read("FILE", 9)


def test_the_last_cluster_can_be_read() -> None:
    data = bytearray(USED)
    last = unpack_from("<I", IMAGE, 32)[0] - (ROOT // 512) + 1
    data[FILE : FILE + 32] = entry(b"FILE", cluster=last, size=512)
    pack_into("<I", data, TABLE + 4 * last, 0x0FFFFFFF)
    opened = FatVolume(Holes(len(IMAGE), {0: bytes(data)}))
    assert len(opened.read("FILE", 512)) == 512
    assert opened.file_range("FILE").length == 512


@pytest.mark.parametrize("path", ["MISSING", "DIR", "DIR/"])
def test_refuses_to_read_what_is_no_file(path: str) -> None:
    with refuses("fat.missing"):
        volume().read(path, 9)


def test_refuses_a_file_over_the_callers_limit() -> None:
    with refuses("fat.file_size"):
        volume().read("FILE", 1999)


def test_n03_refuses_directories_that_hold_each_other() -> None:
    inner = DIRECTORY + 64
    with refuses("fat.directory"):
        volume((inner, entry(b"LOOP", attribute=0x10, cluster=8)))


def test_n03_refuses_directories_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fat_reader, "MAX_DIRECTORY_BYTES", 512)
    with refuses("fat.chain"):
        volume()


def test_n03_refuses_a_directory_that_runs_in_a_circle() -> None:
    with refuses("fat.chain"):
        volume(link(2, 2))


def test_refuses_a_directory_with_a_size() -> None:
    with refuses("fat.directory"):
        volume((DIR, entry(b"DIR", attribute=0x10, cluster=8, size=1)))


@pytest.mark.parametrize("at", [FILE, DIRECTORY + 64, LONG])
def test_refuses_a_label_where_none_belongs(at: int) -> None:
    with refuses("fat.directory"):
        volume((at, entry(b"SECOND", attribute=0x08)))


@pytest.mark.parametrize("name", [b"FILE", b"DIR"])
def test_refuses_a_name_that_occurs_twice(name: bytes) -> None:
    with refuses("fat.duplicate"):
        volume((LONG + 64, entry(name, case=0x08)))


@pytest.mark.parametrize(
    ("at", "raw"),
    [
        (FILE, entry(b"A/B")),
        (FILE, entry(b"A\nB")),
        (FILE, entry(b"\xc4B")),
        (FILE, entry(b".", attribute=0x10)),
        (FILE, entry(b"..", attribute=0x10)),
        (DIRECTORY, entry(b".")),
        (FILE, entry(b"")),
        (LABEL, entry(b"L\x01", attribute=8)),
    ],
)
def test_n06_refuses_names_that_lead_elsewhere(at: int, raw: bytes) -> None:
    with refuses("fat.name"):
        volume((at, raw))


@pytest.mark.parametrize(
    ("at", "raw"),
    [
        (PART, b"\x43"),
        (PART, b"\x02"),
        (PART + 32, b"\x02"),
        (PART + 13, b"\0"),
        (PART + 12, b"\x01"),
        (PART + 26, b"\x01"),
        (PART + 7, b"x"),
        (PART + 1, b"\0\0\xff\xff\xff\xff"),
        (PART + 33, b"\0\xd8\x20\0"),
        (PART + 33, b"/"),
        (PART + 33, b"\x07"),
        (PART + 33, b"\xe4"),
        (LONG, b"\xe5"),
        (LONG, b"B"),
        (LONG, b"\0"),
    ],
)
def test_n06_refuses_long_names_that_are_not_whole(at: int, raw: bytes) -> None:
    with refuses("fat.name"):
        volume((at, raw))


def test_refuses_a_long_name_of_too_many_parts() -> None:
    alias = b"LONG".ljust(11)
    parts = long_parts("n" * 260, alias)
    content = b"".join(parts) + entry(alias)
    with refuses("fat.name"):
        volume((FILE, content[: 512 - 32]), (FILE, content))


def long_parts(name: str, alias: bytes) -> list[bytes]:
    checksum = 0
    for byte in alias:
        checksum = (((checksum & 1) << 7) + (checksum >> 1) + byte) & 0xFF
    units = name.encode("utf-16-le")
    count = len(name) // 13
    parts = []
    for number in range(count, 0, -1):
        part = units[26 * (number - 1) : 26 * number]
        order = number | (0x40 if number == count else 0)
        parts.append(
            bytes([order]) + part[:10] + bytes([15, 0, checksum]) + part[10:22] + bytes(2) + part[22:]
        )
    return parts

import io
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from shared.measurement import cpio
from shared.measurement.cpio import MAX_NAME, MAX_PATH, CpioEntry, CpioWriter, check_path, read_cpio
from tests.shared.measurement.made_eif import APP, BOOT, archive, listed, raw_archive, raw_entry
from tests.shared.refusal import refuses

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777
LONG_PATH = b"/".join([b"p" * 200] * 21)[:MAX_PATH]


class Trickle(io.BytesIO):
    """A file that gives a few bytes at a time, as a pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 7))


def test_reads_and_writes_the_archives_of_an_independent_writer() -> None:
    for raw in (BOOT, APP):
        assert archive(*listed(raw)) == raw


def test_reads_what_it_wrote() -> None:
    entries = [
        (CpioEntry(b"d", stat.S_IFDIR | 0o1777, 1, 2, 3), b""),
        (CpioEntry(b"d/\xff\xfe", stat.S_IFREG | 0o4755, 4, 5, 6, size=5), b"hello"),
        (CpioEntry(b"d/link", LINK, size=2), b".."),
        (CpioEntry(b"null", stat.S_IFCHR | 0o666, rdev=(1, 3)), b""),
        (CpioEntry(b"pipe", stat.S_IFIFO | 0o600), b""),
        (CpioEntry(b"sda", stat.S_IFBLK | 0o600, 0xFFFFFFFF, 0, 0xFFFFFFFF, (8, 0)), b""),
    ]
    assert listed(archive(*entries)) == entries


def test_an_archive_ends_on_a_multiple_of_512() -> None:
    assert len(archive()) == 512


def test_gnu_cpio_unpacks_what_it_wrote(tmp_path: Path) -> None:
    program = shutil.which("cpio")
    if program is None:
        pytest.skip("cpio is not installed")
    done = subprocess.run(
        [program, "-id", "--quiet"], input=APP, cwd=tmp_path, check=True, capture_output=True
    )
    assert done.stderr == b""
    assert (tmp_path / "rootfs/bin/hello").read_bytes() == b"hi\n"
    assert (tmp_path / "rootfs/bin/sh").readlink() == Path("hello")


def test_reads_from_a_file_that_gives_little_at_a_time() -> None:
    assert [(entry, b"".join(data)) for entry, data in read_cpio(Trickle(APP))] == listed(APP)


def test_passes_over_data_that_was_not_taken() -> None:
    paths = [entry.path for entry, _ in read_cpio(io.BytesIO(APP))]
    assert paths[-2:] == [b"cmd", b"env"]


def test_reads_upper_case_digits_as_gnu_cpio_writes_them() -> None:
    raw = raw_archive(raw_entry(b"f", mode=FILE, mtime=0xABCDEF))
    raw = raw.replace(b"00abcdef", b"00ABCDEF")
    assert listed(raw)[0][0].mtime == 0xABCDEF


def test_a_directorys_slash_is_dropped_and_a_directory_may_occur_twice() -> None:
    raw = raw_archive(raw_entry(b"d/", mode=DIRECTORY), raw_entry(b"d", mode=DIRECTORY, nlink=2))
    assert [entry.path for entry, _ in listed(raw)] == [b"d", b"d"]


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/etc",
        b"./a",
        b"a/./b",
        b"a//b",
        b"a/",
        b".",
        b"..",
        b"../a",
        b"a/../b",
        b"a\0b",
        b"TRAILER!!!",
        LONG_PATH + b"/p",
        b"p" * (MAX_NAME + 1),
    ],
)
def test_n06_a_path_that_leads_elsewhere_is_neither_written_nor_read(path: bytes) -> None:
    with refuses("cpio.path"):
        CpioWriter(bytearray().extend).add(CpioEntry(path, FILE))
    if path != b"TRAILER!!!":
        with refuses("cpio.path"):
            listed(raw_archive(raw_entry(path)))


def test_the_longest_path_and_name_are_taken() -> None:
    check_path(LONG_PATH)
    check_path(b"p" * MAX_NAME)


def test_n06_a_path_without_its_nul_is_refused() -> None:
    with refuses("cpio.path"):
        listed(raw_archive(raw_entry(b"file", end=b"!")))


@pytest.mark.parametrize("size", [0, 1, MAX_PATH + 2, 0xFFFFFFFF])
def test_n03_a_name_size_out_of_bounds_is_refused_before_the_name_is_read(size: int) -> None:
    with refuses("cpio.path"):
        listed(raw_entry(b"file", namesize=size))


@pytest.mark.parametrize("size", [3, 1 << 20, 0xFFFFFFFF])
def test_n03_a_size_that_the_archive_cannot_hold_is_refused(size: int) -> None:
    with refuses("cpio.truncated"):
        listed(raw_entry(b"file", b"12", filesize=size))


@pytest.mark.parametrize("size", range(0, 480, 13))
def test_n03_a_cut_archive_is_refused(size: int) -> None:
    with refuses("cpio.truncated"):
        listed(BOOT[:size])


@pytest.mark.parametrize("magic", [b"070702", b"070707", b"\x1f\x8b\x08\0\0\0"])
def test_other_archives_are_refused(magic: bytes) -> None:
    with refuses("cpio.magic"):
        listed(raw_archive(raw_entry(b"file", magic=magic)))


def test_digits_that_are_none_are_refused() -> None:
    with refuses("cpio.header"):
        listed(raw_entry(b"file").replace(b"000001a4", b"0000 1a4", 1).replace(b"000081a4", b"0x0081a4", 1))


def test_a_checksum_is_refused() -> None:
    with refuses("cpio.header"):
        listed(raw_archive(raw_entry(b"file", check=1)))


@pytest.mark.parametrize("mode", [0, 0o644, stat.S_IFSOCK | 0o644, 0o200000 | FILE, 0o170000])
def test_an_unknown_kind_is_neither_written_nor_read(mode: int) -> None:
    with refuses("cpio.mode"):
        CpioWriter(bytearray().extend).add(CpioEntry(b"file", mode))
    with refuses("cpio.mode"):
        listed(raw_archive(raw_entry(b"file", mode=mode)))


@pytest.mark.parametrize("mode", [DIRECTORY, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_data_of_what_has_none_is_neither_written_nor_read(mode: int) -> None:
    with refuses("cpio.size"):
        CpioWriter(bytearray().extend).add(CpioEntry(b"file", mode, size=1), [b"1"])
    with refuses("cpio.size"):
        listed(raw_archive(raw_entry(b"file", b"1", mode=mode)))


@pytest.mark.parametrize("size", [0, MAX_PATH + 1])
def test_a_symlink_that_the_kernel_skips_is_refused(size: int) -> None:
    with refuses("cpio.size"):
        listed(raw_archive(raw_entry(b"link", b"t" * size, mode=LINK)))


def test_data_of_the_trailer_is_refused() -> None:
    with refuses("cpio.size"):
        listed(raw_entry(b"TRAILER!!!", b"data", mode=0))


def test_files_that_the_kernel_could_join_are_refused() -> None:
    with refuses("cpio.links"):
        listed(raw_archive(raw_entry(b"file", nlink=2)))


@pytest.mark.parametrize("modes", [(FILE, FILE), (DIRECTORY, FILE), (FILE, DIRECTORY), (LINK, LINK)])
def test_a_path_that_occurs_twice_is_refused(modes: tuple[int, int]) -> None:
    data = {FILE: b"data", DIRECTORY: b"", LINK: b"data"}
    with refuses("cpio.duplicate"):
        listed(raw_archive(*(raw_entry(b"path", data[mode], mode=mode) for mode in modes)))


def test_an_entry_before_its_parent_is_refused() -> None:
    with refuses("cpio.parent"):
        listed(raw_archive(raw_entry(b"d/f"), raw_entry(b"d", mode=DIRECTORY)))


def test_n06_an_entry_through_a_symlink_is_refused() -> None:
    with refuses("cpio.parent"):
        listed(raw_archive(raw_entry(b"d", b"/etc", mode=LINK), raw_entry(b"d/f")))


@pytest.mark.parametrize(
    "raw", [raw_entry(b"name", padding=b"xxx"), raw_entry(b"file1", b"1", padding=b"\0x")]
)
def test_bytes_in_the_padding_are_refused(raw: bytes) -> None:
    with refuses("cpio.padding"):
        listed(raw_archive(raw))


def test_bytes_after_the_trailer_are_refused() -> None:
    with refuses("cpio.trailing"):
        listed(BOOT + BOOT)
    assert listed(BOOT + bytes(512)) == listed(BOOT)


def test_n03_more_entries_than_a_reader_remembers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpio, "MAX_ENTRIES", 3)
    assert len(listed(BOOT)) == 3
    with refuses("cpio.entries"):
        listed(APP)


def test_n03_more_bytes_of_paths_than_a_reader_remembers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpio, "MAX_PATHS_SIZE", 12)
    with refuses("cpio.entries"):
        listed(BOOT)


@pytest.mark.parametrize("data", [[b"123"], [b"12", b"345"], [], [b"12345", b"6"]])
def test_data_of_another_size_than_its_entry_is_not_written(data: list[bytes]) -> None:
    with refuses("cpio.data"):
        CpioWriter(bytearray().extend).add(CpioEntry(b"file", FILE, size=4), data)


@pytest.mark.parametrize(
    "change", [{"uid": -1}, {"gid": 1 << 32}, {"mtime": -1}, {"size": 1 << 32}, {"rdev": (0, 1 << 32)}]
)
def test_a_number_without_eight_digits_is_not_written(change: dict[str, int]) -> None:
    with refuses("cpio.number"):
        CpioWriter(bytearray().extend).add(CpioEntry(**{"path": b"file", "mode": FILE, **change}))

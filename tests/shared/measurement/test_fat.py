import io
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from struct import unpack_from

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared.errors import ConfigError
from shared.measurement import fat
from shared.measurement.disk_image import MIB, FileRange
from shared.measurement.fat import FIRST_TIME, MAX_VOLUME, MIN_VOLUME, FatFile, fat32_volume
from shared.measurement.fat_reader import FatVolume
from tests.shared.refusal import refuses

NOON = 1_700_000_001  # 2023-11-14T22:13:21Z
FILES = [
    FatFile("plain.txt", b"short and lower\n"),
    FatFile("README.TXT", b"needs no long name"),
    FatFile(".hidden-config.json", b"{}" * 5000),
    FatFile("empty", b""),
    FatFile("EFI/BOOT/BOOTX64.EFI", bytes(range(256)) * 40),
    FatFile("EFI/BOOT/a name with spaces, and 13+13.x", b"x"),
    FatFile("EFI/two.d/deep.er/file", b"deep"),
    *(FatFile(f"many/a-file-with-a-long-name-{number:04}", b"%d" % number) for number in range(60)),
]


def written(files: list[FatFile] = FILES, size: int = MIN_VOLUME, label: str = "TESTDISK") -> bytes:
    return b"".join(fat32_volume(size, label, files, serial=0x1234ABCD, timestamp=NOON).chunks())


@pytest.fixture(scope="module")
def volume_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fat") / "volume.img"
    with path.open("wb") as file:
        fat32_volume(MIN_VOLUME, "TESTDISK", FILES, serial=0x1234ABCD, timestamp=NOON).write_to(file)
    return path


def tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def content(file: FatFile) -> bytes:
    assert isinstance(file.data, bytes)
    return file.data


def test_the_reader_finds_every_file() -> None:
    volume = FatVolume(io.BytesIO(written()))
    assert (volume.label, volume.serial) == ("TESTDISK", 0x1234ABCD)
    assert {path for path, entry in volume.entries.items() if not entry.is_directory} == {
        file.path for file in FILES
    }
    for file in FILES:
        assert volume.read(file.path, 1 << 20) == content(file)


def test_two_volumes_of_the_same_files_are_equal() -> None:
    assert written() == written()


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.text("ABCxyz019.-_ ~", min_size=1, max_size=40)
        .map(lambda name: name.strip(" ").rstrip(". "))
        .filter(lambda name: bool(name.strip("."))),
        st.binary(max_size=2000),
        max_size=12,
    )
)
def test_any_names_and_contents_come_back(files: dict[str, bytes]) -> None:
    by_fold = {name.upper(): (name, data) for name, data in files.items()}
    listed = [FatFile(name, data) for name, data in by_fold.values()]
    volume = FatVolume(io.BytesIO(written(listed)))
    assert {path: volume.read(path, 4096) for path in volume.entries} == dict(by_fold.values())


def test_content_may_come_from_a_file() -> None:
    data = b"content" * 100_000
    outer = io.BytesIO(b"xx" + data)
    volume = FatVolume(io.BytesIO(written([FatFile("big", FileRange(outer, 2, len(data)))])))
    assert volume.read("big", 1 << 20) == data


def test_fsck_finds_nothing_to_mend(volume_file: Path) -> None:
    result = subprocess.run(
        [tool("fsck.vfat"), "-n", str(volume_file)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    # one line of its version, one of its count: no complaint between
    assert len(result.stdout.splitlines()) == 2
    assert not result.stderr


def test_mtools_reads_the_label_and_the_names(volume_file: Path) -> None:
    listing = subprocess.run(
        [tool("mdir"), "-a", "-b", "-s", "-i", str(volume_file), "::"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = {line.removeprefix("::/") for line in listing.splitlines()}
    assert {file.path for file in FILES} <= paths
    info = subprocess.run(
        [tool("minfo"), "-i", str(volume_file), "::"], check=True, capture_output=True, text=True
    ).stdout
    assert 'disk label="TESTDISK   "' in info
    assert 'disk type="FAT32   "' in info


@pytest.mark.parametrize("file", FILES[:8], ids=lambda file: file.path)
def test_mtools_copies_each_file(file: FatFile, volume_file: Path) -> None:
    copied = subprocess.run(
        [tool("mcopy"), "-i", str(volume_file), f"::{file.path}", "-"], check=True, capture_output=True
    )
    assert copied.stdout == content(file)


def test_mtools_shows_the_time_to_two_seconds(volume_file: Path) -> None:
    listing = subprocess.run(
        [tool("mdir"), "-i", str(volume_file), "::README.TXT"], check=True, capture_output=True, text=True
    ).stdout
    assert "2023-11-14  22:13" in listing


def test_the_reader_reads_what_dosfstools_and_mtools_write(tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    path.touch()
    os.truncate(path, MIN_VOLUME)
    subprocess.run(
        [tool("mkfs.vfat"), "-F", "32", "-n", "UPSTREAM", "--invariant", str(path)],
        check=True,
        capture_output=True,
    )
    for directory in ("EFI", "EFI/BOOT"):
        subprocess.run([tool("mmd"), "-i", str(path), f"::{directory}"], check=True)
    files = [*FILES[:5], FatFile("a rather long name, Of Mixed Case.json", b"mixed")]
    for file in files:
        subprocess.run(
            [tool("mcopy"), "-i", str(path), "-", f"::{file.path}"], check=True, input=content(file)
        )
    with path.open("rb") as opened:
        volume = FatVolume(opened)
        assert volume.label == "UPSTREAM"
        assert {name for name, entry in volume.entries.items() if not entry.is_directory} == {
            file.path for file in files
        }
        for file in files:
            assert volume.read(file.path, 1 << 20) == content(file)
        assert volume.file_range("EFI/BOOT/BOOTX64.EFI").length == 256 * 40


def test_linux_mounts_it(volume_file: Path, tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    mounted = subprocess.run(
        [tool("mount"), "-t", "vfat", "-o", "loop,ro", str(volume_file), str(point)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"this machine mounts no vfat: {mounted.stderr.strip().splitlines()[0]}")
    try:
        for file in FILES:
            assert (point / file.path).read_bytes() == content(file)
    finally:
        subprocess.run([tool("umount"), str(point)], check=True)


def test_the_volume_has_as_many_clusters_as_fat32_must_have() -> None:
    data = written([])
    (sectors, fat_sectors) = unpack_from("<II", data, 32)
    assert (sectors - 32 - 2 * fat_sectors) // data[13] >= 65525


@pytest.mark.parametrize(("size", "cluster"), [(260, 1), (261, 8), (8193, 16), (16385, 32)])
def test_clusters_grow_with_the_volume(size: int, cluster: int) -> None:
    image = fat32_volume(size * MIB, "X", [], serial=0, timestamp=0)
    boot = image.extents[0].data
    assert isinstance(boot, bytes)
    assert boot[13] == cluster
    (sectors, fat_sectors) = unpack_from("<II", boot, 32)
    clusters = (sectors - 32 - 2 * fat_sectors) // cluster
    assert 65525 <= clusters <= fat_sectors * 128 - 2


def test_boot_and_info_sectors_have_a_backup() -> None:
    data = written()
    assert data[:1024] == data[6 * 512 : 8 * 512]
    assert data[510:512] == b"\x55\xaa"


def test_times_before_1980_become_its_first() -> None:
    before = fat32_volume(MIN_VOLUME, "X", FILES[:1], serial=0, timestamp=0)
    assert before == fat32_volume(MIN_VOLUME, "X", FILES[:1], serial=0, timestamp=FIRST_TIME)
    assert datetime.fromtimestamp(FIRST_TIME, tz=UTC).isoformat() == "1980-01-01T00:00:00+00:00"


def test_aliases_are_unique_where_names_begin_alike() -> None:
    names = [*(f"same-start-{number}" for number in range(12)), "SAME-S~1", "SAME-S~3"]
    data = written([FatFile(name, name.encode()) for name in names])
    volume = FatVolume(io.BytesIO(data))
    assert list(volume.entries) == names
    root = (32 + 2 * unpack_from("<I", data, 36)[0]) * 512
    entries = [data[at : at + 32] for at in range(root, root + 64 * 32, 32)]
    aliases = [entry[:11] for entry in entries if entry[0] and entry[11] == 0x20]
    assert len(set(aliases)) == len(names)


def test_a_name_that_fills_its_parts_has_no_terminator() -> None:
    name = "exactly-13-ch"
    assert len(name) == 13
    assert list(FatVolume(io.BytesIO(written([FatFile(name, b"x")]))).entries) == [name]


def test_the_longest_name_comes_back() -> None:
    name = "n" * 255
    assert list(FatVolume(io.BytesIO(written([FatFile(name, b"x")]))).entries) == [name]


def test_a_full_volume_is_read_back() -> None:
    free = unpack_from("<I", written([]), 512 + 488)[0]
    data = b"\x55" * (free * 512)
    image = written([FatFile("ALL", data)])
    assert unpack_from("<I", image, 512 + 488)[0] == 0
    assert FatVolume(io.BytesIO(image)).read("ALL", len(data)) == data


def test_refuses_a_file_that_does_not_fit() -> None:
    free = unpack_from("<I", written([]), 512 + 488)[0]
    with refuses("fat.full", ConfigError):
        written([FatFile("ALL", bytes(free * 512 + 1))])


@pytest.mark.parametrize("size", [0, MIN_VOLUME - 512, MIN_VOLUME + 1, MAX_VOLUME + 512])
def test_refuses_a_volume_of_no_size(size: int) -> None:
    with refuses("fat.size", ConfigError):
        fat32_volume(size, "X", [], serial=0, timestamp=0)


@pytest.mark.parametrize("label", ["", "TWELVE CHARS", "A.B", " A", "LÄBEL", "²"])
def test_refuses_a_label_that_tools_would_show_otherwise(label: str) -> None:
    with refuses("fat.label", ConfigError):
        written([], label=label)


@pytest.mark.parametrize("serial", [-1, 1 << 32])
def test_refuses_a_serial_of_more_than_32_bits(serial: int) -> None:
    with refuses("fat.serial", ConfigError):
        fat32_volume(MIN_VOLUME, "X", [], serial=serial, timestamp=0)


def test_refuses_a_time_that_fat_cannot_hold() -> None:
    fat32_volume(MIN_VOLUME, "X", [], serial=0, timestamp=4_354_819_199)
    with refuses("fat.timestamp", ConfigError):
        fat32_volume(MIN_VOLUME, "X", [], serial=0, timestamp=4_354_819_200)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/absolute",
        "dir//file",
        "dir/",
        ".",
        "..",
        "../up",
        "name.",
        "name ",
        " name",
        "a:b",
        "a\\b",
        "nul\0",
        "line\n",
        "ümlaut",
        "n" * 256,
    ],
)
def test_n06_refuses_names_that_tools_read_otherwise(path: str) -> None:
    with refuses("fat.name", ConfigError):
        written([FatFile(path, b"")])


@pytest.mark.parametrize(
    "paths", [("a", "A"), ("a", "a"), ("dir/x", "DIR"), ("a", "a/b"), ("Dir/x", "dIR/y")]
)
def test_refuses_names_that_collide(paths: tuple[str, ...]) -> None:
    with refuses("fat.duplicate", ConfigError):
        written([FatFile(path, b"") for path in paths])


def test_refuses_too_many_files() -> None:
    with refuses("fat.files", ConfigError):
        written([FatFile(f"f{number}", b"") for number in range(513)])


def test_refuses_a_file_of_4_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fat, "_MAX_FILE", 3)
    with refuses("fat.file_size", ConfigError):
        written([FatFile("f", b"1234")])

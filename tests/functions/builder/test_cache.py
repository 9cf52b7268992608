"""The cache: whole entries or none, bounded, shared by processes, damaged ones removed."""

import fcntl
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from functions.builder.cache import BuildCache
from shared.errors import ConfigError, StorageError

KEY = bytes(31) + b"\x01"
BLOB = b"kernel" * 1000
DIGEST = hashlib.sha256(BLOB).digest()


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache")


def keep(cache: BuildCache, key: bytes = KEY, content: bytes = b"image") -> None:
    with cache.workspace() as work:
        (work / "eif").write_bytes(content)
        cache.keep_build(key, work / "eif", b'{"a":1}')


def test_gives_back_what_was_kept(cache: BuildCache, tmp_path: Path) -> None:
    keep(cache)
    assert cache.fetch_build(KEY, tmp_path / "out") == b'{"a":1}'
    assert (tmp_path / "out").read_bytes() == b"image"


def test_has_nothing_at_first(cache: BuildCache, tmp_path: Path) -> None:
    assert cache.fetch_build(KEY, tmp_path / "out") is None
    assert cache.blob(DIGEST) is None


def test_an_output_is_replaced(cache: BuildCache, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old and longer")
    keep(cache)
    cache.fetch_build(KEY, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"image"


@pytest.mark.parametrize("content", [b"IMAGE", b"longer than it", b""])
def test_an_output_that_was_changed_is_written_again(
    cache: BuildCache, tmp_path: Path, content: bytes
) -> None:
    keep(cache)
    (tmp_path / "out").write_bytes(content)
    cache.fetch_build(KEY, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"image"


def test_an_output_that_is_right_is_not_written(cache: BuildCache, tmp_path: Path) -> None:
    keep(cache)
    (tmp_path / "out").write_bytes(b"image")
    before = (tmp_path / "out").stat()
    assert cache.fetch_build(KEY, tmp_path / "out") is not None
    after = (tmp_path / "out").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("name", ["image.eif", "build.json"])
def test_a_damaged_build_is_removed(cache: BuildCache, tmp_path: Path, name: str) -> None:
    keep(cache)
    place = tmp_path / "cache" / "builds" / KEY.hex()
    (place / name).write_bytes(b"damaged")
    assert cache.fetch_build(KEY, tmp_path / "out") is None
    assert not place.exists()
    assert not (tmp_path / "out").exists()


def test_a_huge_record_is_not_parsed(cache: BuildCache, tmp_path: Path) -> None:
    keep(cache)
    (tmp_path / "cache" / "builds" / KEY.hex() / "build.json").write_bytes(b" " * (1 << 21))
    assert cache.fetch_build(KEY, tmp_path / "out") is None


def test_the_first_of_two_equal_builds_stays(cache: BuildCache, tmp_path: Path) -> None:
    keep(cache)
    keep(cache)
    assert cache.fetch_build(KEY, tmp_path / "out") == b'{"a":1}'


def test_keeps_blobs_and_removes_damaged_ones(cache: BuildCache, tmp_path: Path) -> None:
    cache.keep_blob(DIGEST, BLOB)
    assert cache.blob(DIGEST) == BLOB
    (tmp_path / "cache" / "blobs" / DIGEST.hex() / "blob").write_bytes(b"x")
    assert cache.blob(DIGEST) is None
    cache.keep_blob(DIGEST, BLOB)
    assert cache.blob(DIGEST) == BLOB


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path / "cache", max_bytes=250)
    keys = [bytes([number]) * 32 for number in range(3)]
    for number, key in enumerate(keys[:2]):
        keep(cache, key, b"x" * 80)
        os.utime(tmp_path / "cache" / "builds" / key.hex(), (number, number))
    cache.fetch_build(keys[0], tmp_path / "out")  # now the other one is the oldest
    keep(cache, keys[2], b"x" * 80)
    kept = [cache.fetch_build(key, tmp_path / "out") is not None for key in keys]
    assert kept == [True, False, True]


def test_what_is_larger_than_the_cache_stays_until_the_next(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path / "cache", max_bytes=10)
    keep(cache, content=b"x" * 100)
    assert cache.fetch_build(KEY, tmp_path / "out") is not None
    cache.keep_blob(DIGEST, BLOB)
    assert cache.fetch_build(KEY, tmp_path / "out") is None


def test_many_threads_share_a_cache(tmp_path: Path) -> None:
    def use(number: int) -> bytes | None:
        cache = BuildCache(tmp_path / "cache", max_bytes=400)
        key = bytes([number % 4]) * 32
        keep(cache, key, bytes([number % 4]) * 100)
        output = tmp_path / f"out-{number}"
        found = cache.fetch_build(key, output)
        assert found is None or output.read_bytes() == bytes([number % 4]) * 100
        return found

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(use, range(64)))
    assert any(result is not None for result in results)


def test_a_workspace_is_removed_after_use(cache: BuildCache, tmp_path: Path) -> None:
    with cache.workspace() as work:
        (work / "file").write_bytes(b"x")
    assert not work.exists()
    assert [path.name for path in (tmp_path / "cache" / "work").iterdir()] == [".lock"]


def test_a_killed_process_s_workspace_is_removed_and_a_living_one_s_stays(
    cache: BuildCache, tmp_path: Path
) -> None:
    abandoned = tmp_path / "cache" / "work" / "abandoned"
    living = tmp_path / "cache" / "work" / "living"
    for place in (abandoned, living):
        place.mkdir()
        (place / "layer").write_bytes(b"x")
    with (living / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with cache.workspace():
            assert living.exists()
            assert not abandoned.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(ConfigError) as caught:
        BuildCache(tmp_path / "cache")
    assert caught.value.code == "build.cache.owner"


def test_a_cache_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        BuildCache(tmp_path / "file" / "cache")
    assert caught.value.code == "build.cache"


def test_a_cache_that_was_deleted_is_a_storage_error(cache: BuildCache, tmp_path: Path) -> None:
    with cache.workspace() as work:
        (work / "eif").write_bytes(b"x")
        (tmp_path / "cache" / "builds").rmdir()
        with pytest.raises(StorageError) as caught:
            cache.keep_build(KEY, work / "eif", b"{}")
    assert caught.value.code == "build.cache"


def test_a_record_is_read_without_its_image(cache: BuildCache, tmp_path: Path) -> None:
    assert cache.recorded(KEY) is None
    keep(cache)
    place = tmp_path / "cache" / "builds" / KEY.hex()
    os.utime(place, (1, 1))
    assert cache.recorded(KEY) == b'{"a":1}'
    assert place.stat().st_mtime > 1  # it counts as used


@pytest.mark.parametrize("name", ["image.eif", "build.json"])
def test_a_record_without_image_or_of_no_form_is_removed(
    cache: BuildCache, tmp_path: Path, name: str
) -> None:
    keep(cache)
    place = tmp_path / "cache" / "builds" / KEY.hex()
    (place / "image.eif").unlink()
    (place / name).write_bytes(b"damaged") if name == "build.json" else None
    assert cache.recorded(KEY) is None
    assert not place.exists()

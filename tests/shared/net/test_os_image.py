"""OS images: bounded download, safe unpacking, a cache that nobody sees half made."""

import contextlib
import gzip
import hashlib
import io
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.strategies as st
import pytest

from enclave.simulator.pccs import CollateralServer
from shared.errors import ConfigError, DstackError, ProtocolError, StorageError, UnavailableError
from shared.net import image_archive, os_image
from shared.net.image_archive import unpack
from shared.net.os_image import OsImage, OsImageStore
from tests.fuzz.budget import fuzz, mutated
from tests.shared.net.test_fetch import drip, read_request

RawServer = Callable[[Callable[[socket.socket], None]], int]
METADATA = b'{"version":"0.5.4","is_dev":true,"kernel":"bzImage"}'
FILES = {"metadata.json": METADATA, "bzImage": b"kernel" * 500, "ovmf.fd": bytes(5000)}


def sums_of(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def archive(files: dict[str, bytes], *more: tarfile.TarInfo, kind: int = tarfile.GNU_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", format=kind) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in more:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return made.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


SUMS = sums_of(FILES)
HASH = hashlib.sha256(SUMS).digest()
IMAGE = archive({"sha256sum.txt": SUMS, **FILES})


def path_of(image_hash: bytes = HASH) -> str:
    return f"/os-images/mr_{image_hash.hex()}.tar.gz"


@pytest.fixture
def server() -> Iterator[CollateralServer]:
    with CollateralServer(files={path_of(): IMAGE}) as running:
        yield running


def store(server: CollateralServer, cache: Path, timeout: float = 60) -> OsImageStore:
    return OsImageStore(
        cache, url_template=f"{server.url}/os-images/mr_{{OS_IMAGE_HASH}}.tar.gz", timeout=timeout
    )


def served(server: CollateralServer, cache: Path, body: bytes, image_hash: bytes = HASH) -> OsImage:
    server.files[path_of(image_hash)] = body
    return store(server, cache).get(image_hash)


def refused(server: CollateralServer, cache: Path, body: bytes, image_hash: bytes = HASH) -> str:
    """Return the code of the refusal, after which nothing is left behind."""
    with pytest.raises(DstackError) as caught:
        served(server, cache, body, image_hash)
    assert [path.name for path in (cache / "images").iterdir()] == ["tmp"]
    assert list((cache / "images" / "tmp").iterdir()) == []
    return caught.value.code


def test_downloads_checks_and_keeps_an_image(server: CollateralServer, tmp_path: Path) -> None:
    image = store(server, tmp_path).get(HASH)
    assert image == OsImage(tmp_path / "images" / HASH.hex(), is_dev=True, version="0.5.4")
    assert {path.name: path.read_bytes() for path in image.directory.iterdir()} == {
        "sha256sum.txt": SUMS,
        **FILES,
    }
    assert list((tmp_path / "images" / "tmp").iterdir()) == []


def test_what_is_kept_is_not_downloaded_again(server: CollateralServer, tmp_path: Path) -> None:
    first = store(server, tmp_path).get(HASH)
    assert store(server, tmp_path).get(HASH) == first
    assert len(server.requests) == 1


def test_threads_share_one_download(server: CollateralServer, tmp_path: Path) -> None:
    shared = store(server, tmp_path)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda _: shared.get(HASH), range(16)))
    assert set(images) == {images[0]}
    assert len(server.requests) == 1


def test_processes_that_download_at_once_end_with_one_image(server: CollateralServer, tmp_path: Path) -> None:
    """Stores share nothing but the directory, as processes do."""
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: store(server, tmp_path).get(HASH), range(4)))
    assert set(images) == {images[0]}
    assert (images[0].directory / "metadata.json").read_bytes() == METADATA
    assert list((tmp_path / "images" / "tmp").iterdir()) == []


def test_an_image_that_another_process_kept_meanwhile_stays(
    server: CollateralServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "images" / HASH.hex()
    check = os_image._check_files

    def and_meanwhile(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        place.mkdir()
        for name, data in {"sha256sum.txt": SUMS, **FILES}.items():
            (place / name).write_bytes(data)
        (place / "theirs").touch()

    monkeypatch.setattr(os_image, "_check_files", and_meanwhile)
    assert store(server, tmp_path).get(HASH).directory == place
    assert (place / "theirs").exists()


@pytest.mark.parametrize("damaged", ["sha256sum.txt", "metadata.json"])
def test_a_kept_image_that_was_altered_is_replaced(
    server: CollateralServer, tmp_path: Path, damaged: str
) -> None:
    image = store(server, tmp_path).get(HASH)
    (image.directory / damaged).write_bytes(b'{"is_dev":false}')
    assert store(server, tmp_path).get(HASH) == image
    assert (image.directory / "metadata.json").read_bytes() == METADATA


def test_a_directory_without_metadata_is_replaced(server: CollateralServer, tmp_path: Path) -> None:
    place = tmp_path / "images" / HASH.hex()
    place.mkdir(parents=True)
    (place / "half").touch()
    assert store(server, tmp_path).get(HASH).directory == place
    assert not (place / "half").exists()


def test_a_directory_that_vanishes_meanwhile_is_no_failure(server: CollateralServer, tmp_path: Path) -> None:
    store(server, tmp_path)._discard(tmp_path / "images" / "absent")


@pytest.mark.parametrize("metadata", [b"{}", b'{"is_dev":false,"version":null}'])
def test_an_image_need_not_say_what_it_is(server: CollateralServer, tmp_path: Path, metadata: bytes) -> None:
    files = {"metadata.json": metadata}
    sums = sums_of(files)
    name = hashlib.sha256(sums).digest()
    image = served(server, tmp_path, archive({"sha256sum.txt": sums, **files}), name)
    assert (image.is_dev, image.version) == (False, None)


@pytest.mark.parametrize(
    "body",
    [
        archive({"./sha256sum.txt": SUMS, **{f"./{name}": data for name, data in FILES.items()}}),
        archive({"sha256sum.txt": SUMS, **FILES}, entry("./", tarfile.DIRTYPE)),
        archive({"sha256sum.txt": SUMS, **FILES}, entry("more", tarfile.DIRTYPE), entry("more/deep", size=9)),
        archive({"sha256sum.txt": SUMS, **FILES}, entry("unlisted", size=600)),
        archive({"sha256sum.txt": SUMS, **FILES}, kind=tarfile.USTAR_FORMAT),
        b"".join(gzip.compress(gzip.decompress(IMAGE)[at : at + 4000]) for at in range(0, 40_000, 4000)),
    ],
    ids=["dot", "dot directory", "directory", "unlisted", "ustar", "members"],
)
def test_takes_archives_as_tools_make_them(server: CollateralServer, tmp_path: Path, body: bytes) -> None:
    image = served(server, tmp_path, body)
    assert {path.name for path in image.directory.iterdir()} == {"sha256sum.txt", *FILES}


def test_takes_extended_headers_of_times(server: CollateralServer, tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(
        fileobj=made, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}
    ) as tar:
        for name, data in {"sha256sum.txt": SUMS, **FILES}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))
    assert served(server, tmp_path, made.getvalue()).version == "0.5.4"


@pytest.mark.parametrize(
    "bad",
    [
        entry("link", tarfile.SYMTYPE, link="/etc/passwd"),
        entry("link", tarfile.LNKTYPE, link="bzImage"),
        entry("fifo", tarfile.FIFOTYPE),
        entry("device", tarfile.CHRTYPE),
        entry("../outside", size=3),
        entry("/absolute", size=3),
        entry("a/../../outside", size=3),
        entry("a//b", size=3),
        entry(".hidden", size=3),
        entry("-rf", size=3),
        entry("a\\b", size=3),
        entry("a b", size=3),
        entry("a\nb", size=3),
        entry("n" * 100 + "m" * 50, size=3),
        entry("näme", size=3),
        entry("a/b/c/d/e", size=3),
        entry("bzImage", size=3),
        entry("bzImage/below", size=3),
        entry("bzImage", tarfile.DIRTYPE),
        entry("a", tarfile.REGTYPE, size=3),
        entry(".", tarfile.REGTYPE, size=3),
    ],
    ids=lambda info: repr(info.name[:20]),
)
def test_an_entry_that_is_no_plain_file_is_refused(
    server: CollateralServer, tmp_path: Path, bad: tarfile.TarInfo
) -> None:
    more = (entry("a", size=1), bad) if bad.name == "a" else (bad,)
    assert refused(server, tmp_path, archive({"sha256sum.txt": SUMS, **FILES}, *more)) == "os_image.entry"
    assert not (tmp_path / "outside").exists()


def test_a_directory_with_content_is_refused(server: CollateralServer, tmp_path: Path) -> None:
    plain = bytearray(gzip.decompress(archive({}, entry("directory", tarfile.DIRTYPE))))
    plain[124:136] = b"00000000777\0"
    plain[148:156] = f"{sum(plain[:148]) + 8 * 32 + sum(plain[156:512]):06o}\0 ".encode()
    assert refused(server, tmp_path, gzip.compress(bytes(plain))) == "os_image.entry"


@pytest.mark.parametrize("key", ["path", "size", "linkpath"])
def test_an_extension_that_renames_or_resizes_is_refused(
    server: CollateralServer, tmp_path: Path, key: str
) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("metadata.json")
        info.pax_headers = {key: "5"}
        tar.addfile(info)
    assert refused(server, tmp_path, made.getvalue()) == "os_image.entry"


def test_a_huge_extension_is_refused(server: CollateralServer, tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(
        fileobj=made, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 5000}
    ):
        pass
    assert refused(server, tmp_path, made.getvalue()) == "os_image.entry"


def test_too_many_entries_are_refused(server: CollateralServer, tmp_path: Path) -> None:
    body = archive({f"file{number}": b"" for number in range(image_archive.MAX_ENTRIES + 1)})
    assert refused(server, tmp_path, body) == "os_image.entries"


def test_an_image_that_unpacks_without_end_is_refused(
    server: CollateralServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_archive, "MAX_UNPACKED", 1 << 20)
    assert refused(server, tmp_path, gzip.compress(bytes(3 << 20))) == "os_image.size"


def test_a_compression_bomb_is_refused_by_its_ratio(
    server: CollateralServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_archive, "RATIO_SLACK", 0)
    assert refused(server, tmp_path, gzip.compress(bytes(3 << 20))) == "os_image.ratio"


PLAIN = gzip.decompress(IMAGE)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>not found</html>",
        IMAGE[:-20],
        IMAGE[: len(IMAGE) // 2],
        IMAGE + b"more",
        gzip.compress(b"not tar" * 1000),
        gzip.compress(PLAIN[:512]),
        gzip.compress(PLAIN[:700]),
        gzip.compress(PLAIN[:1024]),
        gzip.compress(PLAIN + b"x" * 512),
        gzip.compress(b"x" + PLAIN[1:]),
        gzip.compress(PLAIN[:257] + b"other" + PLAIN[262:]),
        gzip.compress(PLAIN[:148] + b"99999999" + PLAIN[156:]),
        gzip.compress(bytes(512) + b"x" * 512),
    ],
    ids=lambda body: f"{len(body)} bytes",
)
def test_what_is_no_archive_is_refused(server: CollateralServer, tmp_path: Path, body: bytes) -> None:
    assert refused(server, tmp_path, body) == "os_image.archive"


def test_a_header_of_an_unknown_kind_of_tar_is_refused(server: CollateralServer, tmp_path: Path) -> None:
    plain = bytearray(PLAIN)
    plain[257:265] = b"v7 or so"
    plain[148:156] = f"{sum(plain[:148]) + 8 * 32 + sum(plain[156:512]):06o}\0 ".encode()
    assert refused(server, tmp_path, gzip.compress(bytes(plain))) == "os_image.archive"


def test_another_image_is_refused(server: CollateralServer, tmp_path: Path) -> None:
    assert refused(server, tmp_path, IMAGE, bytes(32)) == "os_image.hash"


@pytest.mark.parametrize(
    "files",
    [FILES, {"sha256sum.txt": SUMS + b"\n", **FILES}, {"sha256sum.txt": b"x" * 70_000, **FILES}],
    ids=["no list", "another list", "a huge list"],
)
def test_an_image_without_its_list_is_refused(
    server: CollateralServer, tmp_path: Path, files: dict[str, bytes]
) -> None:
    assert refused(server, tmp_path, archive(files)) == "os_image.hash"


def test_a_directory_in_place_of_the_list_is_refused(server: CollateralServer, tmp_path: Path) -> None:
    body = archive(FILES, entry("sha256sum.txt", tarfile.DIRTYPE))
    assert refused(server, tmp_path, body) == "os_image.hash"


@pytest.mark.parametrize("change", [{"bzImage": b"other"}, {"ovmf.fd": None}])
def test_a_listed_file_that_is_missing_or_another_is_refused(
    server: CollateralServer, tmp_path: Path, change: dict[str, bytes | None]
) -> None:
    files = {name: data for name, data in {**FILES, **change}.items() if data is not None}
    assert refused(server, tmp_path, archive({"sha256sum.txt": SUMS, **files})) == "os_image.file"


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        (None, "os_image.metadata"),
        (b"[]", "os_image.metadata"),
        (b"{", "os_image.metadata.syntax"),
        (b'{"is_dev":1}', "os_image.metadata"),
        (b'{"version":5}', "os_image.metadata"),
        (b'{"version":"\\ud800"}', "os_image.metadata"),
        (b'{"version":"' + b"1" * 65 + b'"}', "os_image.metadata"),
        (b" " * 70_000, "os_image.metadata"),
    ],
)
def test_an_image_without_readable_metadata_is_refused(
    server: CollateralServer, tmp_path: Path, metadata: bytes | None, code: str
) -> None:
    files = {"bzImage": b"kernel"} if metadata is None else {"metadata.json": metadata}
    sums = sums_of(files)
    body = archive({"sha256sum.txt": sums, **files})
    assert refused(server, tmp_path, body, hashlib.sha256(sums).digest()) == code


def test_metadata_that_the_list_does_not_name_do_not_count(server: CollateralServer, tmp_path: Path) -> None:
    sums = sums_of({"bzImage": b"kernel"})
    body = archive({"sha256sum.txt": sums, "bzImage": b"kernel", "metadata.json": METADATA})
    assert refused(server, tmp_path, body, hashlib.sha256(sums).digest()) == "os_image.metadata"


def test_a_list_that_names_a_path_is_refused(server: CollateralServer, tmp_path: Path) -> None:
    sums = b"0" * 64 + b"  ../outside\n"
    body = archive({"sha256sum.txt": sums})
    assert refused(server, tmp_path, body, hashlib.sha256(sums).digest()) == "os_image.sums.name"


def test_a_missing_image_is_unavailable(server: CollateralServer, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        store(server, tmp_path).get(bytes(32))
    assert caught.value.code == "os_image.status"


def test_an_oversize_download_is_refused(
    server: CollateralServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os_image, "MAX_DOWNLOAD", len(IMAGE) - 1)
    assert refused(server, tmp_path, IMAGE) == "net.response.oversize"


def test_a_slow_download_ends_at_the_deadline(tmp_path: Path, raw_server: RawServer) -> None:
    port = raw_server(drip(b"HTTP/1.1 200 OK\r\n\r\n", b"a"))
    with pytest.raises(UnavailableError) as caught:
        OsImageStore(tmp_path, url_template=f"http://127.0.0.1:{port}/{{OS_IMAGE_HASH}}", timeout=0.3).get(
            HASH
        )
    assert caught.value.code == "net.timeout"


def test_unpacking_ends_at_the_deadline(
    server: CollateralServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the time went into the download."""
    times = iter([0.0])
    monkeypatch.setattr(os_image.time, "monotonic", lambda: next(times, 1000.0))
    monkeypatch.setattr(OsImageStore, "_fetch", lambda _self, _hash, write: write(IMAGE))
    assert refused(server, tmp_path, IMAGE) == "os_image.timeout"


def test_a_redirect_is_not_followed(tmp_path: Path, raw_server: RawServer) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        )

    template = f"http://127.0.0.1:{raw_server(serve)}/{{OS_IMAGE_HASH}}"
    with pytest.raises(UnavailableError) as caught:
        OsImageStore(tmp_path, url_template=template, timeout=30).get(HASH)
    assert caught.value.code == "os_image.status"


def test_a_cache_that_cannot_be_written_is_our_own_failure(server: CollateralServer, tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"a file")
    with pytest.raises(StorageError) as caught:
        store(server, tmp_path).get(HASH)
    assert caught.value.code == "os_image.storage"


def test_a_full_disk_is_our_own_failure(
    server: CollateralServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _mode: str) -> io.RawIOBase:
        return open("/dev/full", "wb", buffering=0)  # noqa: PTH123 - the caller closes it

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError) as caught:
        store(server, tmp_path).get(HASH)
    assert caught.value.code == "os_image.storage"


@pytest.mark.parametrize(
    "template",
    [
        "https://images.example/mr.tar.gz",
        "ftp://images.example/{OS_IMAGE_HASH}",
        "file:///images/{OS_IMAGE_HASH}",
        "https://{OS_IMAGE_HASH}.example/image",
    ],
)
def test_a_template_of_another_shape_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OsImageStore(tmp_path, url_template=template)
    assert caught.value.code == "os_image.url"


def test_a_hash_of_another_length_is_refused(server: CollateralServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        store(server, tmp_path).get(HASH[:-1])
    assert caught.value.code == "os_image.hash_length"
    assert server.requests == []


def test_unpacked_files_are_private(server: CollateralServer, tmp_path: Path) -> None:
    image = store(server, tmp_path).get(HASH)
    modes = {path.stat().st_mode & 0o777 for path in image.directory.iterdir()}
    assert modes == {0o600}


TARS = [PLAIN[:4096], gzip.decompress(archive({"a": b"b"}, entry("d", tarfile.DIRTYPE)))[:3072]]


@fuzz(st.tuples(mutated(TARS), st.booleans()) | st.tuples(st.binary(max_size=2048), st.booleans()))
def test_any_archive_is_unpacked_or_refused(example: tuple[bytes, bool]) -> None:
    data, compress = example
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "target").mkdir()
        (work / "archive").write_bytes(gzip.compress(data, 1) if compress else data)
        with contextlib.suppress(ProtocolError):
            unpack(work / "archive", work / "scratch", work / "target", lambda: None)
        assert {path.name for path in work.iterdir()} <= {"target", "archive", "scratch"}
        assert all(path.is_dir() or path.is_file() for path in work.rglob("*"))

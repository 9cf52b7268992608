"""Boot files by path and by URL, with the digests they must have."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from functions.builder import blobs as module
from functions.builder.blobs import load_blob
from functions.builder.cache import BuildCache
from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.response import Response

CONTENT = b"kernel" * 100
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
URL = "https://example.invalid/kernel"


class Answering(HttpClient):
    """A client whose one answer is known."""

    def __init__(self, response: Response | None) -> None:
        super().__init__(DirectDialer())
        self.response = response
        self.asked = 0

    def request(self, *_: object, **__: object) -> Response:  # type: ignore[override]  # any call
        self.asked += 1
        assert self.response is not None, "nothing should be asked for"
        return self.response


OFFLINE = Answering(None)


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache")


def code_of(call: Callable[[], object], kind: type[DstackError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code


def test_reads_a_path(cache: BuildCache, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(CONTENT)
    for place in (f"{tmp_path}/kernel", f"{tmp_path}/kernel@{DIGEST}"):
        found = load_blob(place, cache, OFFLINE)
        assert (found.content, found.digest) == (CONTENT, hashlib.sha256(CONTENT).digest())


def test_a_path_with_another_digest_is_refused(cache: BuildCache, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"other")
    call = lambda: load_blob(f"{tmp_path}/kernel@{DIGEST}", cache, OFFLINE)  # noqa: E731 - it is called once
    assert code_of(call, ProtocolError) == "blob.digest"


def test_downloads_once(cache: BuildCache) -> None:
    http = Answering(Response(200, {}, CONTENT))
    for _ in range(2):
        assert load_blob(f"{URL}@{DIGEST}", cache, http).content == CONTENT
    assert http.asked == 1


def test_a_download_with_another_digest_is_refused_and_not_kept(cache: BuildCache) -> None:
    http = Answering(Response(200, {}, b"other"))
    for _ in range(2):
        assert code_of(lambda: load_blob(f"{URL}@{DIGEST}", cache, http), ProtocolError) == "blob.digest"
    assert http.asked == 2


def test_a_download_that_fails_is_told(cache: BuildCache) -> None:
    http = Answering(Response(302, {}, b""))
    assert code_of(lambda: load_blob(f"{URL}@{DIGEST}", cache, http), UnavailableError) == "blob.status"


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("", "blob.place"),
        (URL, "blob.unpinned"),
        (f"{URL}@sha256:00", "blob.unpinned"),
        (f"http://example.invalid/kernel@{DIGEST}", "blob.place"),
        (f"file:///kernel@{DIGEST}", "blob.place"),
        ("/nothing/here", "blob.missing"),
        ("/dev/zero", "blob.missing"),
        ("/" + "x" * 300, "blob.missing"),
    ],
)
def test_a_place_that_is_none_is_refused(cache: BuildCache, place: str, code: str) -> None:
    assert code_of(lambda: load_blob(place, cache, OFFLINE), ConfigError) == code


def test_a_huge_file_is_refused(cache: BuildCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BOOT_BLOB", 10)
    (tmp_path / "kernel").write_bytes(CONTENT)
    assert code_of(lambda: load_blob(f"{tmp_path}/kernel", cache, OFFLINE), ConfigError) == "blob.size"


def test_a_file_that_cannot_be_read_is_told(
    cache: BuildCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "kernel").write_bytes(CONTENT)
    monkeypatch.setattr(Path, "open", denied)
    assert code_of(lambda: load_blob(f"{tmp_path}/kernel", cache, OFFLINE), ConfigError) == "blob.missing"

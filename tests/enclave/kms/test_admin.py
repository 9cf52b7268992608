"""The admin listener: nobody without the token, and what ClearImageCache removes (spec kms 1.4, 2.3)."""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from enclave.kms.admin import admin_app, serving_beside
from enclave.kms.image_cache import ImageCache
from enclave.kms.token_auth import TokenAuth
from shared.errors import ProtocolError, StorageError
from shared.net.fetch import HttpClient
from shared.net.response import Response
from tests.enclave.conftest import StandInDialer
from tests.shared.refusal import refuses

TOKEN = "correct horse battery staple"
AUTH = TokenAuth(hashlib.sha256(TOKEN.encode()).digest())
KEY = "ab" * 32


def _basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for name in (f"images/{KEY}/metadata.json", "images/cd/metadata.json", f"measurements/{KEY}.json"):
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path / "cache"


@pytest.fixture
def call(cache: Path, vsock) -> Iterator[Callable[..., Response]]:
    with serving_beside(admin_app(ImageCache(cache), AUTH), vsock.listen(8001)):
        http = HttpClient(StandInDialer(vsock, 16, 8001), timeout=20)

        def send(headers: dict[str, str], body: object = None, path: str = "/prpc/ClearImageCache?json"):
            return http.request("POST", "http://kms.test" + path, msgspec.json.encode(body), headers=headers)

        send.http = http

        yield send
        http.close()


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer " + TOKEN.encode())],
        [(b"authorization", b"bearer " + TOKEN.encode())],
        [(b"x-admin-token", TOKEN.encode())],
        [(b"x-admin-token", TOKEN.encode()), (b"authorization", b"Bearer wrong")],
        [(b"x-admin-token", b"wrong"), (b"authorization", b"Bearer " + TOKEN.encode())],
        [(b"authorization", _basic(f"anybody:{TOKEN}"))],
        [(b"authorization", _basic(f"{TOKEN}:"))],
    ],
)
def test_takes_the_token_in_each_of_its_forms(headers: list[tuple[bytes, bytes]]) -> None:
    assert AUTH.allows(headers)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-admin-token", b"")],
        [(b"x-admin-token", TOKEN.encode() + b" ")],
        [(b"authorization", TOKEN.encode())],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer wrong"), (b"authorization", b"Bearer " + TOKEN.encode())],
        [(b"authorization", b"Bearer wrong"), (b"authorization", _basic(f"a:{TOKEN}"))],
        [(b"authorization", b"Bearer " + hashlib.sha256(TOKEN.encode()).hexdigest().encode())],
        [(b"authorization", b"Basic !!!")],
        [(b"authorization", b"Basic " + base64.b64encode(TOKEN.encode()))],
        [(b"authorization", _basic(f"{TOKEN}:wrong"))],
        [(b"authorization", _basic(":"))],
        [(b"authorization", b"Digest " + TOKEN.encode())],
    ],
)
def test_refuses_everything_else(headers: list[tuple[bytes, bytes]]) -> None:
    assert not AUTH.allows(headers)


def test_an_empty_token_is_none_whatever_is_configured() -> None:
    empty = TokenAuth(hashlib.sha256(b"").digest())
    assert not empty.allows([(b"x-admin-token", b"")])
    assert not empty.allows([(b"authorization", _basic(":"))])


def test_what_a_browser_keeps_is_not_taken_where_it_could_be_used_by_any_page() -> None:
    auth = TokenAuth(hashlib.sha256(TOKEN.encode()).digest(), basic=False)
    assert auth.challenge.startswith("Bearer ")
    assert not auth.allows([(b"authorization", _basic(f"anybody:{TOKEN}"))])
    assert auth.allows([(b"authorization", b"Bearer " + TOKEN.encode())])


def test_answers_401_with_an_empty_body_and_clears_nothing(call, cache: Path) -> None:
    for path in ("/prpc/ClearImageCache?json", "/%70rpc/Admin.ClearImageCache", "/prpc/Nothing", "/other"):
        refused = call({"authorization": "Bearer wrong"}, {"image_hash": "all"}, path)
        assert (refused.status, refused.body) == (401, b"")
        assert refused.headers["www-authenticate"] == 'Basic realm="dstack-kms admin"'
    assert (cache / "images").is_dir()


def test_clears_for_whoever_has_the_token(call, cache: Path) -> None:
    answer = call({"x-admin-token": TOKEN}, {"image_hash": KEY})
    assert (answer.status, answer.body) == (200, b"null")
    assert [path.name for path in (cache / "images").iterdir()] == ["cd"]


def test_a_refusal_is_400_in_upstreams_words(call) -> None:
    refused = call({"x-admin-token": TOKEN}, {"image_hash": "../images"})
    assert refused.status == 400
    assert msgspec.json.decode(refused.body) == {"error": "invalid cache key", "code": "kms.cache_key"}


def test_health_needs_no_token(call) -> None:
    answer = call.http.request("GET", "http://kms.test/health")
    assert (answer.status, answer.body) == (200, b"OK")


def test_the_listener_ends_with_what_it_stands_beside(cache: Path, vsock) -> None:
    with serving_beside(admin_app(ImageCache(cache), AUTH), vsock.listen(8001)):
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "admin"]
    assert not thread.is_alive()


def test_empty_keys_clear_nothing(cache: Path) -> None:
    ImageCache(cache).clear("", "")
    assert len(list(cache.rglob("*.json"))) == 3


def test_all_clears_one_kind_whole(cache: Path) -> None:
    ImageCache(cache).clear("", "all")
    assert not (cache / "measurements").exists()
    assert len(list((cache / "images").iterdir())) == 2


def test_what_is_not_there_is_cleared_already(tmp_path: Path) -> None:
    ImageCache(tmp_path / "none").clear("all", KEY)


@pytest.mark.parametrize("key", ["..", "ab/cd", "zz", "ALL", "ab\n", "é"])
def test_a_wrong_key_clears_nothing_of_the_other(cache: Path, key: str) -> None:
    with refuses("kms.cache_key", ProtocolError):
        ImageCache(cache).clear("all", key)
    assert (cache / "images").is_dir()


def test_a_link_is_removed_and_not_followed(cache: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (cache / "images" / "ee").symlink_to(elsewhere)
    ImageCache(cache).clear("ee", "")
    assert elsewhere.is_dir()
    assert not (cache / "images" / "ee").is_symlink()


def test_tells_that_it_could_not_clear(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", fail)
    with refuses("kms.cache.clear", StorageError):
        ImageCache(cache).clear("all", "")

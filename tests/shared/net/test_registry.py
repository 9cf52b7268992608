"""Pulling by digest from registries that behave, and from those that do not."""

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from shared.errors import (
    ConfigError,
    DstackError,
    PolicyDenied,
    ProtocolError,
    StorageError,
    UnavailableError,
)
from shared.measurement.image_reference import ImageReference, parse_reference
from shared.measurement.oci import OCI_INDEX, OCI_MANIFEST, Descriptor
from shared.net import registry as module
from shared.net.dialer import DirectDialer
from shared.net.public_dialer import PublicDialer, is_public
from shared.net.registry import MAX_TOKEN, Credentials, RegistryClient
from tests.shared.measurement.image_making import sha256
from tests.shared.net.registry_stand_in import REPOSITORY, TOKEN, Answer, Registry

BLOB = b"layer" * 5000
BLOB_DIGEST = sha256(BLOB)
BLOB_PATH = f"/v2/{REPOSITORY}/blobs/{BLOB_DIGEST}"
MANIFEST = b'{"schemaVersion":2}'
MANIFEST_DIGEST = sha256(MANIFEST)
MANIFEST_PATH = f"/v2/{REPOSITORY}/manifests/{MANIFEST_DIGEST}"
LAYER = Descriptor("", hashlib.sha256(BLOB).digest(), len(BLOB))
USER = Credentials("user", "secret")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        running.blobs[BLOB_DIGEST] = BLOB
        running.manifests[MANIFEST_DIGEST] = (OCI_MANIFEST, MANIFEST)
        yield running


@pytest.fixture
def guarded() -> Iterator[Registry]:
    """A registry that asks for a token."""
    with Registry(user="user:secret") as running:
        running.blobs[BLOB_DIGEST] = BLOB
        yield running


def client_of(
    registry: Registry, credentials: Credentials | None = None, timeout: float = 20
) -> RegistryClient:
    reference = ImageReference(registry.host, REPOSITORY, None, None)
    return RegistryClient(reference, credentials=credentials, plain_loopback=True, timeout=timeout)


def pull(client: RegistryClient, layer: Descriptor = LAYER) -> bytes:
    out = bytearray()
    client.blob(layer, out.extend)
    return bytes(out)


def refused(call: Callable[[], object], kind: type[DstackError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code


def test_pulls_a_manifest_and_a_blob(registry: Registry) -> None:
    client = client_of(registry)
    descriptor, raw = client.manifest(hashlib.sha256(MANIFEST).digest())
    assert (descriptor.media_type, descriptor.size, raw) == (OCI_MANIFEST, len(MANIFEST), MANIFEST)
    assert pull(client) == BLOB
    assert [seen.authorization for seen in registry.requests] == [None, None]


def test_gets_a_token_and_keeps_it(guarded: Registry) -> None:
    client = client_of(guarded, USER)
    assert pull(client) == pull(client) == BLOB
    paths = [seen.target.partition("?")[0] for seen in guarded.requests]
    assert paths == [BLOB_PATH, "/token", BLOB_PATH, BLOB_PATH]
    assert guarded.requests[-1].authorization == f"Bearer {TOKEN}"


def test_asks_for_its_own_scope_and_the_registry_s_service(guarded: Registry) -> None:
    pull(client_of(guarded, USER))
    query = next(seen.target for seen in guarded.requests if "/token" in seen.target).partition("?")[2]
    assert query == "scope=repository%3Aorg%2Fapp%3Apull&service=stand-in"


def test_an_access_token_is_a_token(guarded: Registry) -> None:
    guarded.token = Answer(200, {}, json.dumps({"access_token": TOKEN}).encode())
    assert pull(client_of(guarded, USER)) == BLOB


def test_a_realm_may_have_a_query_and_no_service(guarded: Registry) -> None:
    guarded.challenge = f'bearer realm="{guarded.url}/token?a=b"'
    assert pull(client_of(guarded, USER)) == BLOB


def test_a_token_that_expired_is_asked_for_again(guarded: Registry) -> None:
    client = client_of(guarded, USER)
    client._authorization = "Bearer old"
    assert pull(client) == BLOB


def test_answers_a_basic_challenge(registry: Registry) -> None:
    def basic(authorization: str | None) -> Answer:
        if authorization == USER.header:
            return Answer(200, {}, BLOB, len(BLOB))
        return Answer(401, {"WWW-Authenticate": 'Basic realm="r"'}, b"", 0)

    registry.answers[BLOB_PATH] = basic
    assert pull(client_of(registry, USER)) == BLOB
    assert refused(lambda: pull(client_of(registry)), ConfigError) == "registry.unauthorized"
    assert (
        refused(lambda: pull(client_of(registry, Credentials("u", "wrong"))), ConfigError)
        == "registry.unauthorized"
    )


def test_wrong_credentials_are_told(guarded: Registry) -> None:
    wrong = client_of(guarded, Credentials("user", "wrong"))
    assert refused(lambda: pull(wrong), ConfigError) == "registry.unauthorized"


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(USER)


@pytest.mark.parametrize(
    "token",
    [
        b"{}",
        b"[]",
        b'{"token": 7}',
        b'{"token": ""}',
        b'{"token": "a b"}',
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b'{"token": "' + b"x" * (MAX_TOKEN + 1) + b'"}',
    ],
)
def test_a_token_that_fits_no_header_is_refused(guarded: Registry, token: bytes) -> None:
    guarded.token = Answer(200, {}, token)
    assert refused(lambda: pull(client_of(guarded, USER)), ProtocolError) == "registry.token"


def test_an_answer_that_is_no_token_is_refused(guarded: Registry) -> None:
    guarded.token = Answer(200, {}, b"<html>")
    assert refused(lambda: pull(client_of(guarded, USER)), ProtocolError) == "registry.token.syntax"


@pytest.mark.parametrize(
    "challenge", ["Negotiate", "Bearer", "Bearer x=y", 'Bearer realm=""', 'Bearer service="x"']
)
def test_a_challenge_without_a_realm_is_refused(guarded: Registry, challenge: str) -> None:
    guarded.challenge = challenge
    assert refused(lambda: pull(client_of(guarded, USER)), ProtocolError) == "registry.challenge"


@pytest.mark.parametrize(
    "realm",
    [
        "http://token.example/token",
        "file:///etc/passwd",
        "//token.example",
        "https://user:x@token.example/",
        "https://[::1/",
        "https://host:port/",
    ],
)
def test_a_realm_that_is_no_https_url_gets_no_password(guarded: Registry, realm: str) -> None:
    guarded.challenge = f'Bearer realm="{realm}"'
    assert refused(lambda: pull(client_of(guarded, USER)), ProtocolError) == "registry.challenge"


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "[fd00:ec2::254]"])
def test_a_realm_inside_the_own_network_gets_no_password(guarded: Registry, host: str) -> None:
    guarded.challenge = f'Bearer realm="https://{host}/token"'
    assert refused(lambda: pull(client_of(guarded, USER)), PolicyDenied) == "net.address.private"


def test_follows_a_redirect_without_the_token(guarded: Registry) -> None:
    with Registry() as storage:
        storage.answers["/signed"] = Answer(200, {}, BLOB, len(BLOB))

        def redirect(authorization: str | None) -> Answer:
            if authorization is None:
                challenge = f'Bearer realm="{guarded.url}/token"'
                return Answer(401, {"WWW-Authenticate": challenge}, b"", 0)
            return Answer(307, {"Location": f"{storage.url}/signed?s=1"}, b"", 0)

        guarded.answers[BLOB_PATH] = redirect
        assert pull(client_of(guarded, USER)) == BLOB
        assert [(seen.target, seen.authorization) for seen in storage.requests] == [("/signed?s=1", None)]


def test_a_token_does_not_come_back_by_a_second_redirect(guarded: Registry) -> None:
    with Registry() as storage:
        storage.answers["/away"] = Answer(302, {"Location": f"{guarded.url}/back"}, b"", 0)
        guarded.answers["/back"] = Answer(200, {}, BLOB, len(BLOB))
        client = client_of(guarded, USER)
        client._authorization = f"Bearer {TOKEN}"
        guarded.answers[BLOB_PATH] = Answer(302, {"Location": f"{storage.url}/away"}, b"", 0)
        assert pull(client) == BLOB
    assert guarded.requests[-1].authorization is None


def test_a_redirect_on_the_same_host_keeps_the_token(guarded: Registry) -> None:
    guarded.answers[BLOB_PATH] = Answer(308, {"Location": "/elsewhere"}, b"", 0)
    guarded.answers["/elsewhere"] = Answer(200, {}, BLOB, len(BLOB))
    client = client_of(guarded, USER)
    client._authorization = f"Bearer {TOKEN}"
    assert pull(client) == BLOB
    assert guarded.requests[-1].authorization == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    "location",
    [
        "",
        "http://cdn.example/blob",
        "ftp://cdn.example/blob",
        "https://u:p@cdn.example/",
        "https:///blob",
        "https://[::1/",
        "/x y",
        "https://cdn.example/" + "x" * 9000,
    ],
)
def test_a_redirect_to_no_https_url_is_refused(registry: Registry, location: str) -> None:
    registry.answers[BLOB_PATH] = Answer(302, {"Location": location}, b"", 0)
    assert refused(lambda: pull(client_of(registry)), ProtocolError) == "registry.redirect"


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "192.168.1.1", "100.100.100.200", "[fe80::1]", "[::ffff:10.0.0.1]", "0.0.0.0"]
)
def test_a_redirect_into_the_own_network_is_refused(registry: Registry, host: str) -> None:
    registry.answers[BLOB_PATH] = Answer(302, {"Location": f"https://{host}/latest/meta-data/"}, b"", 0)
    assert refused(lambda: pull(client_of(registry)), PolicyDenied) == "net.address.private"


def test_a_ring_of_redirects_is_left(registry: Registry) -> None:
    registry.answers[BLOB_PATH] = Answer(302, {"Location": BLOB_PATH}, b"", 0)
    assert refused(lambda: pull(client_of(registry)), ProtocolError) == "registry.redirect"
    assert len(registry.requests) == module.MAX_REDIRECTS + 1


def test_who_we_are_sent_to_may_not_ask_for_credentials(registry: Registry) -> None:
    with Registry() as storage:
        challenge = f'Bearer realm="{storage.url}/token"'
        storage.answers["/a"] = Answer(401, {"WWW-Authenticate": challenge}, b"", 0)
        registry.answers[BLOB_PATH] = Answer(302, {"Location": f"{storage.url}/a"}, b"", 0)
        assert refused(lambda: pull(client_of(registry, USER)), ConfigError) == "registry.unauthorized"
        assert len(storage.requests) == 1


@pytest.mark.parametrize("body", [b"other" * 5000, BLOB[:-1], b"", BLOB[::-1]])
def test_other_bytes_than_the_digest_s_are_refused(registry: Registry, body: bytes) -> None:
    registry.blobs[BLOB_DIGEST] = body
    assert refused(lambda: pull(client_of(registry)), ProtocolError) == "registry.blob"


@pytest.mark.parametrize("length", [None, 1 << 40])
def test_a_blob_larger_than_announced_is_stopped(registry: Registry, length: int | None) -> None:
    registry.answers[BLOB_PATH] = Answer(200, {}, lambda: itertools.repeat(b"x" * 65536), length)
    out = bytearray()
    client = client_of(registry)
    assert refused(lambda: client.blob(LAYER, out.extend), ProtocolError) == "net.response.oversize"
    assert len(out) <= LAYER.size


def test_an_endless_manifest_is_stopped(registry: Registry) -> None:
    registry.answers[MANIFEST_PATH] = Answer(200, {}, lambda: itertools.repeat(b"x" * 65536))
    call = client_of(registry).manifest
    assert refused(lambda: call(hashlib.sha256(MANIFEST).digest()), ProtocolError) == "net.response.oversize"


def test_a_truncated_blob_is_refused(registry: Registry) -> None:
    registry.answers[BLOB_PATH] = Answer(200, {}, BLOB[:100], len(BLOB))
    assert refused(lambda: pull(client_of(registry)), ProtocolError) == "net.response.truncated"


def test_a_registry_that_says_nothing_is_left_in_time(registry: Registry) -> None:
    done = threading.Event()

    def silent() -> Iterator[bytes]:
        yield b"x"
        done.wait(20)

    registry.answers[BLOB_PATH] = Answer(200, {}, silent, len(BLOB))
    try:
        assert refused(lambda: pull(client_of(registry, timeout=0.3)), UnavailableError) == "net.timeout"
    finally:
        done.set()


def test_another_manifest_is_refused(registry: Registry) -> None:
    registry.manifests[MANIFEST_DIGEST] = (OCI_MANIFEST, b"{}")
    call = client_of(registry).manifest
    assert refused(lambda: call(hashlib.sha256(MANIFEST).digest()), ProtocolError) == "registry.blob"


@pytest.mark.parametrize(
    "media_type", ["", "text/html", "application/vnd.docker.distribution.manifest.v1+json"]
)
def test_a_manifest_of_another_kind_is_refused(registry: Registry, media_type: str) -> None:
    registry.manifests[MANIFEST_DIGEST] = (media_type, MANIFEST)
    call = client_of(registry).manifest
    assert refused(lambda: call(hashlib.sha256(MANIFEST).digest()), ProtocolError) == "registry.media_type"


def test_a_media_type_may_have_parameters(registry: Registry) -> None:
    registry.manifests[MANIFEST_DIGEST] = (f"{OCI_INDEX}; charset=utf-8", MANIFEST)
    found, _ = client_of(registry).manifest(hashlib.sha256(MANIFEST).digest())
    assert found.media_type == OCI_INDEX


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (404, ConfigError, "registry.missing"),
        (403, ConfigError, "registry.unauthorized"),
        (429, UnavailableError, "registry.status"),
        (503, UnavailableError, "registry.status"),
        (204, ProtocolError, "registry.status"),
        (400, ProtocolError, "registry.status"),
    ],
)
def test_a_status_says_who_must_act(
    registry: Registry, status: int, kind: type[DstackError], code: str
) -> None:
    registry.answers[BLOB_PATH] = Answer(status, {}, b"", 0)
    assert refused(lambda: pull(client_of(registry)), kind) == code


def test_a_token_service_that_is_down_is_told(guarded: Registry) -> None:
    guarded.token = Answer(500, {}, b"", 0)
    assert refused(lambda: pull(client_of(guarded, USER)), UnavailableError) == "registry.status"


def test_a_full_disk_is_no_fault_of_the_registry(registry: Registry) -> None:
    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    client = client_of(registry)
    assert refused(lambda: client.blob(LAYER, full), StorageError) == "registry.storage"


@pytest.mark.parametrize(("text", "plain"), [("127.0.0.1:1/a", False), ("registry.example/a", True)])
def test_plain_http_is_for_this_machine_and_on_demand(text: str, plain: bool) -> None:  # noqa: FBT001 - a parameter
    client = RegistryClient(parse_reference(text), plain_loopback=plain)
    assert client._base.startswith("https://")


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1:5000", "[::1]:5000"])
def test_this_machine_is_known_by_its_names(host: str) -> None:
    assert RegistryClient(parse_reference(f"{host}/a"), plain_loopback=True)._base.startswith("http://")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b:1::a9fe:a9fe", False),
        ("fec0::1", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("no address", False),
    ],
)
def test_knows_public_addresses(address: str, public: bool) -> None:  # noqa: FBT001 - a parameter
    assert is_public(address) is public


def test_a_name_without_an_address_is_unreachable() -> None:
    dialer = PublicDialer(DirectDialer())
    assert refused(lambda: dialer.dial("x." * 200, 1, 1), UnavailableError) == "net.unreachable"


def test_a_name_for_this_machine_is_no_public_one() -> None:
    dialer = PublicDialer(DirectDialer())
    assert refused(lambda: dialer.dial("localhost", 1, 1), PolicyDenied) == "net.address.private"

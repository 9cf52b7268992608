"""The host is asked and told in bounded time, and nothing of what it answers is trusted."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave.dstack_util.host_api import HostApi, TellingHost, host_of, parse_host_url
from enclave.dstack_util.host_notice import NoHost
from enclave.vsock.transport import UnixStandIn
from shared.boot_info import AWS_NITRO_TPM, GCP_TDX, NITRO_ENCLAVE, SEV_SNP, TDX
from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from tests.enclave.event_log import PATIENCE
from tests.enclave.hosts import HOST_CID, URL, Host
from tests.shared.refusal import refuses


@pytest.fixture
def vsock(tmp_path: Path) -> UnixStandIn:
    (directory := tmp_path / "v").mkdir()
    return UnixStandIn(directory, 1000)


@pytest.fixture
def host(vsock: UnixStandIn, tmp_path: Path) -> Iterator[Host]:
    del vsock
    running = Host(UnixStandIn(tmp_path / "v", HOST_CID).listen(10000))
    yield running
    running.close()


@pytest.fixture
def api(vsock: UnixStandIn, host: Host) -> HostApi:
    del host
    return HostApi(URL, vsock=vsock)


def test_tells_an_event(api: HostApi, host: Host) -> None:
    api.notify("boot.progress", "wörld")
    assert host.line() == b"POST /api/Notify?json HTTP/1.1"
    assert host.body() == {"event": "boot.progress", "payload": "wörld"}


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"anything"])
def test_an_event_is_told_whatever_the_host_says(api: HostApi, host: Host, body: bytes) -> None:
    host.answers(body)
    api.notify("boot.progress", "done")


def test_asks_who_the_host_is(api: HostApi, host: Host) -> None:
    host.answers(b'{"name":"dstack VMM","version":"0.6.0"}')
    found = api.info()
    assert (found.name, found.version) == ("dstack VMM", "0.6.0")
    assert host.line() == b"POST /api/Info?json HTTP/1.1"


def test_takes_the_largest_payload_that_a_host_takes(api: HostApi, host: Host) -> None:
    api.notify("boot.error", "ö" * 2048)
    assert host.body() == {"event": "boot.error", "payload": "ö" * 2048}


def test_tells_text_that_is_no_utf_8_as_well_as_it_can(api: HostApi, host: Host) -> None:
    api.notify("boot.error", "a\ud800b")
    assert host.body() == {"event": "boot.error", "payload": "a?b"}


def test_sends_no_payload_that_a_host_would_drop(api: HostApi, host: Host) -> None:
    with refuses("host_api.payload", ProtocolError):
        api.notify("boot.error", "ö" * 2048 + "x")
    assert not host.asked


def test_reaches_a_host_over_http(vsock: UnixStandIn) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    host = Host(listener)
    HostApi(f"http://127.0.0.1:{listener.getsockname()[1]}/base/api/", vsock=vsock).notify("a", "b")
    assert host.line() == b"POST /base/api/Notify?json HTTP/1.1"
    host.close()


def test_reaches_a_host_over_a_unix_socket(vsock: UnixStandIn, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "host.sock"))
    listener.listen()
    host = Host(listener)
    HostApi(f"unix:{tmp_path / 'host.sock'}", vsock=vsock).notify("a", "b")
    assert host.line() == b"POST /Notify?json HTTP/1.1"
    host.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/api",
        "vsock:2:10000",
        "vsock://2/api",
        "vsock://0x2:10000/api",
        "vsock://4294967295:10000/api",
        "vsock://host:10000/api",
        "vsock://user@2:10000/api",
        "unix:relative.sock",
        "unix:",
        "http:///api",
        "http://host:99999/api",
        "http://user@host/api",
        "http://host/api?x=1",
        "http://host/api#x",
        "http://host/a b",
        "http://host/a\r\nX: y",
        "http://[::1/api",
        "https://host/api",
        "file:///etc/passwd",
        "ftp://host/api",
        "http://hö.test/",
    ],
)
def test_refuses_a_url_that_names_no_host(url: str) -> None:
    with refuses("host_api.url", ConfigError):
        parse_host_url(url)


def test_a_host_that_is_not_there_is_unreachable(vsock: UnixStandIn, tmp_path: Path) -> None:
    with refuses("vsock.connect.refused", UnavailableError):
        HostApi(URL, vsock=vsock).info()
    with refuses("host_api.unreachable", UnavailableError):
        HostApi(f"unix:{tmp_path}/none.sock", vsock=vsock).info()


@pytest.mark.parametrize(
    ("answer", "code", "kind"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno", "host_api.status", UnavailableError),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
            "host_api.status",
            UnavailableError,
        ),
        (b"220 smtp\r\n", "host_api.malformed", ProtocolError),
        (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000, "host_api.head", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "host_api.cut", UnavailableError),
        (b"", "host_api.cut", UnavailableError),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65_537, "host_api.size", ProtocolError),
        (b"HTTP/1.1 200 OK\r\n\r\n{", "prpc.json.syntax", ProtocolError),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "prpc.json.type", ProtocolError),
        (b'HTTP/1.1 200 OK\r\n\r\n{"name":5}', "prpc.json.type", ProtocolError),
    ],
)
def test_refuses_what_is_no_answer(
    api: HostApi, host: Host, answer: bytes, code: str, kind: type[DstackError]
) -> None:
    host.answer = answer
    with refuses(code, kind):
        api.info()


def test_a_host_that_does_not_answer_is_given_up(vsock: UnixStandIn, host: Host) -> None:
    go_on = threading.Event()
    host.hold = lambda _peer: bool(go_on.wait(PATIENCE)) and None
    with refuses("host_api.timeout", UnavailableError):
        HostApi(URL, vsock=vsock, seconds=0.05).info()
    go_on.set()


def test_a_host_that_drips_is_given_up(vsock: UnixStandIn, host: Host) -> None:
    def drip(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        gone = threading.Event()
        while not gone.wait(0.01):
            peer.sendall(b" ")  # fails once the guest has given up

    host.hold = drip
    with refuses("host_api.timeout", UnavailableError):
        HostApi(URL, vsock=vsock, seconds=0.1).info()


def test_what_cannot_be_told_is_logged_and_no_failure(
    vsock: UnixStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    TellingHost(HostApi(URL, vsock=vsock)).notify("boot.error", "x")
    assert '"code": "vsock.connect.refused"' in capsys.readouterr().out


@pytest.mark.parametrize("variant", [GCP_TDX, NITRO_ENCLAVE, AWS_NITRO_TPM])
def test_a_cloud_has_no_host_to_tell(vsock: UnixStandIn, host: Host, variant: str) -> None:
    found = host_of(variant, URL, vsock)
    found.notify("boot.progress", "done")
    assert isinstance(found, NoHost)
    assert not host.asked


def test_a_guest_without_a_url_has_no_host_to_tell(vsock: UnixStandIn) -> None:
    assert isinstance(host_of(TDX, "", vsock), NoHost)


@pytest.mark.parametrize("variant", [TDX, SEV_SNP])
def test_a_machine_of_ones_own_has_a_host(vsock: UnixStandIn, host: Host, variant: str) -> None:
    host_of(variant, URL, vsock).notify("boot.progress", "done")
    assert host.body() == {"event": "boot.progress", "payload": "done"}

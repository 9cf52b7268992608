"""What a boot tells to a function outside, and that telling never stops it."""

import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from enclave.dstack_util.enclave_config import EnclaveConfig, Kms
from enclave.init.progress import MAX_FAILURES, Progress, Send, fetch_progress_url, http_sender
from enclave.init.settings import Boot
from enclave.platform import Platform
from enclave.tee.nitro import PARENT_CID, NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.compose.enclave_toml import PROGRESS_PORT
from shared.errors import PolicyDenied, ProtocolError, UnavailableError
from shared.net.dialer import DirectDialer
from tests.enclave.vsock.conftest import Server
from tests.shared.refusal import refuses

APP_ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")


class Function:
    """Takes events, or fails for some."""

    def __init__(self, *, fails: int = 0) -> None:
        self.bodies: list[bytes] = []
        self.asked = 0
        self._fails = fails

    def __call__(self, body: bytes) -> None:
        self.asked += 1
        if self.asked <= self._fails:
            raise UnavailableError("net.unreachable", "nobody is there")
        self.bodies.append(body)


def test_tells_each_step_and_its_end() -> None:
    function = Function()
    progress = Progress(function, app_id=APP_ID)
    with progress.step("kernel"):
        pass
    started, done = map(json.loads, function.bodies)
    boot = started.pop("boot")
    assert done.pop("boot") == boot
    assert len(bytes.fromhex(boot)) == 8
    assert started == {
        "version": 1,
        "sequence": 1,
        "app_id": APP_ID.hex(),
        "step": "kernel",
        "status": "started",
        "code": "",
    }
    assert done == started | {"sequence": 2, "status": "done"}


def test_n74_a_failure_is_told_by_its_code_alone() -> None:
    function = Function()
    progress = Progress(function)
    with pytest.raises(PolicyDenied), progress.step("keys"):
        raise PolicyDenied("kms.refused", "hunter2")
    told = json.loads(function.bodies[-1])
    assert (told["step"], told["status"], told["code"]) == ("keys", "failed", "kms.refused")
    assert b"hunter2" not in b"".join(function.bodies)


@pytest.mark.parametrize("code", ["hunter 2", "A.B", "a" * 81, "a..b", 'x"y'])
def test_n74_what_is_no_code_is_not_told(code: str) -> None:
    function = Function()
    Progress(function).tell("keys", "failed", code)
    assert json.loads(function.bodies[0])["code"] == "internal"


def test_a_bug_is_told_as_one() -> None:
    function = Function()
    with pytest.raises(ZeroDivisionError), Progress(function).step("keys"):
        raise ZeroDivisionError
    assert json.loads(function.bodies[-1])["code"] == "internal"


def test_a_function_that_fails_is_given_up_and_the_boot_goes_on() -> None:
    function = Function(fails=99)
    progress = Progress(function)
    for _ in range(5):
        progress.tell("kernel", "done")
    assert function.asked == MAX_FAILURES


def test_one_lost_event_is_not_the_end() -> None:
    function = Function(fails=1)
    progress = Progress(function)
    for _ in range(3):
        progress.tell("kernel", "done")
    assert [json.loads(body)["sequence"] for body in function.bodies] == [2, 3]


def test_an_event_is_small() -> None:
    function = Function()
    Progress(function, app_id=APP_ID).tell("environment", "failed", "a" * 80)
    assert len(function.bodies[0]) < 512


def test_every_event_is_in_the_log_too(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().tell("kernel", "done")
    assert json.loads(capsys.readouterr().out) == {
        "event": "init.step",
        "step": "kernel",
        "status": "done",
        "code": "",
    }


class Anyone(http.server.BaseHTTPRequestHandler):
    """A function that takes everything."""

    taken: ClassVar[list[tuple[str, str, bytes]]] = []

    def do_POST(self) -> None:
        """Take one event."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.taken.append((self.path, self.headers["content-type"], body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _sender(tmp_path: Path, url: str) -> Send | None:
    config = EnclaveConfig(app_id=APP_ID.hex(), kms=Kms(url=""), boot=Boot(progress_url=url))
    platform = cast("Any", Platform(image=tmp_path, writable=tmp_path, tee=cast("Any", Direct())))
    return http_sender(platform, config)


class Direct:
    """A guest with a network."""

    def dialer(self) -> DirectDialer:
        return DirectDialer()


def test_posts_each_event_to_the_measured_url(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Anyone)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        send = _sender(tmp_path, f"http://127.0.0.1:{server.server_address[1]}/progress")
        assert send is not None
        Progress(send, app_id=APP_ID).tell("kernel", "done")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    ((path, kind, body),) = Anyone.taken
    assert (path, kind) == ("/progress", "application/json")
    assert json.loads(body)["step"] == "kernel"


@pytest.fixture
def offered(tmp_path: Path) -> Iterator[Callable[[bytes], Platform]]:
    """Return a function that has the parent offer bytes as the progress URL."""
    servers: list[Server] = []

    def start(content: bytes) -> Platform:
        listener = UnixStandIn(tmp_path, PARENT_CID).listen(PROGRESS_PORT)
        servers.append(Server(listener, lambda sock: sock.sendall(content)))
        tee = NitroTee(nsm=cast("Any", None), vsock=UnixStandIn(tmp_path, 16))
        return Platform(image=tmp_path, writable=tmp_path, tee=tee)

    yield start
    for server in servers:
        server.close()


def test_the_parent_may_say_who_is_told(offered: Callable[[bytes], Platform]) -> None:
    url = "https://api.example.com/v1/deployments/web/progress/word"
    assert fetch_progress_url(offered(url.encode() + b"\n")) == url


@pytest.mark.parametrize(
    "content",
    [
        b"ftp://example.com/",
        b"https://",
        b"https://a b/",
        b"https://user@example.com/",
        b"https://a/\r\nX: y",
        b"\xff",
        b"file:///etc/passwd",
    ],
)
def test_what_the_parent_offers_must_be_a_url(offered: Callable[[bytes], Platform], content: bytes) -> None:
    with refuses("init.progress.url", ProtocolError):
        fetch_progress_url(offered(content))


def test_a_parent_without_a_url_is_where_nobody_listens(offered: Callable[[bytes], Platform]) -> None:
    with refuses("init.progress.none", UnavailableError):
        fetch_progress_url(offered(b"\n"))


def test_a_url_without_an_end_is_not_read_on(offered: Callable[[bytes], Platform]) -> None:
    with refuses("init.progress.oversize", ProtocolError):
        fetch_progress_url(offered(b"https://" + b"a" * 100_000))


def test_a_parent_that_offers_nothing_stops_no_step(tmp_path: Path) -> None:
    tee = NitroTee(nsm=cast("Any", None), vsock=UnixStandIn(tmp_path, 16))
    config = EnclaveConfig(app_id=APP_ID.hex(), kms=Kms(url=""), boot=Boot(progress_url="parent"))
    send = http_sender(Platform(image=tmp_path, writable=tmp_path, tee=tee), config)
    assert send is not None
    with Progress(send).step("kernel"):
        pass


def test_without_a_url_nobody_is_told(tmp_path: Path) -> None:
    assert _sender(tmp_path, "") is None


def test_a_url_that_nobody_answers_at_stops_no_step(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    progress = Progress(_sender(tmp_path, f"http://127.0.0.1:{port}/"))
    with progress.step("kernel"):
        pass

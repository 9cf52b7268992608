"""A whole KMS process that is told to stop ends what it is answering, accepts no more, and exits with 0."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from enclave.vsock.transport import UnixStandIn
from shared.errors import DstackError, UnavailableError
from shared.net.attested_client import AttestedConnection
from shared.net.fetch import HttpClient
from tests.docs.references import REPOSITORY
from tests.enclave.conftest import StandInDialer
from tests.enclave.event_log import PATIENCE, EventLog

CONFIG = """
[core]
enforce_self_authorization = false
aws_nitro_enclave_key_release = true
[core.onboard]
auto_bootstrap_domain = "kms.test"
[core.admin]
enabled = true
auth_token = "t"
[core.attestation]
insecure_allow_external_trust_anchors = true
[core.attestation.root_ca]
aws_nitro_enclave = "/root.pem"
[core.auth_api]
type = "webhook"
[core.auth_api.webhook]
url = "{url}"
"""


class AuthApi:
    """A policy server that answers when the test says so: GetMeta asks it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()
        body = json.dumps(
            {
                "status": "ok",
                "kmsContractAddr": "0x",
                "gatewayAppId": "slow",
                "chainId": 1,
                "appImplementation": "0x",
            }
        ).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805 - the base class's name
                self.asked.set()
                assert self.answer.wait(PATIENCE)
                handler.send_response(200)
                handler.send_header("content-length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self.answer.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Process:
    """The KMS, its events, and how to reach it."""

    def __init__(self, directory: Path, config: str) -> None:
        (directory / "etc/kms").mkdir(parents=True)
        (directory / "v").mkdir()
        (directory / "etc/kms/kms.toml").write_text(config)
        self._vsock = UnixStandIn(directory / "v", 16)
        self.log = EventLog()
        command = [sys.executable, "-m", "tests.enclave.kms.whole_kms", str(directory)]
        self.child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as lines:
            for line in lines:
                entry = json.loads(line)
                self.log(entry.pop("event"), **entry)

    def dialer(self, port: int) -> StandInDialer:
        return StandInDialer(self._vsock, 16, port)

    @contextmanager
    def connection(self) -> Iterator[AttestedConnection]:
        with AttestedConnection.connect(
            self.dialer(8000), "kms.test", 8000, check_peer=lambda _leaf: None, timeout=PATIENCE
        ) as connection:
            yield connection

    def wait_until_closed(self, port: int) -> None:
        """Wait until nobody can connect."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                self._vsock.connect(16, port, PATIENCE).close()
            except UnavailableError:
                return
        pytest.fail(f"port {port} is still open")

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        code = self.child.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def kill(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.wait()


@pytest.fixture
def auth_api() -> Iterator[AuthApi]:
    api = AuthApi()
    yield api
    api.close()


@pytest.fixture
def kms(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    running: list[Process] = []

    def start(config: str) -> Process:
        running.append(Process(tmp_path, config))
        return running[0]

    yield start
    for process in running:
        process.kill()


def _meta(connection: AttestedConnection, answers: list[Any]) -> None:
    answers.append(connection.request("POST", "/prpc/GetMeta?json", b"null"))


def test_a_request_that_is_being_answered_is_finished_and_none_is_accepted(kms, auth_api) -> None:
    process = kms(CONFIG.format(url=auth_api.url))
    process.log.wait_for(event="kms.ready")
    answers: list[Any] = []
    with process.connection() as busy, process.connection() as idle:
        assert idle.request("GET", "/health").body == b"OK"
        call = threading.Thread(target=_meta, args=(busy, answers))
        call.start()
        assert auth_api.asked.wait(PATIENCE)
        process.child.send_signal(signal.SIGTERM)
        assert process.log.wait_for(event="kms.draining")["connections"] == 2
        process.wait_until_closed(8000)
        with pytest.raises(DstackError):  # closed at once, while the other is being answered
            idle.request("GET", "/health")
        assert answers == []
        auth_api.answer.set()
        call.join(PATIENCE)
    (answer,) = answers
    assert (answer.status, json.loads(answer.body)["gateway_app_id"]) == (200, "slow")
    assert process.wait() == 0
    process.wait_until_closed(8001)
    process.log.wait_for(event="kms.stopped")


def test_an_idle_kms_ends_with_zero(kms, auth_api) -> None:
    process = kms(CONFIG.format(url=auth_api.url))
    process.log.wait_for(event="kms.ready")
    with process.connection() as connection:
        assert connection.request("GET", "/health").body == b"OK"
        assert process.stop() == 0


def test_a_kms_without_keys_that_is_told_to_stop_does_not_go_on_without(kms, auth_api) -> None:
    config = CONFIG.format(url=auth_api.url).replace('auto_bootstrap_domain = "kms.test"', "port = 8100")
    process = kms(config)
    process.log.wait_for(event="kms.onboarding")
    http = HttpClient(process.dialer(8100), timeout=PATIENCE)
    assert http.request("GET", "http://kms.test/health").body == b"OK"
    http.close()
    assert process.stop() == 0
    process.log.wait_for(event="kms.stopped")

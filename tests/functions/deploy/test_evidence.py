"""The deployer's challenge: what is asked, of whom, and what of the answer counts."""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from enclave.agent.evidence import evidence_app
from enclave.devices.attestor import NitroAttestor
from enclave.devices.nsm import Nsm
from enclave.serving.attested_tls import build_plain_server, run_server
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from functions.deploy.evidence import CHALLENGE_SECONDS, MAX_ANSWER, Attester, HttpChallenger, Verifier
from functions.deploy.record import Deployment, Planned, Proven
from shared.attestation.report_data import deploy_challenge
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence, ProtocolError, StorageError, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.functions.deploy.memory_cloud import NOW, some_deployment
from tests.shared.refusal import refuses

APP_ID = bytes.fromhex("22" * 20)
PCRS = {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48}
IMAGE = hashlib.sha256(PCRS[0] + PCRS[1] + PCRS[2]).hexdigest()
URL = "http://192.0.2.7:8090/evidence"


class Enclave:
    """A simulated enclave that answers as the agent does, by call instead of HTTP."""

    def __init__(self, app_id: bytes = APP_ID, pcrs: dict[int, bytes] = PCRS) -> None:
        self.authority = SimulatedAuthority.create()
        self.asked: list[bytes] = []
        self.now = NOW
        self.takes = 0
        self._app_id = app_id
        self._attestor = NitroAttestor(Nsm(SimulatedNsm(pcrs, self.authority, clock=lambda: NOW)), app_id)
        self.replay: bytes | None = None

    def __call__(self, url: str, challenge: bytes) -> bytes:
        assert url == URL
        self.asked.append(challenge)
        self.now += self.takes
        if self.replay is not None:
            return self.replay
        return self._attestor.attest(deploy_challenge(challenge, self._app_id))

    def attester(self, *, trusted: bool = True) -> Attester:
        anchors = TrustAnchors.production()
        if trusted:
            anchors = anchors.with_extra(self.authority.root_pem, signer="nitro")
        return Attester(Verifier(anchors, lambda: self.now), self)


def planned(**changes: Any) -> Deployment:
    plan = Planned(
        plan_id="aa" * 32,
        app_id=APP_ID.hex(),
        compose_hash=IMAGE,
        os_image_hash=IMAGE,
        platform="nitro",
        plan="bb" * 32,
    )
    return some_deployment(planned=msgspec.structs.replace(plan, **changes))


def test_fresh_evidence_of_the_planned_image_is_a_proof() -> None:
    enclave = Enclave()
    attested = enclave.attester().attest(planned(), URL)
    assert attested.simulated
    assert attested.verdict["simulated"] is True
    assert attested.verdict["lanes"]["os_image"]["status"] == "verified"
    assert len(enclave.asked[0]) == 32


def test_a_proof_tells_the_measurement_and_the_device() -> None:
    attested = Enclave().attester().attest(planned(), URL)
    assert attested.proven == Proven(
        mr_aggregated=IMAGE, device_id=hashlib.sha256(b"i").hexdigest(), tcb_status=""
    )


def test_each_challenge_is_used_once() -> None:
    enclave = Enclave()
    attester = enclave.attester()
    attester.attest(planned(), URL)
    attester.attest(planned(), URL)
    assert enclave.asked[0] != enclave.asked[1]


def test_an_answer_to_an_earlier_challenge_is_refused() -> None:
    enclave = Enclave()
    enclave.replay = enclave(URL, bytes(32))
    with refuses("attestation.report_data"):
        enclave.attester().attest(planned(), URL)


def test_an_answer_after_a_minute_counts_for_nothing() -> None:
    enclave = Enclave()
    enclave.takes = CHALLENGE_SECONDS + 1
    with refuses("deploy.evidence.late", UnavailableError):
        enclave.attester().attest(planned(), URL)


@pytest.mark.parametrize("field", ["os_image_hash", "compose_hash"])
def test_another_workload_is_refused(field: str) -> None:
    with refuses("deploy.evidence.workload"):
        Enclave().attester().attest(planned(**{field: "00" * 32}), URL)


def test_evidence_for_another_app_is_refused() -> None:
    with refuses("attestation.report_data"):
        Enclave(app_id=bytes(20)).attester().attest(planned(), URL)


def test_a_simulated_enclave_is_nothing_without_its_anchor() -> None:
    with pytest.raises(InvalidEvidence):
        Enclave().attester(trusted=False).attest(planned(), URL)


def test_without_a_plan_there_is_nothing_to_compare_with() -> None:
    with refuses("deploy.plan", StorageError):
        Enclave().attester().attest(some_deployment(), URL)


# ---- over HTTP ----


@contextmanager
def listening(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """Answer one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/evidence"
        thread.join()


def answering(status: str, body: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        with contextlib.suppress(ConnectionError):  # a client may have had enough
            connection.sendall(
                f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )

    return serve


def ask(url: str, challenge: bytes = bytes(32)) -> bytes:
    return HttpChallenger(HttpClient(DirectDialer()))(url, challenge)


def test_asks_the_agents_own_responder() -> None:
    class Echo:
        def attest(self, report_data: bytes) -> bytes:
            return report_data

    server = build_plain_server(evidence_app(Echo(), APP_ID))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=run_server, args=(server, [listener]))
    thread.start()
    try:
        answer = ask(f"http://127.0.0.1:{listener.getsockname()[1]}/evidence")
    finally:
        server.should_exit = True
        thread.join()
    assert len(answer) == 64


@pytest.mark.parametrize(
    ("status", "body", "code", "kind"),
    [
        ("503 Busy", b"{}", "deploy.evidence.busy", UnavailableError),
        ("404 Not Found", b"{}", "deploy.evidence.status", ProtocolError),
        ("200 OK", b"[]", "deploy.evidence.answer", ProtocolError),
        ("200 OK", b"\xff", "deploy.evidence.answer", ProtocolError),
        ("200 OK", b'{"attestation": "zz"}', "hex.invalid", ProtocolError),
        ("200 OK", b"x" * (MAX_ANSWER + 1), "net.response.oversize", ProtocolError),
    ],
)
def test_an_answer_that_is_none_is_refused(status: str, body: bytes, code: str, kind: type[Any]) -> None:
    with listening(answering(status, body)) as url, refuses(code, kind):
        ask(url)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[fe80::1]",
        "0.0.0.0",
        "224.0.0.1",
        "metadata.google.internal",
        "",
    ],
)
def test_an_address_that_is_no_machine_is_not_asked(host: str) -> None:
    with refuses("deploy.evidence.address", ProtocolError):
        ask(f"http://{host}:8090/evidence")


def test_a_machine_that_does_not_answer_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with refuses("net.unreachable", UnavailableError):
        ask(f"http://127.0.0.1:{port}/evidence")

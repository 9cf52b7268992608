"""A KMS in a process of its own, so that its CPU time is nobody else's, steered through a pipe."""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.types import ASGIApp, Receive, Scope, Send

from bench import raw_crypto
from bench.enclaves import AttestedClient, Kms, Policy
from bench.measure import Timing, timed
from enclave.serving.attested_tls import build_plain_server, build_server, run_server
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import Encoding as Wire
from shared.rpc.codec import encode

Front = Literal["plain", "attested"]
START_SECONDS = 60


ANONYMOUS = b"x-bench: anonymous\r\n"
"""The header line of a plain request without a certificate."""


class _WithPeer:
    """ASGI middleware that says what TLS would have: whose certificate the connection presented."""

    def __init__(self, app: ASGIApp, leaf: bytes) -> None:
        self._app = app
        self._leaf = leaf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        anonymous = any(name == b"x-bench" for name, _ in scope.get("headers", ()))
        scope.setdefault("state", {})["peer_chain"] = [] if anonymous else [self._leaf]
        await self._app(scope, receive, send)


class KeyServer:
    """The parent's end of the pipe."""

    def __init__(self, pipe: Connection, port: int) -> None:
        self._pipe = pipe
        self.port = port

    def cpu(self) -> float:
        """Return the CPU seconds that the server process has used."""
        return self._ask("cpu", 0)

    def resident(self) -> int:
        """Return the bytes of memory that the server process holds."""
        return self._ask("resident", 0)

    def raw(self, count: int) -> Timing:
        """Time the raw cryptography there."""
        return self._ask("raw", count)

    def raw_handshake(self, count: int) -> Timing:
        """Time the handshake's part of it."""
        return self._ask("raw handshake", count)

    def dispatch(self, count: int) -> Timing:
        """Time caller check, method and encoding there, without HTTP or threads."""
        return self._ask("dispatch", count)

    def clients(self, count: int, *, new_enclaves: bool = False) -> list[tuple[bytes, bytes]]:
        """Return fresh client certificates with evidence, and their keys, as PEM."""
        return self._ask("new enclaves" if new_enclaves else "clients", count)

    def _ask(self, what: str, count: int) -> Any:  # noqa: ANN401 - each question has its own answer
        self._pipe.send((what, count))
        return self._pipe.recv()


@contextmanager
def key_server(front: Front, policy: Policy = "remembered") -> Iterator[KeyServer]:
    """Run a KMS until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, front, policy), daemon=True)
    process.start()
    try:
        if not ours.poll(START_SECONDS):
            raise TimeoutError(f"the {front} key server did not start in {START_SECONDS} s")
        yield KeyServer(ours, ours.recv())
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, front: Front, policy: Policy) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # log lines are written, and read by nobody
    kms = Kms(policy)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    if front == "plain":
        server = build_plain_server(_WithPeer(kms.app(), kms.client.der))
    else:
        server = build_server(kms.app(), context_factory=kms.identity.context)
    answers = _answers(kms, front)
    threading.Thread(target=_answer_forever, args=(pipe, answers), daemon=True).start()
    pipe.send(listener.getsockname()[1])
    run_server(server, [listener])


def _answer_forever(pipe: Connection, answers: dict[str, Callable[[int], Any]]) -> None:
    while True:
        what, count = pipe.recv()
        pipe.send(answers[what](count))


def _answers(kms: Kms, front: Front) -> dict[str, Callable[[int], Any]]:
    callers, request = kms.callers(), pb.GetAppKeyRequest(api_version=1)
    leaf = kms.client.der
    raw, handshake = _raw(kms, front), raw_crypto.handshake()

    def dispatch() -> bytes:
        return encode(kms.service.get_app_key(request, callers.verify([leaf])), Wire.JSON)

    return {
        "cpu": lambda _: time.process_time(),
        "resident": lambda _: _resident(),
        "raw": lambda count: timed(raw, count),
        "raw handshake": lambda count: timed(handshake, count),
        "dispatch": lambda count: timed(dispatch, count),
        "clients": lambda count: [_as_pem(kms.new_client()) for _ in range(count)],
        "new enclaves": lambda count: [_as_pem(kms.new_client(new_enclave=True)) for _ in range(count)],
    }


def _raw(kms: Kms, front: Front) -> Callable[[], object]:
    """Return the cryptography that one request to this server cannot do without."""
    parts = [raw_crypto.app_keys()]
    if front == "attested":
        parts += [raw_crypto.handshake(), raw_crypto.evidence(2 if kms.chain else 0)]
    if kms.chain:
        parts.append(raw_crypto.proofs(kms.chain.bundle))

    def together() -> None:
        for part in parts:
            part()

    return together


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def _as_pem(client: AttestedClient) -> tuple[bytes, bytes]:
    key = client.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return client.certificate.public_bytes(Encoding.PEM), key

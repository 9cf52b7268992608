"""A KMS in a process of its own, so that its CPU time is nobody else's, steered through a pipe."""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Literal

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.types import ASGIApp, Receive, Scope, Send

from bench import raw_crypto
from bench.enclaves import Kms
from bench.measure import Timing, timed
from enclave.serving.attested_tls import build_plain_server, build_server, run_server
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import Encoding as Wire
from shared.rpc.codec import encode

Front = Literal["plain", "attested"]
START_SECONDS = 60


class _WithPeer:
    """ASGI middleware that says what TLS would have: whose certificate the connection presented."""

    def __init__(self, app: ASGIApp, leaf: bytes) -> None:
        self._app = app
        self._leaf = leaf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["peer_chain"] = [self._leaf]
        await self._app(scope, receive, send)


class KeyServer:
    """The parent's end of the pipe."""

    def __init__(self, pipe: Connection, port: int) -> None:
        self._pipe = pipe
        self.port = port

    def cpu(self) -> float:
        """Return the CPU seconds that the server process has used."""
        return self._ask("cpu", 0)

    def raw(self, count: int) -> Timing:
        """Time the raw cryptography there."""
        return self._ask("raw", count)

    def dispatch(self, count: int) -> Timing:
        """Time caller check, method and encoding there, without HTTP or threads."""
        return self._ask("dispatch", count)

    def clients(self, count: int) -> list[tuple[bytes, bytes]]:
        """Return fresh client certificates with evidence, and their keys, as PEM."""
        return self._ask("clients", count)

    def _ask(self, what: str, count: int) -> Any:  # noqa: ANN401 - each question has its own answer
        self._pipe.send((what, count))
        return self._pipe.recv()


@contextmanager
def key_server(front: Front) -> Iterator[KeyServer]:
    """Run a KMS with one remembered allow until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, front), daemon=True)
    process.start()
    try:
        if not ours.poll(START_SECONDS):
            raise TimeoutError(f"the {front} key server did not start in {START_SECONDS} s")
        yield KeyServer(ours, ours.recv())
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, front: Front) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # log lines are written, and read by nobody
    kms = Kms()
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
    keys, connection = raw_crypto.app_keys(), raw_crypto.attested_connection()
    callers, request = kms.callers(), pb.GetAppKeyRequest(api_version=1)
    leaf = kms.client.der

    def dispatch() -> bytes:
        return encode(kms.service.get_app_key(request, callers.verify([leaf])), Wire.JSON)

    def attested_request() -> None:
        connection()
        keys()

    def clients(count: int) -> list[tuple[bytes, bytes]]:
        made = [kms.new_client() for _ in range(count)]
        pkcs8 = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return [(one.certificate.public_bytes(Encoding.PEM), one.key.private_bytes(*pkcs8)) for one in made]

    return {
        "cpu": lambda _: time.process_time(),
        "raw": lambda count: timed(keys if front == "plain" else attested_request, count),
        "dispatch": lambda count: timed(dispatch, count),
        "clients": clients,
    }

"""AWS on loopback: moto's server over HTTP, with faults on demand.

moto itself is not atomic (a transaction checks its conditions in one thread while another writes), AWS is: so
one request is served at a time.
"""

import json
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any, Self

import msgspec
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from functions.aws_api import AwsClient, aws_client

Answer = Iterable[bytes]
Environ = dict[str, Any]
StartResponse = Callable[..., Any]

REGION = "eu-west-1"


class Fault(msgspec.Struct):
    """What goes wrong `times` times with the calls whose description contains `call`.

    Without a `code` the connection ends and nothing is answered, or `cut` bytes of the answer's body. With
    `after`, the call has its effect first.
    """

    call: str
    code: str = ""
    status: int = 400
    message: str = ""
    times: int = 1
    after: bool = False
    reasons: tuple[str, ...] = ()
    answer: dict[str, Any] | None = None
    cut: int = 0


class AwsServer:
    """All services of moto at `url`. `calls` describes every call: `DynamoDB GetItem`, `GET /bucket/key`."""

    def __init__(self) -> None:
        self._moto = _Application(create_backend_app)
        self._lock = Lock()
        self._faults: list[Fault] = []
        self._clients: dict[tuple[str, int], AwsClient] = {}
        self.calls: list[str] = []
        self._server = make_server("127.0.0.1", 0, self._serve, True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Self":
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def client(self, service: str, attempts: int = 1) -> AwsClient:
        """Return a client of ours for all tests; it repeats what failed only if it is asked to."""
        if (service, attempts) not in self._clients:
            self._clients[service, attempts] = self.new_client(service, attempts)
        return self._clients[service, attempts]

    def new_client(self, service: str, attempts: int = 1) -> AwsClient:
        """Return a client for one test, which may register handlers of events with it."""
        return aws_client(
            service,
            region=REGION,
            endpoint_url=self.url,
            attempts=attempts,
            aws_access_key_id="AKIDEXAMPLE",
            aws_secret_access_key="secret",
        )

    def fail(self, call: str, code: str = "", **options: Any) -> None:
        """Let the next call go wrong: see `Fault`."""
        self._faults.append(Fault(call, code, **options))

    def answer(self, call: str, body: dict[str, Any]) -> None:
        """Let the next call get this answer, and have no effect."""
        self._faults.append(Fault(call, "-", status=200, answer=body))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Forget faults and calls afterwards."""
        self.calls.clear()
        try:
            yield
        finally:
            self._faults.clear()

    def _serve(self, environ: Environ, start_response: StartResponse) -> Answer:
        call = _describe(environ)
        with self._lock:
            self.calls.append(call)
            fault = next((one for one in self._faults if one.call in call), None)
            if fault is None:
                # moto answers from memory: nothing is left to be computed once the lock is released
                return list(self._moto(environ, start_response))
            fault.times -= 1
            if fault.times == 0:
                self._faults.remove(fault)
            if fault.cut:
                return _cut(environ, list(self._moto(environ, start_response)), fault.cut)
            if fault.after:
                list(self._moto(environ, lambda *_: lambda _: None))
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if not fault.code:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        return _refuse(environ, start_response, fault)


class _Application(DomainDispatcherApplication):
    """moto lists its directories and tries hundreds of patterns for the host of a request: once is enough."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._backends: dict[str | None, str | None] = {}

    def get_backend_for_host(self, host: str | None) -> str | None:
        if host not in self._backends:
            self._backends[host] = super().get_backend_for_host(host)
        return self._backends[host]


class _Quiet(MotoRequestHandler):
    def log(self, *_: object, **__: object) -> None:
        """Say nothing: a test reads `calls`."""


def _describe(environ: Environ) -> str:
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        service, operation = target.split(".", 1)
        return f"{service.split('_')[0]} {operation}"
    query = environ.get("QUERY_STRING", "")
    return f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{'?' if query else ''}{query}"


def _cut(environ: Environ, body: list[bytes], size: int) -> Answer:
    yield b"".join(body)[:size]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def _refuse(environ: Environ, start_response: StartResponse, fault: Fault) -> Answer:
    if environ.get("HTTP_X_AMZ_TARGET"):
        body: dict[str, Any] = {"__type": f"com.amazonaws#{fault.code}", "message": fault.message}
        if fault.reasons:
            body["CancellationReasons"] = [{"Code": reason} for reason in fault.reasons]
        kind, content = "application/x-amz-json-1.0", json.dumps(fault.answer or body).encode()
    else:
        kind = "application/xml"
        content = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>".encode()
    start_response(f"{fault.status} Fault", [("Content-Type", kind), ("Content-Length", str(len(content)))])
    return [content]


def make_table(server: AwsServer, name: str) -> str:
    """Make a table with the keys that `functions.stores.dynamodb` describes."""
    server.client("dynamodb").create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
    )
    return name

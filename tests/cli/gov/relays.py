"""Endpoints on hosts of their own before one chain, each as honest as a test wants it."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient

_JSON = {"Content-Type": "application/json"}
Lie = Callable[[dict[str, Any]], dict[str, Any] | None]
"""What is answered to a request, a result or an error; None for what the chain answers."""


class Relay:
    """One endpoint; `lie` stands between it and the chain, `methods` is what it was asked in `requests`."""

    def __init__(self, url: str, chain: str) -> None:
        self.url = url
        self.lie: Lie = lambda _: None
        self.methods: list[str] = []
        self.requests = 0
        self._chain = chain
        self._http = HttpClient(DirectDialer())

    def answer(self, body: bytes) -> bytes:
        asked = json.loads(body)
        self.requests += 1
        self.methods += [one["method"] for one in asked]
        answers = [
            self._honest(one) if (lie := self.lie(one)) is None else {"id": one["id"], **lie} for one in asked
        ]
        return json.dumps(answers).encode()

    def lies(self, method: str, result: object) -> None:
        """Answer a method with something else."""
        self.lie = lambda asked: {"result": result} if asked["method"] == method else None

    def fails(self, message: str, method: str | None = None) -> None:
        """Answer a method, or all, with an error."""
        error = {"error": {"code": -32000, "message": message}}
        self.lie = lambda asked: error if method in {None, asked["method"]} else None

    def fails_late(self, message: str, method: str) -> None:
        """Answer a method with an error, once the chain has done what it asks."""

        def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
            if asked["method"] != method:
                return None
            self._honest(asked)
            return {"error": {"code": -32603, "message": message}}

        self.lie = lie

    def honest(self) -> None:
        """Answer what the chain does, again."""
        self.lie = lambda _: None
        self.methods.clear()

    def _honest(self, asked: dict[str, Any]) -> dict[str, Any]:
        response = self._http.request("POST", self._chain, json.dumps(asked).encode(), _JSON)
        found: dict[str, Any] = json.loads(response.body)
        return found


@contextlib.contextmanager
def relays(chain: str, count: int) -> Iterator[list[Relay]]:
    """Run endpoints on 127.0.0.2 and up for the length of a `with` block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_relay(chain, f"127.0.0.{number + 2}")) for number in range(count)]


@contextlib.contextmanager
def _relay(chain: str, host: str) -> Iterator[Relay]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = relay.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        server.daemon_threads = True
        relay = Relay(f"http://{host}:{server.server_port}", chain)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield relay
        finally:
            server.shutdown()
            thread.join()

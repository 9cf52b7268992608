"""A registry on a loopback port: one repository, tokens as real ones have them, misbehaviour on demand."""

import base64
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from shared.measurement.oci import OCI_MANIFEST

REPOSITORY = "org/app"
TOKEN = "registry-token"


class Answer(msgspec.Struct, frozen=True):
    """What a request gets. `body` may be endless; without `length` it is sent in chunks."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes | Callable[[], Iterator[bytes]] = b""
    length: int | None = None


class Seen(msgspec.Struct, frozen=True):
    """A request that came."""

    target: str
    authorization: str | None


class Registry:
    """Serves `blobs` and `manifests` by digest; `answers` by path come first.

    With `user`, both need a token, which the Basic credentials of `user` (name:password) give. With `tls` it
    speaks https.
    """

    def __init__(self, *, user: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.answers: dict[str, Answer | Callable[[str | None], Answer]] = {}
        self.requests: list[Seen] = []
        self.user = user
        self.challenge: str | None = None
        self.token = Answer(200, {}, b'{"token": "%b"}' % TOKEN.encode())
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        if tls is not None:
            # the handshake is made in a connection's own thread
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, target: str, authorization: str | None) -> Answer:
        path = urlsplit(target).path
        chosen = self.answers.get(path)
        if chosen is not None:
            return chosen if isinstance(chosen, Answer) else chosen(authorization)
        if path == "/token":
            return self._give_token(target, authorization)
        if self.user is not None and authorization != f"Bearer {TOKEN}":
            challenge = f'Bearer realm="{self.url}/token",service="stand-in",scope="repository:*:*"'
            return Answer(401, {"WWW-Authenticate": self.challenge or challenge}, b"{}", 2)
        kind, _, digest = path.removeprefix(f"/v2/{REPOSITORY}/").partition("/")
        if kind == "manifests" and digest in self.manifests:
            media_type, raw = self.manifests[digest]
            return Answer(200, {"Content-Type": media_type}, raw, len(raw))
        if kind == "blobs" and digest in self.blobs:
            return Answer(200, {}, self.blobs[digest], len(self.blobs[digest]))
        return Answer(404, {}, b"{}", 2)

    def _give_token(self, target: str, authorization: str | None) -> Answer:
        query = parse_qs(urlsplit(target).query)
        basic = f"Basic {base64.b64encode((self.user or '').encode()).decode()}"
        if query.get("scope") != [f"repository:{REPOSITORY}:pull"] or (self.user and authorization != basic):
            return Answer(401, {}, b"{}", 2)
        return self.token


def _handler(registry: Registry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization")
            registry.requests.append(Seen(self.path, authorization))
            answer = registry.answer(self.path, authorization)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            pieces = iter((answer.body,)) if isinstance(answer.body, bytes) else answer.body()
            if answer.length is None:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(answer.length))
            self.end_headers()
            try:
                for piece in pieces:
                    is_chunk = answer.length is None and piece
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunk else piece)
                self.wfile.write(b"0\r\n\r\n" if answer.length is None else b"")
            except OSError:
                pass  # the client had enough
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing: `requests` is the log."""

    return Handler


@contextmanager
def serving(
    manifests: Mapping[str, bytes], blobs: Mapping[str, bytes], user: str | None = None
) -> Iterator[Registry]:
    """Run a registry that has these documents."""
    with Registry(user=user) as registry:
        registry.manifests.update({digest: (OCI_MANIFEST, raw) for digest, raw in manifests.items()})
        registry.blobs.update(blobs)
        yield registry

"""The RPC transport: HTTP over TLS or plain, JSON or protobuf (spec kms 1)."""

import contextlib
import http.client
import json
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.interop.spec_client.certificates import USAGE, extension

Dial = Callable[[], socket.socket]


class Refused(Exception):  # noqa: N818 - the server said no
    """An answer that is no success: its status, the error's text, and the body."""

    def __init__(self, answer: "Answer") -> None:
        super().__init__(f"{answer.status}: {answer.body!r}")
        self.answer = answer

    @property
    def text(self) -> str:
        """The text of a JSON error."""
        return str(json.loads(self.answer.body)["error"])


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    server: x509.Certificate | None


@dataclass(frozen=True)
class Identity:
    """A client certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def load_into(self, context: ssl.SSLContext) -> None:
        pem = self.certificate.public_bytes(Encoding.PEM) + self.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "identity.pem"
            file.write_bytes(pem)
            context.load_cert_chain(file)


@dataclass(frozen=True)
class Channel:
    """How to reach one listener: each call is a connection of its own.

    Without `trust`, a PEM root, the server is not verified, as for GetTempCaCert (4.7). With it the server
    must chain to the root, have the name `host` and the usage `kms:rpc`. `tls` off is for the onboard
    listener.
    """

    dial: Dial
    host: str
    trust: str | None = None
    identity: Identity | None = None
    tls: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(
        self, verb: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        sock, server = self._connect()
        connection = http.client.HTTPConnection(self.host)
        connection.sock = sock
        try:
            # a body may be refused before its end, and the answer be there already
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                connection.request(verb, target, body, {**self.headers, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read(), server)
        finally:
            connection.close()

    def call(
        self, method: str, message: object = None, *, query: str = "?json", headers: Mapping[str, str] = {}
    ) -> Any:
        """POST a JSON message as Rust clients do, without a Content-Type; None sends `null`."""
        answer = self.request("POST", f"/prpc/{method}{query}", json.dumps(message).encode(), headers)
        _succeeded(answer, "application/json")
        return json.loads(answer.body or b"null")

    def call_protobuf(self, method: str, message: bytes) -> bytes:
        """POST a protobuf message."""
        answer = self.request("POST", f"/prpc/{method}", message)
        return _succeeded(answer, "application/octet-stream").body

    def server(self) -> x509.Certificate:
        """The server's certificate alone."""
        sock, server = self._connect()
        sock.close()
        if server is None:
            raise ValueError("a plain listener has no certificate")
        return server

    def _connect(self) -> tuple[socket.socket, x509.Certificate | None]:
        sock = self.dial()
        if not self.tls:
            return sock, None
        try:
            wrapped = self._context().wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise
        leaf = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
        if self.trust is not None and extension(leaf, USAGE) != b"kms:rpc":
            wrapped.close()
            raise ValueError("the server is no kms: its certificate has another usage")
        return wrapped, leaf

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.trust is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            # upstream's certificates have no authority key identifier (spec kms, traps, 1)
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            context.load_verify_locations(cadata=self.trust)
        if self.identity is not None:
            self.identity.load_into(context)
        return context


def _succeeded(answer: Answer, content_type: str) -> Answer:
    if answer.status != 200:
        raise Refused(answer)
    if answer.headers.get("content-type", answer.headers.get("Content-Type")) != content_type:
        raise ValueError(f"an answer of type {answer.headers}")
    return answer

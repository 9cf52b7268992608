"""A host that guests tell how they do, behind a socket that stands in for its vsock."""

import socket
import threading
from collections.abc import Callable

import msgspec

from tests.enclave.event_log import PATIENCE

HOST_CID = 2  # of the stand-in: no AF_VSOCK is opened here
URL = "vsock://2:10000/api"


class Host:
    """A host behind a listener, which answers with bytes that a test chooses."""

    def __init__(self, listener: socket.socket) -> None:
        self.asked: list[bytes] = []
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull"
        self.hold: Callable[[socket.socket], None] = lambda _peer: None
        self._listener = listener
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def answers(self, body: bytes, status: str = "200 OK") -> None:
        self.answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def body(self) -> object:
        """Return the JSON of the last request."""
        return msgspec.json.decode(self.asked[-1].partition(b"\r\n\r\n")[2])

    def told(self) -> list[tuple[str, str]]:
        """Return the events of all notices so far."""
        bodies = (msgspec.json.decode(one.partition(b"\r\n\r\n")[2]) for one in list(self.asked))
        return [(body["event"], body["payload"]) for body in bodies]

    def line(self) -> bytes:
        return self.asked[-1].partition(b"\r\n")[0]

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(PATIENCE)
                try:
                    self.asked.append(_request(peer))
                    self.hold(peer)
                    peer.sendall(self.answer)
                except OSError:
                    continue  # the guest gave up


def _request(peer: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += peer.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += peer.recv(1 << 16)
    return head + b"\r\n\r\n" + body

"""Plain HTTP requests over kept connections, one under way on each."""

import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle

BODY = b'{"api_version":1,"vm_config":""}'


def post(method: str, *, headers: bytes = b"", body: bytes = BODY) -> bytes:
    """Return the bytes of one request; `headers` are lines with their ends."""
    return (
        b"POST /prpc/KMS.%b?json HTTP/1.1\r\nhost: kms.bench\r\ncontent-type: application/json\r\n"
        b"%bcontent-length: %d\r\n\r\n%b" % (method.encode(), headers, len(body), body)
    )


@contextmanager
def connected(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open so many connections until the block ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


def request_all(connections: list[socket.socket], total: int, *requests: bytes) -> list[float]:
    """Send the requests by turns until `total` are answered; return how many seconds each answer took."""
    turns = cycle(requests)
    began: dict[socket.socket, float] = {}
    took: list[float] = []
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
            began[connection] = time.perf_counter()
            connection.sendall(next(turns))
        sent = len(connections)
        pending = dict.fromkeys(connections, b"")
        while len(took) < total:
            for key, _ in selector.select(timeout=30):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = pending[connection] + connection.recv(65536)
                pending[connection] = b"" if _is_complete(data) else data
                if pending[connection]:
                    continue
                now = time.perf_counter()
                took.append(now - began[connection])
                if sent < total:
                    began[connection] = now
                    connection.sendall(next(turns))
                    sent += 1
    return took


def _is_complete(data: bytes) -> bool:
    assert data, "the server closed a connection"
    head, _, body = data.partition(b"\r\n\r\n")
    if not body:
        return False
    assert head.startswith(b"HTTP/1.1 200"), data
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) == int(length[15:])

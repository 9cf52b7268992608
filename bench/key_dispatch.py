"""GetAppKey through the KMS's HTTP server, against the raw cryptography of one request in a loop.

The caller's evidence was verified before and is remembered, and so is the allow; there is no TLS. What is
measured is everything else that a request pays for: HTTP, routing, the checks on the certificate that are
made for each request, decoding, the decision from memory, derivation, the log line, and encoding.

The bar is on CPU time, as "requests per second and core". Wall time is reported beside it.
"""

import selectors
import socket
import statistics
import time
from contextlib import ExitStack

from bench.key_server import KeyServer, key_server
from bench.measure import Bar, Result, Timing, alternate, median_ratio

CONNECTIONS = 16
REQUESTS = 1000  # of one round
ROUNDS = 21
RAW_COUNT = 1000

_BODY = b'{"api_version":1,"vm_config":""}'
_REQUEST = (
    b"POST /prpc/KMS.GetAppKey?json HTTP/1.1\r\nhost: kms.bench\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


def dispatch() -> Result:
    """Measure over HTTP, and report the same without."""
    with key_server("plain") as server, ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(CONNECTIONS)
        ]
        pairs = alternate(
            lambda: _over_http(server, connections, REQUESTS), lambda: server.raw(RAW_COUNT), ROUNDS
        )
        in_process = [server.dispatch(RAW_COUNT) for _ in range(5)]
    ours, reference = min(our.cpu for our, _ in pairs), min(raw.cpu for _, raw in pairs)
    return Result(
        name="key-dispatch",
        what="GetAppKey over HTTP, caller verified and allow remembered, against its raw cryptography",
        ours=ours,
        reference=reference,
        ratio=reference / ours,
        bar=Bar("at least", 0.32),
        detail={
            "median ratio": median_ratio([(raw.cpu, our.cpu) for our, raw in pairs]),
            "requests/s and core": 1 / ours,
            "requests/s (median wall)": 1 / statistics.median(our.wall for our, _ in pairs),
            "median ratio (wall)": median_ratio([(raw.wall, our.wall) for our, raw in pairs]),
            "in process, no HTTP, ms": min(run.cpu for run in in_process) * 1e3,
        },
    )


def _over_http(server: KeyServer, connections: list[socket.socket], total: int) -> Timing:
    cpu, wall = server.cpu(), time.perf_counter()
    _request_all(connections, total)
    wall = time.perf_counter() - wall
    return Timing((server.cpu() - cpu) / total, wall / total)


def _request_all(connections: list[socket.socket], total: int) -> None:
    """Keep one request under way on each connection until `total` are answered."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
            connection.sendall(_REQUEST)
        sent, answered = len(connections), 0
        pending = dict.fromkeys(connections, b"")
        while answered < total:
            for key, _ in selector.select(timeout=30):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = pending[connection] + connection.recv(65536)
                pending[connection] = b"" if _is_complete(data) else data
                if pending[connection]:
                    continue
                answered += 1
                if sent < total:
                    connection.sendall(_REQUEST)
                    sent += 1


def _is_complete(data: bytes) -> bool:
    assert data, "the server closed a connection"
    head, _, body = data.partition(b"\r\n\r\n")
    if not body:
        return False
    assert head.startswith(b"HTTP/1.1 200"), data
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return len(body) == int(length[15:])

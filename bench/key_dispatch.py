"""GetAppKey through the KMS's HTTP server, against the raw cryptography of one request in a loop.

The caller's evidence was verified before and is remembered, and so is the allow; there is no TLS. What is
measured is everything else that a request pays for: HTTP, routing, the checks on the certificate that are
made for each request, decoding, the decision from memory, derivation, the log line, and encoding.

The bar is on CPU time, as "requests per second and core". Wall time is reported beside it.
"""

import statistics
import time
from socket import socket

from bench.http_load import connected, post, request_all
from bench.key_server import KeyServer, key_server
from bench.measure import Bar, Result, Timing, alternate, median_ratio

CONNECTIONS = 16
REQUESTS = 1000  # of one round
ROUNDS = 21
RAW_COUNT = 1000


def dispatch() -> Result:
    """Measure over HTTP, and report the same without."""
    with key_server("plain") as server, connected(server.port, CONNECTIONS) as connections:
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


def _over_http(server: KeyServer, connections: list[socket], total: int) -> Timing:
    cpu, wall = server.cpu(), time.perf_counter()
    request_all(connections, total, post("GetAppKey"))
    wall = time.perf_counter() - wall
    return Timing((server.cpu() - cpu) / total, wall / total)

"""How long GetAppKey takes at the slow end: the 99th percentile against the median, 16 requests under way.

The caller is known and the allow remembered, as in `key-dispatch`; times are of the client's clock, so they
hold the wait for the server and for one of the machine's cores. `detail` has the same while anonymous clients
ask GetMeta and GetTempCaCert as fast as they are answered, on 8 connections from a process of their own:
those two run in threads, and compete for the interpreter with the event loop that answers known callers.
"""

import multiprocessing
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

from bench.http_load import connected, post, request_all
from bench.key_server import ANONYMOUS, key_server
from bench.measure import Bar, Result

CONNECTIONS = 16
ANONYMOUS_CONNECTIONS = 8
REQUESTS = 10_000
WARM_UP = 1000
START_SECONDS = 30


def latency() -> Result:
    """Measure alone, then beside anonymous clients."""
    with key_server("plain") as server, connected(server.port, CONNECTIONS) as connections:
        ask = post("GetAppKey")
        request_all(connections, WARM_UP, ask)
        alone = request_all(connections, REQUESTS, ask)
        with _anonymous_load(server.port):
            request_all(connections, WARM_UP, ask)
            beside = request_all(connections, REQUESTS, ask)
    p50, p99 = _percentiles(alone)
    p50_beside, p99_beside = _percentiles(beside)
    return Result(
        name="kms-latency",
        what=f"GetAppKey, {CONNECTIONS} connections: 99th percentile against the median",
        ours=p99,
        reference=p50,
        ratio=p99 / p50,
        bar=Bar("at most", 10),
        detail={
            "slowest ms": max(alone) * 1e3,
            "beside anonymous: p50 ms": p50_beside * 1e3,
            "beside anonymous: p99 ms": p99_beside * 1e3,
            "beside anonymous: ratio": p99_beside / p50_beside,
            "beside anonymous: slowest ms": max(beside) * 1e3,
        },
    )


def _percentiles(times: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


@contextmanager
def _anonymous_load(port: int) -> Iterator[None]:
    spawn = multiprocessing.get_context("spawn")
    begun = spawn.Event()
    process = spawn.Process(target=_ask_forever, args=(port, begun), daemon=True)
    process.start()
    try:
        if not begun.wait(START_SECONDS):
            raise TimeoutError(f"the anonymous clients did not start in {START_SECONDS} s")
        yield
    finally:
        process.terminate()
        process.join()


def _ask_forever(port: int, begun: Event) -> None:
    with connected(port, ANONYMOUS_CONNECTIONS) as connections:
        questions = [post(name, headers=ANONYMOUS, body=b"") for name in ("GetMeta", "GetTempCaCert")]
        while True:
            request_all(connections, 1000, *questions)
            begun.set()

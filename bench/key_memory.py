"""Does a KMS's memory grow with what it answers: its process after 200,000 GetAppKey against after 20,000.

The server runs with attested TLS, verdicts, limits that are counted and never reached, metrics, and the audit
log. `CALLERS` enclaves, each an instance of its own with a certificate of its own, ask over connections that
they keep for some requests and then give up: 4 before the first sample, so that every caller has been seen,
and 40 after it. There are more callers than any table of the server remembers (1,024 known callers, 4,096
rate limits, 256 chains), so all are full at the first sample.

What is sampled is the resident set of the server process (`/proc/self/statm`), with no request under way.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bench.key_server import KeyServer, key_server
from bench.measure import Bar, Result
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import DirectDialer

CALLERS = 5000
AT_ONCE = 16
FIRST, LAST = 20_000, 200_000
BEFORE, AFTER = 4, 40  # requests on one connection
BATCH = 100  # callers made at a time

Client = tuple[bytes, bytes]


def memory() -> Result:
    """Measure the growth between the two samples."""
    with key_server("attested") as server:
        clients = [
            client for _ in range(CALLERS // BATCH) for client in server.clients(BATCH, new_enclaves=True)
        ]
        began = time.perf_counter()
        callers = cycle(clients)
        _ask(server, callers, FIRST, BEFORE)
        first = server.resident()
        _ask(server, callers, (LAST - FIRST) // 2, AFTER)
        middle = server.resident()
        _ask(server, callers, LAST - FIRST - (LAST - FIRST) // 2, AFTER)
        last = server.resident()
        seconds = time.perf_counter() - began
    return Result(
        name="kms-memory",
        what=f"resident memory of the KMS after {LAST} requests against after {FIRST}, {CALLERS} callers",
        ours=float(last),
        reference=float(first),
        ratio=last / first,
        bar=Bar("at most", 1.05),
        detail={
            "half way MiB": middle / 2**20,
            "bytes per request": (last - first) / (LAST - FIRST),
            "seconds": seconds,
        },
        unit="MiB",
    )


def _ask(server: KeyServer, callers: Iterator[Client], total: int, each: int) -> None:
    """Make `total` requests, `each` on one connection."""
    turn = islice(callers, total // each)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                client = next(turn, None)
            if client is None:
                return
            _request(server.port, client, each)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(work) for _ in range(AT_ONCE)]:
            done.result()


def _request(port: int, client: Client, count: int) -> None:
    certificate, key = client
    private = load_pem_private_key(key, password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    with AttestedConnection.connect(
        DirectDialer(),
        "127.0.0.1",
        port,
        check_peer=lambda _leaf: None,
        timeout=60,
        client_key=private,
        client_chain=(x509.load_pem_x509_certificate(certificate),),
    ) as connection:
        for _ in range(count):
            answer = connection.request("POST", "/prpc/KMS.GetAppKey?json", b'{"api_version":1}')
            assert answer.status == 200, answer.body

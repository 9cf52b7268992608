"""A new attested connection per request: TLS handshake, Nitro verdict, GetAppKey. Reported, without a bar.

The reference is the sum of the cryptography that the server's half cannot do without; ours is the CPU time of
the server process. Each connection brings a certificate that the server has not seen.
"""

import statistics
import time

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bench.key_server import KeyServer, key_server
from bench.measure import Result, Timing, alternate, median_ratio
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import DirectDialer

CONNECTIONS = 40  # of one round
ROUNDS = 11


def end_to_end() -> Result:
    """Measure one connection with one request."""
    with key_server("attested") as server:
        pairs = alternate(lambda: _connections(server), lambda: server.raw(CONNECTIONS), ROUNDS)
    ours, reference = min(our.cpu for our, _ in pairs), min(raw.cpu for _, raw in pairs)
    return Result(
        name="attested-request",
        what="new mTLS connection, Nitro verdict (chain cached) and GetAppKey, against its raw cryptography",
        ours=ours,
        reference=reference,
        ratio=reference / ours,
        bar=None,
        detail={
            "median ratio": median_ratio([(raw.cpu, our.cpu) for our, raw in pairs]),
            "requests/s and core": 1 / ours,
            "wall ms with the client": statistics.median(our.wall for our, _ in pairs) * 1e3,
        },
    )


def _connections(server: KeyServer) -> Timing:
    clients = [
        (x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, password=None))
        for certificate, key in server.clients(CONNECTIONS)
    ]
    cpu, wall = server.cpu(), time.perf_counter()
    for certificate, key in clients:
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        with AttestedConnection.connect(
            DirectDialer(),
            "127.0.0.1",
            server.port,
            check_peer=lambda _leaf: None,  # the client's checks are not what is measured
            timeout=20,
            client_key=key,
            client_chain=(certificate,),
        ) as connection:
            answer = connection.request("POST", "/prpc/KMS.GetAppKey?json", b'{"api_version":1}')
            assert answer.status == 200, answer.body
    wall = time.perf_counter() - wall
    return Timing((server.cpu() - cpu) / CONNECTIONS, wall / CONNECTIONS)

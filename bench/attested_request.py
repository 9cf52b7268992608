"""A new attested connection per request: TLS handshake, Nitro verdict, policy, GetAppKey.

Ours is the CPU time of the server process: accepting, TLS, HTTP, verdict, decision, derivation, the audit
line, the answer. The reference is the sum of the cryptography that the server's half cannot do without,
called directly in the same process, once after each connection: both find the caches as a client leaves
them. `detail` has the ratio to the same in a tight loop too. Work that ours does and could leave out is not
in the reference: the second look at the client certificate (OpenSSL takes the first), hashes of contracts'
code, slots and paths.

`attested-proven` is what a fleet's start costs. Each connection comes from an enclave on an instance of its
own: of its chain the KMS knows root, region and zone. Nothing of policy is remembered: the quorum's answers
and the proof bundle, for the KMS itself and for the app, are read from memory, parsed and decided on.
Operations in the reference, once each where no number stands:

- handshake: ML-KEM-768 encapsulation, X25519 key and exchange, P-256 signature and verification, 21
  HMAC-SHA-384, SHA-384 of some 9 KB, AES-256-GCM of two flights, a request and an answer;
- evidence: P-256 verification of the client certificate, 3 P-384 verifications (instance, leaf, document),
  SHA-512 of the key, SHA-256 of the registers;
- policy: Keccak-256 of each trie node and header of the bundle;
- release: 3 HKDF-SHA-256, 2 P-256 keys with the SHA-256 of each, a secp256k1 key, a Keccak-256, and a
  recoverable signature.

Where the rest goes shows in `detail`: the same connections with `/health`, where nobody verifies or decides
anything, cost what TLS (OpenSSL, pyOpenSSL), HTTP (uvicorn, starlette) and the sockets take, five times their
raw cryptography; and there is the ratio if all the rest cost no more than its raw operations. Other programs
on the same cores lower the ratio: they take more from ours, which touches more memory, than from a loop.

`attested-remembered` is the same for an enclave that the KMS knows, with another certificate, and with the
allow remembered: 1 P-384 verification, and no policy.
"""

import statistics
import time
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bench.enclaves import Policy
from bench.key_server import KeyServer, key_server
from bench.measure import Bar, Result, median_ratio
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import DirectDialer

_HttpRequest = tuple[str, str, bytes]
_GET_APP_KEY: _HttpRequest = "POST", "/prpc/KMS.GetAppKey?json", b'{"api_version":1}'
_HEALTH: _HttpRequest = "GET", "/health", b""

CONNECTIONS = 40  # of one round
BARE_ROUNDS = 5
ROUNDS = 11


def proven() -> Result:
    """Measure one connection of a new enclave with one request, decided by proofs."""
    what = "new mTLS connection of a new enclave, decision by proofs, GetAppKey, against its raw cryptography"
    return _measure("attested-proven", what, "proven", bar=Bar("at least", 0.4))


def remembered() -> Result:
    """Measure one connection of a known enclave with one request, its allow remembered."""
    what = "new mTLS connection of a known enclave, allow remembered, GetAppKey, against its raw cryptography"
    return _measure("attested-remembered", what, "remembered", bar=None)


def _measure(name: str, what: str, policy: Policy, *, bar: Bar | None) -> Result:
    with key_server("attested", policy) as server:
        _round(server, new_enclaves=policy == "proven")
        rounds = [_round(server, new_enclaves=policy == "proven") for _ in range(ROUNDS)]
        bare = min(_round(server, new_enclaves=False, request=_HEALTH).ours for _ in range(BARE_ROUNDS))
        handshake = min(server.raw_handshake(1).cpu for _ in range(CONNECTIONS))
    ours, reference = min(one.ours for one in rounds), min(one.reference for one in rounds)
    return Result(
        name=name,
        what=what,
        ours=ours,
        reference=reference,
        ratio=reference / ours,
        bar=bar,
        detail={
            "median ratio": median_ratio([(one.reference, one.ours) for one in rounds]),
            "ratio to a tight loop": min(one.loop for one in rounds) / ours,
            "connection, TLS and HTTP alone ms": bare * 1e3,
            "their raw cryptography ms": handshake * 1e3,
            "ratio if the rest were raw": reference / (bare + reference - handshake),
            "requests/s and core": 1 / ours,
            "wall ms with the client": statistics.median(one.wall for one in rounds) * 1e3,
        },
    )


class _Round(NamedTuple):
    """Seconds for each connection: CPU of ours, of the reference, of the same in a loop; wall of ours."""

    ours: float
    reference: float
    loop: float
    wall: float


def _round(server: KeyServer, *, new_enclaves: bool, request: _HttpRequest = _GET_APP_KEY) -> _Round:
    clients = [
        (x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, password=None))
        for certificate, key in server.clients(CONNECTIONS, new_enclaves=new_enclaves)
    ]
    ours = reference = wall = 0.0
    for client in clients:
        cpu, began = server.cpu(), time.perf_counter()
        _ask(server.port, *client, request)
        wall += time.perf_counter() - began
        ours += server.cpu() - cpu
        reference += server.raw(1).cpu
    loop = server.raw(CONNECTIONS).cpu
    return _Round(ours / CONNECTIONS, reference / CONNECTIONS, loop, wall / CONNECTIONS)


def _ask(port: int, certificate: x509.Certificate, key: PrivateKeyTypes, request: _HttpRequest) -> None:
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with AttestedConnection.connect(
        DirectDialer(),
        "127.0.0.1",
        port,
        check_peer=lambda _leaf: None,  # the client's checks are not what is measured
        timeout=20,
        client_key=key,
        client_chain=(certificate,),
    ) as connection:
        answer = connection.request(*request)
        assert answer.status == 200, answer.body

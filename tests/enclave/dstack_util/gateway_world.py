"""A simulated gateway: it registers guests over attested TLS, and misbehaves where a test says."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import create_server
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from enclave.agent.certificates import new_tls_key, tls_key_pem
from enclave.agent.kms_issuer import KmsIssuer
from enclave.dstack_util.enclave_config import kms_endpoint
from enclave.dstack_util.kms_client import KmsClient
from enclave.serving.attested_tls import build_server
from enclave.tee.evidence import certificate_evidence
from shared.keys.kdf import p256_key
from shared.net.dialer import DirectDialer
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.app_peer import CLIENT, check_app_chain
from shared.ratls.certificates import Issuer, app_ca_certificate
from shared.ratls.csr import CsrConfig
from shared.ratls.extensions import APP_INFO, read_extension
from shared.ratls.tls import mutual_context
from shared.ratls.tls_identity import TlsIdentity
from tests.enclave.dstack_util.gcp_world import ServedKms
from tests.enclave.gcp import NOW, Machines

GATEWAY_ID = bytes([0xA1]) * 20
OTHER_ID = bytes([0xB2]) * 20
NODE_KEYS = (
    "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
    "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=",
)
SERVES = CsrConfig(
    subject="dstack-gateway", usage_server_auth=True, usage_client_auth=True, ext_app_info=True
)

Behaviour = Callable[["SimulatedGateway", dict[str, Any]], Response]


def assigned(**changes: Any) -> dict[str, Any]:
    """Return what a gateway of two nodes answers the first guest; `changes` are of its `wg`."""
    servers = [
        {"pk": NODE_KEYS[0], "ip": "10.0.0.1", "endpoint": "203.0.113.5:51820"},
        {"pk": NODE_KEYS[1], "ip": "10.0.1.1", "endpoint": "203.0.113.6:51820"},
    ]
    return {"wg": {"client_ip": "10.0.0.2", "servers": servers, **changes}, "agent": None, "gateways": []}


def refusing(status: int, text: str) -> Behaviour:
    """Return the behaviour of a gateway that says no."""
    return lambda _gateway, _body: Response(json.dumps({"error": text}), status)


def saying(content: bytes, status: int = 200) -> Behaviour:
    """Return the behaviour of a gateway that says something else."""
    return lambda _gateway, _body: Response(content, status)


class SimulatedGateway:
    """Answers RegisterCvm as `behave` says; as it stands it gives each instance's key an address.

    `asked` are the requests, `callers` the app ids of those who made them, `leaves` their certificates (DER);
    `with_evidence` and `with_app_info` tell what those carried.
    """

    def __init__(self, identity: TlsIdentity, root_pem: bytes) -> None:
        self.behave: Behaviour = lambda gateway, body: gateway.register(body)
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.callers: list[bytes] = []
        self.leaves: list[bytes] = []
        self.with_evidence: list[bool] = []
        self.with_app_info: list[bool] = []
        self.wg_changes: dict[str, Any] = {}
        self._root_pem = root_pem
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST"])])
        context = mutual_context(key=identity.key, chain=identity.chain)
        self.server = build_server(app, context_factory=lambda: context)

    def register(self, body: dict[str, Any]) -> Response:
        """Answer as a gateway does that does its part."""
        keys = list(dict.fromkeys(asked["client_public_key"] for asked in self.asked))
        address = f"10.0.0.{2 + keys.index(body['client_public_key'])}"
        return Response(json.dumps(assigned(client_ip=address, **self.wg_changes)))

    async def _answer(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        self.leaves.append(request.state.peer_chain[0])
        caller = check_app_chain(request.state.peer_chain, root_ca_pem=self._root_pem, now=NOW, role=CLIENT)
        self.callers.append(caller.app_id)
        self.with_evidence.append(caller.envelope is not None)
        leaf = x509.load_der_x509_certificate(request.state.peer_chain[0])
        self.with_app_info.append(read_extension(leaf, APP_INFO) is not None)
        body = msgspec.json.decode(await request.body())
        self.asked.append(body)
        return self.behave(self, body)


def minted(
    root: Issuer, app_id: bytes = GATEWAY_ID, *, leaf_app_id: bytes | None = None, config: CsrConfig = SERVES
) -> TlsIdentity:
    """Return what an app shows that has its certificate from a KMS with this root."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca_key = p256_key(bytes(31) + b"\6")
    ca = app_ca_certificate(ca_key, app_id=app_id, issuer=root)
    leaf = app_certificate(
        key.public_key(),
        config,
        Stamps(app_id=app_id if leaf_app_id is None else leaf_app_id),
        issuer=(ca, ca_key),
        times=(NOW - 10, NOW + 100_000),
    )
    return TlsIdentity(key, (leaf, ca, root[0]))


def certified(gcp: Machines, kms: ServedKms, app_id: bytes = GATEWAY_ID) -> TlsIdentity:
    """Return what the KMS gives to a guest of this app."""
    guest = gcp.start(app_id=app_id)
    client = KmsClient(
        kms_endpoint(kms.url), root_pem=kms.root_pem, dialer=DirectDialer(), verifier=gcp.verifier(guest)
    )
    issuer = KmsIssuer(
        [client],
        app_id=app_id,
        evidence=lambda key: certificate_evidence(guest.attestor, key),
        now=lambda: NOW,
        temporary=(kms.keys.temp_ca_cert, kms.keys.temp_ca_key),
    )
    key = new_tls_key()
    chain = issuer.issue(key, msgspec.structs.replace(SERVES, ext_quote=True))
    return TlsIdentity.from_pems(tls_key_pem(key), chain)


@contextmanager
def served_gateway(identity: TlsIdentity, root_pem: bytes) -> Iterator[tuple[SimulatedGateway, str]]:
    """Serve until the end of the block, and give its URL."""
    gateway = SimulatedGateway(identity, root_pem)
    listener = create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=gateway.server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield gateway, f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        gateway.server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()

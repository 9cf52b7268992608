"""A source KMS, one that answers what a test wants, and the new KMS that asks them for root keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.applications import Starlette
from starlette.responses import Response as WebResponse
from starlette.routing import Route

from enclave.kms.authorization import Decision
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyMaterial, KeyStore
from enclave.kms.onboarding import Onboarder, RootPins, approve_source
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.kms.source_kms import SourceKms
from enclave.serving.attested_tls import build_server
from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import PeerVerifier
from shared.attestation.trust import TrustAnchors
from shared.keys.k256 import public_key
from shared.ratls.certificates import client_certificate, rpc_certificate, spki_der
from shared.ratls.tls import server_context
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import to_json
from tests.enclave.conftest import NOW, Enclave, Policy, StandInDialer

CORE = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
URL = "https://kms.test:8000/prpc"
DENIED = Decision(is_allowed=False, reason="Aggregated MR not allowed", gateway_app_id="")


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def pins_of(keys: KeyMaterial) -> RootPins:
    return RootPins(ca_pubkey=spki_der(keys.root_ca_key.public_key()), k256_pubkey=public_key(keys.k256))


@pytest.fixture
def keys(bootstrap: Callable[[], KeyMaterial]) -> KeyMaterial:
    """The source's root keys."""
    return bootstrap()


@pytest.fixture
def new_enclave(authority) -> Enclave:
    """A KMS of another version: another image than the source's."""
    return Enclave(authority, seed=7, app_id=None)


@pytest.fixture
def verifier(anchors: TrustAnchors) -> PeerVerifier:
    return PeerVerifier(anchors=anchors, now=lambda: NOW)


@pytest.fixture
def source_policy() -> Policy:
    return Policy()


class Source(NamedTuple):
    """The parts of a running source KMS."""

    service: KmsService
    callers: CallerVerifier
    identity: RpcIdentity


@pytest.fixture
def source(keys, source_policy, kms_enclave, anchors, verifier) -> Callable[..., Source]:
    """Return a function that makes a source KMS's parts."""

    def make(core: Core = CORE) -> Source:
        service = KmsService(
            core=core,
            keys=keys,
            authorizer=source_policy,
            own=kms_enclave.evidence(anchors),
            policy=pb.KmsPolicy(auth_mode="proof"),
            now=lambda: NOW,
        )
        callers = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=verifier)
        return Source(service, callers, RpcIdentity(keys, kms_enclave.attestor, lambda: NOW))

    return make


@pytest.fixture
def running(source, serve) -> StandInDialer:
    """A whole source KMS behind its main listener."""
    parts = source()
    app = main_app(parts.service, parts.callers, version="1", metrics=False)
    return serve(build_server(app, context_factory=parts.identity.context))


@pytest.fixture
def new_store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "new")


@pytest.fixture
def onboarder(new_store, new_enclave, verifier, policy, keys) -> Callable[..., Onboarder]:
    """Return a function that makes the new KMS's side; the pins are the source's unless given."""

    def make(dialer: StandInDialer, **changes: Any) -> Onboarder:
        values: dict[str, Any] = {
            "store": new_store,
            "source": SourceKms(dialer=dialer, verifier=verifier, attestor=new_enclave.attestor),
            "approve": lambda verified: approve_source(policy, CORE, verified),
            "pins": pins_of(keys),
            "proven": RootPins,
            "now": lambda: NOW,
        }
        return Onboarder(**values | changes)

    return make


@pytest.fixture
def impostor(keys, kms_enclave, serve) -> Callable[..., tuple[StandInDialer, list[str]]]:
    """Return a function that serves any answer behind any attested certificate, and notes what was asked.

    The temporary CA is told as it is, unless another is given.
    """

    def start(answer: bytes, *, status: int = 200, **shown: Any) -> tuple[StandInDialer, list[str]]:
        asked: list[str] = []

        async def answering(request: Any) -> WebResponse:
            asked.append(request.url.path)
            is_ca = request.url.path == "/prpc/GetTempCaCert"
            return WebResponse(shown.get("temp_ca", temp_ca_of(keys)) if is_ca else answer, status)

        key = ec.generate_private_key(ec.SECP256R1())
        root = shown.get("root", keys.root_ca_key)
        over = shown.get("over", key)
        attestation = shown.get("attestation", certificate_evidence(kms_enclave.attestor, over.public_key()))
        if shown.get("usage", True):
            leaf = rpc_certificate(
                key, domain="kms.test", issuer=(keys.root_ca_cert, root), attestation=attestation, now=NOW
            )
        else:
            leaf = client_certificate(key, attestation=attestation, issuer=(keys.root_ca_cert, root), now=NOW)
        app = Starlette(routes=[Route("/{path:path}", answering, methods=["POST"])])
        context = server_context(key=key, chain=(leaf,), client_ca=keys.temp_ca_cert)
        return serve(build_server(app, context_factory=lambda: context)), asked

    return start


def answer_of(keys: KeyMaterial, **changes: Any) -> bytes:
    values = {"ca": pem(keys.root_ca_key), "temp": pem(keys.temp_ca_key), "k256": keys.k256} | changes
    one = pb.KmsKeys(ca_key=values["ca"], k256_key=values["k256"])
    return to_json(pb.KmsKeyResponse(temp_ca_key=values["temp"], keys=[one] * changes.get("count", 1)))


def temp_ca_of(keys: KeyMaterial, **changes: str) -> bytes:
    values = {
        "temp_ca_cert": keys.temp_ca_cert.public_bytes(Encoding.PEM).decode(),
        "temp_ca_key": pem(keys.temp_ca_key),
    }
    return to_json(pb.GetTempCaCertResponse(**values | changes))

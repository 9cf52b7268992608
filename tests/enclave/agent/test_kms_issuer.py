"""Certificates through SignCert, from a KMS that does its part and from one that does not (spec kms 4.5)."""

import itertools
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from enclave.agent.certificates import new_tls_key, tls_key_pem
from enclave.agent.issuers import certificate_issuer
from enclave.agent.kms_issuer import KmsIssuer, Patience
from enclave.dstack_util.enclave_config import kms_endpoint
from enclave.dstack_util.kms_client import KmsClient
from enclave.kms.authorization import Decision
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyMaterial
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.serving.attested_tls import build_server
from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import PeerVerifier
from shared.errors import (
    ConfigError,
    DstackError,
    InvalidEvidence,
    PolicyDenied,
    ProtocolError,
    UnavailableError,
)
from shared.keys.app_keys_file import AppKeysFile, KmsProvider
from shared.keys.kdf import p256_key
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.certificates import (
    ROOT_CA_NAME,
    app_ca_certificate,
    client_certificate,
    rpc_certificate,
    self_signed_ca,
    spki_der,
)
from shared.ratls.csr import CsrConfig, decode_csr, request_key
from shared.ratls.extensions import APP_ID, ATTESTATION, read_extension
from shared.ratls.peer import ratls_report_data
from shared.ratls.tls import server_context
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json, to_json
from tests.enclave.conftest import APP_ID as ID
from tests.enclave.conftest import NOW
from tests.shared.refusal import refuses

CORE = Core(aws_nitro_enclave_key_release=True)
URL = "https://kms.test:8000/prpc"
OTHER_URL = "https://other.test:8000/prpc"
CONFIG = CsrConfig(
    subject="app.example", subject_alt_names=("app.example",), usage_server_auth=True, ext_quote=True
)


class Dialers:
    """Leads each host to its own place; a host without one cannot be reached. Notes what was dialled."""

    def __init__(self) -> None:
        self.places: dict[str, Any] = {}
        self.dialled: list[str] = []

    def dial(self, host: str, port: int, timeout: float) -> Any:
        self.dialled.append(host)
        if host not in self.places:
            raise UnavailableError("net.unreachable", f"cannot reach {host}")
        return self.places[host].dial(host, port, timeout)


class Clock:
    """A monotonic clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.on_pause: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        self.on_pause()


class World:
    """An app's enclave, and the KMS that it asks."""

    def __init__(self, keys: KeyMaterial, kms_enclave, app_enclave, policy, anchors, serve) -> None:
        self.keys = keys
        self.policy = policy
        self.serve = serve
        self.dialers = Dialers()
        self.clock = Clock()
        self.app = app_enclave
        self.verifier = PeerVerifier(anchors=anchors, now=lambda: NOW)
        self._enclave = kms_enclave
        self._anchors = anchors
        self.asked: list[str] = []
        self.callers: list[Sequence[bytes]] = []

    def start_kms(self, host: str = "kms.test") -> KmsService:
        """Start a KMS that does its part."""
        service = KmsService(
            core=CORE,
            keys=self.keys,
            authorizer=self.policy,
            own=self._enclave.evidence(self._anchors),
            policy=pb.KmsPolicy(auth_mode="proof"),
            now=lambda: NOW,
        )
        callers = CallerVerifier(temp_ca_der=self.keys.temp_ca_der(), verifier=self.verifier)
        app = main_app(service, callers, version="1", metrics=False)
        identity = RpcIdentity(self.keys, self._enclave.attestor, lambda: NOW)
        self.dialers.places[host] = self.serve(build_server(app, context_factory=identity.context))
        return service

    def start_bent(
        self, answer: Callable[[pb.SignCertRequest], Response], host: str = "kms.test", **shown: Any
    ) -> None:
        """Start what is attested as a KMS and answers as the test wants."""

        async def answering(request: Any) -> Response:
            self.asked.append(host)
            self.callers.append(request.state.peer_chain)
            return answer(from_json(pb.SignCertRequest, await request.body()))

        key = ec.generate_private_key(ec.SECP256R1())
        over = shown.pop("over", key)
        options = {
            "issuer": (self.keys.root_ca_cert, self.keys.root_ca_key),
            "attestation": certificate_evidence(self._enclave.attestor, over.public_key()),
            "now": NOW,
            **shown,
        }
        if options.pop("client", False):
            leaf = client_certificate(key, **options)
        else:
            leaf = rpc_certificate(key, domain=host, **options)
        app = Starlette(routes=[Route("/{path:path}", answering, methods=["POST"])])
        context = server_context(key=key, chain=(leaf,), client_ca=self.keys.temp_ca_cert)
        self.dialers.places[host] = self.serve(build_server(app, context_factory=lambda: context))

    def issuer(self, urls: Sequence[str] = (URL,), **patience: Any) -> KmsIssuer:
        root = self.keys.root_ca_cert.public_bytes(Encoding.PEM)
        return KmsIssuer(
            [
                KmsClient(kms_endpoint(url), root_pem=root, dialer=self.dialers, verifier=self.verifier)
                for url in urls
            ],
            app_id=ID,
            evidence=lambda key: certificate_evidence(self.app.attestor, key),
            now=lambda: NOW,
            temporary=(self.keys.temp_ca_cert, self.keys.temp_ca_key),
            patience=Patience(sleep=self.clock.sleep, monotonic=lambda: self.clock.now, **patience),
        )

    def chain(self, request: pb.SignCertRequest, **changes: Any) -> list[str]:
        """Return the chain that a KMS would answer with; `key`, `app_id`, `root`, `attestation` bend it."""
        csr = decode_csr(request.csr, 2)
        app_id = changes.get("app_id", ID)
        ca_key = p256_key(bytes(31) + b"\7")
        root = changes.get("root", (self.keys.root_ca_cert, self.keys.root_ca_key))
        ca = app_ca_certificate(ca_key, app_id=changes.get("ca_app_id", app_id), issuer=root)
        leaf = app_certificate(
            changes.get("key", request_key(csr)),
            csr.config,
            Stamps(app_id=app_id, attestation=changes.get("attestation", csr.envelope)),
            issuer=(ca, ca_key),
            times=(NOW - 10, NOW + 1000),
        )
        return [one.public_bytes(Encoding.PEM).decode() for one in (leaf, ca, root[0])]

    def start_answering(
        self, chain: Callable[[pb.SignCertRequest], list[str]], host: str = "kms.test"
    ) -> None:
        """Start a KMS that answers with what `chain` makes of the request."""
        self.start_bent(lambda request: _reply(chain(request)), host)

    def refusal(self, code: str, kind: type[DstackError], **patience: Any) -> None:
        """Assert that no certificate comes, and why."""
        with refuses(code, kind):
            self.issuer(**patience).issue(new_tls_key(), CONFIG)


def _reply(chain: list[str]) -> Response:
    return Response(to_json(pb.SignCertResponse(certificate_chain=chain)))


@pytest.fixture
def world(bootstrap, kms_enclave, app_enclave, policy, anchors, serve) -> World:
    return World(bootstrap(), kms_enclave, app_enclave, policy, anchors, serve)


def test_returns_the_leaf_the_apps_ca_and_the_root(world: World) -> None:
    world.start_kms()
    key = new_tls_key()
    leaf, app_ca, root = (
        x509.load_pem_x509_certificate(one.encode()) for one in world.issuer().issue(key, CONFIG)
    )
    assert root == world.keys.root_ca_cert
    leaf.verify_directly_issued_by(app_ca)
    assert leaf.public_key() == key.public_key()
    assert read_extension(leaf, APP_ID) == ID
    bound = ratls_report_data(leaf.public_bytes(Encoding.DER))
    assert world.verifier.verify(read_extension(leaf, ATTESTATION), bound).events.app_id == ID


def test_the_keys_file_chooses_the_kms(world: World) -> None:
    world.start_kms()
    root = world.keys.root_ca_cert.public_bytes(Encoding.PEM).decode()
    provider = KmsProvider(
        url=URL,
        pubkey=spki_der(world.keys.root_ca_key.public_key()),
        tmp_ca_key=world.keys.temp_ca_pem().decode(),
        tmp_ca_cert=world.keys.temp_ca_cert.public_bytes(Encoding.PEM).decode(),
    )
    file = _keys_file(root, provider)
    issuer = certificate_issuer(
        file, app_id=ID, attestor=world.app.attestor, verifier=world.verifier, dialer=world.dialers
    )
    assert len(issuer.issue(new_tls_key(), CONFIG)) == 3


def _keys_file(root: str, provider: KmsProvider) -> AppKeysFile:
    return AppKeysFile(
        disk_crypt_key=bytes(32),
        env_crypt_key=bytes(32),
        k256_key=bytes(31) + b"\1",
        k256_signature=bytes(65),
        gateway_app_id="",
        ca_cert=root,
        key_provider=provider,
    )


@pytest.mark.parametrize("key", ["", "nonsense"])
@pytest.mark.parametrize("certificate", ["", "nonsense"])
def test_refuses_a_keys_file_whose_temporary_ca_is_none(world: World, key: str, certificate: str) -> None:
    file = _keys_file(
        "",
        KmsProvider(
            url=URL, pubkey=b"", tmp_ca_key=key or tls_key_pem(new_tls_key()), tmp_ca_cert=certificate
        ),
    )
    with refuses("app_keys.tmp_ca", ConfigError):
        certificate_issuer(
            file, app_id=ID, attestor=world.app.attestor, verifier=world.verifier, dialer=world.dialers
        )


def test_the_connection_shows_the_evidence_of_the_request(world: World) -> None:
    world.start_answering(world.chain)
    key = new_tls_key()
    world.issuer().issue(key, CONFIG)
    shown = x509.load_der_x509_certificate(world.callers[0][0])
    assert shown.public_key() == key.public_key()
    shown.verify_directly_issued_by(world.keys.temp_ca_cert)
    assert read_extension(shown, ATTESTATION)


def test_times_are_judged_before_anything_is_asked(world: World) -> None:
    with refuses("certificate.validity", ProtocolError) as caught:
        world.issuer().issue(new_tls_key(), CsrConfig(subject="", not_before=NOW, not_after=NOW))
    assert caught.value.message == "not_before must be earlier than not_after"
    assert world.dialers.dialled == []


def test_a_refusal_is_final(world: World) -> None:
    world.start_kms()
    world.policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    with refuses("kms.refused", PolicyDenied) as caught:
        world.issuer((URL, OTHER_URL)).issue(new_tls_key(), CONFIG)
    assert "Compose hash not allowed" in caught.value.message
    assert world.dialers.dialled == ["kms.test"]
    assert world.clock.pauses == []


def test_a_kms_that_is_down_is_asked_again_for_a_bounded_time(world: World) -> None:
    world.refusal("net.unreachable", UnavailableError)
    assert len(world.dialers.dialled) == len(world.clock.pauses) + 1
    assert len(world.clock.pauses) >= 8
    assert world.clock.now <= Patience().total


def test_pauses_grow_to_a_bound_and_differ_by_chance() -> None:
    patience = Patience()
    longest = [patience.pause(attempt, 1.0) for attempt in range(100)]
    assert longest[:6] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert longest[-1] == 4.0
    assert patience.pause(2, 0.0) == 0.5


def test_a_kms_that_comes_back_is_believed_then(world: World) -> None:
    world.clock.on_pause = lambda: world.start_kms() if len(world.clock.pauses) == 3 else None
    assert len(world.issuer().issue(new_tls_key(), CONFIG)) == 3
    assert world.dialers.dialled == ["kms.test"] * 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_kms_is_asked_again(world: World, status: int) -> None:
    calls = itertools.count()
    world.start_bent(
        lambda request: _reply(world.chain(request)) if next(calls) else Response(b"busy", status)
    )
    assert len(world.issuer().issue(new_tls_key(), CONFIG)) == 3
    assert world.asked == ["kms.test"] * 2


def test_a_kms_that_limits_calls_is_asked_again(world: World) -> None:
    calls = itertools.count()
    limited = Response(json.dumps({"error": "wait", "code": "prpc.rate"}), 400)
    world.start_bent(lambda request: _reply(world.chain(request)) if next(calls) else limited)
    assert len(world.issuer().issue(new_tls_key(), CONFIG)) == 3
    assert world.asked == ["kms.test"] * 2


def test_a_400_is_not_asked_again(world: World) -> None:
    world.start_bent(lambda _: Response(json.dumps({"error": "no"}), 400))
    world.refusal("kms.refused", PolicyDenied)
    assert world.asked == ["kms.test"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"certificate_chain": 3}'])
def test_an_answer_that_is_none_is_not_asked_for_again(world: World, body: bytes) -> None:
    world.start_bent(lambda _: Response(body))
    with pytest.raises(DstackError) as caught:
        world.issuer().issue(new_tls_key(), CONFIG)
    assert caught.value.code.startswith("prpc.json") or caught.value.code == "certificate.chain"
    assert world.asked == ["kms.test"]


class Silent:
    """Dials nobody: whoever connects waits in vain."""

    def __init__(self) -> None:
        self._theirs: list[socket.socket] = []

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        del host, port
        ours, theirs = socket.socketpair()
        self._theirs.append(theirs)
        ours.settimeout(timeout)
        return ours

    def close(self) -> None:
        for sock in self._theirs:
            sock.close()


def test_a_kms_that_says_nothing_is_given_up_for_the_next(world: World) -> None:
    world.start_answering(world.chain, "other.test")
    with closing(Silent()) as silent:
        world.dialers.places["kms.test"] = silent
        chain = world.issuer((URL, OTHER_URL), exchange=0.2).issue(new_tls_key(), CONFIG)
    assert len(chain) == 3
    assert world.dialers.dialled == ["kms.test", "other.test"]


def test_an_answer_that_breaks_off_is_asked_for_again(world: World) -> None:
    calls = itertools.count()

    def broken() -> Iterator[bytes]:
        yield b'{"certificate_chain":'
        raise RuntimeError("gone")

    def answer(request: pb.SignCertRequest) -> Response:
        if next(calls):
            return _reply(world.chain(request))
        return StreamingResponse(broken(), headers={"content-length": "9000"})

    world.start_bent(answer)
    assert len(world.issuer().issue(new_tls_key(), CONFIG)) == 3
    assert world.asked == ["kms.test"] * 2


def test_the_next_kms_is_asked_when_one_is_not_to_be_believed(world: World) -> None:
    world.start_bent(lambda request: _reply(world.chain(request)), client=True)
    world.start_answering(world.chain, "other.test")
    assert len(world.issuer((URL, OTHER_URL)).issue(new_tls_key(), CONFIG)) == 3
    assert world.asked == ["other.test"]


def test_n51_an_app_certificate_posing_as_the_kms_is_asked_nothing(world: World) -> None:
    world.start_bent(lambda request: _reply(world.chain(request)), client=True)
    with pytest.raises(InvalidEvidence) as caught:
        world.issuer().issue(new_tls_key(), CONFIG)
    assert caught.value.code in {"ratls.hostname", "ratls.usage"}
    assert world.asked == []
    assert world.clock.pauses == []


@pytest.mark.parametrize(
    ("shown", "code"),
    [
        ({"attestation": None}, "ratls.attestation.missing"),
        ({"over": ec.generate_private_key(ec.SECP256R1())}, "attestation.report_data"),
        ({"now": NOW + 100_000}, "ratls.certificate.not_yet_valid"),
    ],
)
def test_n50_a_kms_without_evidence_for_its_key_is_asked_nothing(
    world: World, shown: dict[str, Any], code: str
) -> None:
    world.start_bent(lambda request: _reply(world.chain(request)), **shown)
    world.refusal(code, InvalidEvidence)
    assert world.asked == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key": new_tls_key().public_key()}, "certificate.key"),
        ({"app_id": bytes([9]) * 20}, "certificate.app_id"),
        ({"ca_app_id": bytes([9]) * 20}, "ratls.app_id"),
        ({"app_id": None, "ca_app_id": ID}, "ratls.app_id"),
        ({"attestation": None}, "certificate.evidence"),
    ],
)
def test_a_chain_for_someone_else_is_not_handed_out(world: World, changes: dict[str, Any], code: str) -> None:
    world.start_answering(lambda request: world.chain(request, **changes))
    world.refusal(code, InvalidEvidence)
    assert world.asked == ["kms.test"]


def test_a_chain_under_another_root_is_not_handed_out(world: World) -> None:
    key = new_tls_key()
    root = (self_signed_ca(key, ROOT_CA_NAME, 1, NOW - 10, NOW + 1000), key)
    world.start_answering(lambda request: world.chain(request, root=root))
    world.refusal("ratls.chain", InvalidEvidence)


def test_a_chain_that_ends_early_in_another_root_is_not_handed_out(world: World) -> None:
    key = new_tls_key()
    root = (self_signed_ca(key, ROOT_CA_NAME, 1, NOW - 10, NOW + 1000), key)
    world.start_answering(lambda request: world.chain(request, root=root)[:2])
    world.refusal("ratls.signature", InvalidEvidence)


@pytest.mark.parametrize(
    ("bend", "code"),
    [
        (lambda _: [], "certificate.chain"),
        (lambda chain: chain[:1], "ratls.chain"),
        (lambda chain: [*chain, chain[0]], "certificate.chain"),
        (lambda chain: [chain[1], chain[0], chain[2]], "ratls.issuer"),
        (lambda chain: ["".join(chain), *chain[1:]], "certificate.chain"),
        (lambda chain: [chain[0][:-40], *chain[1:]], "certificate.chain"),
        (lambda _: ["-" * 300_000], "certificate.chain"),
    ],
)
def test_what_is_no_chain_is_not_handed_out(world: World, bend: Any, code: str) -> None:
    world.start_answering(lambda request: bend(world.chain(request)))
    world.refusal(code, InvalidEvidence)


def test_text_around_a_certificate_is_not_handed_on(world: World) -> None:
    world.start_answering(lambda request: ["hello\n" + one for one in world.chain(request)])
    assert all(pem.startswith("-----BEGIN") for pem in world.issuer().issue(new_tls_key(), CONFIG))

"""A simulated KMS enclave and an app enclave in this process, with the production parts between them."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn, cast

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.types import ASGIApp

from bench.proven_chain import CHAIN_ID, GATEWAY, KMS, Served
from enclave.devices.attestor import NitroAttestor
from enclave.devices.clock import TrustedClock
from enclave.devices.nsm import Nsm
from enclave.kms.authorization import ChainInfo, Decision, ProofAuthorizer
from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import MAX_RATE, Core, Proof, RateLimits
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyMaterial, KeyStore
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService, kms_boot_info
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.peers import PeerVerifier
from shared.attestation.identity import boot_info
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.boot_info import BootInfo
from shared.chain.code import code_list
from shared.chain.decision import ChainPolicy
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from shared.net.quorum import ChainQuorum
from shared.ratls.certificates import client_certificate, spki_der
from shared.rpc import kms_pb2 as pb

APP_ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")
ALLOWED_FOR = 24 * 3600  # seconds; production caps it at 60, a bench must not expire half way

NEVER_REACHED = RateLimits(
    **{
        f"{limit}_{what}": MAX_RATE
        for limit in ("caller", "app", "method", "evidence")
        for what in ("per_minute", "burst")
    }
)
"""Production's are reached within a second of this."""


Policy = Literal["remembered", "proven"]
"""Where an answer comes from: an allow of before, or two proofs for each request."""


class _Unreachable:
    """Stands where the quorum and the function would be: a remembered allow must not ask anybody."""

    def blocks(self) -> NoReturn:
        raise AssertionError("the allow was not remembered")

    request = blocks


class AttestedClient(msgspec.Struct, frozen=True):
    """A client certificate with its evidence and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    envelope: bytes
    report_data: bytes

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


class Kms:
    """A bootstrapped KMS in mode `proof`, which allows itself and one app."""

    def __init__(self, policy: Policy = "remembered") -> None:
        authority = self._authority = SimulatedAuthority.create()
        self.anchors = TrustAnchors.production().with_extra(authority.root_pem)
        self._app = Nsm(SimulatedNsm(_registers(2), authority))
        nsm = Nsm(SimulatedNsm(_registers(1), authority))
        attestor = NitroAttestor(nsm, None)
        clock = TrustedClock(nsm, self.anchors)
        self.now: Callable[[], int] = clock.now
        self.keys = _bootstrapped(nsm, attestor, clock.now)
        own = self._verified(attestor)
        core = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
        app = boot_info(self._verified(NitroAttestor(self._app, APP_ID)))
        self.chain: Served | None = None
        if policy == "proven":
            self.chain = Served(kms_boot_info(own, core), app, clock.now())
            authorizer = _proving(self.chain, clock.now)
        else:
            authorizer = _remembering(clock.now, kms_boot_info(own, core), app)
        self.service = KmsService(
            core=core,
            keys=self.keys,
            authorizer=authorizer,
            own=own,
            policy=pb.KmsPolicy(auth_mode="proof"),
            now=self.now,
        )
        self.identity = RpcIdentity(self.keys, attestor, clock.now)
        self.client = self.new_client()

    def callers(self) -> CallerVerifier:
        """Return a verifier that remembers nobody yet."""
        return CallerVerifier(
            temp_ca_der=self.keys.temp_ca_der(), verifier=PeerVerifier(anchors=self.anchors, now=self.now)
        )

    def app(self) -> ASGIApp:
        """Return the application of the main listener."""
        return main_app(self.service, self.callers(), version="bench", metrics=True, limits=NEVER_REACHED)

    def _verified(self, attestor: NitroAttestor) -> VerifiedAttestation:
        return verify_attestation(attestor.attest(bytes(64)), now=self.now(), anchors=self.anchors)

    def new_client(self, *, new_enclave: bool = False) -> AttestedClient:
        """Return a certificate under the temporary CA with fresh evidence of the app enclave.

        A new enclave is one on an instance of its own: its document shares root, region and zone with others.
        The blocks that its request is decided on are prepared with it.
        """
        if new_enclave and self.chain:
            self.chain.prepare(1)
        key = ec.generate_private_key(ec.SECP256R1())
        expected = report_data(RATLS_CERT, spki_der(key.public_key()))
        nsm = Nsm(SimulatedNsm(_registers(2), self._authority)) if new_enclave else self._app
        envelope = NitroAttestor(nsm, APP_ID).attest(expected)
        issuer = (self.keys.temp_ca_cert, self.keys.temp_ca_key)
        now = int(time.time())
        certificate = client_certificate(key, attestation=envelope, issuer=issuer, now=now)
        return AttestedClient(certificate, key, envelope, expected)


def _bootstrapped(nsm: Nsm, attestor: NitroAttestor, now: Callable[[], int]) -> KeyMaterial:
    with tempfile.TemporaryDirectory() as directory:
        store = KeyStore(Path(directory) / "certs")
        maker = Bootstrapper(store=store, random=nsm.get_random, attestor=attestor, now=now)
        maker.bootstrap("kms.bench", check_self=lambda: None, attest=False)
        keys = store.load()
    assert keys is not None
    return keys


def _remembering(now: Callable[[], int], own: BootInfo, app: BootInfo) -> ProofAuthorizer:
    absent = _Unreachable()
    settings, policy = _settings(allow_cache=60)
    authorizer = ProofAuthorizer(settings, policy, absent, absent, now)  # type: ignore[arg-type]  # they fail
    allow = Decision(is_allowed=True, reason="", gateway_app_id=GATEWAY, finalized_block=7)
    until = now() + ALLOWED_FOR
    authorizer._remember(("kms", own), until, allow)  # noqa: SLF001 - no chain here
    authorizer._remember(("app", app), until, allow)  # noqa: SLF001 - no chain here
    authorizer._info = until, ChainInfo(gateway_app_id=GATEWAY)  # noqa: SLF001 - no chain here
    return authorizer


def _proving(served: Served, now: Callable[[], int]) -> ProofAuthorizer:
    http = cast("HttpClient", served)
    settings, policy = _settings(allow_cache=0)
    endpoints = [JsonRpc(url, http) for url in settings.rpc_urls]
    quorum = ChainQuorum(endpoints, chain_id=CHAIN_ID, quorum=settings.quorum, allow_plain_http=True)
    return ProofAuthorizer(settings, policy, quorum, http, now)


def _settings(*, allow_cache: int) -> tuple[Proof, ChainPolicy]:
    settings = Proof(
        url="http://authorize",
        chain_id=CHAIN_ID,
        kms_contract="0x" + KMS.hex(),
        rpc_urls=("http://one", "http://two"),
        allow_cache=allow_cache,
    )
    policy = ChainPolicy(
        chain_id=CHAIN_ID,
        kms_contract=KMS,
        codes=code_list(()),
        max_block_age=ALLOWED_FOR,
        max_head_age=ALLOWED_FOR,
    )
    return settings, policy


def _registers(seed: int) -> dict[int, bytes]:
    return {index: bytes([seed, index]) * 24 for index in range(3)}

"""A simulated KMS enclave and an app enclave in this process, with the production parts between them."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.types import ASGIApp

from enclave.devices.attestor import NitroAttestor
from enclave.devices.clock import TrustedClock
from enclave.devices.nsm import Nsm
from enclave.kms.authorization import Decision, ProofAuthorizer
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
from shared.attestation.verify import verify_attestation
from shared.chain.code import code_list
from shared.chain.decision import ChainPolicy
from shared.ratls.certificates import client_certificate, spki_der
from shared.rpc import kms_pb2 as pb

APP_ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")
ALLOWED_FOR = 24 * 3600  # seconds; production caps it at 60, a bench must not expire half way

NEVER_REACHED = RateLimits(
    caller_per_minute=MAX_RATE, caller_burst=MAX_RATE, app_per_minute=MAX_RATE, app_burst=MAX_RATE
)
"""Production's limit on one caller is reached within a second of this."""


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
    """A bootstrapped KMS in mode `proof`, with the allow of one app enclave already remembered."""

    def __init__(self) -> None:
        authority = SimulatedAuthority.create()
        self.anchors = TrustAnchors.production().with_extra(authority.root_pem)
        self._app = Nsm(SimulatedNsm(_registers(2), authority))
        nsm = Nsm(SimulatedNsm(_registers(1), authority))
        attestor = NitroAttestor(nsm, None)
        clock = TrustedClock(nsm, self.anchors)
        self.now: Callable[[], int] = clock.now
        self.keys = _bootstrapped(nsm, attestor, clock.now)
        own = verify_attestation(attestor.attest(bytes(64)), now=clock.now(), anchors=self.anchors)
        core = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
        authorizer = _authorizer(clock.now)
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
        allow = Decision(is_allowed=True, reason="", gateway_app_id="gateway", finalized_block=7)
        until = clock.now() + ALLOWED_FOR
        caller = self.callers().verify([self.client.der])
        assert caller is not None
        authorizer._remember(("kms", kms_boot_info(own, core)), until, allow)  # noqa: SLF001 - no chain here
        authorizer._remember(("app", boot_info(caller)), until, allow)  # noqa: SLF001 - no chain here

    def callers(self) -> CallerVerifier:
        """Return a verifier that remembers nobody yet."""
        return CallerVerifier(
            temp_ca_der=self.keys.temp_ca_der(), verifier=PeerVerifier(anchors=self.anchors, now=self.now)
        )

    def app(self) -> ASGIApp:
        """Return the application of the main listener."""
        return main_app(self.service, self.callers(), version="bench", metrics=True, limits=NEVER_REACHED)

    def new_client(self) -> AttestedClient:
        """Return a certificate under the temporary CA with fresh evidence of the app enclave."""
        key = ec.generate_private_key(ec.SECP256R1())
        expected = report_data(RATLS_CERT, spki_der(key.public_key()))
        envelope = NitroAttestor(self._app, APP_ID).attest(expected)
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


def _authorizer(now: Callable[[], int]) -> ProofAuthorizer:
    contract = "0x" + "11" * 20
    settings = Proof(
        url="http://absent",
        chain_id=31337,
        kms_contract=contract,
        rpc_urls=("http://absent",),
        allow_cache=60,
    )
    policy = ChainPolicy(chain_id=31337, kms_contract=settings.contract(), codes=code_list(()))
    absent = _Unreachable()
    return ProofAuthorizer(settings, policy, absent, absent, now)  # type: ignore[arg-type]  # stand-ins that fail


def _registers(seed: int) -> dict[int, bytes]:
    return {index: bytes([seed, index]) * 24 for index in range(3)}

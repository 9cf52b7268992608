"""GetKmsKey and GetAppEnvEncryptPubKey, over the main listener and to our own client (N-38, N-55)."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.kms.authorization import Decision
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyMaterial
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.serving.attested_tls import build_server
from enclave.tee.peers import PeerVerifier
from functions.deploy.env_sealing import EnvKeySource, FetchedKey, SealedEnv, seal_env
from shared.attestation.trust import TrustAnchors
from shared.errors import InvalidEvidence, PolicyDenied, UnavailableError
from shared.keys.app_keys import derive_app_keys, env_public_key, verify_env_public_key
from shared.keys.env_encryption import EnvPolicy, decrypt_env
from shared.keys.env_signature import TrustedSigners, parse_env_key
from shared.keys.k256 import public_key
from shared.net.attested_client import AttestedConnection
from shared.ratls.certificates import client_certificate
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json, to_json
from tests.enclave.conftest import APP_ID, Enclave
from tests.shared.refusal import refuses

NOW = 1_900_000_000
CORE = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
VECTORS = json.loads((Path(__file__).parents[2] / "data" / "kms" / "vectors.json").read_text())
INPUTS, ENV = VECTORS["inputs"], VECTORS["env"]
URL = "https://kms.test:8000"
DENIED = Decision(is_allowed=False, reason="Aggregated MR not allowed", gateway_app_id="")


class Kms:
    """One KMS behind its main listener; `now` is what its clock says."""

    def __init__(self, keys: KeyMaterial, policy: Any, own: Enclave, anchors: TrustAnchors) -> None:
        self.keys = keys
        self.now = NOW
        self._policy = policy
        self._enclave = own
        self._anchors = anchors

    @property
    def signers(self) -> TrustedSigners:
        return TrustedSigners(frozenset({public_key(self.keys.k256)}), "the test")

    def service(self) -> KmsService:
        return KmsService(
            core=CORE,
            keys=self.keys,
            authorizer=self._policy,
            own=self._enclave.evidence(self._anchors),
            policy=pb.KmsPolicy(auth_mode="proof"),
            now=lambda: self.now,
        )

    def server(self, anchors: TrustAnchors | None = None) -> Any:
        """Return its server; it believes callers under `anchors`."""
        verifier = PeerVerifier(anchors=anchors or self._anchors, now=lambda: NOW)
        callers = CallerVerifier(temp_ca_der=self.keys.temp_ca_der(), verifier=verifier)
        identity = RpcIdentity(self.keys, self._enclave.attestor, lambda: NOW)
        app = main_app(self.service(), callers, version="1", metrics=True)
        return build_server(app, context_factory=identity.context)


@pytest.fixture
def kms(bootstrap: Callable[[], KeyMaterial], policy, kms_enclave, anchors) -> Kms:
    return Kms(bootstrap(), policy, kms_enclave, anchors)


@pytest.fixture
def vector_kms(kms: Kms) -> Kms:
    """Return a KMS with the root keys of the specification's vectors, at their time."""
    root = ec.derive_private_key(int(INPUTS["root_ca_p256_scalar"], 16), ec.SECP256R1())
    k256 = bytes.fromhex(INPUTS["root_k256_scalar"])
    kms.keys = msgspec.structs.replace(kms.keys, root_ca_key=root, k256=k256)
    kms.now = INPUTS["timestamp"]
    return kms


@pytest.fixture
def listener(kms: Kms, serve):
    return serve(kms.server())


@pytest.fixture
def other(authority) -> Enclave:
    return Enclave(authority, seed=7, app_id=None)


def _connect(dialer, certificate: tuple[bytes, ec.EllipticCurvePrivateKey] | None = None):
    client: dict[str, Any] = {}
    if certificate is not None:
        leaf, key = certificate
        client = {"client_key": key, "client_chain": (x509.load_der_x509_certificate(leaf),)}
    return AttestedConnection.connect(
        dialer, "kms.test", 8000, check_peer=lambda _leaf: None, timeout=20, **client
    )


def _error(response) -> dict[str, str]:
    assert response.status == 400
    return msgspec.json.decode(response.body, type=dict[str, str])


# ---- GetAppEnvEncryptPubKey ----


def test_answers_the_vectors_of_the_specification(vector_kms: Kms) -> None:
    answer = vector_kms.service().get_app_env_encrypt_pub_key(
        pb.AppId(app_id=bytes.fromhex(INPUTS["app_id"]))
    )
    assert answer == pb.PublicKeyResponse(
        public_key=bytes.fromhex(ENV["x25519_public_key"]),
        signature=bytes.fromhex(ENV["signature"]),
        timestamp=INPUTS["timestamp"],
        signature_v1=bytes.fromhex(ENV["signature_v1"]),
    )


def test_anyone_is_answered_in_every_encoding(listener, kms: Kms) -> None:
    request = pb.AppId(app_id=APP_ID)
    with _connect(listener) as connection:
        posted = connection.request(
            "POST", "/prpc/GetAppEnvEncryptPubKey?json", b'{"app_id":"0x%s"}' % APP_ID.hex().upper().encode()
        )
        asked = connection.request("GET", f"/prpc/KMS.GetAppEnvEncryptPubKey?app_id={APP_ID.hex()}")
        binary = connection.request("POST", "/prpc/GetAppEnvEncryptPubKey", request.SerializeToString())
        metrics = connection.request("GET", "/metrics").body.decode()
    expected = kms.service().get_app_env_encrypt_pub_key(request)
    assert from_json(pb.PublicKeyResponse, posted.body) == expected
    assert asked.body == posted.body
    assert pb.PublicKeyResponse.FromString(binary.body) == expected
    assert msgspec.json.decode(posted.body)["timestamp"] == NOW
    assert "dstack_kms_attestation_requests_total 0\n" in metrics


def test_the_env_key_of_an_epoch_opens_with_the_keys_of_that_epoch(kms: Kms) -> None:
    answer = kms.service().get_app_env_encrypt_pub_key(pb.AppId(app_id=APP_ID, key_epoch=3))
    private = derive_app_keys(kms.keys.root_keys(), APP_ID, epoch=3).env_crypt_key
    assert (answer.public_key, answer.signature) == (env_public_key(private), b"")


def test_both_signatures_verify_and_only_one_of_them_ages(kms: Kms) -> None:
    answer = kms.service().get_app_env_encrypt_pub_key(pb.AppId(app_id=APP_ID))
    trusted = kms.signers.keys

    def verify(signature: bytes, timestamp: int | None, now: int) -> bytes:
        return verify_env_public_key(
            APP_ID, answer.public_key, signature, timestamp=timestamp, now=now, trusted=trusted
        )

    assert verify(answer.signature, None, NOW + 10**8) == verify(answer.signature_v1, NOW, NOW)
    with refuses("keys.env.stale"):
        verify(answer.signature_v1, NOW, NOW + 301)
    with refuses("keys.env.signer"):
        verify(answer.signature_v1, NOW + 301, NOW + 301)


@pytest.mark.parametrize("step", [-86_400, 86_400])
def test_n40_the_time_is_the_trusted_clocks(kms: Kms, step: int) -> None:
    kms.now = NOW + step
    assert kms.service().get_app_env_encrypt_pub_key(pb.AppId(app_id=APP_ID)).timestamp == NOW + step


@pytest.mark.parametrize("length", [0, 19, 21, 32])
def test_n60_refuses_an_app_id_of_another_length(listener, length: int) -> None:
    body = msgspec.json.encode({"app_id": "11" * length})
    with _connect(listener) as connection:
        error = _error(connection.request("POST", "/prpc/GetAppEnvEncryptPubKey?json", body))
    assert error == {"error": "app_id must be 20 bytes", "code": "kms.app_id.length"}


def test_a_kms_that_is_no_longer_allowed_signs_no_key(kms: Kms, policy) -> None:
    policy.kms = DENIED
    with refuses("kms.self.denied", PolicyDenied) as caught:
        kms.service().get_app_env_encrypt_pub_key(pb.AppId(app_id=bytes(19)))
    assert caught.value.message.startswith("KMS self authorization failed: KMS is not allowed: ")


def test_the_private_key_is_not_logged(kms: Kms, capsys) -> None:
    kms.service().get_app_env_encrypt_pub_key(pb.AppId(app_id=APP_ID))
    assert derive_app_keys(kms.keys.root_keys(), APP_ID).env_crypt_key.hex() not in capsys.readouterr().out


# ---- our own client ----


class Given:
    """A source whose answer is here already."""

    def __init__(self, answer: pb.PublicKeyResponse) -> None:
        self._answer = parse_env_key(to_json(answer))

    def fetch(self, app_id: bytes, *, epoch: int) -> FetchedKey:
        del app_id, epoch
        return FetchedKey(self._answer, URL, "verified")


def _sealed_by(answer: pb.PublicKeyResponse, kms: Kms) -> SealedEnv:
    return seal_env({"A": "b"}, app_id=APP_ID, source=Given(answer), signers=kms.signers, now=kms.now)


def _seal(dialer, kms: Kms) -> SealedEnv:
    with closing(EnvKeySource(dialer, [URL], timeout=20)) as source:
        return seal_env({"A": "b"}, app_id=APP_ID, source=source, signers=kms.signers, now=NOW)


def test_our_client_seals_to_this_kms_and_the_apps_guest_opens_it(listener, kms: Kms) -> None:
    sealed = _seal(listener, kms)
    assert (sealed.signature, sealed.tls) == ("v1", "unverified")
    assert sealed.signer == public_key(kms.keys.k256)
    private = derive_app_keys(kms.keys.root_keys(), APP_ID).env_crypt_key
    policy = EnvPolicy(allowed=frozenset({"A"}))
    assert decrypt_env(sealed.ciphertext, private, policy=policy, app_id=APP_ID).values == {"A": "b"}


def test_our_client_shows_why_the_kms_refused(listener, kms: Kms, policy) -> None:
    policy.kms = DENIED
    with pytest.raises(UnavailableError, match="KMS self authorization failed") as caught:
        _seal(listener, kms)
    assert caught.value.code == "env.kms.status"


def test_n38_the_answer_about_app_a_is_no_answer_about_app_b(kms: Kms) -> None:
    answer = kms.service().get_app_env_encrypt_pub_key(pb.AppId(app_id=bytes([9]) * 20))
    with refuses("keys.env.signer", InvalidEvidence):
        _sealed_by(answer, kms)


def test_n38_an_old_answer_is_refused_when_it_is_replayed(kms: Kms) -> None:
    answer = kms.service().get_app_env_encrypt_pub_key(pb.AppId(app_id=APP_ID))
    kms.now += 301
    with refuses("keys.env.stale", InvalidEvidence):
        _sealed_by(answer, kms)


# ---- GetKmsKey ----


def test_another_kms_gets_the_root_keys_in_both_encodings(listener, kms: Kms, other: Enclave) -> None:
    with _connect(listener, other.certificate(kms.keys)) as connection:
        answer = connection.request("POST", "/prpc/GetKmsKey?json", b'{"vm_config":""}')
        binary = connection.request("POST", "/prpc/KMS.GetKmsKey", b"")
        metrics = connection.request("GET", "/metrics").body.decode()
    keys = from_json(pb.KmsKeyResponse, answer.body)
    assert keys == pb.KmsKeyResponse.FromString(binary.body)
    assert [one.k256_key for one in keys.keys] == [kms.keys.k256]
    assert keys.keys[0].ca_key.encode() == kms.keys.root_ca_pem()
    assert keys.temp_ca_key.encode() == kms.keys.temp_ca_pem()
    assert "dstack_kms_attestation_requests_total 2\n" in metrics
    assert "dstack_kms_attestation_failures_total 0\n" in metrics


def test_n55_nobody_gets_root_keys_without_evidence(listener, kms: Kms) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = (kms.keys.temp_ca_cert, kms.keys.temp_ca_key)
    bare = client_certificate(key, attestation=None, issuer=issuer, now=NOW).public_bytes(Encoding.DER)
    for certificate in (None, (bare, key)):
        with _connect(listener, certificate) as connection:
            error = _error(connection.request("POST", "/prpc/GetKmsKey?json", b"{}"))
        assert error == {"error": "No attestation provided", "code": "kms.no_attestation"}


def test_n55_a_second_connection_has_to_prove_itself_again(listener, kms: Kms, other: Enclave) -> None:
    with _connect(listener, other.certificate(kms.keys)) as connection:
        assert connection.request("POST", "/prpc/GetKmsKey?json", b"{}").status == 200
    with _connect(listener) as connection:
        error = _error(connection.request("POST", "/prpc/GetKmsKey?json", b"{}"))
    assert error["code"] == "kms.no_attestation"


def test_n55_evidence_for_another_key_gets_no_root_keys(listener, kms: Kms, other: Enclave) -> None:
    certificate = other.certificate(kms.keys, over=ec.generate_private_key(ec.SECP256R1()))
    with _connect(listener, certificate) as connection:
        error = _error(connection.request("POST", "/prpc/GetKmsKey?json", b"{}"))
    assert error["code"] == "attestation.report_data"
    assert error["error"].startswith("invalid quote: ")


def test_n55_a_simulated_kms_gets_none_of_a_kms_that_believes_hardware_alone(
    kms: Kms, serve, other: Enclave
) -> None:
    """A KMS in mode `dev`, which allows everything, is always a simulated one."""
    dialer = serve(kms.server(TrustAnchors.production()))
    with _connect(dialer, other.certificate(kms.keys)) as connection:
        error = _error(connection.request("POST", "/prpc/GetKmsKey?json", b"{}"))
    assert error["code"] == "nitro.chain.anchor"
    assert error["error"].startswith("invalid quote: ")


def test_n55_an_enclave_in_debug_mode_gets_no_root_keys(listener, kms: Kms, authority) -> None:
    debug = Enclave(authority, seed=0, app_id=None)
    with _connect(listener, debug.certificate(kms.keys)) as connection:
        error = _error(connection.request("POST", "/prpc/GetKmsKey?json", b"{}"))
    assert error["code"] == "nitro.debug"


def test_n55_a_refused_kms_is_told_why_and_counted(listener, kms: Kms, policy, other: Enclave) -> None:
    with _connect(listener, other.certificate(kms.keys)) as connection:
        assert connection.request("POST", "/prpc/GetKmsKey?json", b"{}").status == 200
        policy.kms = DENIED
        error = _error(connection.request("POST", "/prpc/GetKmsKey?json", b"{}"))
        metrics = connection.request("GET", "/metrics").body.decode()
    assert error["code"] == "kms.self.denied"
    assert "dstack_kms_attestation_failures_total 1\n" in metrics

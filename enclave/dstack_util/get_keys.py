"""Fetch this app's keys from the KMS (spec kms section 8.2, deploy section 6.2).

Stricter than upstream's tool: it refuses to run without a root CA pin, and it checks the KMS's certificate,
its usage and its evidence on both connections before it sends anything.
"""

from collections.abc import Sequence

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from enclave.dstack_util.enclave_config import EnclaveConfig, load_enclave_config
from enclave.dstack_util.kms_client import ClientIdentity, KmsClient
from enclave.platform import Platform
from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import establish_trust
from enclave.tee.tee import Attestor, Clock
from shared.ec_key import ec_key
from shared.errors import DstackError, InvalidEvidence, ProtocolError, UnavailableError
from shared.keys.app_keys import AppKeys, issuer_of_key
from shared.keys.app_keys_file import AppKeysFile, KmsProvider
from shared.keys.k256 import public_key
from shared.ratls.certificates import client_certificate
from shared.rpc import kms_pb2 as pb

API_VERSION = 1
OS_IMAGE_HASH_BYTES = 32


class KeyBundle(msgspec.Struct, frozen=True, kw_only=True):
    """What `get-keys` got: the app's secrets and whom they came from.

    `k256_root` is the KMS's root k256 public key (33 bytes) that signed the app's key, `os_image_hash` what
    the KMS found this guest's image to be.
    """

    keys: AppKeys
    os_image_hash: bytes
    k256_root: bytes
    ca_cert: str
    gateway_app_id: str
    kms_url: str
    temp_ca_key: str
    temp_ca_cert: str

    def __repr__(self) -> str:
        """Hide the keys."""
        return f"KeyBundle(kms_url={self.kms_url!r})"

    def root_spki(self) -> bytes:
        """Return the public key of the KMS's root CA, SPKI DER."""
        return _spki(self.ca_cert.encode())

    def to_file(self) -> AppKeysFile:
        """Return upstream's `.appkeys.json`."""
        return AppKeysFile(
            disk_crypt_key=self.keys.disk_crypt_key,
            env_crypt_key=self.keys.env_crypt_key,
            k256_key=self.keys.k256_key,
            k256_signature=self.keys.k256_signature,
            gateway_app_id=self.gateway_app_id,
            ca_cert=self.ca_cert,
            key_provider=KmsProvider(
                url=self.kms_url,
                pubkey=self.root_spki(),
                tmp_ca_key=self.temp_ca_key,
                tmp_ca_cert=self.temp_ca_cert,
            ),
        )


def get_keys(platform: Platform) -> KeyBundle:
    """Attest to a KMS that the measured image names, and return this app's keys.

    1. app id, KMS URLs, root pin and anchors are read from the measured image; 2. the temporary CA is
    fetched; 3. a key, evidence bound to it and a certificate are made; 4. the app's keys are asked for; 5.
    the answer must come from the pinned root, its key must be signed for this app id, and it must name the
    image that was judged. The KMSes are asked in order until one gives keys; nothing is recorded before.
    Raises `get_keys.root_pin`, `get_keys.ca_changed`, `get_keys.epoch`, `get_keys.signature`,
    `get_keys.os_image_hash`, `kms.refused` and what the checks of the server raise: the first KMS's error,
    or where a later one does not answer, `UnavailableError` with that one's code: it may give keys yet.
    """
    config = load_enclave_config(platform)
    app_id = config.app_id_bytes()
    trust = establish_trust(platform, config.trust.settings())
    attestor = platform.tee.attestor(app_id)
    failures: list[DstackError] = []
    for endpoint in config.kms.endpoints():
        try:
            client = KmsClient.of_image(platform, config, endpoint, trust.verifier)
            return ask_for_keys(
                client, _question(config, client.root_pem), endpoint.url, attestor, trust.clock
            )
        except DstackError as error:
            failures.append(error)
    raise _outcome(failures)


def _outcome(failures: Sequence[DstackError]) -> DstackError:
    first = failures[0]
    absent = next((one for one in failures if isinstance(one, UnavailableError)), first)
    if absent is first:
        return first
    # whoever asks again as long as somebody may come must not stop at the first KMS's refusal (SECURITY N-62)
    return UnavailableError(absent.code, f"{absent.message}; the first KMS: {first.message} [{first.code}]")


class KeyQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Whose keys are asked for, of which epoch, and what the answer must be from.

    `root_spki` is the pinned root CA's key (DER), `pinned_k256` the k256 root key that must have signed, None
    for any. `vm_config` is the host's text about this guest, empty where the evidence has it.
    """

    app_id: bytes
    root_spki: bytes
    key_epoch: int = 0
    pinned_k256: bytes | None = None
    vm_config: str = ""


def ask_for_keys(
    client: KmsClient, question: KeyQuestion, url: str, attestor: Attestor, clock: Clock
) -> KeyBundle:
    """Take steps 2 to 5 of `get_keys` with one KMS; raises as it does."""
    temporary = client.call("GetTempCaCert", None, pb.GetTempCaCertResponse)
    identity = _make_identity(temporary, attestor, clock.now())
    request = pb.GetAppKeyRequest(
        api_version=API_VERSION, vm_config=question.vm_config, key_epoch=question.key_epoch
    )
    response = client.call("GetAppKey", request, pb.AppKeyResponse, identity)
    issuer = _check_answer(response, question)
    return KeyBundle(
        keys=_keys_of(response),
        os_image_hash=response.os_image_hash,
        k256_root=issuer,
        ca_cert=response.ca_cert,
        gateway_app_id=response.gateway_app_id,
        kms_url=url,
        temp_ca_key=temporary.temp_ca_key,
        temp_ca_cert=temporary.temp_ca_cert,
    )


def _question(config: EnclaveConfig, root_pem: bytes) -> KeyQuestion:
    return KeyQuestion(
        app_id=config.app_id_bytes(),
        root_spki=_spki(root_pem),
        key_epoch=config.key_epoch,
        pinned_k256=config.kms.pinned_k256(),
    )


def _keys_of(response: pb.AppKeyResponse) -> AppKeys:
    return AppKeys(
        disk_crypt_key=response.disk_crypt_key,
        env_crypt_key=response.env_crypt_key,
        k256_key=response.k256_key,
        k256_signature=response.k256_signature,
    )


def _check_answer(response: pb.AppKeyResponse, question: KeyQuestion) -> bytes:
    """Return the k256 root key that signed the app's, once everything in the answer is what it must be."""
    if response.key_epoch != question.key_epoch:
        raise InvalidEvidence(
            "get_keys.epoch",
            f"the KMS answered with keys of epoch {response.key_epoch}, expected {question.key_epoch}",
        )
    if _spki(response.ca_cert.encode()) != question.root_spki:
        raise InvalidEvidence(
            "get_keys.ca_changed", "the KMS answered with a root CA other than the pinned one"
        )
    issuer = issuer_of_key(question.app_id, public_key(response.k256_key), response.k256_signature)
    pinned = question.pinned_k256
    if pinned is not None and issuer != pinned:
        raise InvalidEvidence(
            "get_keys.signature", f"the app key is signed by {issuer.hex()}, the image pins {pinned.hex()}"
        )
    if len(response.os_image_hash) != OS_IMAGE_HASH_BYTES:
        raise InvalidEvidence(
            "get_keys.os_image_hash",
            f"the KMS judged an image hash of {len(response.os_image_hash)} bytes, "
            f"expected {OS_IMAGE_HASH_BYTES}",
        )
    return issuer


def _make_identity(temporary: pb.GetTempCaCertResponse, attestor: Attestor, now: int) -> ClientIdentity:
    try:
        issuer_cert = x509.load_pem_x509_certificate(temporary.temp_ca_cert.encode())
        issuer_key = load_pem_private_key(temporary.temp_ca_key.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ProtocolError("kms.temp_ca", "the KMS's temporary CA cannot be parsed") from error
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ProtocolError("kms.temp_ca", "the KMS's temporary CA key is not an EC key")
    key = ec.generate_private_key(ec.SECP256R1())
    attestation = certificate_evidence(attestor, key.public_key())
    certificate = client_certificate(key, attestation=attestation, issuer=(issuer_cert, issuer_key), now=now)
    return ClientIdentity(key, certificate)


def _spki(pem: bytes) -> bytes:
    try:
        key = ec_key(x509.load_pem_x509_certificate(pem))
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ProtocolError("kms.ca_cert", "the root CA certificate cannot be parsed") from error
    if key is None:
        raise ProtocolError("kms.ca_cert", "the root CA certificate has no elliptic curve key")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

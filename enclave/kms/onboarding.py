"""Taking the root keys over from a running KMS (spec kms section 5.3).

Both sides check each other: the source asks its policy about this guest, this guest asks its own about the
source. Besides, the keys must be those that this image or the chain names, so that an approved KMS of
somebody else's cannot hand over its own.
"""

import threading
from collections.abc import Callable

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from enclave.kms.audit import AUDIT, AuditLog, Case, Value
from enclave.kms.authorization import Authorizer, ProofAuthorizer
from enclave.kms.bootstrap import check_domain
from enclave.kms.config import Core
from enclave.kms.custody import Custody
from enclave.kms.first_keys import first_keys
from enclave.kms.key_store import KeyMaterial
from enclave.kms.service import context, kms_boot_info
from enclave.kms.source_kms import Source, SourceKms, SourceToken
from shared.attestation.verify import VerifiedAttestation
from shared.errors import ConfigError, InvalidEvidence, PolicyDenied, ProtocolError, StorageError
from shared.keys.k256 import public_key
from shared.ratls.certificates import spki_der
from shared.ratls.peer import check_issued_by
from shared.rpc import kms_pb2 as pb


def approve_source(authorizer: Authorizer, core: Core, verified: VerifiedAttestation) -> Case:
    """Raise `PolicyDenied("kms.source.denied")` unless this KMS's own policy allows the source as a KMS.

    Returns what the audit log tells of the source.
    """
    with (
        Case(authorizer.mode, verified) as case,
        context("Source KMS is not allowed for onboarding"),
    ):
        subject = case.subject = kms_boot_info(verified, core)
        decision = case.noting(authorizer.authorize)("kms", subject)
        if not decision.is_allowed:
            raise PolicyDenied("kms.source.denied", f"boot denied: {decision.reason}")
    return case


class RootPins(msgspec.Struct, frozen=True, kw_only=True):
    """The public halves that handed over keys must have: SPKI DER of the root CA, compressed k256 key.

    Those of the measured configuration, or of the contract; None where it names none.
    """

    ca_pubkey: bytes | None = None
    k256_pubkey: bytes | None = None


def proven_pins(authorizer: Authorizer) -> RootPins:
    """Return the keys that the contract publishes, proven; none in a mode that proves nothing.

    Raises what `ProofAuthorizer.proven_roots` raises.
    """
    if not isinstance(authorizer, ProofAuthorizer):
        return RootPins()
    roots = authorizer.proven_roots()
    return RootPins(ca_pubkey=roots.ca_pubkey, k256_pubkey=roots.k256_pubkey)


class Onboarder:
    """Fetches, checks and stores the keys of a source KMS, at most once and only where no key exists.

    `approve` raises unless the policy allows the source's evidence as a KMS. `proven` returns the keys that
    the contract publishes, proven.
    """

    def __init__(
        self,
        *,
        store: Custody,
        source: SourceKms,
        approve: Callable[[VerifiedAttestation], Case],
        pins: RootPins,
        proven: Callable[[], RootPins],
        now: Callable[[], int],
        audit: AuditLog = AUDIT,
    ) -> None:
        self._audit = audit
        self._store = store
        self._source = source
        self._approve = approve
        self._pins = pins
        self._proven = proven
        self._now = now
        self._lock = threading.Lock()

    def onboard(self, source_url: str, domain: str, source_token: str = "") -> pb.OnboardResponse:
        """Copy the keys of the KMS at `source_url`, to serve them as `domain`.

        A `source_token` is for the admin listener of the source, which `source_url` names then.

        Raises `kms.domain`, `kms.source.*`, `kms.onboarded`, `kms.onboard.unpinned`, `kms.onboard.keys`,
        `kms.onboard.other_keys`, and what checks, policy, chain and store raise.
        """
        check_domain(domain)
        source = Source.parse(source_url)
        token = SourceToken.parse(source_token)
        case = Case()

        def approve(verified: VerifiedAttestation) -> None:
            nonlocal case
            case = self._approve(verified)

        with self._lock:
            if self._store.bootstrapped():
                raise StorageError("kms.onboarded", "KMS has already been onboarded")
            ca_pubkeys, k256_pubkeys = self._expected()
            answer, leaf = self._source.root_keys(source, approve, token)
            material = self._material(answer, domain)
            _check_identity(material, ca_pubkeys, k256_pubkeys)
            check_issued_by(leaf, material.root_ca_key.public_key())
            self._store.create(material)
        k256_pubkey = public_key(material.k256)
        told: dict[str, Value] = {"domain": domain, "source": source.host, "k256_pubkey": k256_pubkey.hex()}
        self._audit.record("kms.onboarded", told | case.fields())
        return pb.OnboardResponse(k256_pubkey=k256_pubkey)

    def _expected(self) -> tuple[set[bytes], set[bytes]]:
        """Return every root CA key and every k256 key that is named: all of them must be the source's."""
        proven = self._proven()
        ca_pubkeys = {key for key in (self._pins.ca_pubkey, proven.ca_pubkey) if key is not None}
        k256_pubkeys = {key for key in (self._pins.k256_pubkey, proven.k256_pubkey) if key is not None}
        if not ca_pubkeys or not k256_pubkeys:
            raise ConfigError(
                "kms.onboard.unpinned",
                "no root keys are named: set core.onboard.source_ca_pubkey and source_k256_pubkey "
                "where no contract publishes caPubkey and k256Pubkey",
            )
        return ca_pubkeys, k256_pubkeys

    def _material(self, answer: pb.KmsKeyResponse, domain: str) -> KeyMaterial:
        if len(answer.keys) != 1:
            raise ProtocolError("kms.onboard.keys", "Invalid keys")
        keys = answer.keys[0]
        root, temporary = _p256_key(keys.ca_key), _p256_key(answer.temp_ca_key)
        material = first_keys(root, temporary, keys.k256_key, domain=domain, now=self._now())
        try:
            material.root_keys()
        except ConfigError as error:
            raise ProtocolError("kms.onboard.keys", "Invalid keys") from error
        return material


def _check_identity(material: KeyMaterial, ca_pubkeys: set[bytes], k256_pubkeys: set[bytes]) -> None:
    root = spki_der(material.root_ca_key.public_key())
    if ca_pubkeys != {root} or k256_pubkeys != {public_key(material.k256)}:
        raise InvalidEvidence(
            "kms.onboard.other_keys", "the source's root keys are not those that this KMS expects"
        )
    if spki_der(material.temp_ca_key.public_key()) == root:
        # the temporary CA's key is given to anybody
        raise ProtocolError("kms.onboard.keys", "Invalid keys")


def _p256_key(pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # no cause: a parser's error could quote what it read
        raise ProtocolError("kms.onboard.keys", "Invalid keys") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError("kms.onboard.keys", "Invalid keys")
    return key

"""Making root keys, once (spec kms section 5.2)."""

import os
import re
import threading
from collections.abc import Callable

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from enclave.kms.audit import AUDIT, AuditLog, Case, Value
from enclave.kms.custody import Custody
from enclave.kms.first_keys import first_keys
from enclave.kms.key_store import KeyMaterial
from enclave.tee.tee import Attestor
from shared.attestation.report_data import bootstrap_report_data
from shared.errors import ProtocolError, StorageError
from shared.keys.k256 import ORDER as K256_ORDER
from shared.keys.k256 import public_key
from shared.keys.kdf import P256_ORDER, hkdf_sha256
from shared.ratls.certificates import spki_der
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import to_json

MAX_DOMAIN = 253
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


def check_domain(domain: str) -> None:
    """Raise `ProtocolError("kms.domain")` unless `domain` is a DNS name (spec kms section 2.4)."""
    if not domain or len(domain) > MAX_DOMAIN or not all(map(_LABEL.fullmatch, domain.split("."))):
        raise ProtocolError("kms.domain", "domain is not a valid DNS name")


class Bootstrapper:
    """Makes and stores the first root keys. At most one bootstrap runs, and only where no key exists.

    `random` returns bytes of the hardware's own source, which are mixed with the kernel's. `case` is what the
    audit log tells of this KMS.
    """

    def __init__(
        self,
        *,
        store: Custody,
        random: Callable[[], bytes],
        attestor: Attestor,
        now: Callable[[], int],
        case: Case | None = None,
        audit: AuditLog = AUDIT,
    ) -> None:
        self._case = case or Case()
        self._audit = audit
        self._store = store
        self._random = random
        self._attestor = attestor
        self._now = now
        self._lock = threading.Lock()

    def bootstrap(self, domain: str, *, check_self: Callable[[], None], attest: bool) -> pb.BootstrapResponse:
        """Make root keys for `domain`, store them, and return the public half with its attestation.

        `check_self` raises unless the policy allows this KMS. `attest` is false for auto-bootstrap, which
        keeps no public record. Raises `kms.domain`, `kms.bootstrapped`, `kms.keys.write`.
        """
        check_domain(domain)
        with self._lock:
            if self._store.bootstrapped():
                raise StorageError("kms.bootstrapped", "KMS has already been bootstrapped")
            check_self()
            material, record = self._make(domain, attest=attest)
            self._store.create(material)
        told: dict[str, Value] = {
            "domain": domain,
            "ca_pubkey": record.ca_pubkey.hex(),
            "k256_pubkey": record.k256_pubkey.hex(),
        }
        self._audit.record("kms.bootstrapped", told | self._case.fields())
        return record

    def _make(self, domain: str, *, attest: bool) -> tuple[KeyMaterial, pb.BootstrapResponse]:
        root = self._p256_key("root-ca")
        temporary = self._p256_key("temp-ca")
        k256 = self._scalar("root-k256", K256_ORDER).to_bytes(32, "big")
        spki = spki_der(root.public_key())
        record = pb.BootstrapResponse(ca_pubkey=spki, k256_pubkey=public_key(k256))
        if attest:
            record.attestation = self._attestor.attest(bootstrap_report_data(spki, record.k256_pubkey))
        material = first_keys(root, temporary, k256, domain=domain, now=self._now())
        if attest:
            material = msgspec.structs.replace(material, bootstrap_info=to_json(record))
        return material, record

    def _p256_key(self, label: str) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(self._scalar(label, P256_ORDER), ec.SECP256R1())

    def _scalar(self, label: str, order: int) -> int:
        """Draw a scalar from the kernel's and the hardware's randomness, so that neither alone decides it."""
        while True:
            seed = os.urandom(32) + self._random()
            scalar = int.from_bytes(hkdf_sha256(seed, [b"dstack-cloud-root:", label.encode()], 32), "big")
            if 0 < scalar < order:
                return scalar

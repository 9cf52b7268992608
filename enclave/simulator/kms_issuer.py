"""The certificates of a KMS that is not there: leaf, the app's CA, root (spec kms section 4.2)."""

from collections.abc import Callable

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.agent.certificates import KeyEvidence
from enclave.agent.local_issuer import Describe, LocalIssuer
from shared.ratls.app_certificate import Stamps
from shared.ratls.certificates import Issuer
from shared.ratls.csr import CsrConfig


class SimulatedKmsIssuer(LocalIssuer):
    """Signs with an app's CA under the root of a simulated KMS, whose word it is that the app is `app_id`."""

    def __init__(
        self,
        app_ca: Issuer,
        root: x509.Certificate,
        *,
        app_id: bytes,
        evidence: KeyEvidence,
        describe: Describe,
        now: Callable[[], int],
    ) -> None:
        super().__init__(app_ca, evidence=evidence, describe=describe, now=now)
        self._root_pem = root.public_bytes(Encoding.PEM).decode()
        self._app_id = app_id

    def issue(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> tuple[str, ...]:
        """See `CertificateIssuer.issue`."""
        return (*super().issue(key, config), self._root_pem)

    def _stamps(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> Stamps:
        return msgspec.structs.replace(super()._stamps(key, config), app_id=self._app_id)

"""The guest's own CA: certificates for apps whose keys came from no KMS (spec guest-agent sections 2.5, 3.1).

Nobody vouches for such a CA but the evidence in its certificate. Its leaves name no app: that would be the
guest's word alone.
"""

from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.agent.certificates import KeyEvidence, check_validity_asked
from shared.attestation.identity import AppInfo
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.errors import ConfigError, ProtocolError
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.app_info import encode_app_info
from shared.ratls.certificates import BACKDATE, CA_LIFETIME, Issuer, spki_der
from shared.ratls.csr import CsrConfig

Describe = Callable[[bytes, bytes], AppInfo]
"""Returns the app info of an envelope, once it is verified over a report data."""

MAX_NAME: Final = 64
"""Characters of a subject: X.520's upper bound."""


class LocalIssuer:
    """Signs with the guest's CA. `evidence` and `describe` are asked only for what a certificate is to carry.

    Raises `ConfigError("app_keys.ca")` for a CA whose key is not that of its certificate.
    """

    def __init__(
        self, ca: Issuer, *, evidence: KeyEvidence, describe: Describe, now: Callable[[], int]
    ) -> None:
        if ca[0].public_key() != ca[1].public_key():
            raise ConfigError("app_keys.ca", "the key of the guest's ca is not that of its certificate")
        self._ca = ca
        self._ca_pem = ca[0].public_bytes(Encoding.PEM).decode()
        self._evidence = evidence
        self._describe = describe
        self._now = now

    def issue(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> tuple[str, ...]:
        """See `CertificateIssuer.issue`: the leaf, and the CA.

        A certificate starts now, and ends with the CA or upstream's ten years later, unless other times are
        asked for.
        """
        check_validity_asked(config)
        stamps = self._stamps(key, config)
        try:
            leaf = app_certificate(
                key.public_key(), config, stamps, issuer=self._ca, times=self._times(config)
            )
        except ConfigError as error:
            raise ProtocolError("certificate.validity", error.message) from error
        except (ValueError, x509.UnsupportedGeneralNameType) as error:
            raise ProtocolError(
                "certificate.name", f"a name is no dns name or address, or longer than {MAX_NAME} characters"
            ) from error
        return leaf.public_bytes(Encoding.PEM).decode(), self._ca_pem

    def _times(self, config: CsrConfig) -> tuple[int, int]:
        now = self._now()
        last = min(now + CA_LIFETIME, int(self._ca[0].not_valid_after_utc.timestamp()))
        not_before = now - BACKDATE if config.not_before is None else config.not_before
        not_after = last if config.not_after is None else config.not_after
        if not_before >= not_after:  # one was asked for, which leaves nothing of the other's default
            raise ProtocolError("certificate.validity", "not_before must be earlier than not_after")
        return not_before, not_after

    def _stamps(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> Stamps:
        if not (config.ext_quote or config.ext_app_info):
            return Stamps(app_id=None)
        envelope = self._evidence(key.public_key())
        info = None
        if config.ext_app_info:
            info = encode_app_info(
                self._describe(envelope, report_data(RATLS_CERT, spki_der(key.public_key())))
            )
        return Stamps(app_id=None, app_info=info, attestation=envelope if config.ext_quote else None)

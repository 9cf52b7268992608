"""The deployer's own verification: what the demo's guests say is believed only through here."""

from collections.abc import Callable

from shared.attestation.endorsements import NO_ENDORSEMENTS
from shared.attestation.envelope import Attestation, decode_envelope
from shared.attestation.identity import app_info
from shared.attestation.policy import DEFAULT_POLICY
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.errors import InvalidEvidence
from shared.net.endorsement_source import EndorsementSource


class Verifier:
    """Verifies under the production policy. `source` fetches what evidence needs; None fetches nothing."""

    def __init__(
        self, anchors: TrustAnchors, now: Callable[[], int], source: EndorsementSource | None = None
    ) -> None:
        self._anchors = anchors
        self._source = source
        self.now = now

    def verify(self, evidence: bytes | Attestation, report_data: bytes) -> VerifiedAttestation:
        """Return verified evidence over `report_data`. Raises what gathering and verification raise."""
        attestation = evidence if isinstance(evidence, Attestation) else decode_envelope(evidence)
        now = self.now()
        endorsements = NO_ENDORSEMENTS
        if self._source is not None:
            endorsements = self._source.gather(
                attestation, anchors=self._anchors, policy=DEFAULT_POLICY, now=now
            )
        return verify_attestation(
            attestation, now=now, anchors=self._anchors, endorsements=endorsements, report_data=report_data
        )

    def verify_workload(
        self, evidence: bytes, report_data: bytes, *, os_image_hash: bytes, compose_hash: bytes, code: str
    ) -> VerifiedAttestation:
        """Do the same for a workload that was planned; another one is `InvalidEvidence(code)`."""
        verified = self.verify(evidence, report_data)
        info = app_info(verified)
        if (info.os_image_hash, info.compose_hash) != (os_image_hash, compose_hash):
            raise InvalidEvidence(code, "what runs is another workload than was planned")
        return verified

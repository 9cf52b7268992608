"""The verification of peers' evidence, with what it needs besides itself."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from shared.attestation.endorsements import NO_ENDORSEMENTS
from shared.attestation.envelope import decode_envelope
from shared.attestation.policy import DEFAULT_POLICY, Policy
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation, VerifierCache, verify_attestation

if TYPE_CHECKING:  # loaded where collateral is configured
    from shared.net.endorsement_source import EndorsementSource


class PeerVerifier:
    """Verifies evidence under one set of anchors and one policy, at the time that `now` tells.

    What the evidence needs besides itself is gathered through `endorsements`; None gathers nothing. That may
    take several times `FETCH_TIMEOUT`: call `verify` on an event loop only where nothing is gathered.
    """

    def __init__(
        self,
        *,
        anchors: TrustAnchors,
        now: Callable[[], int],
        policy: Policy = DEFAULT_POLICY,
        endorsements: "EndorsementSource | None" = None,
    ) -> None:
        self.anchors = anchors
        self.policy = policy
        self.now = now
        self._endorsements = endorsements
        self._cache = VerifierCache()

    @property
    def gathers(self) -> bool:
        """Whether `verify` may wait for what it gathers. Where nothing is gathered it only computes."""
        return self._endorsements is not None

    def verify(self, envelope: bytes, report_data: bytes) -> VerifiedAttestation:
        """Return verified evidence over exactly `report_data`.

        Raises what `verify_attestation` raises, and what gathering its endorsements does.
        """
        now = self.now()
        attestation = decode_envelope(envelope)
        endorsements = NO_ENDORSEMENTS
        if self._endorsements is not None:
            endorsements = self._endorsements.gather(
                attestation, anchors=self.anchors, policy=self.policy, now=now
            )
        return verify_attestation(
            attestation,
            now=now,
            anchors=self.anchors,
            policy=self.policy,
            endorsements=endorsements,
            report_data=report_data,
            cache=self._cache,
        )

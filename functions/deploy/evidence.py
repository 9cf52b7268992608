"""Evidence of what runs: asked for by the deployer, and verified against the plan (DESIGN section 4)."""

import ipaddress
import secrets
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

from functions.deploy.record import Deployment, Proven
from functions.deploy.steps import Attested
from shared.attestation.endorsements import NO_ENDORSEMENTS
from shared.attestation.envelope import Attestation, decode_envelope
from shared.attestation.identity import claimed_boot_info, info_of
from shared.attestation.image import check_image
from shared.attestation.policy import DEFAULT_POLICY, Policy
from shared.attestation.report_data import deploy_challenge
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.errors import InvalidEvidence, ProtocolError, StorageError, UnavailableError
from shared.hex import decode_hex
from shared.net.endorsement_source import EndorsementSource
from shared.net.fetch import HttpClient

CHALLENGE_SECONDS: Final = 60
"""An answer that took longer may have been made elsewhere in the meantime: it counts for nothing."""

MAX_ANSWER: Final = 1 << 20
"""Evidence in hex: a GCP envelope with its logs has 60 KiB, and 16 KiB of events make it twice as long."""

REQUEST_SECONDS: Final = 20


class Verifier:
    """Verifies under a policy. `source` fetches what evidence needs; None fetches nothing."""

    def __init__(
        self,
        anchors: TrustAnchors,
        now: Callable[[], int],
        source: EndorsementSource | None = None,
        policy: Policy = DEFAULT_POLICY,
    ) -> None:
        self._anchors = anchors
        self._source = source
        self._policy = policy
        self.now = now

    def verify(self, evidence: bytes | Attestation, report_data: bytes) -> VerifiedAttestation:
        """Return verified evidence over `report_data`. Raises what gathering and verification raise."""
        attestation = evidence if isinstance(evidence, Attestation) else decode_envelope(evidence)
        now = self.now()
        endorsements = NO_ENDORSEMENTS
        if self._source is not None:
            endorsements = self._source.gather(
                attestation, anchors=self._anchors, policy=self._policy, now=now
            )
        return verify_attestation(
            attestation,
            now=now,
            anchors=self._anchors,
            policy=self._policy,
            endorsements=endorsements,
            report_data=report_data,
        )

    def verify_workload(
        self, evidence: bytes, report_data: bytes, *, os_image_hash: bytes, compose_hash: bytes, code: str
    ) -> VerifiedAttestation:
        """Do the same for a workload that was planned; another one is `InvalidEvidence(code)`.

        The image is checked, and the verdict that is returned says so.
        """
        verified = check_image(self.verify(evidence, report_data))
        info = info_of(verified)
        for name, found, planned in (
            ("os_image_hash", info.os_image_hash, os_image_hash),
            ("compose_hash", info.compose_hash, compose_hash),
        ):
            if found != planned:
                raise InvalidEvidence(
                    code,
                    f"what runs is another workload than was planned: {name} is {found.hex()}, "
                    f"planned was {planned.hex()}",
                )
        return verified


class Challenger(Protocol):
    """Asks a machine for evidence over a challenge."""

    def __call__(self, url: str, challenge: bytes) -> bytes:
        """Return the envelope. Raises `UnavailableError`, `ProtocolError`."""
        ...


class _Answer(msgspec.Struct, frozen=True):
    attestation: str


class HttpChallenger:
    """Sends `POST /evidence {"challenge": hex32}`. The address comes from a cloud that may lie."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def __call__(self, url: str, challenge: bytes) -> bytes:
        """See `Challenger`.

        Raises `UnavailableError`: `net.*`, `deploy.evidence.busy`; `ProtocolError`: `net.*`,
        `deploy.evidence.address`, `deploy.evidence.status`, `deploy.evidence.answer`, and of the hex.
        """
        _check_address(url)
        body = msgspec.json.encode({"challenge": challenge.hex()})
        response = self._http.request(
            "POST",
            url,
            body=body,
            headers={"content-type": "application/json"},
            timeout=REQUEST_SECONDS,
            max_bytes=MAX_ANSWER,
        )
        if response.status >= 500:
            raise UnavailableError("deploy.evidence.busy", f"the app's side answered {response.status}")
        if response.status != 200:
            raise ProtocolError("deploy.evidence.status", f"the app's side answered {response.status}")
        try:
            text = msgspec.json.decode(response.body, type=_Answer).attestation
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(
                "deploy.evidence.answer", 'the app\'s side did not answer {"attestation": hex}'
            ) from error
        return decode_hex(text, what="attestation")


class Attester:
    """Proves that a machine runs what was planned: a fresh challenge, used once, answered within a minute."""

    def __init__(self, verifier: Verifier, ask: Challenger) -> None:
        self._verifier = verifier
        self._ask = ask

    def attest(self, deployment: Deployment, evidence_url: str) -> Attested:
        """Return what the evidence proves.

        Raises `UnavailableError` while nothing answers, `deploy.evidence.late` for an answer after
        `CHALLENGE_SECONDS`; `InvalidEvidence("deploy.evidence.workload")` for another workload than planned,
        `deploy.evidence.app_id` for another app; and what verification raises.
        """
        planned = deployment.planned
        if planned is None:
            raise StorageError("deploy.plan", f"deployment {deployment.name} has no plan yet")
        app_id = bytes.fromhex(planned.app_id) or bytes(20)
        challenge = secrets.token_bytes(32)
        asked = self._verifier.now()
        envelope = self._ask(evidence_url, challenge)
        if (took := self._verifier.now() - asked) > CHALLENGE_SECONDS:
            raise UnavailableError("deploy.evidence.late", f"evidence came after {took} s")
        verified = self._verifier.verify_workload(
            envelope,
            deploy_challenge(challenge, app_id),
            os_image_hash=bytes.fromhex(planned.os_image_hash),
            compose_hash=bytes.fromhex(planned.compose_hash),
            code="deploy.evidence.workload",
        )
        found = info_of(verified).app_id
        if planned.app_id and found != app_id:
            raise InvalidEvidence(
                "deploy.evidence.app_id", f"evidence is of app {found.hex()}, planned was {planned.app_id}"
            )
        shown = claimed_boot_info(verified)
        return Attested(
            simulated=verified.verdict.simulated,
            verdict=verified.verdict.to_json(),
            proven=Proven(
                mr_aggregated=shown.mr_aggregated.hex(),
                device_id=shown.device_id.hex(),
                tcb_status=shown.tcb_status,
            ),
        )


def _check_address(url: str) -> None:
    """Refuse addresses that are nobody's machine: of the link, as metadata servers are, and of groups."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ProtocolError(
            "deploy.evidence.address", f"evidence would be asked of {host[:80]!a}, expected an ip address"
        ) from error
    address = getattr(address, "ipv4_mapped", None) or address  # ::ffff:a.b.c.d goes to a.b.c.d
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        raise ProtocolError("deploy.evidence.address", f"evidence would be asked of {address}")

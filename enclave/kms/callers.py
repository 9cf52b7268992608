"""Who is calling: from the TLS peer's certificate to verified evidence (spec kms section 4.6).

Every request on a connection that presented an attested certificate has it verified in full before dispatch,
even GetMeta. A verified certificate is remembered until its evidence goes stale, so keep-alive connections
do not pay for it again; nothing about policy is remembered here.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

from shared.attestation.chain import ChainCache
from shared.attestation.nitro import NitroPolicy
from shared.attestation.trust import NitroAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.ratls.peer import check_client_certificate, ratls_report_data

MAX_REMEMBERED = 1024
"""Callers with a live connection; one entry holds a few kilobytes."""

_DEFAULT_POLICY = NitroPolicy()


class CallerVerifier:
    """Turns peer certificates into evidence under this KMS's anchors, clock and temporary CA."""

    def __init__(
        self,
        *,
        temp_ca_der: bytes,
        anchors: NitroAnchors,
        policy: NitroPolicy = _DEFAULT_POLICY,
        now: Callable[[], int],
    ) -> None:
        self._temp_ca_der = temp_ca_der
        self._anchors = anchors
        self._policy = policy
        self._now = now
        self._chains = ChainCache()
        self._verified: OrderedDict[bytes, VerifiedAttestation] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, peer_chain: list[bytes]) -> VerifiedAttestation | None:
        """Return the caller's verified evidence; None for a caller without a certificate or without evidence.

        Raises `InvalidEvidence` and `PolicyDenied` for a certificate or evidence that does not hold.
        """
        if not peer_chain:
            return None
        leaf = peer_chain[0]
        now = self._now()
        envelope = check_client_certificate(leaf, temp_ca_der=self._temp_ca_der, now=now)
        if envelope is None:
            return None
        key = hashlib.sha256(leaf).digest()
        with self._lock:
            known = self._verified.get(key)
            if known is not None and now < known.valid_until:
                return known
        verified = verify_attestation(
            envelope,
            now=now,
            anchors=self._anchors,
            policy=self._policy,
            report_data=ratls_report_data(leaf),
            chain_cache=self._chains,
        )
        with self._lock:
            self._verified[key] = verified
            while len(self._verified) > MAX_REMEMBERED:
                self._verified.popitem(last=False)
        return verified

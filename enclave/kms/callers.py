"""Who is calling: from the TLS peer's certificate to verified evidence (spec kms section 4.6).

Every request on a connection that presented an attested certificate has it verified in full before dispatch,
even GetMeta. A verified certificate is remembered until it or its evidence expires, so keep-alive connections
do not pay for it again; nothing about policy is remembered here.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from enclave.serving.prpc import WouldBlockError
from shared.attestation.chain import ChainCache
from shared.attestation.nitro import NitroPolicy
from shared.attestation.trust import NitroAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.ratls.peer import check_client_certificate, ratls_report_data, validity

MAX_REMEMBERED = 1024
"""Callers with a live connection; one entry holds the certificate and its evidence, some ten kilobytes."""

MAX_REMEMBERED_LEAF = 16 * 1024
"""A Nitro certificate has some five kilobytes; a larger one is verified each time instead of kept."""

_DEFAULT_POLICY = NitroPolicy()


class _Known(msgspec.Struct, frozen=True):
    """A certificate that was checked, by exactly its bytes, with its evidence and when both hold."""

    verified: VerifiedAttestation
    not_before: int
    not_after: int

    def holds(self, now: int) -> bool:
        return self.not_before <= now <= self.not_after and now < self.verified.valid_until


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
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, peer_chain: list[bytes]) -> VerifiedAttestation | None:
        """Return the caller's verified evidence; None for a caller without a certificate or without evidence.

        Raises `InvalidEvidence` and `PolicyDenied` for a certificate or evidence that does not hold.
        """
        if not peer_chain:
            return None
        leaf = peer_chain[0]
        now = self._now()
        known = self._find(leaf, now)
        if known is not None:
            return known
        envelope = check_client_certificate(leaf, temp_ca_der=self._temp_ca_der, now=now)
        if envelope is None:
            return None
        verified = verify_attestation(
            envelope,
            now=now,
            anchors=self._anchors,
            policy=self._policy,
            report_data=ratls_report_data(leaf),
            chain_cache=self._chains,
        )
        if len(leaf) <= MAX_REMEMBERED_LEAF:
            entry = _Known(verified, *validity(leaf))
            with self._lock:
                self._known[leaf] = entry
                while len(self._known) > MAX_REMEMBERED:
                    self._known.popitem(last=False)
        return verified

    def recall(self, peer_chain: list[bytes]) -> VerifiedAttestation | None:
        """Return the same for a caller that takes no verification; raise `WouldBlockError` for another."""
        if not peer_chain:
            return None
        known = self._find(peer_chain[0], self._now())
        if known is None:
            raise WouldBlockError
        return known

    def _find(self, leaf: bytes, now: int) -> VerifiedAttestation | None:
        with self._lock:
            known = self._known.get(leaf)
        return known.verified if known is not None and known.holds(now) else None

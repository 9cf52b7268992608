"""Who is calling: from the TLS peer's certificate to verified evidence (spec kms section 4.6).

Every request on a connection that presented an attested certificate has it verified in full before dispatch,
even GetMeta. A verified certificate is remembered for a while, and never longer than it or its evidence is
valid, so keep-alive connections do not pay for it again; nothing about policy is remembered here.
"""

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

import msgspec

from enclave.serving.prpc import WouldBlockError
from enclave.tee.peers import PeerVerifier
from shared.attestation.verify import VerifiedAttestation
from shared.errors import InvalidEvidence, PolicyDenied
from shared.ratls.peer import check_client_certificate

MAX_REMEMBERED = 1024
"""Callers with a live connection; one entry holds the certificate and its evidence, some ten to
forty kilobytes."""

MAX_REMEMBERED_TIME = 3600
"""Seconds. What was fetched to judge a caller by may hold for a week, and newer collateral or lists that
withdraw it are fetched every few hours: a caller who was judged by the older ones is judged again."""

MAX_REMEMBERED_LEAF = 32 * 1024
"""A Nitro certificate has some five kilobytes, a GCP one up to twenty: two quotes and a boot log. A larger
one is verified each time instead of kept."""

MAX_PROMPT_LEAF = 8 * 1024
"""A Nitro certificate. To verify one takes a millisecond, of an instance not seen before three; a thread for
one alone would not be faster, and costs time too."""

PROMPT_SHARE = 0.2
"""Of an event loop's time, what may go to verifying: callers that are known wait for it. Who comes beyond
takes a thread."""

MAX_REMEMBERED_NOBODIES = 1024
"""As many as there are connections."""

NOBODY_TIME = 30
"""Seconds for which a certificate that shows nobody is not looked at again. One connection may ask with it as
often as it likes, and each look would take from what callers that are new need."""


class _Nobody(msgspec.Struct, frozen=True):
    """A certificate without evidence, or with evidence that does not hold, for which there is a refusal."""

    until: int
    refusal: type[InvalidEvidence] | type[PolicyDenied] | None = None
    code: str = ""
    message: str = ""

    def refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal(self.code, self.message)


class _Known(msgspec.Struct, frozen=True):
    """A certificate that was checked, by exactly its bytes, with its evidence and when both hold."""

    verified: VerifiedAttestation
    not_before: int
    not_after: int

    def holds(self, now: int) -> bool:
        made, ends = self.verified.verdict.verified_at, self.verified.valid_until
        is_recent = now < min(made + MAX_REMEMBERED_TIME, ends)
        return is_recent and self.not_before <= now <= self.not_after


class CallerVerifier:
    """Turns peer certificates into evidence under this KMS's anchors, policy, clock and temporary CA.

    `monotonic` tells seconds. `verify_promptly` is for one event loop, whose time it shares out.
    """

    def __init__(
        self,
        *,
        temp_ca_der: bytes,
        verifier: PeerVerifier,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._temp_ca_der = temp_ca_der
        self._verifier = verifier
        self._monotonic = monotonic
        self._prompt_again_at = -math.inf
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._nobodies: OrderedDict[bytes, _Nobody] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, peer_chain: list[bytes]) -> VerifiedAttestation | None:
        """Return the caller's verified evidence; None for a caller without a certificate or without evidence.

        May fetch what the evidence needs to be judged, so it is not for an event loop. Raises
        `InvalidEvidence` and `PolicyDenied` for a certificate or evidence that does not hold, and
        `UnavailableError` when it cannot be judged.
        """
        if not peer_chain:
            return None
        leaf = peer_chain[0]
        now = self._verifier.now()
        known = self._find(leaf, now)
        if known is not None:
            return known
        try:
            shown = check_client_certificate(leaf, temp_ca_der=self._temp_ca_der, now=now)
            verified = None
            if shown.envelope is not None:
                verified = self._verifier.verify(shown.envelope, shown.report_data)
        except (InvalidEvidence, PolicyDenied) as error:
            self._remember_nobody(leaf, _Nobody(now + NOBODY_TIME, type(error), error.code, error.message))
            raise
        if verified is None:
            self._remember_nobody(leaf, _Nobody(now + NOBODY_TIME))
            return None
        if len(leaf) <= MAX_REMEMBERED_LEAF:
            entry = _Known(verified, shown.not_before, shown.not_after)
            with self._lock:
                self._known[leaf] = entry
                while len(self._known) > MAX_REMEMBERED:
                    self._known.popitem(last=False)
        return verified

    def verify_promptly(
        self, peer_chain: list[bytes], before: Callable[[], object]
    ) -> VerifiedAttestation | None:
        """Return or raise the same on an event loop: where it takes no waiting, and little computing.

        `before` is called if there is something to verify, and may raise to refuse that. Raises
        `WouldBlockError` where a thread has to `verify`: evidence that something is fetched for, a large
        certificate, or more of them than `PROMPT_SHARE` allows.
        """
        with suppress(WouldBlockError):
            return self.recall(peer_chain)
        began = self._monotonic()
        is_large = len(peer_chain[0]) > MAX_PROMPT_LEAF
        if self._verifier.gathers or is_large or began < self._prompt_again_at:
            raise WouldBlockError
        before()
        try:
            return self.verify(peer_chain)
        finally:
            ended = self._monotonic()
            self._prompt_again_at = ended + (ended - began) * (1 / PROMPT_SHARE - 1)

    def verify_evidence(self, envelope: bytes, report_data: bytes) -> VerifiedAttestation:
        """Return verified evidence that came in a request instead of a certificate; nothing is remembered.

        Raises what `PeerVerifier.verify` raises.
        """
        return self._verifier.verify(envelope, report_data)

    def recall(self, peer_chain: list[bytes]) -> VerifiedAttestation | None:
        """Return or raise the same for a caller that takes no verification; else raise `WouldBlockError`."""
        if not peer_chain:
            return None
        leaf, now = peer_chain[0], self._verifier.now()
        known = self._find(leaf, now)
        if known is not None:
            return known
        with self._lock:
            nobody = self._nobodies.get(hashlib.sha256(leaf).digest())
        if nobody is None or now >= nobody.until:
            raise WouldBlockError
        nobody.refuse()
        return None

    def _find(self, leaf: bytes, now: int) -> VerifiedAttestation | None:
        with self._lock:
            known = self._known.get(leaf)
        return known.verified if known is not None and known.holds(now) else None

    def _remember_nobody(self, leaf: bytes, nobody: _Nobody) -> None:
        with self._lock:
            self._nobodies[hashlib.sha256(leaf).digest()] = nobody
            while len(self._nobodies) > MAX_REMEMBERED_NOBODIES:
                self._nobodies.popitem(last=False)

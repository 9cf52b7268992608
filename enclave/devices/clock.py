"""The clocks of guests whose host may lie about the time (DESIGN section 2).

The parent sets a Nitro Enclave's system clock, so there time comes from the NSM. A TDX guest with
`secure_time` waits for authenticated network time before it starts an app, so there the system clock counts,
with floors below which it is certainly wrong.
"""

import secrets
import time
from collections.abc import Callable
from threading import Lock

from enclave.devices.nsm import Nsm
from shared.attestation.chain import ChainCache
from shared.attestation.nitro import parse_document, verify_document
from shared.attestation.trust import TrustAnchors

# How long the monotonic clock is believed between two documents, seconds.
RENEW_AFTER = 60
_NONCE_LENGTH = 32


class TrustedClock:
    """The timestamp of a document that the enclave asked for itself, advanced by the monotonic clock.

    The document answers a nonce of ours and is verified under `anchors` at its own time, so neither an old
    document nor another module can set the clock. It is renewed every minute, and time never goes backwards.
    """

    def __init__(
        self, nsm: Nsm, anchors: TrustAnchors, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._nsm = nsm
        self._anchors = anchors
        self._monotonic = monotonic
        self._chains = ChainCache(size=4)
        self._lock = Lock()
        self._base: tuple[float, float] | None = None  # monotonic reading, unix seconds
        self._latest = 0
        self._simulated = False

    @property
    def source(self) -> str:
        """`nsm`, or `nsm (simulated)` when the module signs under an extra anchor."""
        self.now()
        return "nsm (simulated)" if self._simulated else "nsm"

    def now(self) -> int:
        """Return the time in unix seconds.

        Raises `UnavailableError` or `ProtocolError` (`nsm.*`) when the module does not answer, and
        `InvalidEvidence` when what it answers does not verify: without a clock nothing may be decided.
        """
        with self._lock:
            reading = self._monotonic()
            if self._base is None or reading - self._base[0] >= RENEW_AFTER:
                self._base = reading, self._read()
            started, base = self._base
            self._latest = max(self._latest, int(base + reading - started))
            return self._latest

    def _read(self) -> float:
        nonce = secrets.token_bytes(_NONCE_LENGTH)
        cose = self._nsm.attestation(nonce=nonce)
        document = parse_document(cose)
        verified = verify_document(
            cose, now=document.timestamp, anchors=self._anchors, nonce=nonce, chain_cache=self._chains
        )
        self._simulated = verified.simulated
        return document.timestamp_ms / 1000


class SystemClock:
    """The guest's own clock, never before a time that evidence has already shown to be past, never backwards.

    `wall` returns unix seconds.
    """

    source = "system (secure_time)"

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._lock = Lock()
        self._latest = 0

    def raise_floor(self, timestamp: int) -> None:
        """Make `timestamp` (unix seconds) the earliest time told from now on; an earlier floor stays."""
        with self._lock:
            self._latest = max(self._latest, timestamp)

    def now(self) -> int:
        """Return the time in unix seconds."""
        with self._lock:
            self._latest = max(self._latest, int(self._wall()))
            return self._latest

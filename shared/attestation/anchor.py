"""One trust anchor: a root that a verifier believes (spec attestation sections 3.6, 4.4 and 5.3)."""

import msgspec


class TrustAnchor(msgspec.Struct, frozen=True):
    """One root. `subject` and `spki` are DER, times unix seconds, `sha256` the root certificate's digest.

    `der` is the whole certificate where a library wants it (TDX), else empty. Evidence under an anchor that
    is not `production` is simulated, and everything made from it says so.
    """

    name: str
    subject: bytes
    spki: bytes
    not_before: int
    not_after: int
    sha256: bytes
    production: bool
    der: bytes = b""

    def is_valid(self, now: int) -> bool:
        """Tell whether `now` (unix seconds) lies in the root certificate's validity."""
        return self.not_before <= now <= self.not_after

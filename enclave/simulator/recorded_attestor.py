"""Evidence from a file, as upstream's SDK simulator answers it (spec guest-agent section 5.5)."""

import struct
from typing import Final

import msgspec

from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from shared.attestation.envelope import (
    REPORT_DATA_LENGTH,
    Attestation,
    GcpTdxQuote,
    Quote,
    TdxQuote,
    decode_envelope,
    encode_v0,
)
from shared.attestation.envelope_v1 import encode_v1
from shared.errors import ConfigError

_HEADER: Final = 48
_BODY_DESCRIPTOR: Final = 6  # of version 5
_BODY: Final = 584
_REPORT_DATA_AT: Final = 520  # in the body
_V0: Final = 0


class RecordedAttestor:
    """Answers with a recorded envelope, changed to be over what is asked, in the version that it came in.

    What the quote's signature covers is changed too, so that the answer verifies nowhere: with `intel` the
    quote is signed anew, and verifies where that is trusted. Without `patch` (and `intel`) the record is
    answered as it is, whatever is asked. `attest` is safe to call from all threads.

    Raises `InvalidEvidence`: what decoding raises; `ConfigError("simulator.attestation")` for `intel` beside
    evidence that is not TDX's alone.
    """

    def __init__(self, record: bytes, *, patch: bool = True, intel: SimulatedIntel | None = None) -> None:
        self.evidence = decode_envelope(record)
        self._encode = encode_v0 if record[0] == _V0 else encode_v1
        self._record = record
        self._patch = patch
        self._domain = None if intel is None else SimulatedTdx(intel)
        if intel is not None and not isinstance(self.evidence.quote, TdxQuote):
            raise ConfigError(
                "simulator.attestation",
                f"the recorded evidence is of {self.evidence.tee_variant}: only a tdx quote is signed anew",
            )

    def attest(self, report_data: bytes) -> bytes:
        """See `Attestor.attest`."""
        if not self._patch and self._domain is None:
            return self._record
        evidence = self.evidence
        return self._encode(
            Attestation(
                self._quote(evidence.quote, report_data),
                evidence.runtime_events,
                report_data,
                evidence.config,
            )
        )

    def _quote(self, quote: Quote, report_data: bytes) -> Quote:
        match quote:
            case TdxQuote(quote=raw):
                return msgspec.structs.replace(quote, quote=self._over(raw, report_data))
            case GcpTdxQuote(tdx=tdx):
                patched = msgspec.structs.replace(tdx, quote=self._over(tdx.quote, report_data))
                return msgspec.structs.replace(quote, tdx=patched)
            case _:
                return quote

    def _over(self, quote: bytes, report_data: bytes) -> bytes:
        (version,) = struct.unpack_from("<H", quote)
        body = _HEADER + (_BODY_DESCRIPTOR if version >= 5 else 0)
        at = body + _REPORT_DATA_AT
        patched = quote[:at] + report_data + quote[at + REPORT_DATA_LENGTH :]
        if self._domain is None:
            return patched
        length = struct.unpack_from("<I", quote, _HEADER + 2)[0] if body > _HEADER else _BODY
        return self._domain.sealed(patched[: body + length])

"""Every byte of a TDX, GCP and NitroTPM envelope is flipped: refused, or it says the same thing.

What may differ in an accepted envelope is what `essence` leaves out, and nothing else. The list of it, with
reasons, is `UNAUTHENTICATED`. Quotes and documents have sweeps of their own; here every seventh of their
bytes is enough to see that the entrance looks at them.
"""

from collections.abc import Callable
from typing import Any

import pytest

from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroTpmQuote,
    TdxEvent,
    TdxQuote,
    decode_envelope,
    encode_envelope,
)
from shared.attestation.envelope_v1 import encode_v1
from shared.attestation.gcp import QUOTED_PCRS
from shared.attestation.identity import boot_info
from shared.attestation.image import check_image
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifierCache, verify_attestation
from shared.errors import InvalidEvidence, PolicyDenied
from shared.measurement.vm_config import VmConfig, parse_vm_config
from tests.shared.attestation.forgery import NOW
from tests.shared.attestation.guest_forgery import MR_CONFIG_V1, TABLE_EVENT, GcpGuest, TdxGuest, TpmGuest
from tests.shared.measurement.made import fold, h48

# The sweep is cut into parts so that it runs on all workers.
PARTS = 4
STEP = 7

UNAUTHENTICATED = {
    "type, name and payload of a boot event": "only its digest is in RTMR0 to RTMR2; the three ACPI events "
    "are found by these, and the image check fails without them",
    "TPM events of registers that are not quoted": "nothing relies on them",
    "the spelling of the config": "hex may be in either case",
}


def essence(attestation: Attestation) -> tuple[Any, ...]:
    """All that must not differ."""
    quote = attestation.quote
    parts: tuple[Any, ...]
    match quote:
        case TdxQuote():
            parts = (quote.quote, *boot_events(quote.event_log))
        case GcpTdxQuote(tdx, tpm):
            events = tuple(event for event in tpm.event_log if event.pcr_index in QUOTED_PCRS)
            rest = (tpm.message, tpm.signature, tpm.pcr_values, tpm.ak_cert, tpm.platform)
            parts = (tdx.quote, *boot_events(tdx.event_log), *rest, events)
        case NitroTpmQuote(document):
            parts = (document,)
        case _:
            raise AssertionError(attestation.tee_variant)
    config: VmConfig = parse_vm_config(attestation.config)
    return (*parts, attestation.runtime_events, attestation.report_data, config)


def boot_events(log: tuple[TdxEvent, ...]) -> tuple[tuple[int, bytes], ...]:
    return tuple((event.imr, event.digest) for event in log)


class Sweep:
    """One guest's envelope, and what a verifier says of each altered copy."""

    def __init__(self, guest: Any, attestation: Attestation, encode: Callable[[Attestation], bytes]) -> None:
        self.envelope = encode(attestation)
        self.essence = essence(attestation)
        signed = {
            TdxQuote: lambda quote: quote.quote,
            GcpTdxQuote: lambda quote: quote.tdx.quote,
            NitroTpmQuote: lambda quote: quote.attestation_doc,
        }[type(attestation.quote)](attestation.quote)
        # V1 spells it as an array of numbers: then every byte counts as outside
        self.start = self.envelope.find(signed)
        self.end = self.start + len(signed) if self.start >= 0 else -1
        self._anchors: TrustAnchors = guest.anchors
        self._endorsements = getattr(guest, "endorsements", None)
        self._cache = VerifierCache()

    def accepts(self, envelope: bytes) -> bool:
        given = {} if self._endorsements is None else {"endorsements": self._endorsements}
        try:
            verified = verify_attestation(
                envelope, now=NOW, anchors=self._anchors, cache=self._cache, **given
            )
            boot_info(check_image(verified))
        except (InvalidEvidence, PolicyDenied):
            return False
        return True

    def surprises(self, part: int) -> list[tuple[int, int]]:
        """Return (offset, mask) of every flip that is accepted and says something else."""
        found = []
        for offset in range(part, len(self.envelope), PARTS):
            if self.start <= offset < self.end and offset % STEP:
                continue
            mask = 1 << (offset // PARTS) % 8
            altered = bytearray(self.envelope)
            altered[offset] ^= mask
            if self.accepts(bytes(altered)) and essence(decode_envelope(bytes(altered))) != self.essence:
                found.append((offset, mask))
        return found


@pytest.fixture(scope="module")
def sweeps() -> dict[str, Sweep]:
    """One envelope of each platform, as complete as it can be."""
    tdx, gcp, tpm = TdxGuest(), GcpGuest(), TpmGuest()
    log = [
        TdxEvent(0, 1, h48("firmware"), "", b"firmware"),
        TABLE_EVENT,
        TdxEvent(2, 1, h48("command line"), "", b""),
    ]
    first, second, third = (fold(event.digest) for event in log)
    bound = tdx.attestation(mr_config_id=MR_CONFIG_V1)
    return {
        "tdx": Sweep(tdx, bound, encode_envelope),
        "tdx v1": Sweep(tdx, bound, encode_v1),
        "gcp": Sweep(gcp, gcp.attestation(log=log, rtmrs=(first, second, third)), encode_envelope),
        "nitro-tpm": Sweep(tpm, tpm.attestation(), encode_envelope),
    }


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", ["tdx", "gcp", "nitro-tpm"])
def test_n12_no_flipped_byte_changes_what_is_believed(name: str, part: int, sweeps: dict[str, Sweep]) -> None:
    sweep = sweeps[name]
    assert sweep.accepts(sweep.envelope)
    assert sweep.surprises(part) == []


@pytest.mark.parametrize("part", range(PARTS))
def test_n12_nor_in_an_envelope_of_version_one(part: int, sweeps: dict[str, Sweep]) -> None:
    sweep = sweeps["tdx v1"]
    assert sweep.accepts(sweep.envelope)
    assert sweep.surprises(part) == []


@pytest.mark.parametrize("name", ["tdx", "gcp", "nitro-tpm"])
def test_n01_no_cut_envelope_is_believed(name: str, sweeps: dict[str, Sweep]) -> None:
    sweep = sweeps[name]
    for length in range(0, len(sweep.envelope), 13):
        assert not sweep.accepts(sweep.envelope[:length]), length


def test_each_exception_has_a_reason() -> None:
    assert len(UNAUTHENTICATED) == 3
    assert all(UNAUTHENTICATED.values())

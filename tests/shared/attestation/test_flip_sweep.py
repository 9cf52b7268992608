"""Every byte of an envelope is flipped; the flip is refused, or listed in `unauthenticated.json`.

Inside the signed document one bit per byte is flipped (another one from byte to byte), outside it all eight.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave.devices.nsm import Nsm
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from shared.attestation.envelope import (
    Attestation,
    NitroEnclaveQuote,
    RuntimeEvent,
    decode_envelope,
    encode_v0,
)
from shared.attestation.identity import boot_info, check_image, os_image_hash_of
from shared.attestation.nitro import parse_document
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifierCache, verify_attestation
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import APP_ID, NOW, REPORT_DATA

SMALLEST = "nitro_attestation_nsm_qvl.bin"
LIST = Path(__file__).with_name("unauthenticated.json")
# The sweep is cut into parts so that it runs on all workers.
PARTS = 4


class Sweep:
    """One envelope, and what a verifier says of each altered copy."""

    def __init__(self, envelope: bytes, anchors: TrustAnchors) -> None:
        attestation = decode_envelope(envelope)
        assert isinstance(attestation.quote, NitroEnclaveQuote)
        cose = attestation.quote.nsm_quote
        self.envelope = envelope
        self.start = envelope.index(cose)
        self.end = self.start + len(cose)
        self._anchors = anchors
        self._now = parse_document(cose).timestamp
        self._cache = VerifierCache()

    def accepts(self, envelope: bytes) -> bool:
        try:
            verified = verify_attestation(envelope, now=self._now, anchors=self._anchors, cache=self._cache)
            boot_info(check_image(verified))
        except InvalidEvidence:
            return False
        return True

    def accepted_flips(self, part: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, mask) of every flip that is not refused, of the offsets of one part."""
        for offset in range(part, len(self.envelope), PARTS):
            inside = self.start <= offset < self.end
            for mask in (1 << offset // PARTS % 8,) if inside else (1 << bit for bit in range(8)):
                altered = bytearray(self.envelope)
                altered[offset] ^= mask
                if self.accepts(bytes(altered)):
                    yield offset, mask


@pytest.fixture(scope="module")
def listed() -> dict[str, Any]:
    """The list of bytes that nothing authenticates."""
    found: dict[str, Any] = json.loads(LIST.read_bytes())
    return found


@pytest.fixture(scope="module")
def real(shared_data: Callable[[str], Path]) -> Sweep:
    """The smallest document of real hardware."""
    envelope = shared_data(f"attestation/upstream/nitro/{SMALLEST}").read_bytes()
    return Sweep(envelope, TrustAnchors.production())


@pytest.fixture(scope="module")
def simulated() -> Sweep:
    """An envelope from the simulator, with the claim of an app id."""
    authority = SimulatedAuthority.create()
    pcrs = {index: bytes([0xC0 + index]) * 48 for index in (0, 1, 2)}
    nsm = Nsm(SimulatedNsm(pcrs, authority, clock=lambda: NOW))
    attestation = Attestation(
        NitroEnclaveQuote(nsm.attestation(user_data=REPORT_DATA)),
        (RuntimeEvent("app-id", APP_ID),),
        REPORT_DATA,
        f'{{"os_image_hash":"{os_image_hash_of(pcrs).hex()}"}}',
    )
    return Sweep(encode_v0(attestation), TrustAnchors.production().with_extra(authority.root_pem))


@pytest.mark.parametrize("part", range(PARTS))
def test_every_flip_in_real_evidence_is_refused_or_listed(
    part: int, real: Sweep, listed: dict[str, Any]
) -> None:
    assert real.accepts(real.envelope)
    entry = listed[SMALLEST]
    expected = [(offset, entry["mask"]) for offset in entry["offsets"] if offset % PARTS == part]
    assert sorted(real.accepted_flips(part)) == expected


@pytest.mark.parametrize("part", range(PARTS))
def test_every_flip_in_simulated_evidence_is_refused_or_listed(
    part: int, simulated: Sweep, listed: dict[str, Any]
) -> None:
    assert simulated.accepts(simulated.envelope)
    allowed: set[int] = set()
    for field, content in _unauthenticated_fields(simulated.envelope).items():
        assert listed["simulated"][field]
        at = simulated.envelope.index(content, simulated.end)
        allowed |= set(range(at, at + len(content)))
    accepted = list(simulated.accepted_flips(part))
    assert {offset for offset, _ in accepted} <= allowed
    assert not any(simulated.start <= offset < simulated.end for offset, _ in accepted)


def _unauthenticated_fields(envelope: bytes) -> dict[str, bytes]:
    attestation = decode_envelope(envelope)
    (event,) = attestation.runtime_events
    image: str = json.loads(attestation.config)["os_image_hash"]
    return {
        "runtime_events[0].event": event.event.encode(),
        "runtime_events[0].payload": event.payload,
        "config.os_image_hash": image.encode(),
    }

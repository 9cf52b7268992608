"""Evidence about this enclave: a V0 envelope around an NSM document (spec attestation 1.5, kms 8.2)."""

import msgspec

from enclave.devices.nsm import Nsm
from shared.attestation.envelope import Attestation, NitroEnclaveQuote, RuntimeEvent, encode_v0
from shared.attestation.image import os_image_hash_of
from shared.attestation.nitro import IMAGE_PCRS


class NitroAttestor:
    """Makes envelopes over any report_data.

    `app_id` (20 bytes) is claimed by an `app-id` event, which NSM does not sign; None claims nothing.
    """

    def __init__(self, nsm: Nsm, app_id: bytes | None) -> None:
        self._nsm = nsm
        self._events = () if app_id is None else (RuntimeEvent(event="app-id", payload=app_id),)
        self._config: str | None = None

    def attest(self, report_data: bytes) -> bytes:
        """Return an envelope whose document's user_data is the 64 bytes of `report_data`."""
        if self._config is None:  # the image's registers are locked at boot
            pcrs = {index: self._nsm.describe_pcr(index) for index in IMAGE_PCRS}
            debug = not any(any(pcr) for pcr in pcrs.values())
            image_hash = bytes(32) if debug else os_image_hash_of(pcrs)
            self._config = msgspec.json.encode({"os_image_hash": image_hash.hex()}).decode()
        return encode_v0(
            Attestation(
                quote=NitroEnclaveQuote(nsm_quote=self._nsm.attestation(user_data=report_data)),
                runtime_events=self._events,
                report_data=report_data,
                config=self._config,
            )
        )

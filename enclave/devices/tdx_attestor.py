"""Evidence about a TDX guest: an envelope around its quote and logs (spec attestation 3.2, 3.3, 1.5)."""

import hashlib
from collections.abc import Callable, Sequence

from enclave.devices.runtime_events import RuntimeEventLog
from enclave.devices.tdx import TdxDevice
from shared.attestation.envelope import Attestation, RuntimeEvent, TdxEvent, TdxQuote, encode_envelope
from shared.attestation.event_log import RUNTIME_EVENT_TYPE, RUNTIME_RTMR, event_preimage
from shared.attestation.registers import check_rtmr3
from shared.attestation.tcg_log import ccel_events
from shared.attestation.tdx_quote import parse_quote
from shared.errors import ProtocolError


class TdxAttestor:
    """Makes envelopes over any report_data. `vm_config` gives the host's text for this guest.

    Evidence that cannot verify never leaves: the quote is read back, and while it is made nobody can emit an
    event, so that the log in the envelope is the one that the quoted register stands for.
    """

    def __init__(self, device: TdxDevice, log: RuntimeEventLog, vm_config: Callable[[], str]) -> None:
        self._device = device
        self._log = log
        self._vm_config = vm_config

    def attest(self, report_data: bytes) -> bytes:
        """Return an envelope over the 64 bytes of `report_data`.

        Raises what `collect_tdx` and the event log do, and what `vm_config` does.
        """
        with self._log.held() as events:
            quote = collect_tdx(self._device, report_data, events)
        return encode_envelope(Attestation(quote, events, report_data, self._vm_config()))


def collect_tdx(device: TdxDevice, report_data: bytes, events: Sequence[RuntimeEvent]) -> TdxQuote:
    """Return a quote over `report_data` with its event log; the caller keeps `events` from growing meanwhile.

    Raises the device's errors; `ProtocolError("tdx_device.quote.report_data")` for a quote over something
    else; `InvalidEvidence`: `tdx.quote.*`, `tcg_log.*`, `event_log.*`, and `tdx.rtmr3` when the events are
    not what RTMR3 was extended by: somebody else extended it, or the log lost an event.
    """
    quote = device.quote(report_data)
    report = parse_quote(quote).report
    if report.report_data != report_data:
        raise ProtocolError(
            "tdx_device.quote.report_data",
            f"quote is over {report.report_data.hex()}, expected {report_data.hex()}",
        )
    check_rtmr3(report.rtmrs[RUNTIME_RTMR], events)
    return TdxQuote(quote, (*ccel_events(device.event_log()), *map(_rtmr3_event, events)))


def _rtmr3_event(event: RuntimeEvent) -> TdxEvent:
    preimage = event_preimage(event)
    return TdxEvent(
        imr=RUNTIME_RTMR,
        event_type=RUNTIME_EVENT_TYPE,
        digest=hashlib.sha384(preimage).digest(),
        event=event.event,
        event_payload=event.payload,
        version=event.version,
        preimage=None if event.version == 1 else preimage,
    )

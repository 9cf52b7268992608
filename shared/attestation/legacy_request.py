"""A bare TDX quote with its event log and vm_config, as old clients send them (spec attestation 7.1)."""

from shared.attestation.envelope import Attestation, TdxQuote
from shared.attestation.event_log import runtime_events_of
from shared.attestation.event_log_json import parse_event_log_json
from shared.attestation.tdx_quote import parse_quote


def attestation_of_quote(quote: bytes, event_log: str | bytes, vm_config: str) -> Attestation:
    """Return the envelope that the three parts stand for; report_data is the quote's own.

    Raises `InvalidEvidence`: `tdx.quote.*`, `event_log.*`.
    """
    events = parse_event_log_json(event_log)
    return Attestation(
        quote=TdxQuote(quote, events),
        runtime_events=runtime_events_of(events),
        report_data=parse_quote(quote).report.report_data,
        config=vm_config,
    )

"""A bare TDX quote with its log and config, as the envelope that it stands for."""

import pytest

from shared.attestation.envelope import TdxQuote
from shared.attestation.event_log_json import event_log_json, getquote_log
from shared.attestation.identity import boot_info
from shared.attestation.legacy_request import attestation_of_quote
from tests.shared.attestation.forgery import REPORT_DATA, refuses
from tests.shared.attestation.guest_forgery import APP_ID, LITE, TdxGuest


def test_getquotes_answer_verifies_like_the_envelope(tdx_guest: TdxGuest) -> None:
    envelope = tdx_guest.attestation()
    assert isinstance(envelope.quote, TdxQuote)
    text = event_log_json(getquote_log(envelope.quote.event_log))
    attestation = attestation_of_quote(envelope.quote.quote, text, LITE)
    assert attestation.report_data == REPORT_DATA
    assert attestation.runtime_events == envelope.runtime_events
    found = tdx_guest.verify(attestation, report_data=REPORT_DATA)
    assert found.verdict == tdx_guest.verify(envelope, report_data=REPORT_DATA).verdict
    assert boot_info(found).app_id == APP_ID
    assert attestation_of_quote(envelope.quote.quote, text.encode(), LITE) == attestation


@pytest.mark.parametrize(
    ("quote", "log", "code"),
    [
        (b"", "[]", "tdx.quote.size"),
        (bytes(700), "", "event_log.syntax"),
        (bytes(9), "{}", "event_log.fields"),
    ],
)
def test_parts_that_cannot_be_read_are_refused(quote: bytes, log: str, code: str) -> None:
    with refuses(code):
        attestation_of_quote(quote, log, "")

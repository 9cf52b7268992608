"""Any file and any request, through the whole verifier: an answer or one of our errors, in bounded time."""

import json
from collections.abc import Callable
from functools import cache

import hypothesis.strategies as st
import msgspec

from cli.evidence_file import read_evidence
from cli.verify import judge
from functions.verify.service import VerifyService, parse_request
from functions.verify.settings import parse_settings
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import Attestation, TdxQuote, encode_envelope
from shared.attestation.envelope_v1 import encode_v1
from shared.attestation.event_log_json import event_log_json, getquote_log
from shared.attestation.trust import TrustAnchors
from shared.errors import DstackError
from tests.fuzz.budget import fuzz, mutated, outcome
from tests.shared.attestation.forgery import NOW, Forge
from tests.shared.attestation.guest_forgery import LITE, GcpGuest, TdxGuest, TpmGuest


class Seeds:
    """Evidence of each platform in each form, and what verifies it."""

    def __init__(self) -> None:
        forge, tdx, gcp, tpm = Forge(), TdxGuest(), GcpGuest(), TpmGuest()
        attestations = [tdx.attestation(), gcp.attestation(), tpm.attestation()]
        self.anchors: TrustAnchors = TrustAnchors.production()
        for pem in (forge.made["root"].pem, tdx.intel.root_pem, tpm.authority.root_pem):
            self.anchors = self.anchors.with_extra(pem)
        for pem in (gcp.forge.intel.root_pem, gcp.forge.google.root_pem):
            self.anchors = self.anchors.with_extra(pem)
        self.endorsements: Endorsements = msgspec.structs.replace(
            gcp.endorsements, tdx=(*gcp.endorsements.tdx, *tdx.endorsements.tdx)
        )
        quote = attestations[0].quote
        assert isinstance(quote, TdxQuote)
        legacy = {
            "quote": quote.quote.hex(),
            "event_log": event_log_json(getquote_log(quote.event_log)),
            "vm_config": LITE,
        }
        envelopes = [forge.envelope(), *map(encode_envelope, attestations)]
        self.requests = [json.dumps({"attestation": envelope.hex()}).encode() for envelope in envelopes]
        self.requests.append(json.dumps(legacy).encode())
        self.files = [
            *envelopes,
            *map(encode_v1, attestations),
            forge.document(),
            quote.quote,
            *self.requests,
        ]

    def gather(self, _attestation: Attestation, _now: int) -> Endorsements:
        return self.endorsements


@cache
def seeds() -> Seeds:
    return Seeds()


def close_to(choose: Callable[[Seeds], list[bytes]]) -> st.SearchStrategy[bytes]:
    return st.deferred(lambda: mutated(choose(seeds())))


@fuzz(st.binary(max_size=4096) | close_to(lambda made: made.files))
def test_a_file_gives_a_report(data: bytes) -> None:
    report = judge(data, now=NOW, anchors=seeds().anchors, gather=seeds().gather)
    assert report.is_valid or (report.code and report.reason and report.hint)
    msgspec.json.encode(report)


@fuzz(st.binary(max_size=4096) | close_to(lambda made: made.files))
def test_a_file_is_read_or_refused(data: bytes) -> None:
    found = outcome(read_evidence, data)
    assert found is None or (found.attestation is None) == bool(found.bare)


@fuzz(st.binary(max_size=512) | close_to(lambda made: made.requests))
def test_a_request_gives_an_answer(body: bytes) -> None:
    service = VerifyService(seeds().anchors, gather=seeds().gather, overrides=True)
    answer = service.handle("POST", "/verify", body, NOW)
    shown = json.loads(answer.body)
    assert answer.status in {200, 400, 413, 422}
    if answer.status == 200:
        assert shown["is_valid"] is (shown["reason"] is None)


@fuzz(st.dictionaries(st.text(max_size=12), st.none() | st.integers() | st.text(max_size=64), max_size=6))
def test_a_request_of_any_members_is_read_or_refused(members: dict[str, object]) -> None:
    outcome(parse_request, json.dumps(members).encode())


@fuzz(
    st.tuples(
        st.binary(max_size=256) | mutated([b"port = 8080\n[attestation]\noffline = true\n"]),
        st.dictionaries(
            st.sampled_from(["PORT", "ADDRESS", "ATTESTATION", "ATTESTATION__URLS__PCCS", "X__Y", ""]).map(
                "DSTACK_VERIFIER_{}".format
            ),
            st.text(max_size=24),
            max_size=3,
        ),
    )
)
def test_settings_are_read_or_refused(given: tuple[bytes, dict[str, str]]) -> None:
    try:
        parse_settings(*given)
    except DstackError as error:
        assert error.code.startswith("verify.settings.")  # noqa: PT017 - every error is one of these

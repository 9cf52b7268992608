"""The verdict's own rules: the same lanes everywhere, nothing left out, nothing changed in place."""

import json

import msgspec
import pytest

from shared.attestation.bare import verify_bare_document, verify_bare_quote
from shared.attestation.lanes import expectation
from shared.attestation.verdict import (
    Lanes,
    Status,
    Verdict,
    not_applicable,
    self_asserted,
    skipped,
    verified,
)
from tests.shared.attestation.forgery import NOW, REPORT_DATA, Forge
from tests.shared.attestation.guest_forgery import GcpGuest, TdxGuest, TpmGuest

NAMES = Lanes.__struct_fields__


@pytest.fixture
def verdicts(
    forge: Forge, tdx_guest: TdxGuest, gcp_guest: GcpGuest, tpm_guest: TpmGuest
) -> dict[str, Verdict]:
    """One of each platform, and of bare evidence."""
    quote = tdx_guest.attestation().quote.quote  # type: ignore[union-attr] # a TDX quote
    bare = verify_bare_quote(quote, now=NOW, anchors=tdx_guest.anchors, endorsements=tdx_guest.endorsements)
    return {
        "tdx": tdx_guest.verify().verdict,
        "gcp": gcp_guest.verify().verdict,
        "nitro-tpm": tpm_guest.verify().verdict,
        "nitro": verify_bare_document(forge.document(), now=NOW, anchors=forge.anchors).verdict,
        "bare": bare.verdict,
    }


def test_each_platform_has_the_same_lanes_in_the_same_order(verdicts: dict[str, Verdict]) -> None:
    for verdict in verdicts.values():
        assert tuple(name for name, _ in verdict.lanes.items()) == NAMES
        assert tuple(verdict.to_json()["lanes"]) == NAMES


def test_each_reason_is_a_clause(verdicts: dict[str, Verdict]) -> None:
    for verdict in verdicts.values():
        for name, lane in verdict.lanes.items():
            assert lane.reason, name
            assert not lane.reason.endswith("."), name


def test_a_lane_cannot_be_left_out() -> None:
    lane = verified("it is so")
    with pytest.raises(TypeError):
        Lanes(**dict.fromkeys(NAMES[1:], lane))


def test_a_verdict_cannot_be_changed(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["tdx"]
    with pytest.raises(AttributeError):
        verdict.simulated = False  # type: ignore[misc] # what is refused here
    changed = verdict.with_lanes(debug=skipped("not looked at")).with_disabled("a", "b")
    assert (changed.lanes.debug.status, changed.disabled_checks) == (Status.SKIPPED, ("a", "b"))
    assert verdict.lanes.debug.status is Status.VERIFIED
    assert verdict.disabled_checks == ()


def test_the_export_is_plain_json(verdicts: dict[str, Verdict]) -> None:
    for verdict in verdicts.values():
        shown = verdict.to_json()
        assert json.loads(json.dumps(shown)) == json.loads(msgspec.json.encode(verdict))
        assert set(shown) == set(Verdict.__struct_fields__)


def test_each_status_has_its_word() -> None:
    made = [make("why").status.value for make in (verified, not_applicable, self_asserted, skipped)]
    assert made == ["verified", "not_applicable", "self_asserted", "skipped"]


def test_an_expectation_is_told_either_way() -> None:
    assert expectation(None).status is Status.SKIPPED
    assert expectation(REPORT_DATA).status is Status.VERIFIED


def test_only_enclaves_have_claims(verdicts: dict[str, Verdict]) -> None:
    for name in ("tdx", "gcp", "nitro-tpm", "bare"):
        claims = [lane for _, lane in verdicts[name].lanes.items() if lane.status is Status.SELF_ASSERTED]
        assert not claims, name

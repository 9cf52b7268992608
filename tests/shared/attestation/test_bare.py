"""Hardware evidence without an envelope."""

import pytest

from shared.attestation.bare import VerifiedBareQuote, verify_bare_document, verify_bare_quote
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.policy import DAY, NitroPolicy, Policy, Revocation, TdxPolicy
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status
from tests.shared.attestation.forgery import NOW, REPORT_DATA, Forge, refuses
from tests.shared.attestation.guest_forgery import TdxGuest

NOTHING = ("runtime_events", "app_id", "compose_hash", "instance_id", "key_provider", "init_scripts")
UNKNOWN = ("report_data", "firmware", "os_image", "command_line", "boot_log", "mr_config")


@pytest.fixture
def quote(tdx_guest: TdxGuest) -> bytes:
    """A quote over REPORT_DATA."""
    made: bytes = tdx_guest.attestation().quote.quote  # type: ignore[union-attr] # a TDX quote
    return made


def verify(guest: TdxGuest, quote: bytes, **changes: object) -> VerifiedBareQuote:
    arguments = {"now": NOW, "anchors": guest.anchors, "endorsements": guest.endorsements, **changes}
    return verify_bare_quote(quote, **arguments)  # type: ignore[arg-type] # keywords of that function


def test_a_quote_has_registers_and_no_identity(quote: bytes, tdx_guest: TdxGuest) -> None:
    bare = verify(tdx_guest, quote)
    assert bare.tdx.quote.report.report_data == REPORT_DATA
    lanes = bare.verdict.to_json()["lanes"]
    assert {lanes[name]["status"] for name in NOTHING} == {"not_applicable"}
    assert {lanes[name]["status"] for name in UNKNOWN} == {"skipped"}
    assert bare.verdict.lanes.device_id.status is Status.VERIFIED


def test_a_quotes_verdict_names_platform_anchor_and_tcb(quote: bytes, tdx_guest: TdxGuest) -> None:
    verdict = verify(tdx_guest, quote, policy=Policy(tdx=TdxPolicy(max_collateral_age=8 * DAY))).verdict
    assert (verdict.platform, verdict.anchors) == ("dstack-tdx", (tdx_guest.anchors.tdx[1].name,))
    assert (verdict.simulated, verdict.made_at, verdict.verified_at) == (True, None, NOW)
    assert verdict.tcb_status == "UpToDate"
    assert verdict.disabled_checks == (f"tdx.max_collateral_age is {8 * DAY} s",)


def test_n17_a_quote_is_compared_with_what_the_caller_expects(quote: bytes, tdx_guest: TdxGuest) -> None:
    found = verify(tdx_guest, quote, report_data=REPORT_DATA).verdict
    assert found.lanes.report_data_expected.status is Status.VERIFIED
    with refuses("tdx.report_data"):
        verify(tdx_guest, quote, report_data=bytes(64))


def test_a_quote_needs_collateral_and_its_root(quote: bytes, tdx_guest: TdxGuest) -> None:
    with refuses("tdx.collateral.missing"):
        verify(tdx_guest, quote, endorsements=NO_ENDORSEMENTS)
    with refuses("tdx.anchor"):
        verify(tdx_guest, quote, anchors=TrustAnchors.production())


def test_n35_a_documents_revocation_is_as_the_policy_wants(forge: Forge) -> None:
    required = Policy(nitro=NitroPolicy(revocation=Revocation.OFF))
    bare = verify_bare_document(
        forge.document(), now=NOW, anchors=forge.anchors, policy=required, endorsements=Endorsements()
    )
    assert bare.verdict.lanes.revocation.status is Status.SKIPPED
    assert bare.verdict.disabled_checks == ("nitro.revocation is off",)

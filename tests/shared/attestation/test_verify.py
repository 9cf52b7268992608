import json

import pytest

from shared.attestation.bare import verify_bare_document
from shared.attestation.envelope import Attestation, SevSnpQuote, decode_envelope, encode_v0
from shared.attestation.policy import DEFAULT_POLICY, NitroPolicy, Policy, Revocation
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status, skipped
from shared.attestation.verify import VerifiedAttestation, VerifierCache, verify_attestation
from tests.shared.attestation.forgery import NOW, PCRS, REPORT_DATA, Forge, refuses


def verified(forge: Forge, policy: Policy = DEFAULT_POLICY) -> VerifiedAttestation:
    return verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors, policy=policy)


def test_verifies_bytes_and_a_decoded_envelope_alike(forge: Forge) -> None:
    envelope = forge.envelope()
    from_bytes = verify_attestation(envelope, now=NOW, anchors=forge.anchors)
    decoded = verify_attestation(decode_envelope(envelope), now=NOW, anchors=forge.anchors)
    assert from_bytes == decoded
    assert from_bytes.evidence.document.pcrs == PCRS
    assert from_bytes.valid_until == NOW + 3601


def test_the_verdict_names_platform_anchor_and_times(forge: Forge) -> None:
    verdict = verify_attestation(forge.envelope(), now=NOW + 5, anchors=forge.anchors).verdict
    assert verdict.platform == "dstack-nitro-enclave"
    assert verdict.anchors == (forge.anchors.nitro[1].name,)
    assert verdict.simulated
    assert (verdict.made_at, verdict.verified_at) == (NOW, NOW + 5)


def test_the_verdict_says_what_nobody_looked_at(forge: Forge) -> None:
    verdict = verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors).verdict
    assert verdict.lanes.revocation.status is Status.SKIPPED
    assert verdict.lanes.report_data_expected.status is Status.SKIPPED
    assert verdict.lanes.tcb_status.status is Status.NOT_APPLICABLE
    assert verdict.disabled_checks == ()


def test_the_verdict_is_json(forge: Forge) -> None:
    shown = verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors).verdict.to_json()
    assert json.loads(json.dumps(shown))["anchors"] == [forge.anchors.nitro[1].name]
    assert shown["lanes"]["debug"] == {"status": "verified", "reason": "PCR0, PCR1 and PCR2 are measured"}
    assert list(shown["lanes"]) == [name for name, _ in verified(forge).verdict.lanes.items()]


def test_a_verdict_carries_overrides_of_the_deployment(forge: Forge) -> None:
    verdict = verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors).verdict
    told = verdict.with_disabled("tcb_status").with_lanes(tcb_status=skipped("overridden"))
    assert told.disabled_checks == ("tcb_status",)
    assert told.lanes.tcb_status.status is Status.SKIPPED
    assert verdict.disabled_checks == ()


def test_expected_report_data_is_compared(forge: Forge) -> None:
    found = verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors, report_data=REPORT_DATA)
    assert found.verdict.lanes.report_data_expected.status is Status.VERIFIED


@pytest.mark.parametrize("expected", [bytes(64), b"", REPORT_DATA[:63]])
def test_n34_refuses_evidence_over_other_report_data_than_expected(expected: bytes, forge: Forge) -> None:
    with refuses("attestation.report_data"):
        verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors, report_data=expected)


def test_n17_refuses_an_envelope_whose_report_data_is_not_the_documents(forge: Forge) -> None:
    with refuses("nitro.user_data"):
        verify_attestation(forge.envelope(report_data=bytes(64)), now=NOW, anchors=forge.anchors)


def test_n17_refuses_a_document_without_user_data(forge: Forge) -> None:
    with refuses("nitro.user_data"):
        verify_attestation(forge.envelope(user_data=None), now=NOW, anchors=forge.anchors)


def test_n01_refuses_bytes_after_the_envelope(forge: Forge) -> None:
    with refuses("scale.trailing"):
        verify_attestation(forge.envelope() + b"\x00", now=NOW, anchors=forge.anchors)


def test_refuses_a_platform_that_it_does_not_verify() -> None:
    envelope = encode_v0(Attestation(SevSnpQuote(b"", (), ""), (), bytes(64), ""))
    with refuses("attestation.platform.unsupported"):
        verify_attestation(envelope, now=NOW, anchors=TrustAnchors.production())


def test_n30_refuses_debug_evidence_whose_config_says_zero(forge: Forge) -> None:
    zero = dict.fromkeys(PCRS, bytes(48))
    for image in ("00" * 32, "81c611f35bff79491538b2f7cf201c7597a661a5c549633541c62bdc8af1613f"):
        envelope = forge.envelope(config=f'{{"os_image_hash":"{image}"}}', pcrs=zero)
        with refuses("nitro.debug"):
            verify_attestation(envelope, now=NOW, anchors=forge.anchors)


def test_n33_a_callers_policy_is_applied(forge: Forge) -> None:
    with refuses("nitro.stale"):
        verify_attestation(
            forge.envelope(),
            now=NOW + 61,
            anchors=forge.anchors,
            policy=Policy(nitro=NitroPolicy(max_age=60)),
        )


def test_n31_simulated_evidence_is_refused_in_production(forge: Forge) -> None:
    with refuses("nitro.chain.anchor"):
        verify_attestation(forge.envelope(), now=NOW, anchors=TrustAnchors.production())


def test_a_callers_cache_is_used(forge: Forge) -> None:
    cache = VerifierCache()
    verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors, cache=cache)
    assert (len(cache.chains.paths), len(cache.chains.leaves)) == (3, 1)


def test_a_bare_document_is_verified_without_an_identity(forge: Forge) -> None:
    bare = verify_bare_document(forge.document(), now=NOW, anchors=forge.anchors)
    assert bare.nitro.document.pcrs == PCRS
    assert bare.verdict.lanes.report_data.status is Status.SKIPPED
    assert bare.verdict.lanes.app_id.status is Status.NOT_APPLICABLE
    assert bare.verdict.lanes.report_data_expected.status is Status.SKIPPED


def test_a_bare_document_is_compared_with_what_the_caller_expects(forge: Forge) -> None:
    bare = verify_bare_document(forge.document(), now=NOW, anchors=forge.anchors, report_data=REPORT_DATA)
    assert bare.verdict.lanes.report_data_expected.status is Status.VERIFIED
    with refuses("nitro.user_data"):
        verify_bare_document(forge.document(), now=NOW, anchors=forge.anchors, report_data=bytes(64))


def test_the_verdict_tells_what_the_policy_let_pass(forge: Forge) -> None:
    lax = Policy(nitro=NitroPolicy(max_age=7200, revocation=Revocation.OFF))
    found = verified(forge, policy=lax).verdict
    assert found.disabled_checks == ("nitro.max_age is 7200 s", "nitro.revocation is off")
    assert verified(forge).verdict.disabled_checks == ()

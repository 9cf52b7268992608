import json

import pytest

from shared.attestation.chain import ChainCache
from shared.attestation.envelope import Attestation, NitroTpmQuote, TdxQuote, decode_envelope, encode_v0
from shared.attestation.nitro import NitroPolicy
from shared.attestation.trust import NitroAnchors
from shared.attestation.verdict import Lane, Status
from shared.attestation.verify import verify_attestation, verify_bare_document
from tests.shared.attestation.forgery import NOW, PCRS, REPORT_DATA, Forge, refuses


def test_verifies_bytes_and_a_decoded_envelope_alike(forge: Forge) -> None:
    envelope = forge.envelope()
    from_bytes = verify_attestation(envelope, now=NOW, anchors=forge.anchors)
    decoded = verify_attestation(decode_envelope(envelope), now=NOW, anchors=forge.anchors)
    assert from_bytes == decoded
    assert from_bytes.document.pcrs == PCRS
    assert from_bytes.valid_until == NOW + 3601


def test_the_verdict_names_platform_anchor_and_times(forge: Forge) -> None:
    verdict = verify_attestation(forge.envelope(), now=NOW + 5, anchors=forge.anchors).verdict
    assert verdict.platform == "dstack-nitro-enclave"
    assert verdict.anchors == (verdict.anchor,) == (forge.anchors.anchors[1].name,)
    assert verdict.simulated
    assert (verdict.made_at, verdict.verified_at) == (NOW, NOW + 5)


def test_the_verdict_says_what_nobody_looked_at(forge: Forge) -> None:
    verdict = verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors).verdict
    assert verdict.status("revocation") is Status.SKIPPED
    assert verdict.status("report_data_expected") is Status.SKIPPED
    assert verdict.status("tcb_status") is Status.NOT_APPLICABLE
    assert verdict.disabled_checks == ()


def test_the_verdict_is_json(forge: Forge) -> None:
    shown = verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors).verdict.to_json()
    assert json.loads(json.dumps(shown))["anchors"] == [forge.anchors.anchors[1].name]
    assert {"name": "debug", "status": "verified", "reason": "PCR0, PCR1 and PCR2 are measured"} in shown[
        "lanes"
    ]


def test_a_verdict_carries_overrides_of_the_deployment(forge: Forge) -> None:
    verdict = verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors).verdict
    told = verdict.with_disabled("tcb_status").with_lane(Lane("tcb_status", Status.SKIPPED, "overridden"))
    assert told.disabled_checks == ("tcb_status",)
    assert told.status("tcb_status") is Status.SKIPPED
    assert verdict.disabled_checks == ()


def test_expected_report_data_is_compared(forge: Forge) -> None:
    verified = verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors, report_data=REPORT_DATA)
    assert verified.verdict.status("report_data_expected") is Status.VERIFIED


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


@pytest.mark.parametrize("quote", [TdxQuote(b"", ()), NitroTpmQuote(b"")])
def test_refuses_a_platform_that_it_does_not_verify(quote: TdxQuote | NitroTpmQuote) -> None:
    envelope = encode_v0(Attestation(quote, (), bytes(64), ""))
    with refuses("attestation.platform.unsupported"):
        verify_attestation(envelope, now=NOW, anchors=NitroAnchors.production())


def test_n30_refuses_debug_evidence_whose_config_says_zero(forge: Forge) -> None:
    zero = dict.fromkeys(PCRS, bytes(48))
    for image in ("00" * 32, "81c611f35bff79491538b2f7cf201c7597a661a5c549633541c62bdc8af1613f"):
        envelope = forge.envelope(config=f'{{"os_image_hash":"{image}"}}', pcrs=zero)
        with refuses("nitro.debug"):
            verify_attestation(envelope, now=NOW, anchors=forge.anchors)


def test_n33_a_callers_policy_is_applied(forge: Forge) -> None:
    with refuses("nitro.stale"):
        verify_attestation(
            forge.envelope(), now=NOW + 61, anchors=forge.anchors, policy=NitroPolicy(max_age=60)
        )


def test_n31_simulated_evidence_is_refused_in_production(forge: Forge) -> None:
    with refuses("nitro.chain.anchor"):
        verify_attestation(forge.envelope(), now=NOW, anchors=NitroAnchors.production())


def test_a_callers_cache_is_used(forge: Forge) -> None:
    cache = ChainCache()
    verify_attestation(forge.envelope(), now=NOW, anchors=forge.anchors, chain_cache=cache)
    assert (len(cache.paths), len(cache.leaves)) == (1, 1)


def test_a_bare_document_is_verified_without_an_identity(forge: Forge) -> None:
    verified = verify_bare_document(forge.document(), now=NOW, anchors=forge.anchors)
    assert verified.nitro.document.pcrs == PCRS
    assert verified.verdict.status("report_data") is Status.SKIPPED
    assert "app_id" not in {lane.name for lane in verified.verdict.lanes}

"""N-36: an enclave's app id in PCR16, which the module signs (spec attestation, "Where we can do better")."""

import hashlib

import pytest

from shared.attestation.app_id_register import APP_ID_PCR, app_id_message, app_id_register, is_app_id_bound
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.identity import app_info, is_app_id_verified
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from tests.shared.attestation.forgery import APP_ID, NOW, PCRS, Forge

OTHER = bytes([9]) * 20


def verified(forge: Forge, register: bytes, *, claims: bytes | None = APP_ID) -> VerifiedAttestation:
    events = () if claims is None else (RuntimeEvent("app-id", claims),)
    envelope = forge.envelope(events, pcrs=PCRS | {APP_ID_PCR: register})
    return verify_attestation(envelope, now=NOW, anchors=forge.anchors)


def test_the_register_is_one_extension_of_zeros_by_the_tagged_app_id() -> None:
    expected = hashlib.sha384(bytes(48) + b"dstack-nitro-app-id/v1:" + APP_ID).digest()
    assert app_id_message(APP_ID) == b"dstack-nitro-app-id/v1:" + APP_ID
    assert app_id_register(APP_ID) == expected


def test_n36_a_bound_app_id_is_no_longer_self_asserted(forge: Forge) -> None:
    evidence = verified(forge, app_id_register(APP_ID))
    assert evidence.verdict.lanes.app_id.status is Status.VERIFIED
    assert is_app_id_verified(evidence)
    assert app_info(evidence).self_asserted == ()


def test_n36_a_bound_app_id_makes_no_other_claim_believable(forge: Forge) -> None:
    lanes = verified(forge, app_id_register(APP_ID)).verdict.lanes
    assert lanes.runtime_events.status is Status.SELF_ASSERTED


@pytest.mark.parametrize(
    "register",
    [
        app_id_register(OTHER),
        bytes(48),
        hashlib.sha384(bytes(48) + APP_ID).digest(),
        hashlib.sha384(app_id_register(APP_ID) + app_id_message(APP_ID)).digest(),
    ],
    ids=["another app", "never extended", "without the tag", "extended twice"],
)
def test_n36_another_register_leaves_the_app_id_a_claim(forge: Forge, register: bytes) -> None:
    evidence = verified(forge, register)
    assert evidence.verdict.lanes.app_id.status is Status.SELF_ASSERTED
    assert "PCR16 holds something else" in evidence.verdict.lanes.app_id.reason
    assert app_info(evidence).self_asserted == ("app_id",)


def test_n36_an_enclave_that_is_bound_to_one_app_cannot_name_another(forge: Forge) -> None:
    assert not is_app_id_verified(verified(forge, app_id_register(APP_ID), claims=OTHER))


def test_n36_a_register_without_an_event_names_nobody(forge: Forge) -> None:
    evidence = verified(forge, app_id_register(b""), claims=None)
    assert not is_app_id_verified(evidence)
    assert not is_app_id_bound({APP_ID_PCR: app_id_register(b"")}, b"")

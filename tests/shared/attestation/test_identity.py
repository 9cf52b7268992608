import hashlib

import pytest

from shared.attestation.envelope import RuntimeEvent
from shared.attestation.identity import app_info, boot_info
from shared.attestation.image import check_image, os_image_hash_of
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from tests.shared.attestation.forgery import APP_ID, NOW, PCRS, Forge, refuses

IMAGE = hashlib.sha256(PCRS[0] + PCRS[1] + PCRS[2]).digest()


def verified(forge: Forge, *events: RuntimeEvent, config: str | None = None) -> VerifiedAttestation:
    chosen = events or (RuntimeEvent("app-id", APP_ID),)
    return verify_attestation(forge.envelope(chosen, config), now=NOW, anchors=forge.anchors)


def test_the_image_hash_is_sha256_of_the_three_registers() -> None:
    registers = {index: bytes([byte]) * 48 for index, byte in enumerate((0xAA, 0xBB, 0xCC))}
    expected = "01e6f9cf7240cb4762b93af0396e4aa8f987150866180f79911d780ea97a9f66"
    assert os_image_hash_of(registers).hex() == expected


def test_boot_info_takes_everything_but_the_app_id_from_the_registers(forge: Forge) -> None:
    info = boot_info(verified(forge))
    assert info.os_image_hash == info.compose_hash == info.mr_system == info.mr_aggregated == IMAGE
    assert info.app_id == APP_ID
    assert info.tee_variant == "dstack-nitro-enclave"
    assert (info.instance_id, info.key_provider_info, info.tcb_status, info.advisory_ids) == (
        b"",
        b"",
        "",
        (),
    )


def test_the_device_id_is_upstreams_and_the_later_one_is_extra(forge: Forge) -> None:
    info = app_info(verified(forge))
    assert info.device_id.hex() == "de7d1b721a1e0632b7cf04edf5032c8ecffa9f9a08492152b926f1a5a7e765d7"
    assert info.device_id_pcr4 == hashlib.sha256(PCRS[4]).digest()


def test_evidence_without_pcr4_has_no_later_device_id(forge: Forge) -> None:
    pcrs = {index: value for index, value in PCRS.items() if index < 3}
    evidence = verify_attestation(forge.envelope(pcrs=pcrs), now=NOW, anchors=forge.anchors)
    assert app_info(evidence).device_id_pcr4 == b""


def test_app_info_is_hex_and_names_what_is_self_asserted(forge: Forge) -> None:
    shown = app_info(verified(forge)).to_json()
    assert shown["app_id"] == APP_ID.hex()
    assert shown["compose_hash"] == IMAGE.hex()
    assert shown["init_script_hashes"] == []
    assert shown["self_asserted"] == ["app_id"]


def test_the_image_check_is_told_in_the_verdict(forge: Forge) -> None:
    evidence = verified(forge)
    assert evidence.verdict.lanes.os_image.status is Status.SKIPPED
    checked = check_image(evidence)
    assert checked.verdict.lanes.os_image.status is Status.VERIFIED
    assert checked.verdict.lanes.compose_hash.status is Status.VERIFIED


@pytest.mark.parametrize(
    "config", ["", "{}", '{"os_image_hash":""}', '{"os_image_hash":"' + "00" * 32 + '"}']
)
def test_n36_refuses_an_image_that_the_registers_do_not_measure(config: str, forge: Forge) -> None:
    evidence = verified(forge, config=config)
    for decide in (check_image, boot_info, app_info):
        with refuses("identity.os_image.mismatch"):
            decide(evidence)


def test_n54_a_requests_vm_config_replaces_the_envelopes(forge: Forge) -> None:
    right, wrong = f'{{"os_image_hash":"{IMAGE.hex()}"}}', f'{{"os_image_hash":"{"11" * 32}"}}'
    assert boot_info(verified(forge, config=wrong), vm_config=right).os_image_hash == IMAGE
    with refuses("identity.os_image.mismatch"):
        boot_info(verified(forge, config=right), vm_config=wrong)
    with refuses("identity.os_image.mismatch"):
        boot_info(verified(forge, config=right), vm_config="{}")


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ("not json", "vm_config.syntax"),
        ("[]", "vm_config.type"),
        ('{"os_image_hash":5}', "vm_config.os_image_hash"),
        ('{"other":1}', "vm_config.unknown"),
    ],
)
def test_refuses_a_config_that_it_cannot_read(config: str, code: str, forge: Forge) -> None:
    with refuses(code):
        check_image(verified(forge, config=config))


def test_a_config_in_upper_case_hex_means_the_same(forge: Forge) -> None:
    assert check_image(verified(forge, config=f'{{"os_image_hash":"{IMAGE.hex().upper()}"}}'))


# --- N-36: claims ---


def test_n36_one_app_id_before_system_ready_counts(forge: Forge) -> None:
    other = RuntimeEvent("app-id", b"\xff" * 20)
    first = RuntimeEvent("app-id", APP_ID)
    with refuses("event_log.duplicate"):
        verified(forge, first, other)
    assert boot_info(verified(forge, RuntimeEvent("x", b""), first)).app_id == APP_ID


def test_n36_an_app_id_after_system_ready_does_not_count(forge: Forge) -> None:
    events = (RuntimeEvent("system-ready", b""), RuntimeEvent("app-id", APP_ID))
    assert boot_info(verified(forge, *events)).app_id == b""


def test_n36_evidence_without_an_app_id_claims_none(forge: Forge) -> None:
    assert boot_info(verified(forge, RuntimeEvent("x", b""))).app_id == b""


@pytest.mark.parametrize("length", [0, 19, 21, 32])
def test_n60_refuses_an_app_id_of_another_length(length: int, forge: Forge) -> None:
    with refuses("event_log.length"):
        boot_info(verified(forge, RuntimeEvent("app-id", bytes(length))))


@pytest.mark.parametrize(
    "name", ["compose-hash", "instance-id", "init-script-hash", "key-provider", "os-image-hash", "device-id"]
)
def test_n36_no_other_event_reaches_what_a_policy_sees(name: str, forge: Forge) -> None:
    app_id = RuntimeEvent("app-id", APP_ID)
    claimed = verified(forge, app_id, RuntimeEvent(name, b"\xee" * (20 if name == "instance-id" else 32)))
    assert boot_info(claimed) == boot_info(verified(forge, app_id))
    assert app_info(claimed) == app_info(verified(forge, app_id))


def test_n36_claims_are_labelled_self_asserted(forge: Forge) -> None:
    verdict = check_image(verified(forge)).verdict
    assert verdict.lanes.app_id.status is Status.SELF_ASSERTED
    assert verdict.lanes.runtime_events.status is Status.SELF_ASSERTED


def test_n36_a_claimed_app_id_changes_neither_the_hash_nor_the_verdict(forge: Forge) -> None:
    """What the contract must allow, the compose hash, stays the image's whichever app is claimed."""
    mine, theirs = (check_image(verified(forge, RuntimeEvent("app-id", bytes([b]) * 20))) for b in (1, 2))
    assert boot_info(mine).compose_hash == boot_info(theirs).compose_hash == IMAGE
    assert mine.verdict == theirs.verdict

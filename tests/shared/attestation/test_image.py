"""Is the claimed image the measured one, on the platforms that have a measurement document."""

import hashlib
import json
from typing import Any

import msgspec
import pytest

from shared.attestation.envelope import RuntimeEvent, TdxEvent
from shared.attestation.event_log import replay_digests
from shared.attestation.identity import app_info, boot_info
from shared.attestation.image import check_image
from shared.attestation.policy import Policy, TdxPolicy
from shared.attestation.stripped import strip
from shared.attestation.verdict import Status, verified
from shared.errors import DstackError, InvalidEvidence, PolicyDenied
from shared.measurement.mr_config import (
    KeyProvider,
    KeyProviderKind,
    MrConfigDocument,
    encode_mr_config,
    mr_config_id_v2,
    mr_config_id_v3,
)
from tests.shared.attestation.forgery import refuses
from tests.shared.attestation.guest_forgery import (
    APP_ID,
    BOOT_EVENTS,
    COMPOSE,
    EVENTS,
    GCP_IMAGE,
    IMAGE_HASH,
    KERNEL,
    LEGACY,
    LITE,
    MR_CONFIG_V1,
    SEPARATOR,
    TABLE,
    TABLE_EVENT,
    UKI,
    UNVERIFIED,
    GcpGuest,
    TdxGuest,
    TpmGuest,
    boot_log,
    gcp_policy,
    gcp_text,
    runtime_log,
)
from tests.shared.measurement.made import GIB, HOB_4_GIB, h48, lite_quoted, lite_text

WANTS_MR_CONFIG = Policy(tdx=TdxPolicy(require_mr_config=True))
NONE = KeyProvider(KeyProviderKind.NONE)
OTHER_APP = b"\x12" * 20


def v3_document(**fields: Any) -> bytes:
    values = {"compose_hash": COMPOSE, "key_provider": KeyProviderKind.NONE, "app_id": APP_ID, **fields}
    return encode_mr_config(MrConfigDocument(**values))


# --- TDX, lite ---


@pytest.mark.parametrize("strip_it", [False, True])
def test_a_lite_image_is_rebuilt_from_its_document(strip_it: bool, tdx_guest: TdxGuest) -> None:  # noqa: FBT001 - two cases
    attestation = tdx_guest.attestation()
    checked = check_image(tdx_guest.verify(strip(attestation) if strip_it else attestation))
    lanes = checked.verdict.lanes
    for lane in (lanes.firmware, lanes.os_image, lanes.command_line):
        assert lane.status is Status.VERIFIED
    assert "acpi digests are the guest's own" in lanes.firmware.reason
    assert boot_info(checked).os_image_hash == IMAGE_HASH


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2"])
def test_n19_a_register_that_the_image_does_not_make_is_refused(register: str, tdx_guest: TdxGuest) -> None:
    other = msgspec.structs.replace(lite_quoted(), **{register: h48("other")})
    attestation = tdx_guest.attestation(registers=other, log=_acpi_log())
    for decide in (check_image, app_info, boot_info):
        with refuses(f"measurement.{register}"):
            decide(tdx_guest.verify(attestation))


def _acpi_log() -> list[TdxEvent]:
    """A log without those events that would contradict another register than the image's."""
    return [*(event for event in boot_log() if event.event.startswith("acpi-")), *runtime_log(EVENTS)]


def test_n19_another_machine_than_the_config_claims_is_refused(tdx_guest: TdxGuest) -> None:
    """Memory changes what the firmware is given, and that is in RTMR0."""
    four = lite_text(memory_size=4 * GIB)
    with refuses("measurement.rtmr0"):
        check_image(tdx_guest.checked(config=four))
    registers = lite_quoted(HOB_4_GIB)
    assert check_image(tdx_guest.checked(config=four, registers=registers, log=_acpi_log()))


def test_n19_a_document_of_another_image_is_refused(tdx_guest: TdxGuest) -> None:
    claimed = json.dumps({**json.loads(LITE), "os_image_hash": "ab" * 32})
    with refuses("measurement.os_image_hash"):
        check_image(tdx_guest.checked(config=claimed))


def test_a_lite_guest_without_a_document_is_refused(tdx_guest: TdxGuest) -> None:
    claimed = json.dumps({"os_image_hash": "ab" * 32, "tdx_attestation_variant": "lite"})
    with refuses("measurement.missing"):
        check_image(tdx_guest.checked(config=claimed))


def test_a_policy_that_is_lax_for_legacy_images_changes_nothing_for_lite_ones(tdx_guest: TdxGuest) -> None:
    other = msgspec.structs.replace(lite_quoted(), rtmr1=h48("other"))
    with refuses("measurement.rtmr1"):
        check_image(tdx_guest.checked(UNVERIFIED, registers=other, log=_acpi_log()))


def test_n54_a_requests_vm_config_replaces_the_envelopes(tdx_guest: TdxGuest) -> None:
    assert boot_info(tdx_guest.checked(config=LEGACY), vm_config=LITE).os_image_hash == IMAGE_HASH
    with refuses("identity.os_image.acpi", PolicyDenied):
        boot_info(tdx_guest.checked(config=LITE), vm_config=LEGACY)


def test_a_sys_config_around_the_vm_config_means_the_same(tdx_guest: TdxGuest) -> None:
    whole = json.dumps({"kms_urls": [], "vm_config": LITE})
    assert boot_info(tdx_guest.checked(config=whole)).os_image_hash == IMAGE_HASH


# --- TDX, legacy ---


@pytest.mark.parametrize("config", [LEGACY, "", "{}"])
def test_a_legacy_image_is_refused_by_default(config: str, tdx_guest: TdxGuest) -> None:
    evidence = tdx_guest.checked(config=config)
    for decide in (check_image, app_info, boot_info):
        with refuses("identity.os_image.acpi", PolicyDenied):
            decide(evidence)


def test_an_accepted_legacy_image_is_skipped_and_told(tdx_guest: TdxGuest) -> None:
    checked = check_image(tdx_guest.checked(UNVERIFIED, config=LEGACY))
    lanes = checked.verdict.lanes
    for lane in (lanes.firmware, lanes.os_image, lanes.command_line):
        assert lane.status is Status.SKIPPED
        assert lane.reason.startswith("acpi: ")
    assert checked.verdict.disabled_checks == ("tdx.allow_unverified_image is true",)
    assert app_info(checked).self_asserted == ("os_image_hash",)


def test_n54_an_accepted_legacy_image_releases_nothing(tdx_guest: TdxGuest) -> None:
    """A policy may be lax for a report; what asks a contract for keys is not made of a claim."""
    with refuses("identity.os_image.unverified"):
        boot_info(tdx_guest.checked(UNVERIFIED, config=LEGACY))


# --- mr_config ---


def test_no_bound_config_is_skipped(tdx_guest: TdxGuest) -> None:
    lane = check_image(tdx_guest.checked()).verdict.lanes.mr_config
    assert (lane.status, lane.reason) == (Status.SKIPPED, "the host bound no config")


def test_n19_a_policy_that_wants_a_bound_config_refuses_zero(tdx_guest: TdxGuest) -> None:
    with refuses("mr_config.zero"):
        check_image(tdx_guest.checked(WANTS_MR_CONFIG))


@pytest.mark.parametrize(
    ("version", "config_id", "fields"),
    [
        (1, MR_CONFIG_V1, {}),
        (2, mr_config_id_v2(COMPOSE, APP_ID, NONE), {}),
        (3, mr_config_id_v3(v3_document()), {"mr_config": v3_document().decode()}),
    ],
)
def test_each_version_of_a_bound_config_is_compared(
    version: int, config_id: bytes, fields: dict[str, str], tdx_guest: TdxGuest
) -> None:
    evidence = tdx_guest.checked(WANTS_MR_CONFIG, mr_config_id=config_id, config=lite_text(**fields))
    lane = check_image(evidence).verdict.lanes.mr_config
    assert lane.status is Status.VERIFIED
    assert lane.reason.startswith(f"version {version} binds the ")


@pytest.mark.parametrize(
    ("config_id", "code"),
    [
        (b"\x01" + bytes(47), "mr_config.mismatch"),
        (mr_config_id_v2(COMPOSE, OTHER_APP, NONE), "mr_config.mismatch"),
        (b"\x04" + MR_CONFIG_V1[1:], "mr_config.version"),
        (b"\x00" + MR_CONFIG_V1[1:], "mr_config.version"),
        (MR_CONFIG_V1[:-1] + b"\x01", "mr_config.version"),
    ],
    ids=["other compose", "other app", "version 4", "version 0", "padding"],
)
def test_n19_a_bound_config_of_another_app_or_version_is_refused(
    config_id: bytes, code: str, tdx_guest: TdxGuest
) -> None:
    for policy in (Policy(), WANTS_MR_CONFIG):
        with refuses(code):
            check_image(tdx_guest.checked(policy, mr_config_id=config_id))


def test_n19_a_bound_document_of_another_app_is_refused(tdx_guest: TdxGuest) -> None:
    document = v3_document(app_id=OTHER_APP)
    evidence = tdx_guest.checked(
        mr_config_id=mr_config_id_v3(document), config=lite_text(mr_config=document.decode())
    )
    with refuses("mr_config.mismatch"):
        check_image(evidence)


def test_n19_a_bound_config_that_cannot_be_checked_is_skipped_or_refused(tdx_guest: TdxGuest) -> None:
    """The host chooses the version: one without its document must not pass where the policy wants it."""
    bound = {"mr_config_id": mr_config_id_v3(v3_document())}
    lane = check_image(tdx_guest.checked(**bound)).verdict.lanes.mr_config
    assert lane.status is Status.SKIPPED
    with refuses("mr_config.unchecked", PolicyDenied):
        check_image(tdx_guest.checked(WANTS_MR_CONFIG, **bound))


def test_a_guest_that_has_no_key_provider_yet_cannot_check_version_two(tdx_guest: TdxGuest) -> None:
    evidence = tdx_guest.checked(events=BOOT_EVENTS, mr_config_id=mr_config_id_v2(COMPOSE, APP_ID, NONE))
    assert check_image(evidence).verdict.lanes.mr_config.status is Status.SKIPPED


def test_a_guest_without_a_compose_hash_is_refused(tdx_guest: TdxGuest) -> None:
    with refuses("mr_config.length"):
        check_image(tdx_guest.checked(events=()))


def test_a_key_provider_that_is_no_json_is_refused(tdx_guest: TdxGuest) -> None:
    events = (*BOOT_EVENTS, RuntimeEvent("key-provider", b"kms"))
    with refuses("mr_config.key_provider.syntax"):
        check_image(tdx_guest.checked(events=events))


# --- GCP ---


def test_a_gcp_image_is_the_uki_in_pcr2(gcp_guest: GcpGuest) -> None:
    checked = check_image(gcp_guest.verify())
    assert checked.verdict.lanes.os_image.status is Status.VERIFIED
    assert boot_info(checked).os_image_hash == GCP_IMAGE


def test_a_boot_log_proves_that_nothing_else_was_loaded(gcp_guest: GcpGuest) -> None:
    """The table's text is no program's, and no program that the firmware started ever came back."""
    lane = check_image(gcp_guest.checked(log=(TABLE_EVENT,))).verdict.lanes.os_image
    assert lane == verified(
        "os_image_hash names the document whose uki is in PCR2, and nothing else was loaded"
    )


def test_n22_a_stripped_log_leaves_the_image_unverified_and_releases_nothing(gcp_guest: GcpGuest) -> None:
    evidence = gcp_guest.checked(log=())
    lane = check_image(evidence).verdict.lanes.os_image
    assert lane.status is Status.SKIPPED
    assert "partition table" in lane.reason
    assert "own kernel" in lane.reason
    with refuses("identity.os_image.unverified"):
        boot_info(evidence)


def test_n22_a_policy_may_take_a_stripped_boot_for_granted_and_the_verdict_tells(gcp_guest: GcpGuest) -> None:
    checked = check_image(gcp_guest.checked(gcp_policy(assume_boot=True), log=()))
    assert checked.verdict.lanes.os_image.status is Status.VERIFIED
    assert "assumed" in checked.verdict.lanes.os_image.reason
    assert "gcp.assume_boot is true" in checked.verdict.disabled_checks
    assert boot_info(checked).os_image_hash == GCP_IMAGE


@pytest.mark.parametrize("text", [b"MZ a program", b"EFI PART of another disk", b""])
def test_n22_another_text_in_the_log_proves_no_partition_table(text: bytes, gcp_guest: GcpGuest) -> None:
    event = msgspec.structs.replace(TABLE_EVENT, event_payload=text)
    lane = check_image(gcp_guest.checked(log=(event,))).verdict.lanes.os_image
    assert lane.status is Status.SKIPPED
    assert "partition table" in lane.reason


def test_n22_a_program_in_place_of_the_table_is_not_proven_by_its_text(gcp_guest: GcpGuest) -> None:
    """Its digest is in PCR2 and its text in the log, but the text is no partition table's."""
    program = b"MZ a program"
    event = msgspec.structs.replace(TABLE_EVENT, event_payload=program)
    pcr2 = (SEPARATOR, hashlib.sha256(program).digest(), UKI, KERNEL)
    evidence = gcp_guest.checked(log=(event,), pcr2=pcr2)
    assert check_image(evidence).verdict.lanes.os_image.status is Status.SKIPPED
    with refuses("identity.os_image.unverified"):
        boot_info(evidence)


def test_n22_a_program_that_ran_once_the_image_gave_up_is_not_taken_for_its_kernel(
    gcp_guest: GcpGuest,
) -> None:
    """The firmware measures that a program which it had started came back."""
    returned = hashlib.sha384(b"Returning from EFI Application from Boot Option").digest()
    log = (TABLE_EVENT, msgspec.structs.replace(TABLE_EVENT, digest=returned, event_payload=b""))
    rtmrs = (bytes(48), replay_digests((event.digest for event in log), "sha384"), h48("rtmr2"))
    evidence = gcp_guest.checked(log=log, rtmrs=rtmrs)
    lane = check_image(evidence).verdict.lanes.os_image
    assert lane.status is Status.SKIPPED
    assert "own kernel" in lane.reason
    assert "partition table" not in lane.reason
    with refuses("identity.os_image.unverified"):
        boot_info(evidence)


def test_pinned_values_need_no_log(gcp_guest: GcpGuest) -> None:
    policy = gcp_policy(partition_tables=(TABLE,), kernels=(KERNEL,))
    lane = check_image(gcp_guest.checked(policy, log=())).verdict.lanes.os_image
    assert lane.status is Status.VERIFIED
    assert lane.reason.endswith("nothing else was loaded")


def test_a_disk_without_a_table_and_a_uki_without_a_kernel_need_no_log(gcp_guest: GcpGuest) -> None:
    lane = check_image(gcp_guest.checked(pcr2=(SEPARATOR, UKI), log=())).verdict.lanes.os_image
    assert lane.status is Status.VERIFIED


@pytest.mark.parametrize(
    ("policy", "pcr2", "code"),
    [
        (gcp_policy(partition_tables=(KERNEL,)), (SEPARATOR, TABLE, UKI, KERNEL), "gcp.partition_tables"),
        (gcp_policy(kernels=(TABLE,)), (SEPARATOR, TABLE, UKI, KERNEL), "gcp.kernels"),
        (gcp_policy(partition_tables=(TABLE,)), (SEPARATOR, UKI, KERNEL), "gcp.partition_tables"),
        (gcp_policy(kernels=(KERNEL,)), (SEPARATOR, TABLE, UKI), "gcp.kernels"),
    ],
)
def test_n22_values_that_the_policy_does_not_list_are_refused(
    policy: Policy, pcr2: tuple[bytes, ...], code: str, gcp_guest: GcpGuest
) -> None:
    with refuses(code, PolicyDenied):
        check_image(gcp_guest.checked(policy, pcr2=pcr2))


@pytest.mark.parametrize(
    ("pcr2", "code"),
    [
        ((SEPARATOR, TABLE, KERNEL), "gcp.uki.missing"),
        ((SEPARATOR, TABLE, UKI, KERNEL, UKI), "gcp.uki.repeated"),
        ((SEPARATOR, TABLE, h48("shim")[:32], UKI, KERNEL), "gcp.uki.preceded"),
        ((SEPARATOR, TABLE, UKI, KERNEL, h48("other")[:32]), "gcp.uki.followed"),
        ((TABLE, SEPARATOR, UKI, KERNEL), "gcp.uki.separator"),
    ],
)
def test_n22_the_uki_is_found_by_identity_in_a_boot_of_the_known_shape(
    pcr2: tuple[bytes, ...], code: str, gcp_guest: GcpGuest
) -> None:
    with refuses(code):
        check_image(gcp_guest.checked(pcr2=pcr2))


def test_n54_another_gcp_image_than_the_config_claims_is_refused(gcp_guest: GcpGuest) -> None:
    claimed = json.dumps({**json.loads(gcp_text()), "os_image_hash": "ab" * 32})
    with refuses("measurement.os_image_hash"):
        check_image(gcp_guest.checked(config=claimed))
    with refuses("gcp.uki.missing"):
        check_image(gcp_guest.checked(config=gcp_text(uki=h48("other")[:32])))


def test_a_gcp_guests_bound_config_is_compared_too(gcp_guest: GcpGuest) -> None:
    lane = check_image(gcp_guest.checked(mr_config_id=MR_CONFIG_V1)).verdict.lanes.mr_config
    assert lane.status is Status.VERIFIED
    with refuses("mr_config.mismatch"):
        check_image(gcp_guest.checked(mr_config_id=b"\x01" + bytes(47)))


# --- NitroTPM ---


def test_an_ec2_image_is_the_digest_of_its_boot_registers(tpm_guest: TpmGuest) -> None:
    lanes = check_image(tpm_guest.verify()).verdict.lanes
    for lane in (lanes.firmware, lanes.os_image, lanes.command_line):
        assert lane.status is Status.VERIFIED


@pytest.mark.parametrize("index", [4, 7, 12])
def test_n54_another_ec2_image_than_the_config_claims_is_refused(index: int, tpm_guest: TpmGuest) -> None:
    honest = tpm_guest.attestation()
    other = tpm_guest.attestation(pcrs={index: b"\x77" * 48}, config=honest.config)
    with refuses("aws.image.boot_pcr_digest"):
        check_image(tpm_guest.verify(other))


def test_no_config_of_garbage_is_a_crash(
    tdx_guest: TdxGuest, gcp_guest: GcpGuest, tpm_guest: TpmGuest
) -> None:
    for guest in (tdx_guest, gcp_guest, tpm_guest):
        for config in (
            "x",
            "[]",
            '{"os_image_hash":7}',
            '{"unknown":1}',
            '{"os_image_hash":"' + "ab" * 32 + '"}',
        ):
            with pytest.raises(DstackError) as caught:
                check_image(guest.checked(config=config))
            assert isinstance(caught.value, InvalidEvidence | PolicyDenied)

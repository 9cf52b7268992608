"""Who verified evidence belongs to: app info, boot info, image check (spec attestation 6, kms 6.3, 7).

Only Nitro so far. There the image is the identity: compose_hash, mr_system and mr_aggregated are the hash of
PCR0 to PCR2, and every runtime event is the attester's own claim.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from shared.attestation.nitro import IMAGE_PCRS
from shared.attestation.verdict import Lane, Status
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import BootInfo
from shared.errors import InvalidEvidence

APP_ID_LENGTH = 20
IMAGE_HASH_LENGTH = 32
# A vm_config with measurement documents has a few KiB.
MAX_VM_CONFIG = 64 * 1024

_APP_ID = "app-id"
_SYSTEM_READY = "system-ready"


class VmConfig(msgspec.Struct, frozen=True):
    """The one field of upstream's vm_config that a Nitro enclave uses; upstream ignores others, so do we."""

    os_image_hash: str = ""


class AppInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Upstream's app info, raw bytes, and `device_id_pcr4`: the later upstream's device id, sha256(PCR4)."""

    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    device_id: bytes
    mr_system: bytes
    mr_aggregated: bytes
    os_image_hash: bytes
    key_provider_info: bytes
    init_script_hashes: tuple[bytes, ...]
    device_id_pcr4: bytes

    def to_json(self) -> dict[str, Any]:
        """Return upstream's JSON object (all hex), plus `device_id_pcr4` and the list `self_asserted`."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        scripts = [script.hex() for script in fields.pop("init_script_hashes")]
        return {
            **{name: value.hex() for name, value in fields.items()},
            "init_script_hashes": scripts,
            "self_asserted": ["app_id"],
        }


def os_image_hash_of(pcrs: Mapping[int, bytes]) -> bytes:
    """Return sha256(PCR0 || PCR1 || PCR2), the 32 bytes that stand for an enclave image."""
    return hashlib.sha256(b"".join(pcrs[index] for index in IMAGE_PCRS)).digest()


def check_image(verified: VerifiedAttestation, *, vm_config: str = "") -> VerifiedAttestation:
    """Check that the claimed os_image_hash is the image that the registers measured; the verdict says so.

    The claim is taken from `vm_config` (the request's JSON text) when it is not empty, else from the
    envelope's config; never a mixture. Raises `InvalidEvidence`: `identity.vm_config` when the text cannot be
    read, `identity.os_image.mismatch`.
    """
    _measured_image(verified, vm_config)
    verdict = verified.verdict.with_lane(
        Lane("os_image", Status.VERIFIED, "os_image_hash is sha256 of PCR0 to PCR2")
    ).with_lane(Lane("compose_hash", Status.VERIFIED, "equal to os_image_hash"))
    return msgspec.structs.replace(verified, verdict=verdict)


def app_info(verified: VerifiedAttestation, *, vm_config: str = "") -> AppInfo:
    """Return the app info of verified evidence; checks the image first (`check_image`).

    `app_id` is empty or 20 bytes and self-asserted. Raises `InvalidEvidence`: those of `check_image`,
    `identity.app_id.length`.
    """
    image = _measured_image(verified, vm_config)
    document = verified.document
    # Upstream cuts at the first dash, so every enclave has the device id of "i": kept, never relied on.
    device = document.module_id.partition("-")[0]
    return AppInfo(
        app_id=_claimed_app_id(verified),
        compose_hash=image,
        instance_id=b"",
        device_id=hashlib.sha256(device.encode()).digest(),
        mr_system=image,
        mr_aggregated=image,
        os_image_hash=image,
        key_provider_info=b"",
        init_script_hashes=(),
        device_id_pcr4=hashlib.sha256(document.pcrs[4]).digest() if 4 in document.pcrs else b"",
    )


def boot_info(verified: VerifiedAttestation, *, vm_config: str = "") -> BootInfo:
    """Return what a policy is asked about; checks the image first (`check_image`).

    `tcb_status` is empty and `app_id` self-asserted: safe only because the app's contract must allow the
    compose_hash, which is measured. Raises what `app_info` raises.
    """
    info = app_info(verified, vm_config=vm_config)
    return BootInfo(
        tee_variant=verified.attestation.tee_variant,
        mr_aggregated=info.mr_aggregated,
        os_image_hash=info.os_image_hash,
        mr_system=info.mr_system,
        app_id=info.app_id,
        compose_hash=info.compose_hash,
        instance_id=info.instance_id,
        device_id=info.device_id,
        key_provider_info=info.key_provider_info,
        tcb_status="",
        advisory_ids=(),
    )


def _measured_image(verified: VerifiedAttestation, vm_config: str) -> bytes:
    claimed = _claimed_image(vm_config or verified.attestation.config)
    measured = os_image_hash_of(verified.document.pcrs)
    if claimed != measured:
        raise InvalidEvidence(
            "identity.os_image.mismatch",
            f"os_image_hash is {claimed.hex() or 'missing'}, PCR0 to PCR2 measure {measured.hex()}",
        )
    return measured


def _claimed_image(text: str) -> bytes:
    if len(text) > MAX_VM_CONFIG:
        raise InvalidEvidence(
            "identity.vm_config", f"vm_config has {len(text)} characters, at most {MAX_VM_CONFIG} are read"
        )
    try:
        claim = msgspec.json.decode(text or "{}", type=VmConfig).os_image_hash
        image = bytes.fromhex(claim)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidEvidence(
            "identity.vm_config", "vm_config is not json with os_image_hash in hex"
        ) from error
    if image.hex() != claim.lower() or len(image) not in {0, IMAGE_HASH_LENGTH}:
        raise InvalidEvidence(
            "identity.vm_config", f"os_image_hash is not {IMAGE_HASH_LENGTH} bytes in bare hex"
        )
    return image


def _claimed_app_id(verified: VerifiedAttestation) -> bytes:
    """Return the first `app-id` event before `system-ready`; a later one must not win."""
    for event in verified.attestation.runtime_events:
        if event.event == _SYSTEM_READY:
            break
        if event.event == _APP_ID:
            if len(event.payload) != APP_ID_LENGTH:
                raise InvalidEvidence(
                    "identity.app_id.length",
                    f"app_id has {len(event.payload)} bytes, expected {APP_ID_LENGTH}",
                )
            return event.payload
    return b""

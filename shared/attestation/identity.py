"""Who verified evidence belongs to: app info and boot info (spec attestation 6, kms 6.3, 7).

On Nitro enclaves the image is the identity: compose_hash, mr_system and mr_aggregated are the hash of PCR0 to
PCR2, and every runtime event is the attester's own claim; an app id may be in PCR16 as well. Elsewhere the
guest's measured events name the app.
"""

import hashlib
from typing import TYPE_CHECKING, Any, cast

import msgspec

from shared.attestation.envelope import GcpTdxQuote, NitroEnclaveQuote, TdxQuote
from shared.attestation.event_log import replay
from shared.attestation.image import check_image, claimed_config, os_image_hash_of
from shared.attestation.nitro import VerifiedNitroDocument
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import AWS_NITRO_TPM, BootInfo
from shared.errors import InvalidEvidence

if TYPE_CHECKING:  # these modules are loaded with their first evidence
    from shared.attestation.gcp import VerifiedGcp
    from shared.attestation.nitro_tpm import VerifiedNitroTpm
    from shared.attestation.tdx import VerifiedTdx

_NO_KEY_PROVIDER = bytes(32)
# Upstream's word for evidence without a TCB status; the verdict names it among the disabled checks (N-41).
_NITRO_TPM_TCB = "UpToDate"


class AppInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Upstream's app info, raw bytes.

    `device_id_pcr4` is the later upstream's device id of a Nitro enclave, sha256(PCR4), empty elsewhere.
    `self_asserted` names the fields that nothing of the hardware signs.
    """

    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    device_id: bytes
    mr_system: bytes
    mr_aggregated: bytes
    os_image_hash: bytes
    key_provider_info: bytes
    init_script_hashes: tuple[bytes, ...]
    device_id_pcr4: bytes = b""
    self_asserted: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return upstream's JSON object (all hex), plus `device_id_pcr4` where there is one, and the list."""
        shown: dict[str, Any] = {}
        for name in self.__struct_fields__[:-2]:
            value = getattr(self, name)
            shown[name] = value.hex() if isinstance(value, bytes) else [script.hex() for script in value]
        if self.device_id_pcr4:
            shown["device_id_pcr4"] = self.device_id_pcr4.hex()
        shown["self_asserted"] = list(self.self_asserted)
        return shown


def app_info(verified: VerifiedAttestation, *, vm_config: str = "", boot_time: bool = False) -> AppInfo:
    """Return the app info of verified evidence; checks the image first (`image.check_image`).

    `vm_config` replaces the envelope's config when not empty. `boot_time` stops at `boot-mr-done`, so that
    what the guest does later does not change the measurements. Raises what `check_image` raises.
    """
    return info_of(check_image(verified, vm_config=vm_config), boot_time=boot_time)


def info_of(checked: VerifiedAttestation, *, boot_time: bool = False) -> AppInfo:
    """Return the app info of evidence that `check_image` returned, by the config that it judged.

    Where nobody judged one, the envelope's claim is taken, and named as such. Raises
    `InvalidEvidence("vm_config.*")` then.
    """
    match checked.attestation.quote:
        case NitroEnclaveQuote():
            info = _nitro(checked)
        case TdxQuote():
            info = _tdx(checked, boot_time=boot_time)
        case GcpTdxQuote():
            info = _gcp(checked, boot_time=boot_time)
        case _:
            info = _nitro_tpm(checked, boot_time=boot_time)
    if checked.verdict.lanes.os_image.status is Status.VERIFIED:
        return info
    return msgspec.structs.replace(info, self_asserted=(*info.self_asserted, "os_image_hash"))


def boot_info(verified: VerifiedAttestation, *, vm_config: str = "", boot_time: bool = False) -> BootInfo:
    """Return what a policy is asked about; checks the image first (`check_release_image`).

    Raises what `check_release_image` and `claimed_boot_info` raise.
    """
    check_release_image(verified, vm_config=vm_config)
    return claimed_boot_info(verified, vm_config=vm_config, boot_time=boot_time)


def check_release_image(verified: VerifiedAttestation, *, vm_config: str = "") -> VerifiedAttestation:
    """Return what `check_image` does, where the image that the config claims is the measured one.

    Raises what `check_image` raises, and `InvalidEvidence("identity.os_image.unverified")` for an image that
    was skipped: a policy may be lax for a report, never for a release.
    """
    checked = check_image(verified, vm_config=vm_config)
    lane = checked.verdict.lanes.os_image
    if lane.status is not Status.VERIFIED:
        raise InvalidEvidence(
            "identity.os_image.unverified",
            f"image is not verified, a release needs it to be: {lane.reason}",
        )
    return checked


def claimed_boot_info(
    verified: VerifiedAttestation, *, vm_config: str = "", boot_time: bool = False
) -> BootInfo:
    """Return the same without a look at the image: upstream asks the policy first (spec kms section 2.2).

    Whoever releases anything by it still owes `check_release_image`: outside Nitro, where the registers name
    the image, `os_image_hash` is a claim until then. On Nitro `app_id` is self-asserted unless
    PCR16 binds it (`is_app_id_verified`): safe only because the app's contract must allow the compose_hash,
    which is measured. Raises `InvalidEvidence`: `vm_config.*`,
    `identity.compose_hash.missing` for a guest that recorded none.
    """
    config = claimed_config(verified.attestation, vm_config)
    info = info_of(msgspec.structs.replace(verified, config=config), boot_time=boot_time)
    verdict = verified.verdict
    if not info.compose_hash:
        raise InvalidEvidence(
            "identity.compose_hash.missing", "guest recorded no compose hash, a release needs one"
        )
    return BootInfo(
        tee_variant=verdict.platform,
        mr_aggregated=info.mr_aggregated,
        os_image_hash=info.os_image_hash,
        mr_system=info.mr_system,
        app_id=info.app_id,
        compose_hash=info.compose_hash,
        instance_id=info.instance_id,
        device_id=info.device_id,
        key_provider_info=info.key_provider_info,
        tcb_status=_NITRO_TPM_TCB if verdict.platform == AWS_NITRO_TPM else verdict.tcb_status,
        advisory_ids=verdict.advisory_ids,
    )


def is_app_id_verified(verified: VerifiedAttestation) -> bool:
    """Tell whether the hardware signs the app id: on Nitro only where PCR16 binds it."""
    return verified.verdict.lanes.app_id.status is Status.VERIFIED


def raw_device_id(verified: VerifiedAttestation) -> bytes:
    """Return what `device_id` is the SHA-256 of: the PPID of a TDX machine, AWS's name for a module."""
    match verified.attestation.quote:
        case NitroEnclaveQuote():
            module = cast("VerifiedNitroDocument", verified.evidence).document.module_id
            # Upstream cuts at the first dash: every enclave has the device id of "i". Kept, never relied on.
            return module.partition("-")[0].encode()
        case TdxQuote():
            return cast("VerifiedTdx", verified.evidence).ppid
        case GcpTdxQuote():
            return cast("VerifiedGcp", verified.evidence).tdx.ppid
        case _:
            return cast("VerifiedNitroTpm", verified.evidence).document.module_id.encode()


def _nitro(verified: VerifiedAttestation) -> AppInfo:
    document = cast("VerifiedNitroDocument", verified.evidence).document
    image = os_image_hash_of(document.pcrs)
    return AppInfo(
        app_id=verified.events.app_id,
        compose_hash=image,
        instance_id=b"",
        device_id=_sha256(raw_device_id(verified)),
        mr_system=image,
        mr_aggregated=image,
        os_image_hash=image,
        key_provider_info=b"",
        init_script_hashes=(),
        device_id_pcr4=_sha256(document.pcrs[4]) if 4 in document.pcrs else b"",
        self_asserted=() if is_app_id_verified(verified) else ("app_id",),
    )


def _tdx(verified: VerifiedAttestation, *, boot_time: bool) -> AppInfo:
    tdx = cast("VerifiedTdx", verified.evidence)
    report = tdx.quote.report
    boot = report.mrtd + b"".join(report.rtmrs[:3])
    configured = report.mr_config_id + report.mr_owner + report.mr_owner_config
    runtime = replay(verified.attestation.runtime_events, "sha384", boot_time=boot_time)
    return _guest(
        verified,
        boot_time=boot_time,
        system=boot,
        # The three ids count only when one of them is set (trap 8).
        aggregated=boot + runtime + (configured if any(configured) else b""),
        device=raw_device_id(verified),
    )


def _gcp(verified: VerifiedAttestation, *, boot_time: bool) -> AppInfo:
    gcp = cast("VerifiedGcp", verified.evidence)
    runtime = replay(verified.attestation.runtime_events, "sha256", boot_time=boot_time)
    return _guest(
        verified,
        boot_time=boot_time,
        system=None,
        aggregated=gcp.pcrs[0] + gcp.pcrs[2] + runtime,
        device=raw_device_id(verified),
    )


def _nitro_tpm(verified: VerifiedAttestation, *, boot_time: bool) -> AppInfo:
    from shared.measurement.images import AWS_BOOT_PCRS  # noqa: PLC0415 - loaded with its first evidence

    document = cast("VerifiedNitroTpm", verified.evidence).document
    boot = b"".join(document.pcrs[index] for index in AWS_BOOT_PCRS)
    runtime = replay(verified.attestation.runtime_events, "sha384", boot_time=boot_time)
    return _guest(
        verified,
        boot_time=boot_time,
        system=boot,
        aggregated=boot + runtime,
        device=raw_device_id(verified),
    )


def _guest(
    verified: VerifiedAttestation,
    *,
    boot_time: bool,
    system: bytes | None,
    aggregated: bytes,
    device: bytes,
) -> AppInfo:
    """Return the app info of a guest that measures its events; `system` None stands for the image's hash."""
    events = verified.events
    image = (verified.config or claimed_config(verified.attestation)).os_image_hash
    key_provider = b"" if boot_time else events.key_provider
    # Empty means zeros here, not the hash of nothing (trap 9).
    provider_hash = _sha256(key_provider) if key_provider else _NO_KEY_PROVIDER
    return AppInfo(
        app_id=events.app_id,
        compose_hash=events.compose_hash,
        instance_id=events.instance_id,
        device_id=_sha256(device),
        mr_system=_sha256((image if system is None else system) + provider_hash),
        mr_aggregated=_sha256(aggregated),
        os_image_hash=image,
        key_provider_info=key_provider,
        init_script_hashes=events.init_script_hashes,
    )


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()

"""Is the image that the config names the measured one (spec attestation 4.5, 5.3, 5.5, 7.6).

os_image_hash is a claim until then. A function here takes verified evidence and returns it with the lanes of
the image replaced; nothing else turns them into verified ones.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

import msgspec

from shared.attestation.envelope import Attestation, GcpTdxQuote, NitroEnclaveQuote, TdxEvent, TdxQuote
from shared.attestation.nitro import IMAGE_PCRS, VerifiedNitroDocument
from shared.attestation.stripped import BOOT_RTMR, PARTITION_TABLE
from shared.attestation.verdict import Lane, skipped, verified
from shared.attestation.verify import VerifiedAttestation
from shared.errors import InvalidEvidence, PolicyDenied
from shared.measurement.vm_config import VmConfig, attestation_variant, parse_vm_config

if TYPE_CHECKING:  # each platform's modules are loaded with its first evidence: an import is a cold start's
    from shared.attestation.gcp import VerifiedGcp
    from shared.attestation.nitro_tpm import VerifiedNitroTpm
    from shared.attestation.tdx import VerifiedTdx

# What the firmware measures when a program that it started comes back.
_RETURNED = hashlib.sha384(b"Returning from EFI Application from Boot Option").digest()
_SHORT: Final = 4096
_parse_short = lru_cache(maxsize=64)(parse_vm_config)
"""A release reads its config twice, and an app's instances all have the same. A long one is not kept."""

_ACPI = "acpi: the legacy check recomputes QEMU's tables, which this verifier does not have"


def os_image_hash_of(pcrs: Mapping[int, bytes]) -> bytes:
    """Return sha256(PCR0 || PCR1 || PCR2), the 32 bytes that stand for an enclave image."""
    return hashlib.sha256(b"".join(pcrs[index] for index in IMAGE_PCRS)).digest()


def claimed_config(attestation: Attestation, vm_config: str = "") -> VmConfig:
    """Return the config that is judged: `vm_config` (the request's text) when not empty, else the envelope's.

    Never a mixture. Raises `InvalidEvidence("vm_config.*")`.
    """
    text = vm_config or attestation.config
    return _parse_short(text) if len(text) <= _SHORT else parse_vm_config(text)


def check_image(evidence: VerifiedAttestation, *, vm_config: str = "") -> VerifiedAttestation:
    """Check that the claimed os_image_hash is the image that the registers measured; the verdict says so.

    Nitro: the hash of PCR0 to PCR2. TDX: a lite image's registers are rebuilt from its measurement document;
    a legacy image's cannot be (`skipped(acpi)`): only a policy with `tdx.allow_unverified_image` accepts it.
    GCP: the image's Authenticode digest is a PCR2 event. NitroTPM: the digest of PCR4, 7 and 12. Where the
    launcher fixed a configuration id (mr_config), it must be that of the recorded identity.

    Raises `InvalidEvidence`: `vm_config.*`, `identity.os_image.mismatch`, `measurement.*`, `gcp.uki.*`,
    `aws.image.*`, `mr_config.*`; `PolicyDenied`: `identity.os_image.acpi`, `gcp.partition_tables`,
    `gcp.kernels`, `mr_config.unchecked`.
    """
    config = claimed_config(evidence.attestation, vm_config)
    match evidence.attestation.quote:
        case NitroEnclaveQuote():
            lanes = _nitro(cast("VerifiedNitroDocument", evidence.evidence), config)
        case TdxQuote():
            lanes = _tdx(evidence, config)
        case GcpTdxQuote():
            lanes = _gcp(evidence, config)
        case _:
            lanes = _nitro_tpm(evidence, config)
    verdict = evidence.verdict.with_lanes(**lanes)
    return msgspec.structs.replace(evidence, verdict=verdict, config=config)


def _nitro(evidence: VerifiedNitroDocument, config: VmConfig) -> dict[str, Lane]:
    measured = os_image_hash_of(evidence.document.pcrs)
    if config.os_image_hash != measured:
        raise InvalidEvidence(
            "identity.os_image.mismatch",
            f"os_image_hash is {config.os_image_hash.hex() or 'missing'}, "
            f"PCR0 to PCR2 measure {measured.hex()}",
        )
    return {
        "os_image": verified("os_image_hash is sha256 of PCR0 to PCR2"),
        "command_line": verified("a part of the image, in PCR0 and PCR1"),
        "compose_hash": verified("equal to os_image_hash"),
    }


def _tdx(evidence: VerifiedAttestation, config: VmConfig) -> dict[str, Lane]:
    from shared.measurement.tdx_registers import LiteRegisters, check_lite  # noqa: PLC0415 - see above

    tdx = cast("VerifiedTdx", evidence.evidence)
    quote = cast("TdxQuote", evidence.attestation.quote)
    report = tdx.quote.report
    mr_config = {"mr_config": _mr_config(report.mr_config_id, config, evidence)}
    if attestation_variant(config) == "legacy":
        if not evidence.policy.tdx.allow_unverified_image:
            raise PolicyDenied(
                "identity.os_image.acpi",
                "image is a legacy one whose registers need qemu's acpi tables, the policy wants it verified",
            )
        return {name: skipped(_ACPI) for name in ("firmware", "os_image", "command_line")} | mr_config
    check_lite(
        config,
        quote.event_log,
        LiteRegisters(report.mrtd, *report.rtmrs[:3]),
    )
    return {
        "firmware": verified("MRTD and RTMR0 rebuilt from the image; acpi digests are the guest's own"),
        "os_image": verified("os_image_hash names the document that MRTD and RTMR0 to RTMR2 follow from"),
        "command_line": verified("RTMR2 rebuilt from the image"),
    } | mr_config


def _gcp(evidence: VerifiedAttestation, config: VmConfig) -> dict[str, Lane]:
    from shared.measurement.images import check_gcp_image  # noqa: PLC0415 - see above

    gcp = cast("VerifiedGcp", evidence.evidence)
    quote = cast("GcpTdxQuote", evidence.attestation.quote)
    boot = check_gcp_image(config, gcp.pcr2_events)
    policy = evidence.policy.gcp
    _check_pinned("partition_tables", boot.before, policy.partition_tables)
    _check_pinned("kernels", boot.after, policy.kernels)
    assumed = []
    if not policy.partition_tables and not _is_partition_table(boot.before, quote.tdx.event_log):
        assumed.append("what the firmware measured before it is a partition table")
    if not policy.kernels and not _is_its_kernel(boot.after, quote.tdx.event_log):
        assumed.append("what it measured after it is the image's own kernel")
    found = "os_image_hash names the document whose uki is in PCR2"
    if not assumed:
        image = verified(f"{found}, and nothing else was loaded")
    elif policy.assume_boot:
        image = verified(f"{found}; assumed: {', and that '.join(assumed)}")
    else:
        image = skipped(f"{found}, but nothing shows that {', and that '.join(assumed)}")
    return {
        "os_image": image,
        "mr_config": _mr_config(gcp.tdx.quote.report.mr_config_id, config, evidence),
    }


def _check_pinned(name: str, got: bytes | None, pinned: tuple[bytes, ...]) -> None:
    if pinned and got not in pinned:
        raise PolicyDenied(
            f"gcp.{name}",
            f"PCR2 has {got.hex() if got else 'no event'}, which is none of the policy's {name}",
        )


def _is_partition_table(digest: bytes | None, log: Sequence[TdxEvent]) -> bool:
    """Tell whether the log has the text of this digest, if there is one, and it is no program.

    A program's digest covers bytes that begin with MZ: none passes for a header that begins with EFI PART.
    """
    return digest is None or any(
        event.event_payload.startswith(PARTITION_TABLE)
        and hashlib.sha256(event.event_payload).digest() == digest
        for event in log
    )


def _is_its_kernel(digest: bytes | None, log: Sequence[TdxEvent]) -> bool:
    """Tell whether the image itself loaded what PCR2 has after it, if anything: it never gave up.

    The firmware measures it when a program returns that it started, and RTMR1's log is complete where it is
    there at all: it was replayed to the quote (`registers.check_boot_log`).
    """
    boot = [event.digest for event in log if event.imr == BOOT_RTMR]
    return digest is None or (bool(boot) and _RETURNED not in boot)


def _nitro_tpm(evidence: VerifiedAttestation, config: VmConfig) -> dict[str, Lane]:
    from shared.measurement.images import check_aws_image  # noqa: PLC0415 - see above

    pcrs = cast("VerifiedNitroTpm", evidence.evidence).document.pcrs
    check_aws_image(config, pcrs)
    digest = "in the digest of PCR4, PCR7 and PCR12, which os_image_hash names"
    return {
        "firmware": verified(f"secure boot state, {digest}"),
        "os_image": verified(digest),
        "command_line": verified(digest),
        "mr_config": skipped("PCR8 extends the configuration id and is not judged"),
    }


def _mr_config(mr_config_id: bytes, config: VmConfig, evidence: VerifiedAttestation) -> Lane:
    """Compare MRCONFIGID with the recorded identity; zero means that the launcher fixed none."""
    # PLC0415: see above
    from shared.measurement.mr_config import (  # noqa: PLC0415
        BootValues,
        check_mr_config,
        parse_key_provider,
    )

    events = evidence.events
    check = check_mr_config(
        mr_config_id,
        BootValues(
            compose_hash=events.compose_hash,
            app_id=events.app_id,
            key_provider=parse_key_provider(events.key_provider),
            instance_id=events.instance_id,
            gpu_policy_hash=events.gpu_policy_hash,
            init_script_hashes=events.init_script_hashes,
        ),
        document=config.mr_config,
        required=evidence.policy.tdx.require_mr_config,
    )
    if check.checked:
        return verified(f"version {check.version} {check.reason}")
    if evidence.policy.tdx.require_mr_config:
        raise PolicyDenied("mr_config.unchecked", f"mr_config_id cannot be checked: {check.reason}")
    return skipped(check.reason)

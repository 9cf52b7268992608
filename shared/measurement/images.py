"""Which image booted on GCP and on AWS NitroTPM, from registers that are already verified (spec 5.3, 5.5)."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

import msgspec

from shared.errors import InvalidEvidence
from shared.measurement.documents import (
    SHA384_BYTES,
    bound_measurement,
    parse_aws_measurement,
    parse_gcp_measurement,
)
from shared.measurement.vm_config import VmConfig

AWS_BOOT_PCRS: Final = (4, 7, 12)
"""Boot loader and image, secure boot policy, kernel command line: what `measurement.aws.cbor` digests."""

# The firmware extends it into every register when it hands over to boot loaders: nothing loaded later than
# the firmware itself can come before it.
_SEPARATOR: Final = sha256(bytes(4)).digest()


class GcpBoot(msgspec.Struct, frozen=True):
    """The unified kernel image that booted, and the two PCR2 digests around it that no document predicts.

    `before` is the disk's partition table, and `after` the kernel inside the image, on an honest machine;
    None where the log has no such event. A policy that knows an image's values can pin them.
    """

    uki_auth: bytes
    before: bytes | None
    after: bytes | None


def check_gcp_image(config: VmConfig, pcr2_digests: Sequence[bytes]) -> GcpBoot:
    """Check that the named image's unified kernel image (UKI) is what the machine booted.

    `pcr2_digests` are the SHA-256 digests of the log's PCR2 events, in order. The caller has replayed them
    to the PCR2 of a verified TPM quote, and compared PCR0 with its allow-list.

    The UKI is found by its digest, wherever it stands (upstream takes the third event for it). A real log is
    separator, partition table, UKI, the kernel inside. Programs extend PCR2 when the firmware loads them,
    and the digests do not say which event is a program. Somebody who controls the disk controls which
    programs run, so the order decides, and anything but the known shape is refused:

    - the separator is first, and occurs once;
    - at most one event lies between it and the UKI: with a second one, another program ran before it;
    - the UKI occurs once: a program that loads the UKI after it ran itself shows up here or above;
    - at most one event follows: with a second one, the firmware started something else after the UKI gave up.

    What is left: one program in place of the partition table (a disk without one), or in place of the inner
    kernel (a UKI that failed before it loaded it), cannot be told from digests alone. That is why both are
    returned, and why a verdict should not claim more than `uki_auth` without a policy that pins them.

    Raises `InvalidEvidence`: `gcp.uki.separator`, `gcp.uki.missing`, `gcp.uki.repeated`, `gcp.uki.preceded`,
    `gcp.uki.followed`, and what `bound_measurement` and `parse_gcp_measurement` raise.
    """
    raw = bound_measurement(config.gcp_measurement, "gcp", config.os_image_hash)
    uki = parse_gcp_measurement(raw).uki_auth
    if (count := pcr2_digests.count(uki)) != 1:
        code = "gcp.uki.repeated" if count else "gcp.uki.missing"
        raise InvalidEvidence(
            code, f"pcr2 has {count} events of the uki {uki.hex()} among {len(pcr2_digests)}, expected one"
        )
    if pcr2_digests[0] != _SEPARATOR or pcr2_digests.count(_SEPARATOR) != 1:
        raise InvalidEvidence(
            "gcp.uki.separator", "pcr2 does not start with its only separator: a driver ran before the boot"
        )
    at = pcr2_digests.index(uki)
    before, after = pcr2_digests[1:at], pcr2_digests[at + 1 :]
    if len(before) > 1:
        raise InvalidEvidence(
            "gcp.uki.preceded",
            f"{len(before)} pcr2 events lie before the uki, expected the partition table alone",
        )
    if len(after) > 1:
        raise InvalidEvidence(
            "gcp.uki.followed", f"{len(after)} pcr2 events follow the uki, expected its kernel alone"
        )
    return GcpBoot(uki, before[0] if before else None, after[0] if after else None)


def check_aws_image(config: VmConfig, pcrs: Mapping[int, bytes]) -> bytes:
    """Check a verified NitroTPM document's registers against the named image; return its boot_pcr_digest.

    Raises `InvalidEvidence`: `aws.image.pcr` (PCR4, PCR7 or PCR12 missing, or not 48 bytes),
    `aws.image.boot_pcr_digest`, and what `bound_measurement` and `parse_aws_measurement` raise.
    """
    raw = bound_measurement(config.aws_measurement, "aws", config.os_image_hash)
    expected = parse_aws_measurement(raw).boot_pcr_digest
    if (got := aws_boot_pcr_digest(pcrs)) != expected:
        raise InvalidEvidence(
            "aws.image.boot_pcr_digest",
            f"sha256 of PCR4, PCR7 and PCR12 is {got.hex()}, the image makes {expected.hex()}",
        )
    return expected


def aws_boot_pcr_digest(pcrs: Mapping[int, bytes]) -> bytes:
    """Return sha256(PCR4 || PCR7 || PCR12), 32 bytes; `InvalidEvidence("aws.image.pcr")` if one is unfit."""
    for index in AWS_BOOT_PCRS:
        if len(value := pcrs.get(index, b"")) != SHA384_BYTES:
            raise InvalidEvidence(
                "aws.image.pcr", f"PCR{index} has {len(value)} bytes in the document, expected {SHA384_BYTES}"
            )
    return sha256(b"".join(pcrs[index] for index in AWS_BOOT_PCRS)).digest()

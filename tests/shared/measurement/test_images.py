from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from struct import unpack_from

import pytest

from shared.measurement.images import GcpBoot, aws_boot_pcr_digest, check_aws_image, check_gcp_image
from shared.measurement.vm_config import VmConfig, parse_vm_config
from tests.shared.measurement.made import config_text
from tests.shared.refusal import refuses

UKI = bytes(range(32))
SEPARATOR = bytes.fromhex("df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119")
GPT, KERNEL, OTHER = (sha256(name).digest() for name in (b"gpt", b"kernel", b"other"))
GCP = parse_vm_config(config_text("gcp", {"version": 1, "uki_auth": UKI}))
PCRS = {4: b"\x04" * 48, 7: b"\x07" * 48, 12: b"\x0c" * 48}
AWS = parse_vm_config(
    config_text("aws", {"boot_pcr_digest": sha256(b"\x04" * 48 + b"\x07" * 48 + b"\x0c" * 48).digest()})
)


def pcr2_of(log: bytes) -> list[bytes]:
    """Read the SHA-256 digests of PCR2 from a binary log, with none of our parsers."""
    sizes = {4: 20, 11: 32, 12: 48, 13: 64}
    at = 32 + unpack_from("<I", log, 28)[0]
    found = []
    while at < len(log):
        pcr, kind, count = unpack_from("<III", log, at)
        at += 12
        digests = {}
        for _ in range(count):
            (algorithm,) = unpack_from("<H", log, at)
            digests[algorithm] = log[at + 2 : at + 2 + sizes[algorithm]]
            at += 2 + sizes[algorithm]
        at += 4 + unpack_from("<I", log, at)[0]
        if pcr == 2 and kind != 3:
            found.append(digests[11])
    return found


def test_finds_the_uki_in_a_real_machines_log(shared_data: Callable[[str], Path]) -> None:
    digests = pcr2_of(shared_data("attestation/upstream/tpm/tpm_eventlog.bin").read_bytes())
    config = parse_vm_config(shared_data("attestation/synthetic/gcp/vm_config.json").read_text())
    boot = check_gcp_image(config, digests)
    assert boot.uki_auth.hex() == "9ab14a46f858662a89adc102d2a57a13f52f75c1769d65a4c34edbbfc8855f0f"
    assert [SEPARATOR, boot.before, boot.uki_auth, boot.after] == digests


@pytest.mark.parametrize(
    ("digests", "boot"),
    [
        ([SEPARATOR, GPT, UKI, KERNEL], GcpBoot(UKI, GPT, KERNEL)),
        ([SEPARATOR, GPT, UKI], GcpBoot(UKI, GPT, None)),
        ([SEPARATOR, UKI, KERNEL], GcpBoot(UKI, None, KERNEL)),
        ([SEPARATOR, UKI], GcpBoot(UKI, None, None)),
    ],
)
def test_n22_finds_the_uki_by_identity_at_any_honest_place(digests: list[bytes], boot: GcpBoot) -> None:
    assert check_gcp_image(GCP, digests) == boot


@pytest.mark.parametrize(
    ("digests", "code"),
    [
        ([], "gcp.uki.missing"),
        ([SEPARATOR, GPT, OTHER, KERNEL], "gcp.uki.missing"),
        ([SEPARATOR, GPT, UKI, UKI], "gcp.uki.repeated"),
        ([SEPARATOR, UKI, UKI, KERNEL], "gcp.uki.repeated"),
        ([UKI], "gcp.uki.separator"),
        ([GPT, UKI, KERNEL], "gcp.uki.separator"),
        ([OTHER, SEPARATOR, UKI], "gcp.uki.separator"),
        ([UKI, SEPARATOR, GPT], "gcp.uki.separator"),
        ([SEPARATOR, SEPARATOR, UKI], "gcp.uki.separator"),
        ([SEPARATOR, GPT, OTHER, UKI], "gcp.uki.preceded"),
        ([SEPARATOR, OTHER, GPT, UKI, KERNEL], "gcp.uki.preceded"),
        ([SEPARATOR, GPT, UKI, KERNEL, OTHER], "gcp.uki.followed"),
    ],
)
def test_n22_refuses_any_other_order_of_pcr2_events(digests: list[bytes], code: str) -> None:
    with refuses(code):
        check_gcp_image(GCP, digests)


def test_refuses_a_gcp_config_without_its_document() -> None:
    with refuses("measurement.missing"):
        check_gcp_image(VmConfig(), [SEPARATOR, GPT, UKI])


def test_n54_refuses_a_gcp_document_of_another_image() -> None:
    text = config_text("gcp", {"version": 1, "uki_auth": UKI}).replace(GCP.os_image_hash.hex(), "00" * 32)
    with refuses("measurement.os_image_hash"):
        check_gcp_image(parse_vm_config(text), [SEPARATOR, GPT, UKI])


def test_accepts_the_registers_that_the_aws_image_makes() -> None:
    digest = "834faa5f74ee98225fb6447e1faac0cf68edb5e3ec33e03cbcab9dc1030fdbb5"
    assert check_aws_image(AWS, {**PCRS, 0: bytes(48)}).hex() == digest


@pytest.mark.parametrize("index", [4, 7, 12])
def test_refuses_an_aws_register_that_the_image_does_not_make(index: int) -> None:
    with refuses("aws.image.boot_pcr_digest"):
        check_aws_image(AWS, {**PCRS, index: bytes(48)})


@pytest.mark.parametrize("index", [4, 7, 12])
def test_n30_refuses_a_missing_or_short_aws_register(index: int) -> None:
    for value in ({}, {index: bytes(32)}):
        pcrs = {key: pcr for key, pcr in PCRS.items() if key != index} | value
        with refuses("aws.image.pcr"):
            aws_boot_pcr_digest(pcrs)


def test_refuses_an_aws_config_without_its_document() -> None:
    with refuses("measurement.missing"):
        check_aws_image(VmConfig(), PCRS)

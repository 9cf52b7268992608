import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.measurement.documents import gcp_measurement_document
from shared.measurement.vm_config import (
    MAX_VM_CONFIG_BYTES,
    VmConfig,
    attestation_variant,
    encode_vm_config,
    parse_vm_config,
)
from tests.shared.measurement.made import config_text, lite_text
from tests.shared.refusal import refuses

IMAGE = "ab" * 32
FULL = {
    "spec_version": 1,
    "os_image_hash": IMAGE,
    "cpu_count": 16,
    "memory_size": 1 << 36,
    "qemu_single_pass_add_pages": False,
    "pic": True,
    "qemu_version": "9.2.1",
    "pci_hole64_size": 1 << 44,
    "hugepages": True,
    "num_gpus": 1,
    "num_nvswitches": 2,
    "num_nics": 3,
    "num_verity_volumes": 4,
    "swtpm": True,
    "hotplug_off": True,
    "image": "dstack-0.6.0",
    "host_share_mode": "9p",
    "ovmf_variant": "pre202505",
    "tdx_attestation_variant": "lite",
    "mr_config": '{"version":3}',
}


@pytest.mark.parametrize("text", ["", "{}", '{"vm_config":""}', '{"vm_config":"{}"}'])
def test_an_empty_config_has_every_default(text: str) -> None:
    assert parse_vm_config(text) == VmConfig()


def test_the_defaults_are_upstreams() -> None:
    numbers = (
        "cpu_count",
        "memory_size",
        "pci_hole64_size",
        "num_gpus",
        "num_nvswitches",
        "num_verity_volumes",
    )
    flags = ("hugepages", "swtpm", "hotplug_off")
    named = {"num_nics": 1, "os_image_hash": b"", "host_share_mode": "", "tdx_attestation_variant": "legacy"}
    defaults = {**dict.fromkeys(numbers, 0), **dict.fromkeys(flags, False), **named}
    config = VmConfig()
    assert {name: getattr(config, name) for name in defaults} == defaults
    assert all(getattr(config, name) is None for name in set(VmConfig.__struct_fields__) - defaults.keys())


def test_reads_every_field_and_writes_it_back() -> None:
    config = parse_vm_config(json.dumps(FULL))
    assert config.os_image_hash == bytes.fromhex(IMAGE)
    assert config.mr_config == b'{"version":3}'
    for name in FULL.keys() - {"os_image_hash", "mr_config"}:
        assert getattr(config, name) == FULL[name]
    assert json.loads(encode_vm_config(config)) == FULL


def test_reads_the_measurement_document_and_writes_it_back() -> None:
    uki = bytes(range(32))
    config = parse_vm_config(config_text("gcp", {"version": 1, "uki_auth": uki}, spec_version=2))
    document = config.gcp_measurement
    assert document is not None
    assert (document.checksum_file, document.measurement, config.os_image_hash) == gcp_measurement_document(
        uki
    )
    assert parse_vm_config(encode_vm_config(config)) == config


def test_reads_the_vm_config_inside_a_sys_config_and_nothing_beside_it() -> None:
    text = json.dumps({"kms_urls": ["https://kms"], "os_image_hash": 7, "vm_config": json.dumps(FULL)})
    assert parse_vm_config(text) == parse_vm_config(json.dumps(FULL))


def test_unwraps_a_sys_config_only_once() -> None:
    with refuses("vm_config.unknown"):
        parse_vm_config(json.dumps({"vm_config": json.dumps({"vm_config": "{}"})}))


def test_null_stands_for_an_absent_optional() -> None:
    names = ("qemu_version", "pic", "image", "ovmf_variant", "tdx_measurement", "mr_config", "spec_version")
    assert parse_vm_config(json.dumps(dict.fromkeys(names))) == VmConfig()


def test_an_empty_image_hash_is_none_at_all() -> None:
    assert parse_vm_config('{"os_image_hash":""}').os_image_hash == b""


def test_a_tdx_measurement_does_not_switch_a_legacy_config_to_the_lite_check() -> None:
    text = lite_text(tdx_attestation_variant="legacy")
    assert attestation_variant(parse_vm_config(text)) == "legacy"
    assert attestation_variant(parse_vm_config(lite_text())) == "lite"


@pytest.mark.parametrize(
    "document",
    [
        {"os_image_hashes": IMAGE},
        {"vm_config": {}},
        {"kernel_header_normalized": True},
        {"gcp_measurement": {"checksum_file": "", "measurement": "", "note": ""}},
        {"é": 1},
    ],
)
def test_n05_refuses_an_unknown_field(document: Any) -> None:
    with refuses("vm_config.unknown"):
        parse_vm_config(json.dumps(document))


@pytest.mark.parametrize(
    "field",
    [
        {"cpu_count": "2"},
        {"cpu_count": True},
        {"cpu_count": 2.0},
        {"cpu_count": -1},
        {"cpu_count": 1 << 32},
        {"cpu_count": None},
        {"memory_size": 1 << 63},
        {"hugepages": 1},
        {"qemu_version": 9},
        {"qemu_version": "9.2.1\n"},
        {"qemu_version": "\ud800"},
        {"image": "a\0"},
        {"image": "a" * 129},
        {"host_share_mode": "ä"},
        {"ovmf_variant": "post202505"},
        {"tdx_attestation_variant": "\ud800" * 999},
        {"gcp_measurement": "text"},
        {"gcp_measurement": {"measurement": ""}},
        {"aws_measurement": {"checksum_file": 1, "measurement": ""}},
        {"mr_config": {}},
        {"mr_config": "\ud800"},
    ],
)
def test_refuses_a_value_that_a_field_cannot_hold(field: Any) -> None:
    with refuses("vm_config.field"):
        parse_vm_config(json.dumps(field))


@pytest.mark.parametrize("value", [7, None, "0x" + "ab" * 31, "ab" * 31, "ab" * 33, " " * 64, "ab" * 20])
def test_refuses_an_image_hash_that_is_not_bare_hex_of_32_bytes(value: Any) -> None:
    with refuses("vm_config.os_image_hash"):
        parse_vm_config(json.dumps({"os_image_hash": value}))


def test_refuses_a_document_that_is_not_base64() -> None:
    with refuses("measurement.base64"):
        parse_vm_config('{"tdx_measurement":{"checksum_file":"!","measurement":""}}')


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[]", "vm_config.type"),
        ("null", "vm_config.type"),
        ('{"vm_config":"[]"}', "vm_config.type"),
        ("{", "vm_config.syntax"),
        ("{} {}", "vm_config.syntax"),
        ('{"cpu_count":NaN}', "vm_config.syntax"),
        ('"\ud800"', "vm_config.syntax"),
        (r'{"\ud800":1}', "vm_config.syntax"),
        ('{"cpu_count":' + "9" * 5000 + "}", "vm_config.syntax"),
        ('{"cpu_count":1,"cpu_count":1}', "vm_config.duplicate_key"),
        ('{"vm_config":"{}","vm_config":"{}"}', "vm_config.duplicate_key"),
        ('{"a":' * 9 + "1" + "}" * 9, "vm_config.depth"),
        ("[" * 60_000, "vm_config.depth"),
        ('"' + "a" * MAX_VM_CONFIG_BYTES + '"', "vm_config.size"),
    ],
)
def test_refuses_text_that_is_no_config(text: str, code: str) -> None:
    with refuses(code):
        parse_vm_config(text)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("measurement/tdx-lite-getquote.json", "vm_config"),
        ("measurement/quote-report.json", "vm_config"),
        ("guest-agent/sys-config.json", None),
        ("guest-agent/attestation_config.json", None),
        ("attestation/synthetic/gcp/vm_config.json", None),
    ],
)
def test_reads_every_fixtures_config(
    shared_data: Callable[[str], Path], name: str, field: str | None
) -> None:
    text = shared_data(name).read_text()
    config = parse_vm_config(json.loads(text)[field] if field else text)
    assert len(config.os_image_hash) == 32
    assert parse_vm_config(encode_vm_config(config)) == config

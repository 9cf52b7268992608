"""A simulated Google Cloud boot measures what verifiers expect of a real one (spec attestation 5.3)."""

import hashlib
import os
from pathlib import Path

import pytest

from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.tcg_log import SHA384, encode_tcg_log
from shared.attestation.event_log import replay_registers
from shared.attestation.policy import GCE_FIRMWARE_V2_TDX
from shared.attestation.tcg_log import TcgRecord, ccel_events, parse_tcg_log, replay_pcrs, tpm_events
from shared.errors import ConfigError
from shared.measurement.images import check_gcp_image
from shared.measurement.vm_config import parse_vm_config


@pytest.fixture
def image(tmp_path: Path) -> Path:
    directory = tmp_path / "image"
    directory.mkdir()
    (directory / "kernel").write_bytes(b"kernel")
    return directory


def test_the_firmware_is_the_one_that_the_default_policy_lists(image: Path) -> None:
    assert GcpBoot.of(image).pcr(0) == GCE_FIRMWARE_V2_TDX


def test_the_logs_replay_to_the_registers(image: Path) -> None:
    boot = GcpBoot.of(image)
    assert replay_pcrs(tpm_events(boot.tpm_log()), (0, 2)) == {0: boot.pcr(0), 2: boot.pcr(2)}
    assert replay_registers(ccel_events(boot.ccel())) == dict(enumerate(boot.rtmrs[:3]))
    assert boot.rtmrs[3] == bytes(48)


def test_its_own_description_names_what_booted(image: Path) -> None:
    boot = GcpBoot.of(image)
    config = parse_vm_config(boot.vm_config)
    assert config.os_image_hash == boot.os_image_hash
    events = [event.digest for event in boot.pcr_events if event.register == 2]
    found = check_gcp_image(config, events)
    assert found.uki_auth == events[2]
    tables = [e.event_payload for e in ccel_events(boot.ccel()) if e.event_payload.startswith(b"EFI PART")]
    assert [hashlib.sha256(table).digest() for table in tables] == [found.before]


def test_a_changed_byte_is_another_image(image: Path) -> None:
    before = GcpBoot.of(image)
    assert GcpBoot.of(image) == before
    (image / "kernel").write_bytes(b"Kernel")
    after = GcpBoot.of(image)
    assert after.os_image_hash != before.os_image_hash
    assert after.pcr(2) != before.pcr(2)
    assert after.pcr(0) == before.pcr(0)


def test_refuses_what_is_no_directory_of_files(image: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        GcpBoot.of(image / "kernel")
    assert refusal.value.code == "simulator.image.missing"
    os.mkfifo(image / "pipe")
    with pytest.raises(ConfigError) as refusal:
        GcpBoot.of(image)
    assert refusal.value.code == "simulator.image.entry"


def test_a_written_log_is_read_back() -> None:
    records = (TcgRecord(1, 4, {SHA384: bytes(48)}, b"a"), TcgRecord(2, 0x80000003, {SHA384: bytes(48)}, b""))
    assert parse_tcg_log(encode_tcg_log(records, kind="ccel", algorithm=SHA384), kind="ccel") == records

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
from shared.measurement.boot_disk import measure_boot_disk
from shared.measurement.documents import MeasurementDocument, gcp_measurement_document
from shared.measurement.images import check_gcp_image
from shared.measurement.vm_config import parse_vm_config
from tests.fakes.os_images import write_whole_os_image
from tests.functions.plan.projects import write_os_image
from tests.shared.refusal import refuses


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


def _log_digests(boot: GcpBoot) -> list[bytes]:
    return [event.digest for event in boot.pcr_events if event.register == 2]


def test_a_boot_disk_is_measured_as_firmware_does(tmp_path: Path) -> None:
    """What PCR2 has then is what the measurement of the same disk foretells, event by event."""
    image_hash = write_whole_os_image(tmp_path)
    boot = GcpBoot.of(tmp_path / "dstack-0.6.0")
    with (tmp_path / "dstack-0.6.0" / "disk.raw").open("rb") as file:
        measured = measure_boot_disk(file)
    assert boot.os_image_hash == image_hash
    assert boot.pcr(2) == measured.pcr2
    assert _log_digests(boot) == [event.digest for event in measured.events]
    assert check_gcp_image(parse_vm_config(boot.vm_config), _log_digests(boot)).uki_auth == measured.uki_auth
    assert replay_pcrs(tpm_events(boot.tpm_log()), (2,)) == {2: measured.pcr2}


def test_without_its_disk_an_image_boots_as_its_document_says(tmp_path: Path) -> None:
    image_hash = write_os_image(tmp_path)
    boot = GcpBoot.of(tmp_path / "dstack-0.6.0")
    assert boot.os_image_hash == image_hash
    assert check_gcp_image(parse_vm_config(boot.vm_config), _log_digests(boot)).uki_auth == b"\x5a" * 32
    assert GcpBoot.of_document(boot.document) == boot


def test_the_disk_counts_and_not_what_is_said_of_it(tmp_path: Path) -> None:
    write_whole_os_image(tmp_path)
    boot = GcpBoot.of(tmp_path / "dstack-0.6.0")
    sums, measurement, _ = gcp_measurement_document(b"\x5a" * 32)
    with (tmp_path / "dstack-0.6.0" / "disk.raw").open("rb") as file:
        other = GcpBoot.of_disk(file, MeasurementDocument(sums, measurement))
    assert (other.pcr_events, other.rtmr_events) == (boot.pcr_events, boot.rtmr_events)
    with refuses("gcp.uki.missing"):
        check_gcp_image(parse_vm_config(other.vm_config), _log_digests(other))


def test_refuses_an_image_whose_files_do_not_belong_together(tmp_path: Path) -> None:
    write_os_image(tmp_path)
    directory = tmp_path / "dstack-0.6.0"
    document = (directory / "measurement.gcp.cbor").read_bytes()
    (directory / "measurement.gcp.cbor").write_bytes(document[:-1] + b"\0")
    with refuses("measurement.checksum"):
        GcpBoot.of(directory)
    (directory / "measurement.gcp.cbor").write_bytes(bytes(5000))
    with refuses("simulator.image.size", ConfigError):
        GcpBoot.of(directory)
    (directory / "measurement.gcp.cbor").unlink()
    with refuses("simulator.image.missing", ConfigError):
        GcpBoot.of(directory)


def test_a_written_log_is_read_back() -> None:
    records = (TcgRecord(1, 4, {SHA384: bytes(48)}, b"a"), TcgRecord(2, 0x80000003, {SHA384: bytes(48)}, b""))
    assert parse_tcg_log(encode_tcg_log(records, kind="ccel", algorithm=SHA384), kind="ccel") == records

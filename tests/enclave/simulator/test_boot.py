from enclave.devices.tpm import Tpm
from enclave.simulator.boot import boot_gcp, boot_tdx
from enclave.simulator.software_tpm import SoftwareTpm
from shared.attestation.event_log import replay_registers
from shared.attestation.tcg_log import ccel_events, replay_pcrs, tpm_events

UKI = b"\x9a" * 32


def test_a_google_boot_gives_googles_firmware_register() -> None:
    """The value that verifiers know, rebuilt from the three strings."""
    tpm = Tpm(SoftwareTpm())
    boot_gcp(tpm, uki_digest=UKI)
    assert tpm.pcr_read("sha256", [0])[0].hex() == (
        "0cca9ec161b09288802e5a112255d21340ed5b797f5fe29cecccfd8f67b9f802"
    )


def test_a_google_boots_log_replays_to_its_registers() -> None:
    tpm = Tpm(SoftwareTpm())
    events = tpm_events(boot_gcp(tpm, uki_digest=UKI))
    assert replay_pcrs(events, (0, 2)) == tpm.pcr_read("sha256", [0, 2])
    assert [event.digest for event in events if event.pcr_index == 2][2] == UKI


def test_a_tdx_boots_log_replays_to_its_registers() -> None:
    log, registers = boot_tdx()
    assert replay_registers(ccel_events(log)) == dict(enumerate(registers[:3]))
    assert registers[3] == bytes(48)

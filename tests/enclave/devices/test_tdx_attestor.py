"""Evidence of simulated TDX guests, on Google Cloud with both TPMs, verified as a verifier does it."""

import hashlib
import threading
from pathlib import Path

import pytest

from enclave.devices.gcp_ak import ECC_AK, RSA_AK, AkIndexes, GcpVtpm
from enclave.devices.gcp_attestor import GcpTdxAttestor
from enclave.devices.runtime_events import Pcr14, Rtmr3, RuntimeEventLog
from enclave.devices.tdx_attestor import TdxAttestor
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import read_boot_log
from enclave.simulator.ak_authority import SimulatedAkAuthority
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.gcp_vtpm import provision_ak
from enclave.simulator.software_tpm import SoftwareTpm
from enclave.simulator.tdx import SimulatedIntel, SimulatedTdx
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import Attestation, GcpTdxQuote, TdxQuote, decode_envelope
from shared.attestation.event_log import check_event_lists, replay_registers
from shared.attestation.tcg_log import MAX_LOG
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.errors import DstackError, InvalidEvidence, ProtocolError, StorageError, UnavailableError

NOW = 1_900_000_000
REPORT_DATA = bytes(range(64))
VM_CONFIG = '{"os_image_hash":"' + "ab" * 32 + '"}'
EVENTS = (
    ("system-preparing", b""),
    ("app-id", b"\x11" * 20),
    ("compose-hash", b"\x22" * 32),
    ("instance-id", b"\x33" * 20),
    ("boot-mr-done", b""),
    ("key-provider", b'{"name":"none","id":""}'),
    ("storage-fs", b"zfs"),
    ("system-ready", b""),
)
INTEL = SimulatedIntel.create()
GOOGLE = SimulatedAkAuthority.create()
ANCHORS = (
    TrustAnchors.production()
    .with_extra(INTEL.root_pem, signer="tdx")
    .with_extra(GOOGLE.root_pem, signer="gcp_tpm")
)


def booted(image: Path, content: bytes) -> GcpBoot:
    """Return the boot of an image of one file."""
    image.mkdir(exist_ok=True)
    (image / "kernel").write_bytes(content)
    return GcpBoot.of(image)


class Guest:
    """A simulated TDX guest, with a vTPM or without."""

    def __init__(self, directory: Path, tpm: Tpm | None = None, *, version: int = 1) -> None:
        boot = booted(directory.parent / "image", b"kernel")
        self.tdx = SimulatedTdx(INTEL, rtmrs=boot.rtmrs, event_log=boot.ccel())
        self.tpm = tpm
        registers = [Rtmr3(self.tdx)] if tpm is None else [Rtmr3(self.tdx), Pcr14(tpm, "sha256")]
        self.log = RuntimeEventLog(registers, directory)
        self.log.set_version(2 if version == 2 else 1)
        self.boot_log = boot.tpm_log()
        if tpm is not None:
            for event in boot.pcr_events:
                tpm.pcr_extend(event.register, {"sha256": event.digest})

    def boot(self) -> "Guest":
        for name, payload in EVENTS:
            self.log.emit(name, payload)
        return self

    @property
    def attestor(self) -> TdxAttestor | GcpTdxAttestor:
        if self.tpm is None:
            return TdxAttestor(self.tdx, self.log, lambda: VM_CONFIG)
        return GcpTdxAttestor(
            self.tdx,
            GcpVtpm(self.tpm),
            self.log,
            vm_config=lambda: VM_CONFIG,
            boot_log=lambda: self.boot_log,
        )

    def attest(self) -> Attestation:
        return decode_envelope(self.attestor.attest(REPORT_DATA))


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path / "log").boot()


@pytest.fixture(params=[ECC_AK, RSA_AK], ids=["ecc", "rsa"])
def google_guest(tmp_path: Path, tpm: Tpm, request: pytest.FixtureRequest) -> Guest:
    indexes: AkIndexes = request.param
    provision_ak(tpm, GOOGLE.issue_ak, indexes=indexes)
    return Guest(tmp_path / "log", tpm).boot()


def endorsements() -> Endorsements:
    google = GOOGLE.endorsements(NOW)
    return Endorsements((INTEL.collateral(NOW),), google.certificates, google.crls)


def refused(guest: Guest) -> DstackError:
    with pytest.raises(DstackError) as caught:
        guest.attest()
    return caught.value


# --- TDX ---


def test_tdx_evidence_verifies(guest: Guest) -> None:
    verified = verify_attestation(
        guest.attest(), now=NOW, anchors=ANCHORS, report_data=REPORT_DATA, endorsements=endorsements()
    )
    assert verified.attestation.tee_variant == "dstack-tdx"


def test_the_envelope_holds_quote_logs_and_config(guest: Guest) -> None:
    attestation = guest.attest()
    assert isinstance(attestation.quote, TdxQuote)
    assert (attestation.report_data, attestation.config) == (REPORT_DATA, VM_CONFIG)
    assert [(event.event, event.payload) for event in attestation.runtime_events] == list(EVENTS)
    check_event_lists(attestation.quote.event_log, attestation.runtime_events)
    assert replay_registers(attestation.quote.event_log) == dict(enumerate(guest.tdx.rtmrs[:3]))


def test_version_1_events_travel_in_the_first_envelope(guest: Guest) -> None:
    assert guest.attestor.attest(REPORT_DATA)[0] == 0


def test_version_2_events_travel_in_the_second_envelope(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "log", version=2).boot()
    assert guest.attestor.attest(REPORT_DATA)[0] == 0x83
    attestation = guest.attest()
    assert isinstance(attestation.quote, TdxQuote)
    check_event_lists(attestation.quote.event_log, attestation.runtime_events)
    verify_attestation(
        attestation, now=NOW, anchors=ANCHORS, report_data=REPORT_DATA, endorsements=endorsements()
    )


def test_a_guest_that_reported_nothing_yet_can_attest(tmp_path: Path) -> None:
    assert Guest(tmp_path / "log").attest().runtime_events == ()


def test_refuses_to_attest_when_the_log_lost_an_event(guest: Guest) -> None:
    guest.tdx.extend_rtmr(3, bytes(48))
    caught = refused(guest)
    assert (caught.code, type(caught)) == ("tdx.rtmr3", InvalidEvidence)


def test_refuses_a_quote_over_something_else(guest: Guest) -> None:
    answer = guest.tdx.quote
    guest.tdx.quote = lambda _report_data: answer(bytes(64))  # type: ignore[method-assign] - a lying device
    caught = refused(guest)
    assert (caught.code, type(caught)) == ("tdx_device.quote.report_data", ProtocolError)


def test_refuses_a_torn_log(guest: Guest, tmp_path: Path) -> None:
    with (tmp_path / "log" / "runtime_events.log").open("ab") as file:
        file.write(b"{")
    caught = refused(guest)
    assert (caught.code, type(caught)) == ("runtime_events.torn", StorageError)


def test_an_event_that_comes_during_a_quote_waits(guest: Guest) -> None:
    """Quote and log belong together even while others emit."""
    answer = guest.tdx.quote
    thread = threading.Thread(target=lambda: guest.log.emit("late", b""))

    def quote(report_data: bytes) -> bytes:
        thread.start()
        return answer(report_data)

    guest.tdx.quote = quote  # type: ignore[method-assign] - a slow device
    assert "late" not in [event.event for event in guest.attest().runtime_events]
    thread.join(10)
    guest.tdx.quote = answer  # type: ignore[method-assign] - as before
    assert guest.attest().runtime_events[-1].event == "late"


# --- Google Cloud ---


def test_google_evidence_verifies(google_guest: Guest) -> None:
    verified = verify_attestation(
        google_guest.attest(),
        now=NOW,
        anchors=ANCHORS,
        report_data=REPORT_DATA,
        endorsements=endorsements(),
    )
    assert verified.attestation.tee_variant == "dstack-gcp-tdx"


def test_the_tpm_half_names_the_whole_quote(google_guest: Guest) -> None:
    attestation = google_guest.attest()
    assert isinstance(attestation.quote, GcpTdxQuote)
    assert hashlib.sha256(attestation.quote.tdx.quote).digest() in attestation.quote.tpm.message
    assert [value.index for value in attestation.quote.tpm.pcr_values] == [0, 2, 14]
    assert attestation.quote.tpm.platform == "gcp"
    assert len(attestation.quote.tpm.event_log) == 7


@pytest.fixture
def provisioned(tmp_path: Path) -> Guest:
    tpm = Tpm(SoftwareTpm())
    provision_ak(tpm, GOOGLE.issue_ak)
    return Guest(tmp_path / "log", tpm).boot()


def test_refuses_to_attest_when_another_writer_extended_pcr14(provisioned: Guest) -> None:
    assert provisioned.tpm is not None
    provisioned.tpm.pcr_extend(14, {"sha256": bytes(32)})
    assert refused(provisioned).code == "gcp.pcr14"


def test_refuses_to_attest_with_another_boots_log(provisioned: Guest, tmp_path: Path) -> None:
    provisioned.boot_log = booted(tmp_path / "image", b"another kernel").tpm_log()
    assert refused(provisioned).code == "tpm.log.mismatch"


def test_refuses_to_attest_under_another_keys_certificate(provisioned: Guest) -> None:
    other = Tpm(SoftwareTpm())
    certificate = provision_ak(other, GOOGLE.issue_ak)
    assert provisioned.tpm is not None
    provision_ak(provisioned.tpm, lambda _key: certificate)
    assert refused(provisioned).code == "tpm.signature.invalid"


def test_reads_the_tpms_boot_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"content")
    assert read_boot_log(tmp_path / "log") == b"content"


def test_reports_a_tpm_without_a_boot_log(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        read_boot_log(tmp_path / "absent")
    assert caught.value.code == "tpm_device.event_log"


def test_refuses_an_oversize_boot_log(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.truncate(MAX_LOG + 1)
    with pytest.raises(ProtocolError) as caught:
        read_boot_log(tmp_path / "log")
    assert caught.value.code == "tpm_device.event_log.size"

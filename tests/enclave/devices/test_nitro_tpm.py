"""Evidence of EC2 instances, through a simulated NitroTPM's vendor command."""

import hashlib
from pathlib import Path

import cbor2
import pytest

from enclave.devices import tpm_wire as wire
from enclave.devices.nitro_tpm import BUFFER_SIZE, CC_NSM_REQUEST, NitroTpmAttestor, NitroTpmModule
from enclave.devices.nsm import Nsm
from enclave.devices.runtime_events import Pcr14, RuntimeEventLog
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import TpmDevice
from enclave.devices.tpm_nv import ATTR_OWNER_READ, ATTR_OWNER_WRITE, NvStorage
from enclave.devices.tpm_wire import TpmRefused
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nitro_tpm import SimulatedNitroTpm
from enclave.simulator.software_nitro_tpm import SoftwareNitroTpm
from shared.attestation.envelope import Attestation, NitroTpmQuote, decode_envelope
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.errors import DstackError, InvalidEvidence, ProtocolError, UnavailableError
from shared.measurement.documents import MeasurementDocument
from shared.measurement.images import aws_boot_pcr_digest
from shared.measurement.vm_config import VmConfig, encode_vm_config

NOW = 1_900_000_000
REPORT_DATA = bytes(range(64))
AUTHORITY = SimulatedAuthority.create()
ANCHORS = TrustAnchors.production().with_extra(AUTHORITY.root_pem)


def vm_config(pcrs: dict[int, bytes]) -> str:
    measurement = cbor2.dumps({"boot_pcr_digest": aws_boot_pcr_digest(pcrs)})
    line = f"{hashlib.sha256(measurement).hexdigest()}  measurement.aws.cbor\n".encode()
    document = MeasurementDocument(checksum_file=line, measurement=measurement)
    return encode_vm_config(VmConfig(os_image_hash=hashlib.sha256(line).digest(), aws_measurement=document))


class Instance:
    """A simulated EC2 instance."""

    def __init__(self, directory: Path) -> None:
        self.simulated = SimulatedNitroTpm(AUTHORITY, clock=lambda: NOW)
        self.device = SoftwareNitroTpm(self.simulated)
        self.tpm = Tpm(self.device)
        self.log = RuntimeEventLog([Pcr14(self.tpm, "sha384")], directory)
        self.log.set_version(1)
        self.config = vm_config(self.simulated.pcrs)
        for name, payload in (("app-id", b"\x11" * 20), ("system-ready", b"")):
            self.log.emit(name, payload)

    def attest(self, device: TpmDevice | None = None) -> Attestation:
        module = Nsm(NitroTpmModule(Tpm(device or self.device)))
        attestor = NitroTpmAttestor(module, self.log, lambda: self.config)
        return decode_envelope(attestor.attest(REPORT_DATA))

    def refused(self, device: TpmDevice | None = None) -> DstackError:
        with pytest.raises(DstackError) as caught:
            self.attest(device)
        return caught.value


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path / "log")


def test_nitro_tpm_evidence_verifies(instance: Instance) -> None:
    verified = verify_attestation(instance.attest(), now=NOW, anchors=ANCHORS, report_data=REPORT_DATA)
    assert verified.attestation.tee_variant == "dstack-aws-nitro-tpm"


def test_the_envelope_holds_document_events_and_config(instance: Instance) -> None:
    attestation = instance.attest()
    assert isinstance(attestation.quote, NitroTpmQuote)
    assert [event.event for event in attestation.runtime_events] == ["app-id", "system-ready"]
    assert attestation.config == instance.config


def test_leaves_nothing_in_the_tpm(instance: Instance) -> None:
    for _ in range(4):
        instance.attest()
    assert instance.device._indexes == {}
    assert instance.device._objects == {}
    assert instance.device._sessions == {}


def test_refuses_to_attest_when_the_log_lost_an_event(instance: Instance) -> None:
    instance.tpm.pcr_extend(14, {"sha384": bytes(48)})
    caught = instance.refused()
    assert (caught.code, type(caught)) == ("nitro_tpm.pcr14", InvalidEvidence)


def test_refuses_to_attest_for_another_image(instance: Instance) -> None:
    instance.config = vm_config({index: bytes(48) for index in range(24)})
    assert instance.refused().code == "aws.image.boot_pcr_digest"


def test_refuses_to_attest_without_a_measured_image(instance: Instance) -> None:
    instance.config = "{}"
    assert instance.refused().code == "measurement.missing"


def test_refuses_a_document_over_something_else(instance: Instance) -> None:
    attestation = instance.simulated.attestation
    instance.simulated.attestation = lambda *_: attestation(bytes(64))  # type: ignore[method-assign] - it lies
    assert instance.refused().code == "nitro_tpm.report_data"


# --- the vendor command ---


class Meddling:
    """A TPM of which one command's answer is replaced."""

    def __init__(self, device: TpmDevice, code: int, answer: bytes, *, nth: int = 1) -> None:
        self.device = device
        self.code = code
        self.answer = answer
        self.nth = nth

    def transact(self, command: bytes) -> bytes:
        response = self.device.transact(command)
        if command[6:10] == wire.u32(self.code):
            self.nth -= 1
            if self.nth == 0:
                return self.answer
        return response


def refusal(rc: int) -> bytes:
    return wire.u16(0x8001) + wire.u32(10) + wire.u32(rc)


def test_cleans_up_when_the_vendor_command_fails(instance: Instance) -> None:
    caught = instance.refused(Meddling(instance.device, CC_NSM_REQUEST, refusal(0x98E)))
    assert isinstance(caught, TpmRefused)
    assert caught.rc == 0x98E
    assert instance.device._indexes == {}
    assert instance.device._objects == {}
    assert instance.device._sessions == {}


def test_shows_the_first_error_when_cleaning_up_fails_too(instance: Instance) -> None:
    meddling = Meddling(instance.device, wire.CC_NV_UNDEFINE_SPACE, refusal(0x28B))
    assert instance.refused(meddling).code == "tpm_device.refused"
    both = Meddling(
        Meddling(instance.device, CC_NSM_REQUEST, refusal(0x98E)), wire.CC_NV_UNDEFINE_SPACE, refusal(0x28B)
    )
    caught = instance.refused(both)
    assert isinstance(caught, TpmRefused)
    assert caught.rc == 0x98E


def test_reports_an_index_that_vanished(instance: Instance) -> None:
    caught = instance.refused(Meddling(instance.device, wire.CC_NV_READ_PUBLIC, refusal(0x18B), nth=2))
    assert (caught.code, type(caught)) == ("tpm_device.nv.absent", UnavailableError)


def test_gives_up_when_no_index_is_free(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclave.devices.nitro_tpm._INDEX_COUNT", 1)
    NvStorage(instance.tpm).define(0x01800000, 8, ATTR_OWNER_READ | ATTR_OWNER_WRITE)
    caught = instance.refused()
    assert (caught.code, type(caught)) == ("tpm_device.nv.full", UnavailableError)


def test_refuses_an_answer_that_is_no_cbor(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance.device, "_respond", lambda _buffer: b"\xff")
    caught = instance.refused()
    assert (caught.code, type(caught)) == ("nsm.response", ProtocolError)


def test_keeps_the_modules_own_refusals(instance: Instance) -> None:
    with pytest.raises(ProtocolError) as caught:
        Nsm(NitroTpmModule(instance.tpm)).describe_pcr(4)
    assert caught.value.code == "nsm.invalid_operation"


def test_refuses_an_oversize_request_before_the_tpm(instance: Instance) -> None:
    with pytest.raises(ProtocolError) as caught:
        NitroTpmModule(instance.tpm).transact(bytes(BUFFER_SIZE + 1))
    assert caught.value.code == "nsm.request.size"

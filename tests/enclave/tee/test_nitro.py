"""The app id in PCR16, bound once and for the enclave's life."""

import pytest

from enclave.devices.nsm import Nsm
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.attestation.app_id_register import APP_ID_PCR, app_id_register
from shared.attestation.identity import is_app_id_verified
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.errors import ProtocolError
from tests.enclave.conftest import APP_ID, NOW, registers
from tests.shared.refusal import refuses

OTHER = bytes([9]) * 20


@pytest.fixture
def device(authority: SimulatedAuthority) -> SimulatedNsm:
    return SimulatedNsm(registers(3), authority, clock=lambda: NOW)


@pytest.fixture
def tee(device: SimulatedNsm, tmp_path) -> NitroTee:
    return NitroTee(device, UnixStandIn(tmp_path, 16))


def test_n36_binding_shows_in_the_evidence(tee: NitroTee, anchors: TrustAnchors) -> None:
    unbound = tee.attestor(APP_ID).attest(bytes(64))
    tee.bind_app_id(APP_ID)
    bound = tee.attestor(APP_ID).attest(bytes(64))
    assert not is_app_id_verified(verify_attestation(unbound, now=NOW, anchors=anchors))
    assert is_app_id_verified(verify_attestation(bound, now=NOW, anchors=anchors))


def test_n36_binding_locks_the_register(tee: NitroTee, device: SimulatedNsm) -> None:
    tee.bind_app_id(APP_ID)
    with refuses("nsm.read_only_index", ProtocolError):
        Nsm(device).extend_pcr(APP_ID_PCR, b"more")
    assert Nsm(device).describe_pcr(APP_ID_PCR) == app_id_register(APP_ID)


def test_binding_the_same_app_again_changes_nothing(tee: NitroTee, device: SimulatedNsm) -> None:
    tee.bind_app_id(APP_ID)
    tee.bind_app_id(APP_ID)
    assert Nsm(device).describe_pcr(APP_ID_PCR) == app_id_register(APP_ID)


def test_n36_refuses_to_bind_another_app(tee: NitroTee) -> None:
    tee.bind_app_id(APP_ID)
    with refuses("nsm.app_id_register"):
        tee.bind_app_id(OTHER)


def test_n36_refuses_a_register_that_somebody_extended(tee: NitroTee, device: SimulatedNsm) -> None:
    Nsm(device).extend_pcr(APP_ID_PCR, b"earlier")
    with refuses("nsm.app_id_register"):
        tee.bind_app_id(APP_ID)


def test_n36_refuses_a_register_that_was_locked_empty(tee: NitroTee, device: SimulatedNsm) -> None:
    Nsm(device).lock_pcr(APP_ID_PCR)
    with refuses("nsm.app_id_register"):
        tee.bind_app_id(APP_ID)


def test_n36_refuses_a_module_that_does_not_lock(authority: SimulatedAuthority, tmp_path) -> None:
    class Unlocking(SimulatedNsm):
        def _lock_pcr(self, _: object) -> None:
            """Answer as if it had."""

    tee = NitroTee(Unlocking(registers(3), authority, clock=lambda: NOW), UnixStandIn(tmp_path, 16))
    with refuses("nsm.app_id_register"):
        tee.bind_app_id(APP_ID)

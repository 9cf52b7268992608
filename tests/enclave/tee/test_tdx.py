"""A TDX guest on a machine of one's own, as a daemon sees it."""

import hashlib
import json
import socket
from pathlib import Path

import pytest

from enclave.dstack_util.guest import booting_tee
from enclave.dstack_util.tpm_seed import tpm_seed
from enclave.simulator.__main__ import main as simulator
from enclave.tee.peers import establish_trust
from enclave.tee.tdx import RANDOM_LENGTH, TdxTee
from shared.attestation.event_log import system_events
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import TDX
from shared.compose.app_compose import compose_hash
from shared.errors import ConfigError, ExitCode, InvalidEvidence, UnavailableError
from shared.net.dialer import DirectDialer
from tests.enclave.gcp import GUEST_APP_ID, NOW, Guest
from tests.enclave.tdx import GUEST_CID, TdxMachine
from tests.shared.refusal import refuses


def _names(guest: Guest) -> list[str]:
    return [event.event for event in guest.evidence().runtime_events]


def _verified(guest: Guest, machine: TdxMachine, report_data: bytes) -> VerifiedAttestation:
    trust = establish_trust(guest.platform, machine.vendors.settings())
    trust.verifier.now = lambda: NOW
    return trust.verifier.verify(guest.attestor.attest(bytes([1]) * 64), report_data)


def test_its_evidence_verifies_under_the_simulated_root(tdx: TdxMachine) -> None:
    guest = tdx.start(key_provider="none")
    verified = _verified(guest, tdx, bytes([1]) * 64)
    document = (guest.platform.writable / "dstack/.host-shared/app-compose.json").read_bytes()
    found = system_events(guest.evidence().runtime_events)
    assert (verified.attestation.tee_variant, verified.verdict.simulated) == (TDX, True)
    assert (found.app_id, found.compose_hash) == (GUEST_APP_ID, compose_hash(document))


def test_its_evidence_is_over_what_was_asked(tdx: TdxMachine) -> None:
    with pytest.raises(InvalidEvidence):
        _verified(tdx.start(key_provider="none"), tdx, bytes([2]) * 64)


def test_refuses_to_attest_for_another_app_than_it_recorded(tdx: TdxMachine) -> None:
    tee = tdx.start().platform.tee
    assert tee.attestor(GUEST_APP_ID) is tee.attestor(None)
    with refuses("image.app_id", ConfigError):
        tee.attestor(bytes([8]) * 20)


def test_records_where_keys_came_from_once(tdx: TdxMachine) -> None:
    guest = tdx.start()
    before = _names(guest)
    guest.platform.tee.record_keys(os_image_hash=bytes(32), kms_root=b"\xab")
    after = _names(guest)
    guest.platform.tee.record_keys(os_image_hash=bytes(32), kms_root=b"\xab")
    assert before[-1] == "boot-mr-done"
    assert after == [*before, "os-image-hash", "key-provider", "storage-fs", "system-ready"]
    assert _names(guest) == after


def test_each_draw_of_randomness_is_another(tdx: TdxMachine) -> None:
    tee = tdx.start().platform.tee
    first, second = tee.random(), tee.random()
    assert len(first) == len(second) == RANDOM_LENGTH
    assert first != second


@pytest.mark.parametrize(
    ("changes", "source"),
    [({}, "system (secure_time)"), ({"secure_time": False}, "system (set by the host)")],
)
def test_time_is_the_systems_and_says_who_sets_it(
    tdx: TdxMachine, changes: dict[str, bool], source: str
) -> None:
    clock = tdx.start(**changes).platform.tee.clock(TrustAnchors.production())
    assert clock.source == source


def test_the_host_reaches_it_by_vsock_and_the_world_by_tcp(tdx: TdxMachine) -> None:
    tee = tdx.start().platform.tee
    with tee.listen_to_host(8000) as listener, tdx.host.connect(GUEST_CID, 8000, 5):  # type: ignore[union-attr]
        listener.accept()[0].close()
    with tee.listen("0.0.0.0", 8000) as listener, socket.create_connection(listener.getsockname()):
        pass
    assert isinstance(tee.dialer(), DirectDialer)


def test_a_taken_port_is_said(tdx: TdxMachine) -> None:
    tee = tdx.start().platform.tee
    with TdxTee.listen(tee, "127.0.0.1", 0) as listener, refuses("tee.listen", UnavailableError):
        TdxTee.listen(tee, "127.0.0.1", listener.getsockname()[1])


def test_it_has_no_tpm_that_could_keep_a_seed(tdx: TdxMachine) -> None:
    platform = tdx.start().platform
    assert platform.tee.sealer() is None
    with refuses("setup.tpm", ConfigError):
        tpm_seed(booting_tee(platform))


def test_its_instance_is_named_by_the_hosts_seed_alone(tdx: TdxMachine) -> None:
    assert booting_tee(tdx.start().platform).instance_binding() == b""


def test_a_real_guest_is_made_of_the_kernels_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making it touches no device: the first command opens one."""
    monkeypatch.delenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", raising=False)
    assert TdxTee.production().needs_collateral


def test_an_image_is_measured_before_it_runs(tmp_path: Path, tdx: TdxMachine, capsys) -> None:
    (image := tmp_path / "i").mkdir()
    (image / "kernel").write_bytes(b"kernel")
    assert simulator(["measure", "--platform", "tdx", "--image", str(image)]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    config = json.loads(tdx.start(key_provider="none").evidence().config)
    assert report["os_image_hash"] == config["os_image_hash"]
    assert len(report["mrtd"]) == hashlib.sha384().digest_size * 2


@pytest.mark.parametrize("missing", ["--image", "--app-compose", "--vsock", "--cid"])
def test_refuses_to_start_a_guest_of_which_something_is_missing(tmp_path: Path, capsys, missing: str) -> None:
    given = {"--image": "i", "--app-compose": "c", "--app-id": "00" * 20, "--vsock": "v", "--cid": "5"}
    options = [word for name, value in given.items() if name != missing for word in (name, value)]
    where = ["--platform", "tdx", "--writable", str(tmp_path / "w"), "--authority", str(tmp_path / "a")]
    assert simulator(["run", *where, *options, "agent"]) == ExitCode.USAGE
    assert "[simulator.arguments]" in capsys.readouterr().err

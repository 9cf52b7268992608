"""A Google Cloud guest as a daemon sees it."""

import socket

import pytest

from enclave.devices.clock import SystemClock
from enclave.devices.runtime_events import RuntimeEventLog
from enclave.tee.gcp import RANDOM_LENGTH, GcpTee
from shared.attestation.event_log import system_events
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, UnavailableError
from shared.net.dialer import DirectDialer
from tests.enclave.gcp import GUEST_APP_ID, Guest, Machines


def _names(guest: Guest) -> list[str]:
    return [event.event for event in guest.evidence().runtime_events]


def test_refuses_to_attest_for_another_app_than_it_recorded(gcp: Machines) -> None:
    tee = gcp.start().platform.tee
    assert tee.attestor(GUEST_APP_ID) is tee.attestor(None)
    with pytest.raises(ConfigError) as refusal:
        tee.attestor(bytes([8]) * 20)
    assert refusal.value.code == "image.app_id"


def test_records_where_keys_came_from_once(gcp: Machines) -> None:
    guest = gcp.start()
    before = _names(guest)
    guest.platform.tee.record_keys(os_image_hash=bytes(32), kms_root=b"\xab")
    after = _names(guest)
    guest.platform.tee.record_keys(os_image_hash=bytes(32), kms_root=b"\xab")
    assert before[-1] == "boot-mr-done"
    assert after == [*before, "os-image-hash", "key-provider", "storage-fs", "system-ready"]
    assert _names(guest) == after
    assert system_events(guest.evidence().runtime_events).key_provider == b'{"name":"kms","id":"ab"}'


def test_randomness_is_the_vtpms(gcp: Machines) -> None:
    tee = gcp.start().platform.tee
    first, second = tee.random(), tee.random()
    assert len(first) == len(second) == RANDOM_LENGTH
    assert first != second


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, "system (secure_time)"),
        ({"secure_time": True}, "system (secure_time)"),
        ({"secure_time": False}, "system (set by the host)"),
    ],
)
def test_time_is_the_systems_and_says_who_sets_it(
    gcp: Machines, changes: dict[str, bool], source: str
) -> None:
    clock = gcp.start(**changes).platform.tee.clock(TrustAnchors.production())
    assert isinstance(clock, SystemClock)
    assert clock.source == source
    later = clock.now() + 1000
    clock.raise_floor(later)
    assert clock.now() >= later


@pytest.mark.parametrize("content", [None, b'{"secure_time": true}'])
def test_an_app_compose_that_was_not_measured_says_nothing(gcp: Machines, content: bytes | None) -> None:
    guest = gcp.start()
    path = guest.platform.writable / "dstack/.host-shared/app-compose.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert guest.platform.tee.clock(TrustAnchors.production()).source == "system (set by the host)"


def test_listens_on_tcp_and_dials_directly(gcp: Machines) -> None:
    tee = gcp.start().platform.tee
    with GcpTee.listen(tee, "127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with DirectDialer().dial("127.0.0.1", port, 5) as connection:
            assert connection.getpeername()[1] == port
        with pytest.raises(UnavailableError) as refusal:
            GcpTee.listen(tee, "127.0.0.1", port)
    assert refusal.value.code == "tee.listen"
    assert isinstance(tee.dialer(), DirectDialer)


def test_a_real_guest_is_made_of_the_kernels_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making it touches no device: the first command opens one."""
    monkeypatch.delenv("DCAP_TDX_QUOTE_CONFIGFS_PATH", raising=False)
    assert GcpTee.production().needs_collateral


def test_a_simulated_port_keeps_its_number(gcp: Machines) -> None:
    tee = gcp.start().platform.tee
    with tee.listen("0.0.0.0", 8000) as first:
        number = first.getsockname()
    with tee.listen("0.0.0.0", 8000) as second:
        assert second.getsockname() == number
        with socket.create_connection(number):
            pass
    with tee.listen("0.0.0.0", 8080) as other:
        assert other.getsockname() != number


def test_the_log_is_shared_with_other_processes(gcp: Machines) -> None:
    """What another process of the guest emits through its own log object is in the next evidence."""
    guest = gcp.start()
    log = RuntimeEventLog((), guest.platform.writable / "run/log/dstack")
    assert [event.event for event in log.read()] == _names(guest)

"""A simulated Google Cloud guest passes the production verifier, under roots that are configured."""

import hashlib
import json
from pathlib import Path

import pytest

from enclave.simulator.gcp_commands import measure
from enclave.simulator.gcp_guest import TpmKind
from enclave.simulator.swtpm import swtpm_installed
from shared.attestation.identity import boot_info
from shared.attestation.verdict import Status
from tests.enclave.gcp import GUEST_APP_ID, Machines

_needs_swtpm = pytest.mark.skipif(not swtpm_installed(), reason="swtpm is not installed: package swtpm")


@pytest.mark.parametrize("tpm", ["software", pytest.param("swtpm", marks=_needs_swtpm)])
def test_every_lane_is_verified_or_has_a_reason(gcp: Machines, tpm: TpmKind) -> None:
    guest = gcp.start(tpm=tpm)
    verified = gcp.verifier(guest).verify(guest.attestor.attest(bytes(64)), bytes(64))
    info = boot_info(verified)
    assert verified.verdict.simulated
    assert verified.verdict.disabled_checks == ()
    assert info.app_id == GUEST_APP_ID
    skipped = {name for name, lane in verified.verdict.lanes.items() if lane.status is Status.SKIPPED}
    # the image is compared by `boot_info`; the rest no quote and no default policy can tell
    assert skipped == {"freshness", "command_line", "os_image", "mr_config"}


def test_the_measurements_are_known_beforehand(gcp: Machines) -> None:
    """All of a KMS's, which governance approves before it runs."""
    guest = gcp.start(key_provider="tpm", no_instance_id=True)
    directory = guest.platform.writable.parent
    expected = measure(directory.parent / "os-image", directory / "app-compose.json", GUEST_APP_ID)
    info = boot_info(gcp.verifier(guest).verify(guest.attestor.attest(bytes(64)), bytes(64)))
    assert {
        "os_image_hash": info.os_image_hash.hex(),
        "compose_hash": info.compose_hash.hex(),
        "mr_aggregated": info.mr_aggregated.hex(),
    }.items() <= expected.items()
    assert info.key_provider_info == b'{"name":"tpm","id":""}'
    assert info.instance_id == b""


def test_an_app_has_no_aggregate_beforehand(gcp: Machines) -> None:
    directory = gcp.start().platform.writable.parent
    image = directory.parent / "os-image"
    assert "mr_aggregated" not in measure(image, directory / "app-compose.json", GUEST_APP_ID)
    assert measure(image, None, b"").keys() == {"PCR0", "PCR2", "os_image_hash"}


def test_the_compose_hash_is_of_the_files_bytes(gcp: Machines) -> None:
    guest = gcp.start({"/a": b"measured"})
    raw = (guest.platform.writable.parent / "app-compose.json").read_bytes()
    assert json.loads(raw)["name"] == "test"
    events = {event.event: event.payload for event in guest.evidence().runtime_events}
    assert events["compose-hash"] == hashlib.sha256(raw).digest()
    assert guest.platform.read_measured("/a") == b"measured"


def test_two_guests_of_one_app_are_two_instances(gcp: Machines) -> None:
    first, second = (
        {event.event: event.payload for event in gcp.start().evidence().runtime_events}["instance-id"]
        for _ in range(2)
    )
    assert len(first) == len(second) == 20
    assert first != second


def test_a_guest_starts_with_an_empty_disk(gcp: Machines, tmp_path: Path) -> None:
    guest = gcp.start()
    assert guest.platform.writable.is_relative_to(tmp_path)
    assert {path.name for path in guest.platform.writable.iterdir()} == {".measured", "dstack", "run"}

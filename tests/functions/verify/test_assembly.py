"""From settings to a verifier that fetches: against loopback services that stand for the vendors'."""

import hashlib
import io
import json
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave.simulator.pccs import CollateralServer
from functions.verify.assembly import service_from
from functions.verify.settings import parse_settings
from shared.attestation.collateral import bundle_json
from shared.attestation.envelope import encode_envelope
from shared.errors import ConfigError
from tests.shared.attestation.forgery import NOW, refuses
from tests.shared.attestation.guest_forgery import LEGACY, TdxGuest

METADATA = b'{"version":"0.5.4","is_dev":true}'
SUMS = f"{hashlib.sha256(METADATA).hexdigest()}  metadata.json\n".encode()
IMAGE = hashlib.sha256(SUMS).hexdigest()


def archive() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in (("sha256sum.txt", SUMS), ("metadata.json", METADATA)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


@pytest.fixture(scope="module")
def guest() -> TdxGuest:
    """A TDX guest without a fault."""
    return TdxGuest()


@pytest.fixture
def vendors(guest: TdxGuest) -> Iterator[CollateralServer]:
    """Intel's collateral and one OS image."""
    files = {f"/mr_{IMAGE}.tar.gz": archive()}
    with CollateralServer(lambda _fmspc, _ca: guest.endorsements.tdx[0], files) as server:
        yield server


def answer(settings: str, guest: TdxGuest, directory: Path, **changes: Any) -> dict[str, Any]:
    (directory / "root.pem").write_bytes(guest.intel.root_pem)
    (directory / "policy.toml").write_text("[tdx]\nallow_unverified_image = true\n")
    text = f"""
    image_cache_dir = "{directory}/cache"
    {settings}
    [attestation.root_ca]
    tdx = "{directory}/root.pem"
    """
    environment = {"DSTACK_VERIFIER_ATTESTATION__INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS": "true"}
    service = service_from(parse_settings(text.encode(), environment))
    body = json.dumps({"attestation": encode_envelope(guest.attestation(**changes)).hex()}).encode()
    found: dict[str, Any] = json.loads(service.answer(body, NOW))
    again: dict[str, Any] = json.loads(service.answer(body, NOW))
    assert again == found
    return found


def test_collateral_is_fetched_once(guest: TdxGuest, vendors: CollateralServer, tmp_path: Path) -> None:
    found = answer(f'[attestation.urls]\npccs = "{vendors.url}"', guest, tmp_path)
    assert found["is_valid"] is True, found
    assert len(vendors.requests) == 4


def test_a_bundle_and_offline_fetch_nothing(
    guest: TdxGuest, vendors: CollateralServer, tmp_path: Path
) -> None:
    (tmp_path / "bundle.json").write_text(bundle_json(guest.endorsements))
    offline = f'[attestation]\noffline = true\nurls.pccs = "{vendors.url}"'
    found = answer(offline, guest, tmp_path)
    assert (found["is_valid"], found["code"]) == (False, "endorsements.offline")
    bundled = f'{offline}\nendorsements = "{tmp_path}/bundle.json"'
    assert answer(bundled, guest, tmp_path)["is_valid"] is True
    assert not vendors.requests


def test_a_collateral_service_that_is_down_is_an_answer(guest: TdxGuest, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        found = answer(f'[attestation.urls]\npccs = "{url}"', guest, tmp_path)
    assert (found["is_valid"], found["code"]) == (False, "pccs.unavailable")
    assert found["reason"].startswith("Quote verification failed: ")


def image_settings(vendors: CollateralServer, directory: Path, name: str = "mr_") -> str:
    return (
        f'image_download_url = "{vendors.url}/{name}{{OS_IMAGE_HASH}}.tar.gz"\n'
        f'[attestation]\npolicy = "{directory}/policy.toml"\nurls.pccs = "{vendors.url}"'
    )


def test_an_accepted_legacy_image_is_downloaded_checked_and_kept(
    guest: TdxGuest, vendors: CollateralServer, tmp_path: Path
) -> None:
    config = json.dumps({"os_image_hash": IMAGE})
    for _ in range(2):
        found = answer(image_settings(vendors, tmp_path), guest, tmp_path, config=config)
        assert found["is_valid"] is True, found
        details = found["details"]
        assert (details["os_image_is_dev"], details["os_image_version"]) == (True, "0.5.4")
        assert (details["os_image_hash_verified"], details["acpi_tables_verified"]) == (False, False)
    assert vendors.requests.count(f"/mr_{IMAGE}.tar.gz") == 1
    assert (tmp_path / "cache" / "images" / IMAGE / "metadata.json").read_bytes() == METADATA


def test_an_image_that_is_not_there_or_another_is_refused(
    guest: TdxGuest, vendors: CollateralServer, tmp_path: Path
) -> None:
    found = answer(image_settings(vendors, tmp_path), guest, tmp_path, config=LEGACY)
    assert (found["is_valid"], found["code"]) == (False, "os_image.status")
    assert found["reason"].startswith("OS image hash verification failed: ")
    vendors.files[f"/mr_{'ab' * 32}.tar.gz"] = archive()
    found = answer(image_settings(vendors, tmp_path), guest, tmp_path, config=LEGACY)
    assert (found["is_valid"], found["code"]) == (False, "os_image.hash")


def test_offline_downloads_no_image(guest: TdxGuest, vendors: CollateralServer, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(bundle_json(guest.endorsements))
    settings = f'{image_settings(vendors, tmp_path)}\noffline = true\nendorsements = "{tmp_path}/bundle.json"'
    found = answer(settings, guest, tmp_path, config=json.dumps({"os_image_hash": IMAGE}))
    assert (found["is_valid"], found["details"]["os_image_version"]) == (True, None)
    assert not vendors.requests


def test_settings_that_cannot_work_are_refused_at_startup(tmp_path: Path) -> None:
    absent = f'[attestation]\npolicy = "{tmp_path}/absent"'.encode()
    with refuses("verify.settings.file", ConfigError):
        service_from(parse_settings(absent, {}))

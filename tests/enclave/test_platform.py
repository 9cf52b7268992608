"""Daemons stand on whatever guest they are in, and read only what it measured."""

from pathlib import Path

import pytest

from enclave.devices import detect
from enclave.devices.detect import TeePlatform
from enclave.platform import MAX_IMAGE_FILE, Platform
from enclave.tee.gcp import GcpTee
from enclave.tee.nitro import NitroTee
from enclave.tee.tdx import TdxTee
from shared.errors import ConfigError


def _detect(found: TeePlatform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setattr(detect, "detect_platform", lambda: found)
    return Platform.detect()


def test_finds_an_enclave(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(_detect(TeePlatform.NITRO_ENCLAVE, monkeypatch).tee, NitroTee)


def test_finds_a_google_cloud_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(_detect(TeePlatform.GCP_TDX, monkeypatch).tee, GcpTee)


def test_finds_a_guest_on_a_machine_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(_detect(TeePlatform.TDX, monkeypatch).tee, TdxTee)


def test_refuses_a_guest_that_no_daemon_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as refusal:
        _detect(TeePlatform.NITRO_TPM, monkeypatch)
    assert refusal.value.code == "platform.unsupported"


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path, tmp_path / "w", NitroTee(None, None))  # type: ignore[arg-type]


def test_reads_a_file_by_its_path_in_the_image(platform: Platform) -> None:
    (platform.image / "a").write_bytes(b"text")
    assert platform.read_measured("/a") == b"text"
    assert platform.has_measured("/a")
    assert not platform.has_measured("/b")
    assert platform.writable_path("/var/x") == platform.writable / "var/x"


def test_refuses_an_oversize_file(platform: Platform) -> None:
    (platform.image / "a").write_bytes(bytes(MAX_IMAGE_FILE + 1))
    with pytest.raises(ConfigError) as refusal:
        platform.read_measured("/a")
    assert refusal.value.code == "image.oversize"


def test_a_root_serves_the_signer_that_it_is_given_for(platform: Platform, authority) -> None:
    (platform.image / "root.pem").write_bytes(authority.root_pem)
    assert len(platform.anchors({"nitro": ("/root.pem",)}).nitro) == 2
    with pytest.raises(ConfigError) as refusal:
        platform.anchors({"tdx": ("/root.pem",)})
    assert refusal.value.code == "trust.anchor.malformed"

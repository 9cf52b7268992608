"""A KMS on Google Cloud whose root keys are sealed: the same guest opens them again, another one does not."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enclave.devices.clock import SystemClock
from enclave.kms import daemon
from enclave.kms.custody_tpm import SealedKeys
from enclave.kms.key_store import KeyMaterial, KeyStore
from enclave.platform import Platform
from enclave.simulator.booted_guest import GuestFiles
from enclave.simulator.gcp_guest import running_guest
from enclave.simulator.swtpm import swtpm_installed
from shared.errors import ConfigError, ExitCode
from tests.enclave.gcp import NOW, Machines, app_compose
from tests.shared.refusal import refuses

APP_ID = bytes([9]) * 20
CERTS = "etc/kms/certs"
CONFIG = """
[core.onboard]
auto_bootstrap_domain = "kms.test"
[core.auth_api]
type = "dev"
[core.custody]
type = "tpm"
[core.attestation]
insecure_allow_external_trust_anchors = true
[core.attestation.root_ca]
tdx = "/intel.pem"
gcp_tpm = "/google.pem"
[core.attestation.urls]
pccs = "{pccs}"
"""


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[KeyMaterial]:
    """Return the keys of each start that came so far as to serve them, which it then does not."""
    seen: list[KeyMaterial] = []
    monkeypatch.setattr(daemon, "_serve", lambda _platform, _parts, keys: seen.append(keys))
    return seen


def _files(gcp: Machines, directory: Path, *, name: str = "kms") -> GuestFiles:
    """Return what a guest is booted from; its disk is `directory`, which it keeps."""
    image = directory.parent / "image"
    image.mkdir(exist_ok=True)
    (image / "kernel").write_bytes(b"kernel")
    compose = directory.parent / "app-compose.json"
    config = CONFIG.format(pccs=gcp.vendors.server.url).encode()
    measured = gcp.vendors.roots | {"/etc/kms/kms.toml": config, "/etc/dstack/app-id": APP_ID.hex().encode()}
    compose.write_bytes(app_compose(measured, name=name, key_provider="tpm", no_instance_id=True))
    return GuestFiles(image, compose, directory)


@contextmanager
def _booted(gcp: Machines, directory: Path, *, name: str = "kms") -> Iterator[Platform]:
    """Boot from a disk on which the last boot left its files, with a TPM that keeps its seeds."""
    for rest in ("dstack", "run", ".measured"):
        shutil.rmtree(directory / rest, ignore_errors=True)
    files = _files(gcp, directory, name=name)
    with running_guest(files, gcp.vendors.authority, APP_ID, tpm="swtpm") as platform:
        yield platform


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    if not swtpm_installed():
        pytest.skip("swtpm is not installed: install the package swtpm")
    return tmp_path / "kms" / "disk"


def test_a_kms_that_starts_again_opens_its_sealed_keys(
    gcp: Machines, served: list[KeyMaterial], tmp_path: Path
) -> None:
    (tmp_path / "kms").mkdir()
    files = _files(gcp, tmp_path / "kms" / "disk")
    with running_guest(files, gcp.vendors.authority, APP_ID, tpm="software") as platform:
        for _ in range(2):
            assert daemon.main([], platform) == ExitCode.OK
    assert served[0].root_keys() == served[1].root_keys()
    names = {path.name for path in (files.writable / CERTS).iterdir()}
    assert names == {"root-keys.sealed", "root-ca.crt", "tmp-ca.crt", "rpc-domain"}


def test_n56_sealed_keys_open_after_a_reboot_of_the_same_image_and_app_alone(
    gcp: Machines, served: list[KeyMaterial], disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.mkdir(parents=True)
    for _ in range(2):
        with _booted(gcp, disk) as platform:
            assert daemon.main([], platform) == ExitCode.OK
    assert served[0].root_keys() == served[1].root_keys()
    capsys.readouterr()
    with _booted(gcp, disk, name="another app-compose") as platform:
        assert daemon.main([], platform) == ExitCode.FAILED
    assert '"kms.custody.sealed"' in capsys.readouterr().out
    assert len(served) == 2


def test_n56_an_event_that_a_workload_records_closes_the_keys_until_the_next_boot(
    gcp: Machines, served: list[KeyMaterial], disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.mkdir(parents=True)
    with _booted(gcp, disk) as platform:
        assert daemon.main([], platform) == ExitCode.OK
        platform.tee._log.emit("app-event", b"")
        assert daemon.main([], platform) == ExitCode.FAILED
        assert '"kms.custody.sealed"' in capsys.readouterr().out
    with _booted(gcp, disk) as platform:
        assert daemon.main([], platform) == ExitCode.OK
    assert served[0].root_keys() == served[1].root_keys()


def test_a_bank_without_runtime_events_is_refused(gcp: Machines, tmp_path: Path, keys: KeyMaterial) -> None:
    sealer = gcp.start(key_provider="tpm", no_instance_id=True).platform.tee.sealer()
    store = KeyStore(tmp_path / "sha384", SealedKeys(sealer, "sha384", (2, 14)))
    with refuses("tpm_device.pcr.unused", ConfigError):
        store.create(keys)
    assert not store.bootstrapped()

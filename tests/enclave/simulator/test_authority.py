import stat
from pathlib import Path

import pytest

from enclave.devices.nsm import Nsm
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from shared.attestation.nitro import verify_document
from shared.attestation.trust import TrustAnchors
from shared.errors import StorageError

NOW = 1_767_225_600
PCRS = {index: bytes([0xA0 + index]) * 48 for index in (0, 1, 2)}


def test_enclaves_that_share_a_saved_authority_verify_under_one_root(tmp_path: Path) -> None:
    SimulatedAuthority.create().save(tmp_path / "authority")
    anchors = TrustAnchors.production().with_extra((tmp_path / "authority" / "root.pem").read_bytes())
    for _ in range(2):
        authority = SimulatedAuthority.load(tmp_path / "authority")
        cose = Nsm(SimulatedNsm(PCRS, authority, clock=lambda: NOW)).attestation()
        assert verify_document(cose, now=NOW, anchors=anchors).simulated


def test_files_are_private(tmp_path: Path) -> None:
    SimulatedAuthority.create().save(tmp_path / "authority")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "authority").iterdir()}
    names = ("root.pem", "chain.pem", "root.key", "region.key", "zone.key")
    assert modes == dict.fromkeys(names, 0o600)


def test_an_authority_is_never_replaced(tmp_path: Path) -> None:
    first = SimulatedAuthority.create()
    first.save(tmp_path)
    with pytest.raises(StorageError) as caught:
        SimulatedAuthority.create().save(tmp_path)
    assert caught.value.code == "simulator.authority.exists"
    assert SimulatedAuthority.load(tmp_path).root_pem == first.root_pem


def test_reports_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        SimulatedAuthority.create().save(tmp_path / "file" / "authority")
    assert caught.value.code == "simulator.authority.write"


def test_refuses_a_directory_that_holds_no_authority(tmp_path: Path) -> None:
    authority = SimulatedAuthority.create()
    authority.save(tmp_path)
    for damage in (
        lambda: (tmp_path / "chain.pem").write_bytes(authority.root_pem),
        lambda: (tmp_path / "chain.pem").write_bytes(b"nothing"),
        (tmp_path / "zone.key").unlink,
    ):
        damage()
        with pytest.raises(StorageError) as caught:
            SimulatedAuthority.load(tmp_path)
        assert caught.value.code == "simulator.authority.read"

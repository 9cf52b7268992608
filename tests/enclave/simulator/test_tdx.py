"""The simulated Intel and its domains make evidence of the real kind, and say that they are simulated."""

import hashlib
import stat
from pathlib import Path

import pytest

from enclave.devices.tdx import TdxDevice
from enclave.simulator.intel_documents import FMSPC
from enclave.simulator.tdx import MRTD, PADDING, SimulatedIntel, SimulatedTdx
from shared.attestation.endorsements import Endorsements
from shared.attestation.policy import TdxPolicy
from shared.attestation.tdx import VerifiedTdx, verify_tdx
from shared.attestation.tdx_quote import parse_quote
from shared.attestation.trust import TrustAnchors
from shared.errors import DstackError, ProtocolError, StorageError

NOW = 1_767_225_600
REPORT_DATA = bytes(range(64))


def verify(intel: SimulatedIntel, root_pem: bytes) -> VerifiedTdx:
    return verify_tdx(
        SimulatedTdx(intel).quote(REPORT_DATA),
        now=NOW,
        anchors=TrustAnchors.production().with_extra(root_pem).tdx,
        policy=TdxPolicy(),
        endorsements=Endorsements(tdx=(intel.collateral(NOW),)),
        report_data=REPORT_DATA,
    )


def refused(code: str, kind: type[DstackError]) -> "pytest.RaisesExc[DstackError]":
    return pytest.raises(kind, check=lambda error: error.code == code)


def test_domains_that_share_a_saved_intel_verify_under_one_root(tmp_path: Path) -> None:
    SimulatedIntel.create().save(tmp_path / "intel")
    root_pem = (tmp_path / "intel" / "root.pem").read_bytes()
    first, second = (verify(SimulatedIntel.load(tmp_path / "intel"), root_pem) for _ in range(2))
    assert first.simulated
    assert (first.ppid, first.fmspc) == (second.ppid, FMSPC)


def test_two_machines_have_two_ppids() -> None:
    first, second = (SimulatedIntel.create() for _ in range(2))
    assert verify(first, first.root_pem).ppid != verify(second, second.root_pem).ppid


def test_a_quote_is_padded_as_a_real_one() -> None:
    quote = SimulatedTdx(SimulatedIntel.create()).quote(REPORT_DATA)
    assert quote.endswith(bytes(PADDING))
    assert parse_quote(quote).report.mrtd == MRTD


def test_an_extension_is_in_the_next_quote() -> None:
    device: TdxDevice = SimulatedTdx(SimulatedIntel.create(), event_log=b"log")
    device.extend_rtmr(3, b"\x01" * 48)
    device.extend_rtmr(2, b"\x02" * 48)
    device.extend_rtmr(3, b"\x03" * 48)
    rtmrs = parse_quote(device.quote(REPORT_DATA)).report.rtmrs
    assert rtmrs[:2] == (bytes(48), bytes(48))
    assert rtmrs[2] == hashlib.sha384(bytes(48) + b"\x02" * 48).digest()
    assert (
        rtmrs[3] == hashlib.sha384(hashlib.sha384(bytes(48) + b"\x01" * 48).digest() + b"\x03" * 48).digest()
    )
    assert device.event_log() == b"log"


def test_what_a_real_device_refuses_is_refused() -> None:
    tdx = SimulatedTdx(SimulatedIntel.create())
    for index in (-1, 0, 1, 4):
        with refused("tdx_device.rtmr.index", ProtocolError):
            tdx.extend_rtmr(index, bytes(48))
    with refused("tdx_device.digest.length", ProtocolError):
        tdx.extend_rtmr(3, bytes(32))
    with refused("tdx_device.report_data.length", ProtocolError):
        tdx.quote(bytes(63))
    assert tdx.rtmrs == (bytes(48),) * 4


def test_files_are_private(tmp_path: Path) -> None:
    SimulatedIntel.create().save(tmp_path / "intel")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "intel").iterdir()}
    names = [f"{role}.{kind}" for role in ("root", "platform", "pck", "tcb") for kind in ("key", "pem")]
    assert modes == dict.fromkeys(names, 0o600)


def test_an_intel_is_never_replaced(tmp_path: Path) -> None:
    first = SimulatedIntel.create()
    first.save(tmp_path)
    with refused("simulator.authority.exists", StorageError):
        SimulatedIntel.create().save(tmp_path)
    assert SimulatedIntel.load(tmp_path).root_pem == first.root_pem


def test_a_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused("simulator.authority.write", StorageError):
        SimulatedIntel.create().save(tmp_path / "file" / "intel")


def test_a_directory_that_holds_another_intel_is_refused(tmp_path: Path) -> None:
    SimulatedIntel.create().save(tmp_path)
    other = tmp_path / "other"
    SimulatedIntel.create().save(other)
    for damage in (
        lambda: (other / "pck.key").replace(tmp_path / "pck.key"),
        lambda: (tmp_path / "pck.key").write_bytes(b"nothing"),
        (tmp_path / "root.pem").unlink,
    ):
        damage()
        with refused("simulator.authority.read", StorageError):
            SimulatedIntel.load(tmp_path)

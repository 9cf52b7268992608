"""`dstack-cloud verify` against loopback services that stand for Intel's and Google's."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.verify import verify
from enclave.simulator.ak_authority import SimulatedAkAuthority
from enclave.simulator.pccs import CollateralServer
from shared.attestation.envelope import encode_envelope
from tests.shared.attestation.forgery import NOW
from tests.shared.attestation.guest_forgery import GcpGuest, TdxGuest


def report(*arguments: str, data: bytes) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(verify, ["-", "--json", "--at", str(NOW), *arguments], input=data)
    assert result.stdout, result.exception
    shown: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, shown


@pytest.fixture(scope="module")
def guest() -> GcpGuest:
    """A Google Cloud guest; its TDX half serves for a TDX guest too."""
    return GcpGuest()


@pytest.fixture
def vendors(guest: GcpGuest) -> Iterator[CollateralServer]:
    """What Intel and Google publish, on one loopback port that the vTPM key's certificate names."""
    collateral = guest.endorsements.tdx[0]
    with CollateralServer(lambda _fmspc, _ca: collateral) as server:
        guest.forge.google = SimulatedAkAuthority.create(server.url)
        guest.forge.ak_cert = guest.forge.google.issue_ak(guest.forge.key.public_key())
        server.files.update(guest.forge.google.resources(NOW - 60))
        yield server


def root(guest: GcpGuest, directory: Path) -> tuple[str, str]:
    path = directory / "root.pem"
    path.write_bytes(guest.forge.intel.root_pem + guest.forge.google.root_pem)
    return "--trust-anchor", str(path)


def test_tdx_collateral_is_fetched(tmp_path: Path) -> None:
    tdx = TdxGuest()
    (tmp_path / "root.pem").write_bytes(tdx.intel.root_pem)
    with CollateralServer(lambda _fmspc, _ca: tdx.endorsements.tdx[0]) as server:
        code, shown = report(
            "--trust-anchor",
            str(tmp_path / "root.pem"),
            "--pccs",
            server.url,
            data=encode_envelope(tdx.attestation()),
        )
        assert (code, shown["is_valid"]) == (0, True)
        assert len(server.requests) == 4


def test_gcp_issuers_and_lists_are_fetched_and_saved(
    tmp_path: Path, guest: GcpGuest, vendors: CollateralServer
) -> None:
    data, saved = encode_envelope(guest.attestation()), str(tmp_path / "saved.json")
    options = root(guest, tmp_path)
    first = report(*options, "--pccs", vendors.url, "--save-collateral", saved, data=data)
    assert first[0] == 0
    assert {"/tpm/aia/intermediate.der", "/tpm/crl/root.crl"} <= set(vendors.requests)
    asked = len(vendors.requests)
    again = report(*options, "--collateral", saved, "--offline", data=data)
    assert again == first
    assert len(vendors.requests) == asked


def test_given_collateral_keeps_the_run_offline(
    tmp_path: Path, guest: GcpGuest, vendors: CollateralServer
) -> None:
    (tmp_path / "empty.json").write_text("{}")
    code, shown = report(
        *root(guest, tmp_path),
        *("--pccs", vendors.url, "--collateral", str(tmp_path / "empty.json")),
        data=encode_envelope(guest.attestation()),
    )
    assert (code, shown["code"]) == (3, "endorsements.offline")
    assert not vendors.requests


def test_n11_nothing_is_fetched_for_evidence_that_does_not_hold_together(
    tmp_path: Path, guest: GcpGuest, vendors: CollateralServer
) -> None:
    data = bytearray(encode_envelope(guest.attestation()))
    data[200] ^= 1
    code, _ = report(*root(guest, tmp_path), "--pccs", vendors.url, data=bytes(data))
    assert code == 3
    assert not vendors.requests


def test_n11_an_address_of_the_attesters_choice_is_not_asked(tmp_path: Path) -> None:
    """The vTPM key's certificate names a host that is neither Google's nor the configured service's."""
    guest = GcpGuest()
    with CollateralServer() as service:
        data = encode_envelope(guest.attestation())
        code, shown = report(*root(guest, tmp_path), "--pccs", service.url, data=data)
        assert (code, shown["code"].partition(".")[0]) == (3, "issuers")
        assert not service.requests


@pytest.fixture
def tdx_data(tmp_path: Path) -> tuple[tuple[str, str], bytes]:
    """Evidence of a TDX guest, and the option that trusts its root."""
    tdx = TdxGuest()
    (tmp_path / "intel.pem").write_bytes(tdx.intel.root_pem)
    return ("--trust-anchor", str(tmp_path / "intel.pem")), encode_envelope(tdx.attestation())


def test_a_network_that_fails_is_exit_code_1(tdx_data: tuple[tuple[str, str], bytes]) -> None:
    trust, data = tdx_data
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, shown = report(*trust, "--pccs", url, data=data)
        result = CliRunner().invoke(verify, ["-", "--at", str(NOW), *trust, "--pccs", url], input=data)
    assert (code, shown["exit_code"], shown["is_valid"]) == (1, 1, False)
    assert shown["code"] == "pccs.unavailable"
    assert "try again" in shown["hint"]
    assert result.stdout.startswith("FAILED")


def test_a_service_that_has_nothing_is_no_refusal_of_the_evidence(
    tdx_data: tuple[tuple[str, str], bytes],
) -> None:
    trust, data = tdx_data
    with CollateralServer() as empty:
        code, shown = report(*trust, "--pccs", empty.url, data=data)
        assert (code, shown["code"]) == (1, "pccs.unavailable")
        assert empty.requests

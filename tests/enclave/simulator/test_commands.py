"""`python -m enclave.simulator`, as the demo and operators call it."""

import json
import stat
from pathlib import Path

import pytest

from enclave.simulator.__main__ import main
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.simulator.gcp_commands import open_publisher
from enclave.simulator.pccs import CollateralServer
from shared.attestation.crl import RevocationList
from shared.attestation.tpm_certificate import TpmCertificate
from shared.errors import DstackError, ExitCode
from shared.measurement.cpio import CpioEntry
from shared.measurement.eif import measure_eif
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.pccs import PccsClient
from tests.enclave.gcp import app_compose
from tests.shared.measurement import made_eif

URL = "http://127.0.0.1:8088"


@pytest.fixture
def eif(tmp_path: Path) -> Path:
    root = CpioEntry(b"rootfs", stat.S_IFDIR | 0o755), b""
    path = tmp_path / "image.eif"
    path.write_bytes(made_eif.image(ramdisks=(made_eif.BOOT, made_eif.archive(root)))[0])
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    directory = tmp_path / "image"
    directory.mkdir()
    (directory / "init").write_bytes(b"#!/bin/sh\n")
    return directory


def _report(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    printed: dict[str, str] = json.loads(capsys.readouterr().out)
    return printed


def _run(work: Path, *more: str) -> int:
    places = ("--writable", str(work / "w"), "--authority", str(work / "a"))
    return main(["run", *places, *more, "dstack-util", "get-keys"])


def test_gcp_roots_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["authority", "--platform", "gcp", "--url", URL, str(tmp_path / "a")]
    assert main(arguments) == ExitCode.OK
    authority = GcpAuthority.load(tmp_path / "a")
    assert _report(capsys) == {"device_id": authority.device_id.hex()}
    assert authority.google.base_url == URL
    assert main(arguments) == ExitCode.FAILED
    assert "[simulator.authority.exists]" in capsys.readouterr().err


def test_gcp_roots_need_the_address_of_their_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["authority", "--platform", "gcp", str(tmp_path / "a")]) == ExitCode.USAGE
    assert "[simulator.url]" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["device-id", "google/root.pem", "intel/root.pem"])
def test_refuses_a_directory_that_holds_something_else(tmp_path: Path, broken: str) -> None:
    GcpAuthority.create(URL).save(tmp_path / "a")
    (tmp_path / "a" / broken).write_text("other")
    with pytest.raises(DstackError) as refusal:
        GcpAuthority.load(tmp_path / "a")
    assert refusal.value.code == "simulator.authority.read"


def test_what_is_published_is_fresh_and_where_certificates_say(tmp_path: Path) -> None:
    made, server = open_publisher(tmp_path / "a")
    with server:
        assert made.google.base_url == server.url
        http = HttpClient(DirectDialer())
        found = PccsClient((server.url,), http, allow_plain_http=True).fetch(bytes(6), "platform")
        assert json.loads(found.tcb_info)["fmspc"] == "00" * 6
        listed = {path: http.request("GET", server.url + path).body for path in made.google.resources(0)}
        http.close()
    assert TpmCertificate.parse(listed["/tpm/aia/intermediate.der"]).der == made.google.intermediate.der
    assert RevocationList.parse(listed["/tpm/crl/root.crl"]).issuer
    assert _port(open_publisher(tmp_path / "a")[1]) == _port(server)


def _port(server: CollateralServer) -> str:
    with server._server:
        return server.url


def test_another_platform_has_no_collateral() -> None:
    authority = GcpAuthority.create(URL)
    assert authority.collateral("", "", 1_900_000_000) is not None
    assert authority.collateral("00" * 6, "platform", 1_900_000_000) is not None
    assert authority.collateral("11" * 6, "platform", 1_900_000_000) is None
    assert authority.collateral("00" * 6, "processor", 1_900_000_000) is None


def test_measures_both_kinds_of_image(
    image: Path, eif: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", "--eif", str(eif)]) == ExitCode.OK
    with eif.open("rb") as file:
        measured = measure_eif(file)
    assert _report(capsys) == {
        "PCR0": measured.pcr0.hex(),
        "PCR1": measured.pcr1.hex(),
        "PCR2": measured.pcr2.hex(),
        "os_image_hash": measured.os_image_hash.hex(),
    }
    assert main(["measure", "--platform", "gcp", "--image", str(image)]) == ExitCode.OK
    assert _report(capsys).keys() == {"PCR0", "PCR2", "os_image_hash"}
    compose = tmp_path / "app-compose.json"
    compose.write_bytes(app_compose({}, key_provider="tpm", no_instance_id=True))
    more = ["--app-compose", str(compose), "--app-id", "11" * 20]
    assert main(["measure", "--platform", "gcp", *more, "--image", str(image)]) == ExitCode.OK
    assert _report(capsys).keys() > {"compose_hash", "mr_aggregated"}


def test_a_guest_needs_what_its_platform_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gcp = ("--platform", "gcp")
    for more in ((), ("--eif", "x"), ("--eif", "x", "--cid", "4"), gcp, (*gcp, "--image", "x")):
        assert _run(tmp_path, *more) == ExitCode.USAGE
        assert "[simulator.arguments]" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--eif", str(tmp_path / "absent")]) == ExitCode.USAGE
    assert "[simulator.image.missing]" in capsys.readouterr().err


def test_runs_a_daemon_in_an_enclave(eif: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """get-keys comes as far as the file that its image does not hold; the enclave's memory is its own."""
    SimulatedAuthority.create().save(tmp_path / "a")
    more = ("--eif", str(eif), "--vsock", str(tmp_path), "--cid", "4")
    assert _run(tmp_path, *more) == ExitCode.FAILED
    assert "no readable /etc/dstack/enclave.toml [image.missing]" in capsys.readouterr().err
    assert _run(tmp_path, *more) == ExitCode.FAILED
    assert "[simulator.image.write]" in capsys.readouterr().err


def test_runs_a_daemon_in_a_guest(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """get-keys comes as far as the file that its app-compose does not hold."""
    GcpAuthority.create(URL).save(image / "a")
    compose = tmp_path / "app-compose.json"
    compose.write_bytes(app_compose({}))
    more = ("--app-compose", str(compose), "--app-id", "11" * 20, "--tpm", "software")
    assert _run(image, "--platform", "gcp", "--image", str(image), *more) == ExitCode.FAILED
    assert "no readable /etc/dstack/enclave.toml [image.missing]" in capsys.readouterr().err

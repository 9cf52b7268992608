"""The guest agent without a guest: what it reads, where it listens, what it leaves."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave.agent.dashboard import SIMULATED
from enclave.agent.guest import Guest
from enclave.simulator.agent import main, open_guest, run, stay_on, verified_app_info
from enclave.simulator.agent_config import SimulatorConfig
from enclave.simulator.fixture_set import lay_fixture
from shared.attestation.envelope import decode_envelope
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.errors import ConfigError, UnavailableError
from shared.keys.app_keys_file import KmsProvider, parse_app_keys
from shared.ratls.app_peer import SERVER, check_app_chain
from shared.ratls.csr import CsrConfig
from shared.ratls.extensions import APP_ID, read_extensions, unwrap
from tests.sdk.simulated_agent import copy_fixture, running
from tests.shared.refusal import refuses

SOCKETS = ("dstack.sock", "external.sock", "guest.sock", "tappd.sock")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    lay_fixture(tmp_path, None, now=int(time.time()))
    return tmp_path


def ask(path: Path, method: str, **fields: object) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return client.post(f"http://agent{method}", json=fields)


def ask_page(path: Path) -> str:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://agent.test") as client:
        return client.get("/").text


def test_all_four_services_answer_and_leave_no_socket(tmp_path: Path) -> None:
    with running(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_socket()) == list(SOCKETS)
        for name, method in zip(
            SOCKETS, ("/Info", "/prpc/Worker.Info", "/api/Info", "/prpc/Tappd.Info"), strict=True
        ):
            assert ask(tmp_path / name, method).json()["app_id"]
    assert not [path for path in tmp_path.iterdir() if path.is_socket()]


def test_a_socket_that_a_killed_agent_left_is_replaced(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place / "dstack.sock"))
    with running(place):
        assert ask(place / "dstack.sock", "/Version").status_code == 200


def test_two_agents_do_not_share_a_directory(place: Path) -> None:
    with running(place):
        with refuses("agent.listen", UnavailableError):
            run(place, SimulatorConfig.of_directory(place))
        assert ask(place / "dstack.sock", "/Version").status_code == 200


def test_get_quote_always_has_an_envelope_in_the_newer_form(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    copy_fixture(shared_data("guest-agent"), tmp_path)
    with running(tmp_path):
        quoted = ask(tmp_path / "dstack.sock", "/GetQuote", report_data="abcd").json()
        attested = ask(tmp_path / "dstack.sock", "/Attest", report_data="abcd").json()
    evidence = decode_envelope(bytes.fromhex(quoted["attestation"]))
    assert 0x80 <= bytes.fromhex(quoted["attestation"])[0] <= 0x8F
    assert bytes.fromhex(attested["attestation"])[0] == 0
    assert evidence.report_data[:2] == b"\xab\xcd"
    assert all(event["digest"] for event in json.loads(quoted["event_log"]))
    assert quoted["vm_config"] == json.loads((tmp_path / "sys-config.json").read_text())["vm_config"]


def test_the_page_says_that_the_guest_is_simulated(tmp_path: Path) -> None:
    with running(tmp_path):
        assert SIMULATED in ask_page(tmp_path / "external.sock")


def test_the_machine_of_a_simulated_guest_stays_on(tmp_path: Path) -> None:
    with running(tmp_path):
        assert ask(tmp_path / "guest.sock", "/api/Shutdown").text == "null"
        assert ask(tmp_path / "dstack.sock", "/Version").status_code == 200
    with refuses("simulator.shutdown", ConfigError):
        stay_on()


def test_upstreams_directory_is_not_written_to(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    copy_fixture(shared_data("guest-agent"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with running(tmp_path):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_configuration_puts_services_elsewhere(place: Path) -> None:
    (place / "dstack.toml").write_text(
        '[internal]\naddress = "unix:other.sock"\n[external]\naddress="127.0.0.1"'
    )
    with running(place) as variables:
        assert variables["DSTACK_SIMULATOR_ENDPOINT"] == str(place / "other.sock")
        assert ask(place / "other.sock", "/Version").status_code == 200
        assert not (place / "external.sock").exists()


def test_a_new_guest_runs_the_given_app(tmp_path: Path) -> None:
    compose = tmp_path / "mine.json"
    compose.write_text('{"manifest_version":2,"name":"mine","runner":"docker-compose"}')
    with running(tmp_path / "guest", "--app-compose", str(compose)):
        assert ask(tmp_path / "guest/dstack.sock", "/Info").json()["app_name"] == "mine"


def _issued(place: Path, **asked: bool) -> tuple[Guest, list[bytes]]:
    _, guest = open_guest(place, SimulatorConfig.of_directory(place))
    made = guest.tls_key(CsrConfig(subject="app", **asked))
    ders = [x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER) for pem in made.chain]
    return guest, ders


def test_a_peer_takes_its_certificates_for_those_of_a_kms(place: Path) -> None:
    guest, chain = _issued(place, usage_server_auth=True, ext_quote=True)
    root = parse_app_keys((place / "appkeys.json").read_bytes()).ca_cert.encode()
    found = check_app_chain(chain, root_ca_pem=root, now=int(time.time()), role=SERVER)
    assert (len(chain), found.app_id) == (3, guest.identity.app_id)


def test_the_evidence_in_them_verifies_over_their_key(place: Path) -> None:
    _, chain = _issued(place, ext_quote=True)
    root = parse_app_keys((place / "appkeys.json").read_bytes()).ca_cert.encode()
    found = check_app_chain(chain, root_ca_pem=root, now=int(time.time()), role=None)
    intel = SimulatorConfig.of_directory(place).default.core.simulator.intel()
    assert found.envelope is not None
    assert intel is not None
    over = report_data(RATLS_CERT, found.key)
    assert verified_app_info(found.envelope, over, intel, int(time.time())).app_id == found.app_id


def test_their_root_is_the_key_provider_that_a_relying_party_expects(place: Path) -> None:
    root = x509.load_der_x509_certificate(_issued(place)[1][2]).public_key()
    spki = root.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert json.loads((place / "expected.json").read_text())["kms_ca_root"] == spki.hex()


def test_their_app_info_is_what_evidence_shows(place: Path) -> None:
    guest, chain = _issued(place, ext_app_info=True)
    extensions = x509.load_der_x509_certificate(chain[0]).extensions
    info = extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.9"))
    assert guest.identity.mr_aggregated in info.value.value  # type: ignore[attr-defined]


def test_a_guest_without_an_app_ca_signs_as_upstreams_does(place: Path) -> None:
    """What a directory of upstream's has: the CA of its keys file, and a leaf that names no app."""
    (place / "app-ca.pem").unlink()
    _, chain = _issued(place)
    extensions = read_extensions(x509.load_der_x509_certificate(chain[0]))
    assert (len(chain), unwrap(extensions, APP_ID)) == (2, None)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_refuses_an_app_ca_that_is_none(place: Path, content: bytes) -> None:
    (place / "app-ca.pem").write_bytes(content)
    with refuses("simulator.app_ca", ConfigError):
        open_guest(place, SimulatorConfig.of_directory(place))


def test_certificates_can_name_the_app_though_nobody_verified_it(place: Path) -> None:
    (place / "dstack.toml").unlink()  # with the seed that signs quotes
    _, guest = open_guest(place, SimulatorConfig.of_directory(place))
    made = guest.tls_key(CsrConfig(subject="app", ext_app_info=True))
    leaf = x509.load_pem_x509_certificate(made.chain[0].encode())
    info = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.9"))
    assert guest.identity.app_id in info.value.value  # type: ignore[attr-defined]


def test_keys_of_a_kms_give_no_certificates(place: Path) -> None:
    keys = parse_app_keys((place / "appkeys.json").read_bytes())
    provider = KmsProvider(url="https://kms/prpc", pubkey=b"", tmp_ca_key="", tmp_ca_cert="")
    (place / "appkeys.json").write_bytes(msgspec.structs.replace(keys, key_provider=provider).to_json())
    _, guest = open_guest(place, SimulatorConfig.of_directory(place))
    assert guest.key.derive("wallet", "", "").key
    with refuses("simulator.key_provider", ConfigError):
        guest.tls_key(CsrConfig(subject="app"))


def test_a_missing_file_is_named(place: Path) -> None:
    (place / "sys-config.json").unlink()
    with refuses("simulator.file", ConfigError) as caught:
        open_guest(place, SimulatorConfig.of_directory(place))
    assert "sys-config.json" in caught.value.message


def test_a_directory_that_no_sdk_could_connect_into_is_refused(place: Path) -> None:
    deep = place / ("d" * 100)
    lay_fixture(deep, None, now=int(time.time()))
    with refuses("simulator.directory.length", ConfigError):
        run(deep, SimulatorConfig.of_directory(deep))


def test_refusals_are_told_with_their_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").write_bytes(b"")
    assert main(["--dir", str(tmp_path)]) == 2
    assert "[simulator.directory.foreign]" in capsys.readouterr().err

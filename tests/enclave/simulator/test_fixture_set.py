"""The guest that the SDK simulator makes up agrees with itself."""

import hashlib
import json
from pathlib import Path

import pytest
from cryptography import x509

from enclave.simulator.agent_config import SimulatorConfig
from enclave.simulator.fixture_set import (
    RECORD,
    lay_fixture,
    make_fixture,
    publish_trust,
    read_compose_file,
)
from shared.attestation.collateral import parse_bundle
from shared.attestation.envelope import TdxQuote, decode_envelope
from shared.attestation.event_log import replay, system_events
from shared.attestation.identity import app_info
from shared.attestation.tdx_quote import parse_quote
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.compose.app_compose import MAX_COMPOSE_BYTES
from shared.errors import ConfigError, ProtocolError, StorageError
from shared.keys.app_keys import verify_issued_key
from shared.keys.app_keys_file import SeedProvider, parse_app_keys
from shared.keys.k256 import public_key
from shared.ratls.certificates import spki_der
from tests.shared.refusal import refuses

NOW = 1_790_000_000
SEED = bytes(range(32))
COMPOSE = json.dumps(
    {
        "manifest_version": "3",
        "name": "mine",
        "runner": "docker-compose",
        "docker_compose_file": "services: {}",
        "init_script": ["echo one", "echo two"],
    }
).encode()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return make_fixture(COMPOSE, seed=SEED, now=NOW)


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes]) -> dict[str, str]:
    document: dict[str, str] = json.loads(files["expected.json"])
    return document


def test_the_compose_hash_is_the_events_and_the_files(
    files: dict[str, bytes], expected: dict[str, str]
) -> None:
    events = system_events(decode_envelope(files["attestation.bin"]).runtime_events)
    digest = hashlib.sha256(files["app-compose.json"]).digest()
    assert events.compose_hash == digest
    assert events.app_id == digest[:20]
    assert expected["compose_hash"] == digest.hex()
    assert events.init_script_hashes == tuple(
        hashlib.sha256(script).digest() for script in (b"echo one", b"echo two")
    )


def test_the_kms_signed_the_apps_key_for_that_app(files: dict[str, bytes], expected: dict[str, str]) -> None:
    keys = parse_app_keys(files["appkeys.json"])
    verify_issued_key(
        bytes.fromhex(expected["app_id"]),
        public_key(keys.k256_key),
        keys.k256_signature,
        bytes.fromhex(expected["kms_k256_root"]),
    )


def test_the_ca_is_the_key_provider_of_the_events(files: dict[str, bytes], expected: dict[str, str]) -> None:
    keys = parse_app_keys(files["appkeys.json"])
    assert isinstance(keys.key_provider, SeedProvider)
    spki = spki_der(x509.load_pem_x509_certificate(keys.ca_cert.encode()).public_key())  # type: ignore[arg-type]
    events = system_events(decode_envelope(files["attestation.bin"]).runtime_events)
    assert json.loads(events.key_provider) == {"name": "kms", "id": spki.hex()}
    assert expected["kms_ca_root"] == spki.hex()


def test_the_host_names_the_image_that_the_evidence_names(
    files: dict[str, bytes], expected: dict[str, str]
) -> None:
    vm_config = json.loads(files["sys-config.json"])["vm_config"]
    assert vm_config == decode_envelope(files["attestation.bin"]).config
    assert json.loads(vm_config)["os_image_hash"] == expected["os_image_hash"]


def test_the_whole_event_log_replays_to_the_quote(files: dict[str, bytes]) -> None:
    evidence = decode_envelope(files["attestation.bin"])
    assert isinstance(evidence.quote, TdxQuote)
    registers = [bytes(48)] * 4
    for event in evidence.quote.event_log:
        registers[event.imr] = hashlib.sha384(registers[event.imr] + event.digest).digest()
    assert tuple(registers) == parse_quote(evidence.quote.quote).report.rtmrs
    assert registers[3] == replay(evidence.runtime_events, "sha384")


def test_a_verifier_finds_the_app_and_its_image(tmp_path: Path, expected: dict[str, str]) -> None:
    for name, content in make_fixture(COMPOSE, seed=SEED, now=NOW).items():
        (tmp_path / name).write_bytes(content)
    assert publish_trust(tmp_path, SimulatorConfig.of_directory(tmp_path), now=NOW)
    verified = verify_attestation(
        decode_envelope((tmp_path / "attestation.bin").read_bytes()),
        now=NOW,
        anchors=TrustAnchors.production().with_extra((tmp_path / "root.pem").read_bytes()),
        endorsements=parse_bundle((tmp_path / "collateral.json").read_bytes()),
    )
    info = app_info(verified)
    assert verified.verdict.simulated
    assert info.app_id.hex() == expected["app_id"]
    assert info.os_image_hash.hex() == expected["os_image_hash"]
    assert not info.self_asserted


def test_a_seed_makes_the_same_keys_every_time(files: dict[str, bytes]) -> None:
    again = make_fixture(COMPOSE, seed=SEED, now=NOW + 86_400)
    assert parse_app_keys(again["appkeys.json"]).k256_key == parse_app_keys(files["appkeys.json"]).k256_key
    assert again["expected.json"] == files["expected.json"]


def test_an_app_without_instance_ids_has_none() -> None:
    compose = json.dumps(json.loads(COMPOSE) | {"no_instance_id": True}).encode()
    assert json.loads(make_fixture(compose, seed=SEED, now=NOW)["expected.json"])["instance_id"] == ""


def test_an_app_compose_that_is_none_is_refused() -> None:
    with refuses("compose.syntax", ProtocolError):
        make_fixture(b"{", seed=SEED, now=NOW)


def test_an_empty_or_new_directory_gets_a_guest_of_its_own(tmp_path: Path) -> None:
    assert lay_fixture(tmp_path, None, now=NOW)
    assert lay_fixture(tmp_path / "new", None, now=NOW)
    first, second = (
        parse_app_keys((place / "appkeys.json").read_bytes()) for place in (tmp_path, tmp_path / "new")
    )
    assert first.k256_key != second.k256_key


def test_a_guest_that_is_there_is_kept(tmp_path: Path) -> None:
    lay_fixture(tmp_path, COMPOSE, now=NOW)
    before = {name: (tmp_path / name).read_bytes() for name in RECORD}
    assert not lay_fixture(tmp_path, COMPOSE, now=NOW + 1)
    assert not lay_fixture(tmp_path, None, now=NOW + 1)
    assert {name: (tmp_path / name).read_bytes() for name in RECORD} == before


def test_secrets_are_for_nobody_elses_eyes(tmp_path: Path) -> None:
    lay_fixture(tmp_path / "new", None, now=NOW)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new/appkeys.json").stat().st_mode & 0o777 == 0o600


def test_a_directory_with_foreign_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with refuses("simulator.directory.foreign", ConfigError):
        lay_fixture(tmp_path, None, now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_guest_of_another_app_compose_is_not_replaced(tmp_path: Path) -> None:
    lay_fixture(tmp_path, None, now=NOW)
    with refuses("simulator.directory.compose", ConfigError):
        lay_fixture(tmp_path, COMPOSE, now=NOW)


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with refuses("simulator.directory.write", StorageError):
        lay_fixture(tmp_path / "file" / "below", None, now=NOW)


def test_without_a_seed_there_is_nothing_to_trust(tmp_path: Path) -> None:
    assert not publish_trust(tmp_path, SimulatorConfig(), now=NOW)
    assert not list(tmp_path.iterdir())


def test_a_seed_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dstack.toml").write_text('[default.core.simulator]\nmock_attestation_seed = "abcd"\n')
    with refuses("simulator.seed", ConfigError):
        publish_trust(tmp_path, SimulatorConfig.of_directory(tmp_path), now=NOW)


@pytest.mark.parametrize("size", [None, MAX_COMPOSE_BYTES + 1])
def test_an_app_compose_file_that_cannot_be_read_whole_is_refused(tmp_path: Path, size: int | None) -> None:
    path = tmp_path / "app-compose.json"
    if size is not None:
        with path.open("wb") as file:
            file.truncate(size)
    with refuses("simulator.compose", ConfigError):
        read_compose_file(path)

"""Every call of the `@phala/dstack-sdk` that npm serves, in node, against our agent over its real sockets."""

import json
import os
import shutil
import subprocess
from hashlib import sha256, sha512
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from dstack_sdk.dstack_client import GetKeyResponse
from dstack_sdk.ethereum import to_account_secure
from dstack_sdk.solana import to_keypair_secure

from shared.attestation.envelope import decode_envelope
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.tdx_quote import parse_quote
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import read_attestation
from shared.version import __version__
from tests.sdk.conftest import Agent

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def answers(made: Agent) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules/.installed").exists():
        pytest.skip("the javascript sdk is not installed: node, npm and `make sdk` bring it")
    ran = subprocess.run(
        [node, "calls.mjs"],
        cwd=HERE,
        env={**os.environ, **made.variables, "NODE_NO_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout[ran.stdout.index("{") :])
    return found


def test_get_key_gives_what_the_python_sdk_gets(answers: dict[str, Any]) -> None:
    key = GetKeyResponse(key=answers["key"], signature_chain=answers["chain"])
    assert len(key.decode_key()) == 32
    assert [len(bytes.fromhex(link)) for link in answers["chain"]] == [65, 65]
    assert answers["ed25519"] == answers["key"]
    assert answers["ethereum"] == to_account_secure(key).address
    assert answers["solana"] == str(to_keypair_secure(key).pubkey())


def test_get_key_refuses_another_algorithm(answers: dict[str, Any]) -> None:
    assert answers["rsa"]


def test_get_quote_is_over_the_report_data_and_replays(answers: dict[str, Any]) -> None:
    report = parse_quote(bytes.fromhex(answers["quote"])).report
    assert report.report_data == b"test".ljust(64, b"\0")
    assert answers["report_data"] == report.report_data.hex()
    assert answers["replayed"] == [register.hex() for register in report.rtmrs]


def test_attest_gives_an_envelope_over_the_data(answers: dict[str, Any]) -> None:
    evidence = decode_envelope(bytes.fromhex(answers["attestation"]))
    assert evidence.report_data == bytes([7] * 32) + bytes(32)


def test_info_agrees_with_itself(answers: dict[str, Any]) -> None:
    info = answers["info"]
    assert info["compose_hash"] == sha256(info["tcb_info"]["app_compose"].encode()).hexdigest()
    assert info["app_name"] == "simulated-app"


def test_sign_and_verify_agree(answers: dict[str, Any]) -> None:
    assert set(answers["verdicts"]) == {"ed25519", "secp256k1", "secp256k1_prehashed"}
    assert all(verdict == [True, False] for verdict in answers["verdicts"].values())


def test_a_certificate_for_ra_tls_carries_evidence_over_its_own_key(answers: dict[str, Any]) -> None:
    leaf = x509.load_pem_x509_certificate(answers["certificates"][0].encode())
    envelope = read_attestation(leaf.extensions)
    assert envelope is not None
    expected = report_data(RATLS_CERT, spki_der(leaf.public_key()))  # type: ignore[arg-type]
    assert decode_envelope(envelope).report_data == expected
    assert answers["tls_key"].startswith("-----BEGIN PRIVATE KEY-----")


def test_version_is_ours(answers: dict[str, Any]) -> None:
    assert answers["version"] == __version__


def test_emit_event_does_no_harm_to_an_app_that_still_calls_it(answers: dict[str, Any]) -> None:
    assert answers["event"] is None  # this SDK looks at no status: the refusal is not seen


def test_both_clients_find_the_agent(answers: dict[str, Any]) -> None:
    assert answers["reachable"] == [True, True]


def test_tappd_derives_one_tls_key_for_a_path(answers: dict[str, Any]) -> None:
    first, second = answers["derived"]
    assert first == second


def test_tappd_quotes_a_hash(answers: dict[str, Any]) -> None:
    report = parse_quote(bytes.fromhex(answers["hashed"])).report
    assert report.report_data == sha512(b"app-data:test").digest()

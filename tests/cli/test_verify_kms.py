"""`dstack-cloud verify-kms` against a whole simulated KMS, its contract, and what poses as one."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from cli.kms_audit import LANES
from cli.verify_kms import _meta, parse_target, verify_kms
from enclave.simulator.evidence import sample_guest
from shared.attestation.envelope import encode_envelope
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.errors import ConfigError, UnavailableError
from shared.net.attested_client import AttestedConnection
from shared.net.response import Response
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.certificates import rpc_certificate, self_signed_ca, spki_der
from shared.ratls.csr import CsrConfig
from tests.cli.kms_site import Impostor, KmsSite, kms_site
from tests.shared.refusal import refuses


@pytest.fixture(scope="module")
def site(chain: Chain) -> Iterator[KmsSite]:
    with kms_site(chain, "nitro", 2) as running:
        yield running


def audit(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(verify_kms, [*arguments, "--json"])
    assert result.stdout, result.exception
    return result.exit_code, json.loads(result.stdout)


def text(*arguments: str) -> list[str]:
    result = CliRunner().invoke(verify_kms, [*arguments])
    assert result.stdout, result.exception
    return result.stdout.splitlines()


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {name: lane["status"] for name, lane in report["lanes"].items()}


def test_verifies_against_its_contract(site: KmsSite) -> None:
    code, report = audit(site.url, *site.trust, *site.contract())
    assert (code, report["is_valid"], report["code"]) == (0, True, None), report
    assert statuses(report) == dict.fromkeys(LANES, "verified") | {"policy": "self_asserted"}
    assert report["simulated"] is True
    assert report["kms"]["ca_pubkey"] == site.roots.ca_pubkey.hex()
    assert report["kms"]["k256_pubkey"] == site.roots.k256_pubkey.hex()
    assert report["app_info"]["os_image_hash"] == site.measured.os_image_hash.hex()
    assert report["caveats"] == []


def test_the_first_line_says_what_was_checked(site: KmsSite) -> None:
    simulated = "SIMULATED: an anchor is not the vendor's root"
    first = text(site.url, *site.trust, *site.contract())[0]
    assert first.startswith(f"VERIFIED  {site.url}, judged at ")
    assert first.endswith(simulated)
    assert text(site.url, *site.trust)[0] == (
        f"VERIFIED, without the contract: whose keys these are was not checked  {simulated}"
    )


def test_lists_every_lax_setting(site: KmsSite) -> None:
    code, report = audit(site.url, *site.trust)
    assert code == 0
    lax = [setting["name"] for setting in report["lax"]]
    assert set(lax) >= {
        *("simulated", "clock_source", "treat_nitro_as_up_to_date", "nitro_enclave_key_release"),
        *("quorum", "quorum_plain_http", "custody", "key_handover"),
    }
    shown = [line for line in text(site.url, *site.trust) if line.startswith("  lax: ")]
    assert [line.split()[1] for line in shown] == lax


def test_the_evidence_of_a_guest_on_google_cloud_verifies_too(chain: Chain) -> None:
    with kms_site(chain, "gcp", 4) as site:
        code, report = audit(site.url, *site.trust, *site.contract())
    assert (code, report["code"]) == (0, None), report
    assert statuses(report) == dict.fromkeys(LANES, "verified") | {"policy": "self_asserted"}
    assert report["verdict"]["tcb_status"] == "UpToDate"
    assert report["lanes"]["bootstrap_evidence"]["reason"].endswith("judged by present collateral")


def test_refuses_a_kms_of_another_contract(site: KmsSite, chain: Chain) -> None:
    other = Governance(chain.url, chain.accounts[6])
    other.deploy()
    other.finalize(other.add_os_image(bytes(32)))
    code, report = audit(site.url, *site.trust, *site.contract(other.kms.address))
    assert (code, report["code"]) == (3, "kms_audit.contract.other"), report
    codes = {name: lane["code"] for name, lane in report["lanes"].items() if lane["code"]}
    assert codes == {
        "contract": "kms_audit.contract.other",
        "root_ca": "kms_audit.root_ca.unset",
        "k256_key": "kms_audit.k256_key.unset",
        "allowed": "kms_audit.denied",
    }


@contextlib.contextmanager
def published(site: KmsSite, **changes: bytes) -> Iterator[None]:
    """Have the contract publish other keys, for a while."""
    site.publish(msgspec.structs.replace(site.roots, **changes))
    try:
        yield
    finally:
        site.publish(site.roots)


def test_refuses_a_kms_with_other_keys_than_the_contracts(site: KmsSite) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with published(site, ca_pubkey=spki_der(other), k256_pubkey=b"\2" + bytes(31) + b"\1"):
        code, report = audit(site.url, *site.trust, *site.contract())
    assert (code, report["code"]) == (3, "kms_audit.root_ca.other"), report
    assert report["lanes"]["k256_key"]["code"] == "kms_audit.k256_key.other"
    assert report["lanes"]["allowed"]["status"] == "verified"


def test_refuses_a_kms_whose_measurement_was_removed(site: KmsSite) -> None:
    """At once: one of the two views is enough."""
    governance, measured = site.governance, site.measured
    governance.settle(governance.remove_kms_mr(measured.mr_aggregated))
    try:
        code, report = audit(site.url, *site.trust, *site.contract())
    finally:
        governance.finalize(governance.add_kms_mr(measured.mr_aggregated))
    assert (code, report["code"]) == (3, "kms_audit.denied"), report
    assert report["reason"].endswith("Aggregated MR not allowed")
    assert report["lanes"]["root_ca"]["status"] == "verified"


def test_takes_the_record_that_the_operator_published(site: KmsSite, tmp_path: Path) -> None:
    record = {name: getattr(site.roots, name).hex() for name in ("ca_pubkey", "k256_pubkey", "attestation")}
    (tmp_path / "good.json").write_text(json.dumps(record))
    (tmp_path / "other.json").write_text(json.dumps(record | {"k256_pubkey": "02" * 33}))
    code, _ = audit(site.url, *site.trust, "--bootstrap-info", str(tmp_path / "good.json"))
    assert code == 0
    code, report = audit(site.url, *site.trust, "--bootstrap-info", str(tmp_path / "other.json"))
    assert (code, report["code"]) == (3, "kms_audit.bootstrap.other_keys"), report
    assert report["lanes"]["bootstrap_evidence"]["code"] == "attestation.report_data"


def test_refuses_simulated_evidence_without_its_root(site: KmsSite) -> None:
    code, report = audit(site.url)
    assert (code, report["code"], report["simulated"]) == (3, "nitro.chain.anchor", None)
    assert report["kms"] is None
    assert statuses(report)["meta"] == "skipped"


def test_an_endpoint_that_does_not_answer_is_a_failure(site: KmsSite) -> None:
    options = ("--kms-contract", site.governance.kms.address, "--chain-id", "31337")
    code, report = audit(site.url, *site.trust, *options, "--rpc", "http://127.0.0.1:1")
    assert (code, report["code"]) == (1, "quorum.too_few"), report
    assert report["lanes"]["issuer"]["status"] == "verified"


def test_another_chain_is_refused(site: KmsSite) -> None:
    options = ("--kms-contract", site.governance.kms.address, "--chain-id", "1", "--rpc", site.chain.url)
    code, report = audit(site.url, *site.trust, *options)
    assert (code, report["code"]) == (3, "kms_audit.contract.chain"), report
    assert report["lanes"]["allowed"]["code"] == "quorum.chain_id"


BEYOND_THE_EXTRA = (
    *("google.protobuf", "coincurve", "cbor2", "starlette", "uvicorn", "httptools", "uvloop", "urllib3"),
    *("web3", "eth", "rlp", "boto3", "requests", "httpx", "google.auth"),
)


def test_needs_nothing_beyond_the_cli_extra(site: KmsSite) -> None:
    script = (
        f"import sys; sys.modules |= dict.fromkeys({BEYOND_THE_EXTRA}); from cli.main import main; main()"
    )
    words = ["verify-kms", site.url, *site.trust, *site.contract()]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("VERIFIED  ")


# --- what poses as a KMS ---


class Poser:
    """An enclave of somebody else's, with a certificate authority of its own."""

    def __init__(self, image: Path) -> None:
        self.now = int(time.time())
        image.mkdir()
        (image / "run.sh").write_bytes(b"#!/bin/sh\n")
        self._guest = sample_guest("nitro", image, now=self.now)
        (image / "root.pem").write_bytes(self._guest.root_pem)
        self.trust = ("--trust-anchor", str(image / "root.pem"))
        self.key = ec.generate_private_key(ec.SECP256R1())
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = self_signed_ca(ca_key, "Dstack KMS CA", 1, self.now - 60, self.now + 3600)
        self.issuer = (ca, ca_key)

    def evidence(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        return encode_envelope(self._guest.attest(report_data(RATLS_CERT, spki_der(key.public_key()))))

    def kms_leaf(self, evidence: bytes | None) -> x509.Certificate:
        return rpc_certificate(
            self.key, domain="localhost", issuer=self.issuer, attestation=evidence, now=self.now
        )

    def app_leaf(self) -> x509.Certificate:
        return app_certificate(
            self.key.public_key(),
            CsrConfig(subject="app", subject_alt_names=("localhost",), usage_server_auth=True),
            Stamps(app_id=b"a" * 20, attestation=self.evidence(self.key)),
            issuer=self.issuer,
            times=(self.now - 60, self.now + 3600),
        )


@pytest.fixture
def poser(tmp_path: Path) -> Poser:
    return Poser(tmp_path / "image")


def audit_impostor(poser: Poser, leaf: x509.Certificate) -> tuple[int, dict[str, Any]]:
    """Audit a server that shows this certificate, and expect that it was sent nothing."""
    impostor = Impostor(poser.key, leaf, poser.now)
    try:
        found = audit(impostor.url, *poser.trust)
    finally:
        impostor.close()
    assert impostor.received == b""
    return found


def test_refuses_an_apps_certificate_and_sends_nothing(poser: Poser) -> None:
    code, report = audit_impostor(poser, poser.app_leaf())
    assert (code, report["code"]) == (3, "ratls.usage")
    assert report["hint"].startswith("this is the certificate of something else")


def test_refuses_evidence_over_another_key_and_sends_nothing(poser: Poser) -> None:
    stolen = poser.evidence(ec.generate_private_key(ec.SECP256R1()))
    code, report = audit_impostor(poser, poser.kms_leaf(stolen))
    assert (code, report["code"]) == (3, "attestation.report_data")
    assert statuses(report)["certificate"] == "verified"


def test_refuses_a_certificate_without_evidence_and_sends_nothing(poser: Poser) -> None:
    code, report = audit_impostor(poser, poser.kms_leaf(None))
    assert (code, report["code"]) == (3, "ratls.attestation.missing")


def test_nobody_there_is_a_failure() -> None:
    code, report = audit("https://127.0.0.1:1")
    assert (code, report["code"], report["exit_code"]) == (1, "net.unreachable", 1)
    assert set(report["lanes"]) == set(LANES)
    assert text("https://127.0.0.1:1")[0].startswith("FAILED  ")


# --- usage ---


@pytest.mark.parametrize(
    "url",
    [
        *("http://kms.test", "kms.test:8000", "https://", "https://kms.test/?json", "https://kms.test:x"),
        *("https://user@kms.test", "https://kms.test/#x", "https://kms.test:99999"),
    ],
)
def test_an_url_that_is_none_of_a_kms_is_a_usage_error(url: str) -> None:
    with refuses("verify_kms.url", ConfigError):
        parse_target(url)


@pytest.mark.parametrize(
    ("url", "port", "path"),
    [
        ("https://kms.test", 443, "/prpc/GetMeta?json"),
        ("https://kms.test:8000/", 8000, "/prpc/GetMeta?json"),
        ("https://kms.test:8000/prpc", 8000, "/prpc/GetMeta?json"),
        ("https://kms.test/a/prpc/", 443, "/a/prpc/GetMeta?json"),
    ],
)
def test_the_urls_of_a_kms_lead_to_get_meta(url: str, port: int, path: str) -> None:
    target = parse_target(url)
    assert (target.host, target.port, target.path) == ("kms.test", port, path)


ADDRESS = ("--kms-contract", "0x" + "11" * 20)
CHAIN_ID = ("--chain-id", "1")
RPC = ("--rpc", "https://one.test", "--rpc", "https://two.test")


@pytest.mark.parametrize("given", [ADDRESS, CHAIN_ID, RPC, ADDRESS + CHAIN_ID, CHAIN_ID + RPC, ADDRESS + RPC])
def test_half_a_contract_is_a_usage_error(given: tuple[str, ...]) -> None:
    with refuses("verify_kms.chain", ConfigError):
        CliRunner().invoke(verify_kms, ["https://127.0.0.1:1", *given], catch_exceptions=False)


@pytest.mark.parametrize(
    ("rpc", "code"),
    [
        (("--rpc", "https://one.test"), "quorum.config.size"),
        (("--rpc", "https://one.test", "--rpc", "https://one.test/other"), "quorum.config.hosts"),
        (("--rpc", "https://one.test", "--rpc", "http://two.test"), "quorum.config.plain_http"),
    ],
)
def test_endpoints_that_are_no_quorum_are_a_usage_error(rpc: tuple[str, ...], code: str) -> None:
    with refuses(code, ConfigError):
        CliRunner().invoke(
            verify_kms, ["https://127.0.0.1:1", *ADDRESS, *CHAIN_ID, *rpc], catch_exceptions=False
        )


class Refusing:
    """A connection on which GetMeta fails."""

    def request(self, *_: object, **__: object) -> Response:
        return Response(400, {}, b'{"error": "no chain\x1b[2J"}')


def test_a_kms_that_cannot_describe_itself_is_a_failure_with_its_words() -> None:
    with refuses("kms_audit.status", UnavailableError) as caught:
        _meta(cast("AttestedConnection", Refusing()), parse_target("https://kms.test"))
    assert "no chain" in caught.value.message
    assert caught.value.message.isprintable()

"""`dstack-cloud verify-kms` against a whole simulated KMS, its contract, and what poses as one."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from cli.kms_audit import LANES
from cli.verify_kms import parse_target, verify_kms
from enclave.simulator.evidence import sample_guest
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.errors import ConfigError
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.certificates import rpc_certificate, self_signed_ca, spki_der
from shared.ratls.csr import CsrConfig
from tests.cli.kms_site import Impostor, KmsSite, kms_site
from tests.shared.refusal import refuses


@pytest.fixture(scope="module")
def site(chain: Chain) -> Iterator[KmsSite]:
    with kms_site(chain, "nitro") as running:
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

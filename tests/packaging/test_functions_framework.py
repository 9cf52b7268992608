"""The staged directories of verify and authorize, served by functions-framework, answering requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.devchain.launcher import Chain
from shared.attestation.collateral import collateral_json
from shared.attestation.envelope import encode_envelope
from shared.chain.bundle import bundle_from_wire
from tests.packaging.conftest import Artefacts
from tests.packaging.serving import serving
from tests.shared.attestation.forgery import NOW
from tests.shared.attestation.guest_forgery import TdxGuest

KMS = "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"


def test_verify_answers_with_the_verdict_on_a_tdx_quote(artefacts: Artefacts, tmp_path: Path) -> None:
    guest = TdxGuest()
    (tmp_path / "root.pem").write_bytes(guest.intel.root_pem)
    prefix = "DSTACK_VERIFIER_ATTESTATION__"
    environ = {
        f"{prefix}INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS": "true",
        f"{prefix}ALLOW_REQUEST_OVERRIDES": "true",
        f"{prefix}OFFLINE": "true",
        f"{prefix}ROOT_CA__TDX": str(tmp_path / "root.pem"),
    }
    request = {
        "attestation": encode_envelope(guest.attestation()).hex(),
        "now": NOW,
        "collateral": json.loads(collateral_json(guest.endorsements.tdx[0])),
    }
    with serving(artefacts, "verify", "verify", tmp_path, environ) as call:
        status, answer = call("POST", "/verify", request)
        assert (status, answer["is_valid"], answer["code"]) == (200, True, None), answer
        status, answer = call("POST", "/verify", {**request, "expected_report_data": "00" * 64})
        assert (status, answer["is_valid"]) == (200, False)
        assert call("GET", "/health") == (200, {"status": "ok", "service": "dstack-verifier"})
        assert call("POST", "/verify", [])[0] == 422


def test_authorize_decides_and_proves(
    artefacts: Artefacts, tmp_path: Path, golden_chain: Chain, allowed_body: Callable[..., dict[str, Any]]
) -> None:
    environ = {
        "ETH_RPC_URL": golden_chain.url,
        "KMS_CONTRACT_ADDR": KMS,
        "ETH_CHAIN_ID": "31337",
        "ETH_MAX_HEAD_AGE": "31622400",
    }
    with serving(artefacts, "authorize", "authorize", tmp_path, environ) as call:
        status, answer = call("POST", "/bootAuth/app?proof=1", allowed_body())
        assert (status, answer["isAllowed"], answer["reason"]) == (200, True, "")
        assert bundle_from_wire(answer["proof"]).to_wire() == answer["proof"]
        status, answer = call("POST", "/bootAuth/app", allowed_body(composeHash="0x" + "11" * 32))
        assert (status, answer["isAllowed"]) == (200, False)
        assert call("GET", "/")[1]["chainId"] == 31337
        assert call("GET", "/other")[0] == 404


def test_a_target_that_main_does_not_have_does_not_start(artefacts: Artefacts, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="expected to contain a function named 'verify'"),
        serving(artefacts, "authorize", "verify", tmp_path, {}),
    ):
        pytest.fail("it started")

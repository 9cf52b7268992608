"""The zips that are deployed, run as Lambda runs them, answering events as API Gateway sends them."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from cli.devchain.launcher import Chain
from shared.attestation.collateral import collateral_json
from shared.attestation.envelope import encode_envelope
from shared.chain.bundle import bundle_from_wire
from tests.packaging.conftest import Artefacts
from tests.packaging.runtime_api import FunctionError, RunningFunction, running
from tests.shared.attestation.forgery import NOW, Forge
from tests.shared.attestation.guest_forgery import TdxGuest

KMS = "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"

Run = Callable[..., AbstractContextManager[RunningFunction]]


@pytest.fixture
def run(artefacts: Artefacts, tmp_path: Path) -> Run:
    """Run a package's handler."""

    def start(
        package: str, handler: str, environ: dict[str, str] | None = None
    ) -> AbstractContextManager[RunningFunction]:
        return running(artefacts.unpacked(package), artefacts.awslambdaric(), handler, tmp_path, environ)

    return start


@pytest.fixture
def verifier(run: Run, tmp_path: Path) -> Iterator[Callable[[bytes, str], RunningFunction]]:
    """The verify function, trusting one more root for one signer."""
    entered: list[AbstractContextManager[RunningFunction]] = []

    def start(root: bytes, signer: str) -> RunningFunction:
        (tmp_path / "root.pem").write_bytes(root)
        prefix = "DSTACK_VERIFIER_ATTESTATION__"
        environ = {
            f"{prefix}INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS": "true",
            f"{prefix}ALLOW_REQUEST_OVERRIDES": "true",
            f"{prefix}OFFLINE": "true",
            f"{prefix}ROOT_CA__{signer}": str(tmp_path / "root.pem"),
        }
        entered.append(run("verify", "functions.verify.aws.handler", environ))
        return entered[-1].__enter__()

    yield start
    for one in entered:
        one.__exit__(None, None, None)


def test_verify_answers_with_the_verdict_on_a_tdx_quote(
    verifier: Callable[[bytes, str], RunningFunction],
) -> None:
    guest = TdxGuest()
    function = verifier(guest.intel.root_pem, "TDX")
    evidence = encode_envelope(guest.attestation()).hex()
    request = {
        "attestation": evidence,
        "now": NOW,
        "collateral": json.loads(collateral_json(guest.endorsements.tdx[0])),
    }
    status, answer = function.http("POST", "/verify", request)
    assert (status, answer["is_valid"], answer["code"]) == (200, True, None), answer
    assert answer["verdict"]["simulated"] is True
    # the anchors of production alone do not take it
    status, answer = function.http("POST", "/verify", {**request, "collateral": None})
    assert (status, answer["is_valid"], answer["code"]) == (200, False, "endorsements.offline")


def test_verify_answers_with_the_verdict_on_an_enclave(
    verifier: Callable[[bytes, str], RunningFunction],
) -> None:
    forge = Forge()
    function = verifier(forge.made["root"].pem, "AWS_NITRO_ENCLAVE")
    evidence = forge.envelope()
    status, answer = function.http("POST", "/verify", {"attestation": evidence.hex(), "now": NOW})
    assert (status, answer["is_valid"], answer["code"]) == (200, True, None), answer
    broken = evidence[:-1] + bytes([evidence[-1] ^ 1])
    status, answer = function.http("POST", "/verify", {"attestation": broken.hex(), "now": NOW})
    assert (status, answer["is_valid"]) == (200, False)
    assert answer["code"]
    assert function.http("GET", "/health") == (200, {"status": "ok", "service": "dstack-verifier"})
    assert function.http("POST", "/verify", [])[0] == 422
    assert function.http("GET", "/")[0] == 404


def test_verify_says_which_setting_is_wrong(run: Run) -> None:
    with run(
        "verify",
        "functions.verify.aws.handler",
        {"DSTACK_VERIFIER_ATTESTATION__ROOT_CA__TDX": "root.pem"},
    ) as function:
        with pytest.raises(FunctionError) as caught:
            function.http("GET", "/health")
        assert "insecure_allow_external_trust_anchors is not true" in str(caught.value)


def test_authorize_decides_and_proves(
    run: Run, golden_chain: Chain, allowed_body: Callable[..., dict[str, Any]]
) -> None:
    environ = {
        "ETH_RPC_URL": golden_chain.url,
        "KMS_CONTRACT_ADDR": KMS,
        "ETH_CHAIN_ID": "31337",
        "ETH_MAX_HEAD_AGE": "31622400",
    }
    with run("authorize", "functions.authorize.aws.handler", environ) as function:
        status, answer = function.http("POST", "/bootAuth/app", allowed_body(), "proof=1")
        assert (status, answer["isAllowed"], answer["reason"]) == (200, True, "")
        assert bundle_from_wire(answer["proof"]).to_wire() == answer["proof"]
        status, answer = function.http("POST", "/bootAuth/app", allowed_body(composeHash="0x" + "11" * 32))
        assert (status, answer["isAllowed"]) == (200, False)
        assert function.http("GET", "/")[1]["chainId"] == 31337
        assert function.http("POST", "/bootAuth/app", {"a": 1})[0] == 400
    environ["ETH_CHAIN_ID"] = "1"
    with run("authorize", "functions.authorize.aws.handler", environ) as function:
        status, answer = function.http("POST", "/bootAuth/app", allowed_body(), "proof=1")
        assert (status, answer["isAllowed"], answer["code"]) == (200, False, "authorize.chain_id")


def test_a_handler_that_is_not_in_the_zip_is_told_to_the_runtime(run: Run) -> None:
    with run("authorize", "functions.verify.aws.handler") as function, pytest.raises(FunctionError) as caught:
        function.http("GET", "/")
    assert "No module named 'functions.verify'" in str(caught.value)

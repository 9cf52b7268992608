"""The staged directories, served by functions-framework with nothing but their own requirements."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli.devchain.launcher import Chain
from shared.attestation.collateral import collateral_json
from shared.attestation.envelope import encode_envelope
from shared.chain.bundle import bundle_from_wire
from tests.packaging.conftest import Artefacts
from tests.shared.attestation.forgery import NOW
from tests.shared.attestation.guest_forgery import TdxGuest

KMS = "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"

SERVE = """
import sys
sys.path[:0] = sys.argv[1:3]
from functions_framework._cli import _cli
_cli(sys.argv[3:])
"""
# a process that has not said by then where it listens never will
START_SECONDS = 60
LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")

Call = Callable[..., tuple[int, Any]]


@contextmanager
def serving(
    artefacts: Artefacts, name: str, target: str, directory: Path, environ: dict[str, str]
) -> Iterator[Call]:
    """Serve a target of a staged directory, as the buildpack's start command does."""
    _, source = artefacts.source(name)
    packages = artefacts.requirements(name)
    options = ["--target", target, "--source", str(source / "main.py"), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SERVE, str(source), str(packages), *options],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "GUNICORN_LOG_LEVEL": "info",  # it says on which port it listens
            **environ,
        },
        cwd=source,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            said.append(line)
            if found := LISTENING.search(line):
                port = int(found[1])
                break
        watchdog.cancel()
        assert port, "".join(said)
        yield lambda *arguments, **options: _call(port, *arguments, **options)
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate()


def _call(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        text = None if body is None else json.dumps(body)
        sent = {"content-type": "application/json"} if text else {}
        connection.request(method, path, text, {**sent, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


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
    environ = {"ETH_RPC_URL": golden_chain.url, "KMS_CONTRACT_ADDR": KMS, "ETH_CHAIN_ID": "31337"}
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

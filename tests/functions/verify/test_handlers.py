"""The two cloud entries: routes, statuses, and what they may load."""

import base64
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, Request

from functions.verify import aws, gcp
from shared.errors import ConfigError

LARGE = b" " * (1024 * 1024 + 1)
CONTEXT = SimpleNamespace(
    function_name="verify",
    memory_limit_in_mb=256,
    invoked_function_arn="arn:aws:lambda:eu-west-1:0:function:verify",
    aws_request_id="1",
)
# What a verifier has no use for, and what makes a cold start slow.
HEAVY = (
    "web3",
    "boto3",
    "botocore.session",
    "pydantic",
    "grpc",
    "google.cloud.compute_v1",
    "rich",
    "dcap_qvl",
    "shared.net.fetch",
    "shared.attestation.tdx",
    "eth",
    "coincurve",
    "aws_lambda_powertools.event_handler",
)


def lambda_event(method: str, path: str, body: str | None, *, encoded: bool = False) -> dict[str, Any]:
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": method, "path": path}, "stage": "$default"},
        "body": body,
        "isBase64Encoded": encoded,
    }


def call_aws(method: str, path: str, body: bytes | None = None, *, encoded: bool = False) -> tuple[int, Any]:
    text = None
    if body is not None:
        text = base64.b64encode(body).decode() if encoded else body.decode()
    answer = aws.handler(lambda_event(method, path, text, encoded=encoded), CONTEXT)
    return answer["statusCode"], json.loads(answer["body"])


def call_gcp(method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    app = Flask(__name__)
    with app.test_request_context(path, method=method, data=body) as context:
        request: Request = context.request
        answer = gcp.verify(request)
    return answer.status_code, json.loads(answer.get_data())


@pytest.mark.parametrize("call", [call_aws, call_gcp])
class TestBothClouds:
    def test_is_healthy(self, call: Any) -> None:
        assert call("GET", "/health") == (200, {"status": "ok", "service": "dstack-verifier"})

    def test_refused_evidence_is_status_200(self, call: Any) -> None:
        status, answer = call("POST", "/verify", b'{"attestation":"00"}')
        assert status == 200
        assert answer["is_valid"] is False
        assert answer["reason"] == "Internal error: Failed to decode attestaion"

    def test_a_body_that_is_no_request_is_a_client_error(self, call: Any) -> None:
        for body, status in ((b"{", 400), (b"[]", 422), (LARGE, 413)):
            got, answer = call("POST", "/verify", body)
            assert got == status
            assert answer["code"].startswith("verify.body.")

    def test_an_empty_body_is_a_client_error(self, call: Any) -> None:
        assert call("POST", "/verify")[0] == 400

    def test_other_paths_are_not_found(self, call: Any) -> None:
        assert call("GET", "/other")[0] == 404


def test_lambda_answers_rest_api_events() -> None:
    event = {"httpMethod": "GET", "path": "/health", "requestContext": {"stage": "prod"}, "body": None}
    answer = aws.handler(event, CONTEXT)
    assert (answer["statusCode"], answer["headers"]["content-type"]) == (200, "application/json")


@pytest.mark.parametrize("entry", [aws, gcp])
def test_a_bad_setting_shows_at_the_first_request(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTACK_VERIFIER_ATTESTATION__ROOT_CA__AWS_NITRO_ENCLAVE", "root.pem")
    entry.service.cache_clear()
    with pytest.raises(ConfigError) as caught:
        entry.service()
    assert caught.value.code == "verify.anchors.flag"


def test_lambda_reads_a_base64_body() -> None:
    status, answer = call_aws("POST", "/verify", b'{"attestation":"00"}', encoded=True)
    assert (status, answer["is_valid"]) == (200, False)


@pytest.mark.parametrize(
    "module", ["functions.verify.aws", "functions.verify.gcp", "functions.verify.service"]
)
def test_a_handler_loads_nothing_heavy(module: str) -> None:
    script = f"import sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert module in loaded.split()
    assert not set(HEAVY) & set(loaded.split())

"""The two cloud entries: thin, light to import, and giving the service's answers unchanged."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from functions_framework import create_app

from cli.devchain.launcher import Chain
from functions.authorize import aws, gcp
from functions.authorize.service import MAX_BODY_BYTES
from functions.authorize.settings import MAX_AGE

Body = Callable[..., dict[str, Any]]
REPOSITORY = Path(__file__).resolve().parents[3]
CONTEXT = SimpleNamespace(
    function_name="authorize",
    memory_limit_in_mb=256,
    invoked_function_arn="arn:aws:lambda:eu-west-1:0:function:authorize",
    aws_request_id="1",
)
# what a cold authorize function must not pay for (DEPENDENCIES, cold start)
HEAVY = (
    "web3",
    "boto3",
    "botocore.session",
    "grpc",
    "pydantic",
    "google.cloud.firestore",
    "google.cloud.compute_v1",
    "google.protobuf",
    "cryptography",
    "OpenSSL",
    "requests",
    "httpx",
    "urllib3",
    "eth",
    "eth_abi",
    "rlp",
    "coincurve",
    "cbor2",
    "aws_xray_sdk",
    "asyncio",
)


@pytest.fixture(autouse=True)
def environment(golden_chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETH_RPC_URL", golden_chain.url)
    monkeypatch.setenv("KMS_CONTRACT_ADDR", "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0")
    monkeypatch.setenv("ETH_CHAIN_ID", "31337")
    monkeypatch.setenv("ETH_MAX_HEAD_AGE", str(MAX_AGE))
    aws.service.cache_clear()
    gcp.service.cache_clear()


def v2(method: str, path: str, body: object = None, **changes: Any) -> dict[str, Any]:
    text = "" if body is None else json.dumps(body)
    event: dict[str, Any] = {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json"} if text else {},
        "requestContext": {"http": {"method": method, "path": path}, "stage": "$default"},
        "body": text,
        "isBase64Encoded": False,
    }
    return event | changes


def test_lambda_answers_http_api_events(allowed_body: Body) -> None:
    answer = aws.handler(v2("POST", "/bootAuth/app", allowed_body()), CONTEXT)
    assert (answer["statusCode"], json.loads(answer["body"])["isAllowed"]) == (200, True)
    assert answer["headers"]["content-type"] == "application/json; charset=utf-8"


def test_lambda_takes_the_query_of_http_api_events(allowed_body: Body) -> None:
    answer = aws.handler(v2("POST", "/bootAuth/app", allowed_body(), rawQueryString="proof=1"), CONTEXT)
    assert "proof" in json.loads(answer["body"])


def test_lambda_decodes_base64_bodies(allowed_body: Body) -> None:
    raw = base64.b64encode(json.dumps(allowed_body()).encode()).decode()
    event = {**v2("POST", "/bootAuth/app", {}), "body": raw, "isBase64Encoded": True}
    assert json.loads(aws.handler(event, CONTEXT)["body"])["isAllowed"] is True


def test_lambda_strips_the_stage_from_the_path() -> None:
    event = v2("GET", "/prod", requestContext={"http": {"method": "GET"}, "stage": "prod"})
    assert json.loads(aws.handler(event, CONTEXT)["body"])["status"] == "ok"


def test_lambda_answers_rest_api_events(allowed_body: Body) -> None:
    event = {
        "httpMethod": "POST",
        "path": "/bootAuth/app",
        "headers": {"Content-Type": "application/json"},
        "queryStringParameters": {"proof": "1"},
        "requestContext": {"stage": "prod"},
        "body": json.dumps(allowed_body()),
        "isBase64Encoded": False,
    }
    answer = json.loads(aws.handler(event, CONTEXT)["body"])
    assert answer["isAllowed"] is True
    assert "proof" in answer


def test_lambda_answers_rest_api_events_without_a_body() -> None:
    event = {
        "httpMethod": "GET",
        "path": "/nope",
        "headers": None,
        "queryStringParameters": None,
        "requestContext": {},
        "body": None,
    }
    assert aws.handler(event, CONTEXT)["statusCode"] == 404


def test_functions_framework_serves_the_same_answers(allowed_body: Body) -> None:
    app = create_app("authorize", str(REPOSITORY / "functions" / "authorize" / "gcp.py"))
    client = app.test_client()
    answer = client.post("/bootAuth/app?proof=1", json=allowed_body())
    assert (answer.status_code, answer.json["isAllowed"], "proof" in answer.json) == (200, True, True)
    assert answer.content_type == "application/json; charset=utf-8"
    assert client.get("/").json["status"] == "ok"
    assert client.get("/nope?x=1").json["message"] == "Route GET:/nope?x=1 not found"


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_functions_framework_reads_no_more_than_the_limit(content_type: str) -> None:
    class Counted(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            chunk = super().read(size)
            self.taken += len(chunk)
            return chunk

    stream = Counted(b" " * (4 * MAX_BODY_BYTES))
    app = create_app("authorize", str(REPOSITORY / "functions" / "authorize" / "gcp.py"))
    answer = app.test_client().post(
        "/bootAuth/app", input_stream=stream, content_length=4 * MAX_BODY_BYTES, content_type=content_type
    )
    assert answer.status_code == 500
    assert stream.taken <= MAX_BODY_BYTES + 1


def test_functions_framework_logs_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    app = create_app("authorize", str(REPOSITORY / "functions" / "authorize" / "gcp.py"))
    answer = app.test_client().post("/bootAuth/app", data=b"{", content_type="application/json")
    assert answer.status_code == 500
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["code"] == "authorize.body.json"


def test_lambda_entry_imports_nothing_heavy() -> None:
    code = "import sys, json; import functions.authorize.aws; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=REPOSITORY, timeout=120
    )
    loaded = json.loads(done.stdout)
    heavy = [name for name in loaded if any(name == one or name.startswith(f"{one}.") for one in HEAVY)]
    assert heavy == []


@pytest.mark.parametrize("entry", ["aws.py", "gcp.py"])
def test_entries_stay_thin(entry: str) -> None:
    assert len((REPOSITORY / "functions" / "authorize" / entry).read_text().splitlines()) < 60

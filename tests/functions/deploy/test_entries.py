"""The two cloud entries of the API: thin, and open to nobody whose token was not verified."""

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, Response, request
from flask.testing import FlaskClient
from functions_framework import create_app

from functions.deploy import aws, gcp, oidc
from functions.deploy.cloud import DeniedError
from functions.deploy.engine import Next
from functions.deploy.grant_source import GrantSource, grants_from
from functions.deploy.internal_api import InternalApi
from functions.deploy.oidc import TokenSource, worker_gate
from functions.deploy.record import Step
from functions.deploy.request import MAX_BODY_BYTES
from shared.errors import CloudError, ConfigError, DstackError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.functions.deploy.issuer import Issuer, jwk, rsa_key, sign
from tests.functions.deploy.uploads import (
    AUDIENCE,
    NOW,
    Bench,
    body,
    github_claims,
    github_grant,
    grants_file,
    upload,
)
from tests.shared.refusal import refuses

REPOSITORY = Path(__file__).resolve().parents[3]
CONTEXT = SimpleNamespace(
    function_name="deploy",
    memory_limit_in_mb=256,
    invoked_function_arn="arn:aws:lambda:eu-west-1:0:function:deploy",
    aws_request_id="1",
)
WORKER = "https://deploy.example.com/internal/advance"
ACCOUNT = "queue@project.iam.gserviceaccount.com"
QUEUE = f"tasks:projects/p/locations/l/queues/q|{WORKER}|{ACCOUNT}"
KEY, OTHER_KEY = rsa_key(), rsa_key()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


# ---- AWS ----


@pytest.fixture
def lambda_bench(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    runtime = SimpleNamespace(service=bench.service, clock=lambda: bench.now)
    monkeypatch.setattr(aws, "runtime", lambda: runtime)
    monkeypatch.setenv("DSTACK_GRANTS", grants_file(github_grant()).decode())
    aws.grants.cache_clear()
    return bench


def event(method: str, path: str, raw: bytes = b"", **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "authorization": "Bearer s3cret"},
        "requestContext": {
            "http": {"method": method, "path": path},
            "stage": "$default",
            "authorizer": {"jwt": {"claims": github_claims(), "scopes": None}},
        },
        "body": raw.decode(),
        "isBase64Encoded": False,
    }
    return made | changes


def test_lambda_deploys_for_claims_that_the_gateway_verified(lambda_bench: Bench) -> None:
    answer = aws.handler(event("POST", "/v1/deployments", body()), CONTEXT)
    assert answer["statusCode"] == 202
    assert answer["headers"]["Location"] == "/v1/deployments/web"
    assert answer["headers"]["content-type"] == "application/json; charset=utf-8"
    assert json.loads(answer["body"])["uid"] == lambda_bench.store.get("web").uid


def test_lambda_takes_a_body_in_base64(lambda_bench: Bench) -> None:
    made = event("POST", "/v1/deployments")
    made |= {"body": base64.b64encode(body()).decode(), "isBase64Encoded": True}
    assert aws.handler(made, CONTEXT)["statusCode"] == 202
    assert lambda_bench.store.get("web").goal == "running"


@pytest.mark.parametrize(
    "authorizer",
    [
        None,
        {},
        {"claims": github_claims()},
        {"lambda": github_claims()},
        {"iam": {"userId": "x"}},
        {"jwt": None},
        {"jwt": {"claims": {}}},
        {"jwt": {"claims": "repository_id"}},
    ],
)
def test_lambda_refuses_events_that_no_jwt_authorizer_let_through(
    lambda_bench: Bench, authorizer: Any
) -> None:
    made = event("POST", "/v1/deployments", body())
    made["requestContext"]["authorizer"] = authorizer
    answer = aws.handler(made, CONTEXT)
    assert (answer["statusCode"], json.loads(answer["body"])["code"]) == (401, "lambda.event.authorizer")
    assert lambda_bench.service.list().deployments == ()


def test_lambda_refuses_rest_api_events_even_with_claims(lambda_bench: Bench) -> None:
    made = {
        "httpMethod": "POST",
        "path": "/v1/deployments",
        "headers": {"Content-Type": "application/json"},
        "requestContext": {"stage": "prod", "authorizer": {"jwt": {"claims": github_claims()}}},
        "body": body().decode(),
        "isBase64Encoded": False,
    }
    assert aws.handler(made, CONTEXT)["statusCode"] == 401
    assert lambda_bench.service.list().deployments == ()


@pytest.mark.parametrize(
    "changes",
    [{"repository_id": "9999"}, {"event_name": "pull_request"}, {"aud": "other"}, {"aud": f"[{AUDIENCE}]"}],
)
def test_lambda_holds_claims_to_the_grants(lambda_bench: Bench, changes: dict[str, Any]) -> None:
    made = event("POST", "/v1/deployments", body())
    made["requestContext"]["authorizer"]["jwt"]["claims"] = github_claims(**changes)
    assert aws.handler(made, CONTEXT)["statusCode"] == 403
    assert lambda_bench.service.list().deployments == ()


@pytest.mark.parametrize("grants", ["", "{}", "{", '{"audience": "a", "grants": [{}]}', "file:/etc/grants"])
def test_lambda_grants_nothing_without_grants_that_hold(
    lambda_bench: Bench, monkeypatch: pytest.MonkeyPatch, grants: str
) -> None:
    monkeypatch.setenv("DSTACK_GRANTS", grants)
    aws.grants.cache_clear()
    answer = aws.handler(event("POST", "/v1/deployments", body()), CONTEXT)
    assert answer["statusCode"] == 503
    assert json.loads(answer["body"])["code"].startswith("deploy.grants.")
    assert lambda_bench.service.list().deployments == ()


def test_lambda_logs_the_decision_and_no_token(lambda_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(aws.logger, "info", lambda message, extra: lines.append({message: extra}))
    aws.handler(event("GET", "/v1/deployments/web"), CONTEXT)
    assert [line["answered"]["request"]["why"] for line in lines] == ["grant 0"]
    assert "s3cret" not in str(lines)
    assert lambda_bench.calls == []


# ---- GCP ----


@pytest.fixture(scope="module")
def running_issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    made = Issuer(tmp_path_factory.mktemp("issuer"))
    yield made
    made.close()


@pytest.fixture
def issuer(running_issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Issuer:
    running_issuer.reset()
    running_issuer.publish(jwk(KEY, "rsa"))
    monkeypatch.setattr(oidc, "GOOGLE", running_issuer.url)
    return running_issuer


class Advancing:
    """An engine that is asked, and answers what it was told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.next = Next(7, Step.LAUNCH)

    def advance(self, name: str) -> Next:
        self.asked.append(name)
        if self.error is not None:
            raise self.error
        return self.next


@pytest.fixture
def engine() -> Advancing:
    return Advancing()


@pytest.fixture
def client(
    issuer: Issuer, bench: Bench, engine: Advancing, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FlaskClient]:
    now = int(time.time())
    http = HttpClient(DirectDialer(), issuer.certificate)
    runtime: Any = SimpleNamespace(
        service=bench.service,
        store=bench.store,
        engine=engine,
        schedule=lambda name, wait: bench.calls.append((name, wait)),
        clock=lambda: now,
    )
    grants = grants_from(grants_file(github_grant(issuer=issuer.url)).decode())
    internal = InternalApi(
        runtime,
        worker_gate({"DSTACK_QUEUE": QUEUE}, http),
        lambda code, message: gcp._log(code=code, message=message),
    )
    monkeypatch.setattr(gcp, "parts", lambda: (runtime, grants, TokenSource(http)))
    monkeypatch.setattr(gcp, "internal", lambda: internal)
    app = Flask("deploy")
    app.add_url_rule("/<path:path>", view_func=_deploy, methods=["GET", "POST", "PUT", "DELETE"])
    yield app.test_client()
    http.close()


def _deploy(path: str) -> Response:
    """Hand a request to the entry as functions-framework does."""
    assert request.path == f"/{path}"
    return gcp.deploy(request._get_current_object())


def token(issuer: Issuer, key: Any = KEY, **changes: Any) -> dict[str, str]:
    now = int(time.time())
    claims = github_claims(**({"iss": issuer.url, "iat": now, "exp": now + 300} | changes))
    return {"Authorization": f"Bearer {sign(claims, key, 'rsa')}"}


def test_function_deploys_for_a_token_that_it_verified(
    client: FlaskClient, issuer: Issuer, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = token(issuer)
    answer = client.post("/v1/deployments", data=body(), headers=headers, content_type="application/json")
    assert answer.status_code == 202
    assert answer.headers["Location"].endswith("/v1/deployments/web")
    assert bench.store.get("web").created_by.startswith("repository_id='1001'")
    logged = capsys.readouterr().err
    assert '"why": "grant 0"' in logged
    assert headers["Authorization"].split()[1] not in logged


def test_function_refuses_tokens_that_do_not_hold(client: FlaskClient, issuer: Issuer, bench: Bench) -> None:
    for headers, code in (
        ({}, "deploy.token.missing"),
        ({"Authorization": "Bearer a.b.c"}, "deploy.token.malformed"),
        (token(issuer, OTHER_KEY), "deploy.token.signature"),
        (token(issuer, aud="https://other.example.com"), "deploy.token.audience"),
        (token(issuer, exp=1), "deploy.token.expired"),
    ):
        answer = client.post("/v1/deployments", data=body(), headers=headers, content_type="application/json")
        assert (answer.status_code, answer.json and answer.json["code"]) == (401, code)
    assert bench.service.list().deployments == ()


def test_function_holds_claims_to_the_grants(client: FlaskClient, issuer: Issuer, bench: Bench) -> None:
    for changes in (
        {"repository_id": "9999"},
        {"event_name": "pull_request_target"},
        {"ref": "refs/heads/x"},
    ):
        headers = token(issuer, **changes)
        answer = client.post("/v1/deployments", data=body(), headers=headers, content_type="application/json")
        assert (answer.status_code, answer.json and answer.json["code"]) == (403, "deploy.forbidden")
    assert bench.service.list().deployments == ()


def test_function_reads_no_more_than_the_limit(client: FlaskClient, issuer: Issuer) -> None:
    class Counted(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            chunk = super().read(size)
            self.taken += len(chunk)
            return chunk

    stream = Counted(b" " * (2 * MAX_BODY_BYTES))
    answer = client.post(
        "/v1/deployments",
        input_stream=stream,
        content_length=2 * MAX_BODY_BYTES,
        headers=token(issuer),
        content_type="application/json",
    )
    assert answer.status_code == 413
    assert stream.taken <= MAX_BODY_BYTES + 1


def test_function_takes_queries(client: FlaskClient, issuer: Issuer, bench: Bench) -> None:
    bench.service.create(upload())
    answer = client.get("/v1/deployments?limit=x", headers=token(issuer))
    assert answer.status_code == 400
    bench.service.create(upload("web-1"))
    assert client.get("/v1/deployments?limit=1", headers=token(issuer)).json["after"] == "web"


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (DeniedError("gcp.permission", "no right to gs://secret", "grant x on secret"), None),
        (ConfigError("deploy.grants.field", "of secret"), None),
        (CloudError("gcp.unavailable", "secret is away"), "5"),
    ],
)
def test_a_stranger_is_not_told_why_grants_cannot_be_read(
    client: FlaskClient,
    lambda_bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: DstackError,
    headers: str | None,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(GrantSource, "get", fail)
    answer = client.get("/v1/deployments")
    assert (answer.status_code, answer.json["code"], answer.headers.get("Retry-After")) == (
        503,
        error.code,
        headers,
    )
    assert "secret" not in answer.text
    assert error.message in capsys.readouterr().err
    told = aws.handler(event("GET", "/v1/deployments"), CONTEXT)
    assert (told["statusCode"], json.loads(told["body"])) == (503, answer.json)
    assert lambda_bench.calls == []


def test_function_is_closed_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSTACK_QUEUE", raising=False)
    app = create_app("deploy", str(REPOSITORY / "functions" / "deploy" / "gcp.py"))
    for path, code in (("/v1/deployments", "deploy.grants.place"), ("/internal/advance", "deploy.settings")):
        answer = app.test_client().post(path, data=b"{}")
        assert (answer.status_code, answer.json["code"]) == (503, code)


# ---- the worker on GCP ----


def worker_token(issuer: Issuer, **changes: Any) -> dict[str, str]:
    now = int(time.time())
    claims = {"iss": issuer.url, "aud": WORKER, "email": ACCOUNT, "email_verified": True, "iat": now}
    return {"Authorization": f"Bearer {sign(claims | {'exp': now + 300} | changes, KEY, 'rsa')}"}


def test_the_queue_has_a_deployment_advanced(
    client: FlaskClient, issuer: Issuer, engine: Advancing, bench: Bench
) -> None:
    answer = client.post("/internal/advance", json={"name": "web"}, headers=worker_token(issuer))
    assert (answer.status_code, answer.json) == (200, {"step": "launch", "seconds": 7})
    assert engine.asked == ["web"]
    assert bench.calls == [("web", 7)]


@pytest.mark.parametrize(
    ("headers", "calls"),
    [
        ({"X-CloudTasks-TaskETA": "100.5", "X-CloudTasks-TaskRetryCount": "0"}, []),
        # delivered again: the first runner may have died before it made the next task
        ({"X-CloudTasks-TaskETA": "100.5", "X-CloudTasks-TaskRetryCount": "1"}, [("web", 7)]),
        ({"X-CloudTasks-TaskETA": "soon", "X-CloudTasks-TaskRetryCount": "0"}, [("web", 7)]),
        ({"X-CloudTasks-TaskETA": "2000000000", "X-CloudTasks-TaskRetryCount": "0"}, [("web", 7)]),
        ({}, [("web", 7)]),
    ],
)
def test_a_task_that_has_a_successor_makes_none(
    client: FlaskClient,
    issuer: Issuer,
    engine: Advancing,
    bench: Bench,
    headers: dict[str, str],
    calls: list[tuple[str, int]],
) -> None:
    engine.next = Next(7, Step.LAUNCH, written_at=NOW)
    client.post("/internal/advance", json={"name": "web"}, headers=worker_token(issuer) | headers)
    assert bench.calls == calls


def test_what_fails_is_delivered_again(
    client: FlaskClient, issuer: Issuer, engine: Advancing, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.error = CloudError("gcp.unavailable", "the store is down")
    assert (
        client.post("/internal/advance", json={"name": "web"}, headers=worker_token(issuer)).status_code
        == 503
    )
    assert "gcp.unavailable" in capsys.readouterr().err


def test_a_message_that_is_none_is_dropped(client: FlaskClient, issuer: Issuer, engine: Advancing) -> None:
    for raw in (b"", b"{", b"x" * 5000):
        answer = client.post("/internal/advance", data=raw, headers=worker_token(issuer))
        assert (answer.status_code, answer.json) == (200, {"dropped": True})
    assert engine.asked == []


def test_the_scheduler_has_lost_messages_sent_again(
    client: FlaskClient, issuer: Issuer, bench: Bench
) -> None:
    bench.service.create(upload())
    bench.calls.clear()
    answer = client.post("/internal/sweep", headers=worker_token(issuer))
    assert (answer.status_code, answer.json) == (200, {"scheduled": []})
    bench.change("web", updated_at=1)
    assert client.post("/internal/sweep", headers=worker_token(issuer)).json == {"scheduled": ["web"]}
    assert bench.calls == [("web", 0)]


@pytest.mark.parametrize("path", ["/internal/advance", "/internal/sweep"])
def test_nobody_else_calls_the_worker(
    client: FlaskClient, issuer: Issuer, engine: Advancing, bench: Bench, path: str
) -> None:
    bench.service.create(upload())
    bench.change("web", updated_at=1)
    bench.calls.clear()
    for headers in (
        {},
        {"X-CloudTasks-QueueName": "q", "X-CloudTasks-TaskName": "t"},
        token(issuer),
        worker_token(issuer, aud=AUDIENCE),
        worker_token(issuer, email="other@project.iam.gserviceaccount.com"),
        worker_token(issuer, email_verified=False),
    ):
        assert client.post(path, json={"name": "web"}, headers=headers).status_code == 401
    assert (engine.asked, bench.calls) == ([], [])


def test_the_workers_token_does_not_open_the_api(client: FlaskClient, issuer: Issuer) -> None:
    assert client.get("/v1/deployments", headers=worker_token(issuer)).status_code == 401
    # an audience of ours does not make Google's service account somebody with a grant
    assert client.get("/v1/deployments", headers=worker_token(issuer, aud=AUDIENCE)).status_code == 403


@pytest.mark.parametrize("path", ["/internal/", "/internal/other", "/internal/advance/x"])
def test_the_worker_has_no_other_path(client: FlaskClient, issuer: Issuer, path: str) -> None:
    assert client.post(path, headers=worker_token(issuer)).status_code == 404
    assert client.get("/internal/advance", headers=worker_token(issuer)).status_code == 404


@pytest.mark.parametrize(
    "queue", ["", "sqs:https://x", "tasks:", "tasks:q|url", "tasks:q||account", "tasks:q|url|"]
)
def test_a_queue_without_url_and_account_lets_nobody_in(queue: str) -> None:
    with refuses("deploy.settings", ConfigError):
        worker_gate({"DSTACK_QUEUE": queue})


@pytest.mark.parametrize("entry", ["aws.py", "gcp.py"])
def test_entries_stay_thin(entry: str) -> None:
    assert len((REPOSITORY / "functions" / "deploy" / entry).read_text().splitlines()) < 60

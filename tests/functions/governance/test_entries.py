"""The entries of both clouds, over a real node, with AWS and Google served on loopback."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, Response, request
from flask.testing import FlaskClient

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from functions.deploy.oidc import worker_gate
from functions.deploy.record import Goal, Step
from functions.governance import aws as entry
from functions.governance import gcp
from functions.governance.assembly import service_from_env
from functions.governance.look import Look
from functions.governance.notifier import tell_cloud_logging
from functions.governance.service import AHEAD_SECONDS, AHEAD_WAITS
from functions.stores.sqlite import SqliteStore
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.fakes.aws import AwsServer
from tests.functions.deploy.issuer import Issuer, jwk, rsa_key, sign
from tests.functions.governance.site import SECRET, Amazon, Site, open_site, signed

REPOSITORY = Path(__file__).resolve().parents[3]
CONTEXT = SimpleNamespace(
    function_name="governance",
    memory_limit_in_mb=256,
    invoked_function_arn="arn:aws:lambda:eu-west-1:0:function:governance",
    aws_request_id="1",
)


@pytest.fixture(scope="module")
def chain() -> Iterator[tuple[Chain, Governance]]:
    with open_site() as found:
        yield found


@pytest.fixture
def site(chain: tuple[Chain, Governance]) -> Site:
    return Site(*chain)


# ---- AWS ----


@pytest.fixture
def amazon(aws: AwsServer, site: Site, monkeypatch: pytest.MonkeyPatch) -> Amazon:
    made = Amazon(aws, site)
    for key, value in made.environment.items():
        monkeypatch.setenv(key, value)
    entry.service.cache_clear()
    return made


def post(document: object) -> dict[str, Any]:
    body, headers = signed(document)
    event = {
        "version": "2.0",
        "rawPath": "/webhooks/plain",
        "headers": headers,
        "requestContext": {"http": {"method": "POST"}},
        "body": body,
    }
    answer: dict[str, Any] = entry.handler(event, CONTEXT)  # type: ignore[arg-type]
    return answer


def test_lambda_stops_what_the_contract_does_not_allow_any_more(amazon: Amazon, site: Site) -> None:
    site.deploy(amazon.store)
    answer = post(site.remove())
    assert (answer["statusCode"], json.loads(answer["body"])["accepted"]) == (200, 2)
    records = amazon.take(amazon.looks)
    assert json.loads(records[0]["body"])["name"].startswith(f"look:0x{site.app_id.hex()}:")
    assert entry.work_handler({"Records": records}, CONTEXT) == {"batchItemFailures": []}  # type: ignore[arg-type]
    found = amazon.store.get("web")
    assert found.quarantine is not None
    assert found.quarantine.reason == "Compose hash not allowed"
    assert found.effective_goal is Goal.STOPPED
    assert json.loads(amazon.take(amazon.engine_queue)[0]["body"]) == {"name": "web"}


def test_lambda_takes_a_delivery_once(amazon: Amazon, site: Site) -> None:
    site.deploy(amazon.store)
    document = site.remove()
    post(document)
    assert json.loads(post(document)["body"])["replayed"] is True
    assert len(amazon.take(amazon.looks)) == 1


def test_lambdas_sweep_finds_what_no_webhook_told(amazon: Amazon, site: Site) -> None:
    site.deploy(amazon.store)
    entry.sweep_handler({}, CONTEXT)  # type: ignore[arg-type]
    site.remove()
    report = entry.sweep_handler({}, CONTEXT)  # type: ignore[arg-type]
    assert report["replayed"] == 2
    assert [one["kind"] for one in report["drifts"]] == ["runs_what_is_not_allowed"]
    assert amazon.store.get("web").quarantine is not None


def test_a_look_that_fails_goes_back_to_the_queue(
    amazon: Amazon, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.deploy(amazon.store)
    monkeypatch.setenv("DSTACK_CHAIN_ID", "1")
    entry.service.cache_clear()
    message = {"messageId": "m", "body": json.dumps({"name": Look(None, 0).name})}
    answer = entry.work_handler({"Records": [message]}, CONTEXT)  # type: ignore[arg-type]
    assert answer == {"batchItemFailures": [{"itemIdentifier": "m"}]}
    assert amazon.store.get("web").quarantine is None


def test_a_look_ahead_of_the_chain_is_a_new_message_in_seconds(amazon: Amazon, site: Site) -> None:
    site.deploy(amazon.store)
    name = Look(site.app_id, 10**6).name
    message = {"messageId": "m", "body": json.dumps({"name": name})}
    assert entry.work_handler({"Records": [message]}, CONTEXT) == {"batchItemFailures": []}  # type: ignore[arg-type]
    counted = amazon.sqs.get_queue_attributes(QueueUrl=amazon.looks, AttributeNames=["All"])["Attributes"]
    assert counted["ApproximateNumberOfMessagesDelayed"] == "1"
    last = {"messageId": "m", "body": json.dumps({"name": f"{name}:{AHEAD_WAITS}"})}
    answer = entry.work_handler({"Records": [last]}, CONTEXT)  # type: ignore[arg-type]
    assert answer == {"batchItemFailures": [{"itemIdentifier": "m"}]}


# ---- Google Cloud ----

WORKER = "https://governance.example.com/internal/look"
ACCOUNT = "queue@project.iam.gserviceaccount.com"
KEY = rsa_key()


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    made = Issuer(tmp_path_factory.mktemp("issuer"))
    yield made
    made.close()


class Google:
    """The entry as functions-framework calls it, with queues that are lists."""

    def __init__(self, site: Site, issuer: Issuer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queues: dict[str, list[str]] = {}
        self.store = SqliteStore(directory / "deployments.sqlite")
        self.issuer = issuer
        environment = site.environment | {
            "DSTACK_STORE": f"sqlite:{directory / 'deployments.sqlite'}",
            "DSTACK_GOVERNANCE_STATE": f"sqlite:{directory / 'governance.sqlite'}",
            "DSTACK_GOVERNANCE_QUEUE": f"tasks:projects/p/locations/l/queues/q|{WORKER}|{ACCOUNT}",
            "DSTACK_WEBHOOK_SECRETS": "plain=env:SECRET",
            "SECRET": SECRET,
        }

        def open_queue(_: object, variable: str = "DSTACK_QUEUE") -> Any:
            names = self.queues.setdefault(variable, [])
            return lambda name, seconds: names.append(f"{name} {seconds}")

        monkeypatch.setattr("functions.governance.assembly.open_queue", open_queue)
        monkeypatch.setattr("functions.deploy.oidc.GOOGLE", issuer.url)
        service = service_from_env(environment, tell_cloud_logging)
        http = HttpClient(DirectDialer(), issuer.certificate)
        gate = worker_gate(environment, http, variable="DSTACK_GOVERNANCE_QUEUE")
        monkeypatch.setattr(gcp, "service", lambda: service)
        monkeypatch.setattr(gcp, "gate", lambda: gate)
        app = Flask("governance")
        app.add_url_rule("/<path:path>", view_func=_governance, methods=["GET", "POST"])
        self.client: FlaskClient = app.test_client()

    def token(self, **changes: Any) -> dict[str, str]:
        now = int(time.time())
        claims = {"iss": self.issuer.url, "aud": WORKER, "iat": now, "exp": now + 300}
        claims |= {"email": ACCOUNT, "email_verified": True} | changes
        return {"Authorization": f"Bearer {sign(claims, KEY, 'rsa')}"}


def _governance(path: str) -> Response:
    assert request.path == f"/{path}"
    return gcp.governance(request._get_current_object())


@pytest.fixture
def google(site: Site, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Google:
    issuer.reset()
    issuer.publish(jwk(KEY, "rsa"))
    return Google(site, issuer, tmp_path, monkeypatch)


def test_function_stops_what_the_contract_does_not_allow_any_more(google: Google, site: Site) -> None:
    site.deploy(google.store)
    body, headers = signed(site.remove())
    answer = google.client.post("/webhooks/plain", data=body, headers=headers)
    assert (answer.status_code, answer.json["accepted"]) == (200, 2)
    [look] = google.queues["DSTACK_GOVERNANCE_QUEUE"]
    message = {"name": look.split()[0]}
    answer = google.client.post("/internal/look", json=message, headers=google.token())
    assert answer.status_code == 200
    assert google.store.get("web").quarantine is not None
    assert google.queues["DSTACK_QUEUE"] == ["web 0"]


def test_functions_sweep_resumes_what_is_final(google: Google, site: Site) -> None:
    site.deploy(google.store, Step.AWAIT_APPROVAL)
    answer = google.client.post("/internal/sweep", headers=google.token())
    assert [one["kind"] for one in answer.json["drifts"]] == ["waits_for_what_is_allowed"]
    assert google.queues["DSTACK_QUEUE"] == ["web 0"]


def test_a_body_of_10_mb_is_refused_by_the_entry_without_reading_it(google: Google) -> None:
    answer = google.client.post("/webhooks/plain", data=bytes(10 << 20))
    assert (answer.status_code, answer.json) == (413, {"code": "governance.body.size"})


def test_a_task_that_is_ahead_of_the_chain_is_made_again_in_seconds(google: Google, site: Site) -> None:
    site.deploy(google.store)
    name = Look(site.app_id, 10**6).name
    answer = google.client.post("/internal/look", json={"name": name}, headers=google.token())
    assert answer.status_code == 200
    assert google.queues["DSTACK_GOVERNANCE_QUEUE"] == [f"{name}:1 {AHEAD_SECONDS}"]


@pytest.mark.parametrize("path", ["/internal/look", "/internal/sweep"])
def test_nobody_else_calls_the_worker(google: Google, site: Site, path: str) -> None:
    site.deploy(google.store)
    site.remove()
    for headers in ({}, google.token(aud="https://other"), google.token(email="other@example.com")):
        answer = google.client.post(path, json={"name": Look(None, 0).name}, headers=headers)
        assert answer.status_code == 401
    assert google.store.get("web").quarantine is None


def test_a_task_that_failed_too_often_is_buried(google: Google, site: Site, tmp_path: Path) -> None:
    site.deploy(google.store)
    message = {"name": Look(site.app_id, 10**6, AHEAD_WAITS).name}
    for tries, status in ((0, 503), (30, 200)):
        headers = google.token() | {"X-CloudTasks-TaskRetryCount": str(tries)}
        assert google.client.post("/internal/look", json=message, headers=headers).status_code == status
    assert (tmp_path / "governance.sqlite").exists()


@pytest.mark.parametrize("name", ["aws.py", "gcp.py"])
def test_entries_stay_thin(name: str) -> None:
    assert len((REPOSITORY / "functions" / "governance" / name).read_text().splitlines()) < 60

"""The HTTP API answers in its order, in its statuses, as openapi.yaml says, and shows no secret."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from functions.deploy.api import _ROOT, Answer, DeployApi, status_of
from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.deploy.grants import Grants, parse_grants
from functions.deploy.record import Approved, Failure, Goal, Lease, Running, Step
from functions.deploy.record import Resource as Made
from functions.deploy.request import MAX_BODY_BYTES, MAX_ENCRYPTED_ENV
from functions.deploy.service import DeploymentService
from functions.deploy.store import NotFoundError
from functions.lambda_event import HttpRequest
from functions.stores.dynamodb import DynamoDbStore
from functions.stores.sqlite import SqliteStore
from shared.errors import (
    CloudError,
    ConfigError,
    DstackError,
    InvalidEvidence,
    PolicyDenied,
    ProtocolError,
    StorageError,
    UnavailableError,
)
from tests.fakes.aws import AwsServer, make_table
from tests.functions.deploy.uploads import (
    CIPHERTEXT,
    NOW,
    Bench,
    body,
    github_claims,
    github_grant,
    grants_file,
    project,
    upload,
)

ALL = ["deploy", "read", "logs", "stop", "start", "remove", "firewall"]
OPENAPI = yaml.safe_load(
    (Path(__file__).resolve().parents[3] / "functions" / "deploy" / "openapi.yaml").read_text()
)
REGISTRY: Any = Registry().with_resource(
    "urn:api", Resource.from_contents(OPENAPI | {"$schema": "https://json-schema.org/draft/2020-12/schema"})
)


class Client:
    """Calls the API in process, and holds every answer to openapi.yaml."""

    def __init__(self, service: DeploymentService) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.api = DeployApi(service, self.lines.append)
        self.grants: Grants = parse_grants(grants_file(github_grant(verbs=ALL)))
        self.claims: dict[str, Any] | DstackError = github_claims()

    def __call__(self, method: str, path: str, raw: bytes = b"", query: str = "", **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if raw:
            given = {"Content-Type": "application/json"} | given
        answer = self.api.handle(HttpRequest(method, path, query, given, raw), self.grants, self._token)
        if len(self.lines) < 1000:
            conforms(method, path, answer)
        return answer

    def _token(self) -> Mapping[str, Any]:
        if isinstance(self.claims, DstackError):
            raise self.claims
        return self.claims


def conforms(method: str, path: str, answer: Answer) -> None:
    """Fail unless the document has this answer: status, headers and body."""
    tail = path.removeprefix(_ROOT).split("/")
    template = _ROOT if len(tail) == 1 else "/".join([_ROOT, "{name}", *tail[2:]])
    if tail[2:3] == ["progress"] and len(tail) == 4:
        template = f"{_ROOT}/{{name}}/progress/{{token}}"
    item = OPENAPI["paths"].get(template)
    if item is None:
        assert answer.status == 404
        return
    operation = item.get(method.lower())
    if operation is None:
        assert answer.status == 405
        assert set(answer.headers["Allow"].split(", ")) <= {one.upper() for one in item}
        return
    pointer = f"/paths/{template.replace('/', '~1')}/{method.lower()}/responses/{answer.status}"
    response = operation["responses"][str(answer.status)]
    if "$ref" in response:
        pointer = response["$ref"].removeprefix("#")
        response = OPENAPI["components"]["responses"][pointer.rpartition("/")[2]]
    assert set(answer.headers) <= set(response.get("headers", ()))
    if answer.body is None:
        assert "content" not in response
        return
    schema = {"$ref": f"urn:api#{pointer}/content/application~1json/schema"}
    Draft202012Validator(schema, registry=REGISTRY).validate(json.loads(answer.encode()))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(bench: Bench) -> Client:
    return Client(bench.service)


WEB = f"{_ROOT}/web"


def code(answer: Answer) -> Any:
    assert answer.body is not None
    return answer.body["code"]


# ---- the good path ----


def test_creates_a_deployment(client: Client, bench: Bench) -> None:
    answer = client("POST", _ROOT, body(encrypted_env=base64.b64encode(CIPHERTEXT).decode(), env_names=["A"]))
    made = bench.store.get("web")
    assert answer.status == 202
    assert answer.headers == {"Location": WEB, "ETag": f'"{made.uid}.1"'}
    assert answer.body is not None
    assert answer.body["env_names"] == ["A"]
    assert made.created_by == "repository_id='1001' ref='refs/heads/main' run_id='77'"
    assert bench.calls == [("web", 0)]


def test_goes_through_the_life_of_a_deployment(client: Client, bench: Bench) -> None:
    assert client("POST", _ROOT, body()).status == 202
    running = Running(
        external_ip="203.0.113.7", attested_at=NOW, plan_id="1" * 64, verdict={"status": "ok"}, simulated=True
    )
    bench.settle(
        "web", running=running, approved=Approved(calls=0), resources=(Made(kind="instance", name="web"),)
    )
    shown = client("GET", WEB)
    assert shown.body is not None
    assert (shown.status, shown.body["settled"], shown.body["running"]["attested_at"]) == (200, True, NOW)
    assert client("GET", WEB, if_none_match=shown.headers["ETag"]).status == 304
    assert client("PUT", WEB, body(name="", files=project(name="other"))).status == 202
    bench.settle("web")
    assert client("POST", f"{WEB}/stop").status == 202
    assert client("POST", f"{WEB}/start").status == 200
    bench.settle(
        "web",
        Step.FAILED,
        failure=Failure(code="gcp.quota", message="none left", hint="ask", step=Step.LAUNCH, at=NOW),
    )
    assert client("POST", f"{WEB}/retry").status == 202
    assert client("DELETE", WEB).status == 202
    bench.change("web", step=Step.REMOVED)
    gone = client("DELETE", WEB)
    assert (gone.status, gone.body and gone.body["status"]) == (200, "removed")
    events = client("GET", f"{WEB}/events")
    assert events.body is not None
    assert [event["message"].split()[0] for event in events.body["events"]] == [
        "deploy",
        "deploy",
        "stop",
        "start",
        "retry",
        "remove",
    ]
    assert client("GET", f"{WEB}/events", query=f"after={events.body['after']}").body == {
        "events": [],
        "after": events.body["after"],
    }


def test_reads_logs_by_their_cursor(client: Client, bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    bench.cloud.console = b"abcdef"
    first = client("GET", f"{WEB}/logs", query="limit=4")
    assert first.body == {"text": "abcd", "cursor": "4"}
    assert client("GET", f"{WEB}/logs", query="cursor=4").body == {"text": "ef", "cursor": "6"}


def test_answers_logs_in_pages_that_a_gateway_passes(client: Client, bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    bench.cloud.console = b"\0" * (1 << 20)
    assert len(client("GET", f"{WEB}/logs").encode()) < 6_000_000


def test_sets_lists_and_clears_rules(client: Client, bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    rule = {"action": "allow", "port": 443, "sources": ["0.0.0.0/0"]}
    refused = client("PUT", f"{WEB}/firewall", json.dumps(rule).encode())
    assert (refused.status, code(refused)) == (422, "deploy.request.anywhere")
    assert client("PUT", f"{WEB}/firewall", json.dumps(rule | {"anywhere": True}).encode()).status == 200
    assert json.loads(client("GET", f"{WEB}/firewall").encode()) == {
        "rules": [{"action": "allow", "protocol": "tcp", "port": 443, "sources": ["0.0.0.0/0"]}]
    }
    assert client("DELETE", f"{WEB}/firewall", query="port=443").body == {"removed": True}
    assert client("DELETE", f"{WEB}/firewall", query="port=443&protocol=udp").body == {"removed": False}
    assert client("DELETE", f"{WEB}/firewall").status == 422


def test_shows_what_the_cloud_says_of_the_machine(client: Client, bench: Bench) -> None:
    bench.service.create(upload())
    assert code(client("GET", f"{WEB}/machine")) == "deploy.nothing_there"
    bench.settle("web")
    shown = client("GET", f"{WEB}/machine").body
    assert shown is not None
    assert (shown["status"], shown["confidential"], shown["traits"]) == ("RUNNING", "TDX", {"vtpm": True})


def test_lists_what_the_caller_may_read(client: Client, bench: Bench) -> None:
    for name in ("api", "web", "web-1", "webx"):
        bench.service.create(upload(name))
    page = client("GET", _ROOT, query="limit=3")
    assert page.body is not None
    assert [one["name"] for one in page.body["deployments"]] == ["web", "web-1"]
    assert page.body["after"] == ""


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_pages_of_a_list_name_nothing_that_the_caller_may_not_read(
    client: Client, bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    ours, theirs = ["web", "web-1", "web-2", "web-3"], ["api", "db", "web0", "webx", "z"]
    for name in ours + theirs:
        bench.service.create(upload(name))
    monkeypatch.setattr("functions.deploy.api.MAX_PAGE", 5)  # several pages of the store
    found: list[str] = []
    after = ""
    for _ in range(len(ours)):
        page = client("GET", _ROOT, query=f"limit={limit}&after={after}").body
        assert page is not None
        names = [one["name"] for one in page["deployments"]]
        assert 1 <= len(names) <= limit
        found += names
        after = page["after"]
        if not after:
            break
        assert after == names[-1]
    assert (found, after) == (ours, "")


def test_nothing_is_looked_through_for_a_caller_who_may_read_nothing(
    client: Client, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.service, "list", None)
    client.grants = parse_grants(grants_file(github_grant(verbs=["deploy"])))
    assert client("GET", _ROOT).body == {"deployments": [], "after": ""}


def test_the_same_key_gets_the_same_answer(client: Client, bench: Bench) -> None:
    first = client("POST", _ROOT, body(), idempotency_key="run-77")
    assert client("POST", _ROOT, body(), idempotency_key="run-77") == first
    assert len(bench.service.events("web").events) == 1
    other = client("POST", _ROOT, body(files=project(name="other")), idempotency_key="run-77")
    assert (other.status, code(other)) == (409, "deploy.idempotency")


# ---- who may ----


ROUTES = [
    (method, _ROOT + path.replace("{name}", "web"), verb)
    for path, methods in DeployApi.ROUTES.items()
    for method, (verb, _) in methods.items()
]
BODIES = {"POST": body(), "PUT": body()}


def ask(client: Client, method: str, path: str) -> Answer:
    if path.endswith("/firewall") and method == "PUT":
        rule = {"action": "allow", "port": 443, "sources": ["192.0.2.0/24"]}
        return client(method, path, json.dumps(rule).encode())
    query = "port=443" if path.endswith("/firewall") and method == "DELETE" else ""
    return client(method, path, BODIES.get(method, b"") if path in {_ROOT, WEB} else b"", query)


@pytest.mark.parametrize(("method", "path", "verb"), ROUTES)
class TestEveryRoute:
    def test_needs_a_token(self, client: Client, bench: Bench, method: str, path: str, verb: str) -> None:
        client.claims = InvalidEvidence("deploy.token.expired", "the token expired")
        answer = ask(client, method, path)
        assert (answer.status, code(answer)) == (401, "deploy.token.expired")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert bench.service.list().deployments == ()
        assert verb in ALL

    def test_needs_its_verb(self, client: Client, bench: Bench, method: str, path: str, verb: str) -> None:
        bench.service.create(upload())
        before = bench.settle("web")
        others = [one for one in ALL if one != verb]
        client.grants = parse_grants(grants_file(github_grant(verbs=others)))
        answer = ask(client, method, path)
        if path == _ROOT and method == "GET":
            assert (answer.status, answer.body) == (200, {"deployments": [], "after": ""})
        else:
            assert (answer.status, code(answer)) == (403, "deploy.forbidden")
            assert f"has no verb {verb}" in client.lines[-1]["why"]
        assert bench.store.get("web") == before
        assert bench.cloud.rules == []

    def test_its_verb_is_enough(
        self, client: Client, bench: Bench, method: str, path: str, verb: str
    ) -> None:
        bench.service.create(upload())
        bench.settle("web", Step.FAILED if path.endswith("/retry") else Step.RUNNING)
        client.grants = parse_grants(grants_file(github_grant(verbs=[verb])))
        answer = ask(client, method, path)
        taken = method == "POST" and path == _ROOT
        assert answer.status == 409 if taken else answer.status < 300

    def test_is_not_for_other_apps(
        self, client: Client, bench: Bench, method: str, path: str, verb: str
    ) -> None:
        bench.service.create(upload())
        bench.settle("web")
        client.grants = parse_grants(grants_file(github_grant(apps=["webx", "we", "web-*"], verbs=ALL)))
        answer = ask(client, method, path)
        if path == _ROOT and method == "GET":
            assert answer.body == {"deployments": [], "after": ""}
        else:
            assert (answer.status, code(answer)) == (403, "deploy.forbidden")
        assert verb in client.lines[-1]["verb"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"repository_id": "9999", "repository": "acme/web"},
            {"event_name": "pull_request"},
            {"event_name": "pull_request_target"},
            {"aud": "https://other.example.com"},
            {"ref": "refs/heads/feature"},
        ],
    )
    def test_is_not_for_strangers(
        self, client: Client, bench: Bench, method: str, path: str, verb: str, changes: dict[str, Any]
    ) -> None:
        client.claims = github_claims(**changes)
        answer = ask(client, method, path)
        assert (answer.status, code(answer)) == (403, "deploy.forbidden")
        assert answer.body is not None
        assert answer.body["error"] == "no grant is for this caller"
        assert next(iter(changes)) in client.lines[-1]["why"]
        assert bench.service.list().deployments == ()
        assert verb in client.lines[-1]["verb"]

    def test_a_store_that_is_throttled_is_said_to_be_busy(
        self, client: Client, bench: Bench, method: str, path: str, verb: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.service.create(upload())

        def throttled(*_: object, **__: object) -> Sequence[Any]:
            raise TransientCloudError("aws.throttled", "aws asks for fewer calls")

        for name in ("get", "list", "events", "create", "replace"):
            monkeypatch.setattr(SqliteStore, name, throttled)
        answer = ask(client, method, path)
        assert (answer.status, code(answer), answer.headers) == (503, "aws.throttled", {"Retry-After": "5"})
        assert client.lines[-1]["verb"] == verb

    def test_answers_as_described_where_there_is_no_such_app(
        self, client: Client, method: str, path: str, verb: str
    ) -> None:
        answer = ask(client, method, path)
        assert answer.status in ({200, 202} if path == _ROOT else {404})
        assert verb in ALL


def test_dynamodb_that_throttles_is_said_to_be_busy(aws: AwsServer, bench: Bench) -> None:
    table = make_table(aws, f"deployments-{uuid4()}")
    clouds: Any = {"gcp-tdx": bench.cloud}
    store = DynamoDbStore(table, aws.client("dynamodb"))
    client = Client(DeploymentService(store, bench.blobs, clouds, lambda *_: None, lambda: NOW))
    aws.fail("DynamoDB", "ThrottlingException")
    answer = client("POST", _ROOT, body(), idempotency_key="k1")
    assert (answer.status, code(answer), answer.headers) == (503, "aws.throttled", {"Retry-After": "5"})
    # the write may have happened although its answer was lost: the same key makes no second one
    aws.fail("TransactWriteItems", after=True)
    lost = client("POST", _ROOT, body(), idempotency_key="k1")
    again = client("POST", _ROOT, body(), idempotency_key="k1")
    assert (lost.status in {202, 503}, again.status) == (True, 202)
    assert len(store.events("web")) == 1
    assert store.get("web").version == 1


def test_a_stranger_is_not_told_whether_an_app_exists(client: Client, bench: Bench) -> None:
    bench.service.create(upload("db"))
    there, absent = client("GET", f"{_ROOT}/db"), client("GET", f"{_ROOT}/dx")
    assert (there.status, absent.status) == (403, 403)
    assert str(there.body).replace("db", "dx") == str(absent.body)


def test_a_strangers_body_is_not_read(client: Client) -> None:
    client.claims = github_claims(repository_id="9999")
    assert client("POST", _ROOT, b"not json").status == 403


def test_an_issuer_that_is_down_is_no_refusal(client: Client) -> None:
    client.claims = UnavailableError("deploy.issuer", "the keys cannot be had")
    answer = client("GET", WEB)
    assert (answer.status, answer.headers) == (503, {"Retry-After": "5"})


# ---- bad requests ----


@pytest.mark.parametrize(
    ("raw", "status", "expected"),
    [
        (b"{", 400, "deploy.request.json.syntax"),
        (b'{"name":"web","name":"web","files":{}}', 400, "deploy.request.json.duplicate_key"),
        (b"[" * 20, 400, "deploy.request.json.depth"),
        (b"[]", 422, "deploy.request.field"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "deploy.request.size"),
        (body(files=project() | {".env": b"TOKEN=hunter2"}), 422, "deploy.request.plaintext_env"),
        (body(files=project() | {"../x": b""}), 422, "deploy.request.file"),
        (body("Web"), 422, "deploy.request.name"),
        (body(encrypted_env="!"), 400, "deploy.request.base64"),
        (
            body(encrypted_env=base64.b64encode(bytes(MAX_ENCRYPTED_ENV + 1)).decode()),
            413,
            "deploy.request.env_size",
        ),
        (body(files=project(platform="azure")), 422, "project.app_json.platform"),
        (body(cloud="local"), 422, "deploy.cloud"),
    ],
)
def test_refuses_bodies_by_status_and_code(
    client: Client, bench: Bench, raw: bytes, status: int, expected: str
) -> None:
    answer = client("POST", _ROOT, raw)
    assert (answer.status, code(answer)) == (status, expected)
    assert bench.service.list().deployments == ()
    assert "hunter2" not in str(answer.body) + str(client.lines)


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_a_body_is_json_by_its_type(client: Client, content_type: str) -> None:
    answer = client("POST", _ROOT, body(), Content_Type=content_type)
    assert (answer.status, code(answer)) == (400, "deploy.request.type")
    assert client("POST", _ROOT, body(), content_type="Application/JSON; charset=utf-8").status == 202


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=x",
        "limit=٣",
        "limit=1&limit=2",
        "limit=00000000019999",  # whose first ten digits are 1
        "limit=" + "9" * 4000,
        "a=1&" * 17,
        "x" * 5000,
        "a=%ff",
    ],
)
def test_refuses_queries_that_are_malformed(client: Client, query: str) -> None:
    answer = client("GET", _ROOT, query=query)
    assert (answer.status, code(answer)) == (400, "deploy.request.query")


@pytest.mark.parametrize("after", ["x" * 1025, "%C3%A9", "%00", "a%0Ab"])
def test_refuses_places_to_read_on_that_no_store_would_take(client: Client, bench: Bench, after: str) -> None:
    bench.service.create(upload())
    for path in (_ROOT, f"{WEB}/events"):
        answer = client("GET", path, query=f"after={after}")
        assert (answer.status, code(answer)) == (400, "deploy.request.cursor")


@pytest.mark.parametrize("name", ["Web", "web%2f..", "..", "web ", "a" * 80])
def test_a_name_in_the_path_is_a_name(client: Client, name: str) -> None:
    client.grants = parse_grants(grants_file(github_grant(apps=["*"], verbs=ALL)))
    for method, tail in (("GET", ""), ("GET", "/events"), ("POST", "/stop"), ("DELETE", "")):
        answer = client(method, f"{_ROOT}/{name}{tail}")
        assert (answer.status, code(answer)) == (422, "deploy.request.name")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/deployments/", f"{WEB}/", f"{WEB}/evil", f"{WEB}/logs/x", "//v1/deployments"]
)
def test_other_paths_are_none(client: Client, path: str) -> None:
    answer = client("GET", path)
    assert (answer.status, code(answer)) == (404, "deploy.route")


def test_other_methods_are_refused(client: Client) -> None:
    answer = client("PATCH", WEB)
    assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, GET, PUT")


def test_conflicts_say_what_to_do(client: Client, bench: Bench) -> None:
    bench.service.create(upload())
    busy = client("PUT", WEB, body())
    assert (busy.status, code(busy)) == (409, "deploy.busy")
    assert busy.body is not None
    assert "poll" in busy.body["hint"]
    bench.settle("web", lease=Lease("runner", "1", NOW + 60))
    assert code(client("POST", _ROOT, body())) == "deploy.exists"
    bench.change("web", goal=Goal.REMOVED, lease=None)
    assert code(client("POST", f"{WEB}/stop")) == "deploy.removed"


def test_what_a_cloud_refuses_comes_with_its_hint(client: Client, bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    bench.cloud.failure = DeniedError(
        "gcp.denied", "no right to read the console", "grant roles/compute.viewer"
    )
    answer = client("GET", f"{WEB}/logs")
    assert answer.body == {
        "error": "no right to read the console",
        "code": "gcp.denied",
        "hint": "grant roles/compute.viewer",
    }
    assert (answer.status, answer.headers) == (409, {})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StorageError("deploy.store", "x"), 503),
        (NotFoundError("deploy.blob", "x"), 503),
        (CloudError("gcp.request", "x"), 503),
        (ConfigError("deploy.settings", "x"), 503),
        (ProtocolError("net.response.malformed", "x"), 503),
        (ConfigError("project.app_json.field", "x"), 422),
        (ConfigError("gcp.logs.cursor", "x"), 400),
        (ConfigError("nitro.logs.cursor", "x"), 400),
        (PolicyDenied("deploy.forbidden", "x"), 403),
    ],
)
def test_errors_have_the_status_of_whose_fault_they_are(error: DstackError, status: int) -> None:
    assert status_of(error) == status


# ---- what is said ----


def test_each_request_is_reported_once_with_its_decision(client: Client) -> None:
    client("POST", _ROOT, body(), Authorization="Bearer s3cret.t0ken.x")
    client("GET", f"{_ROOT}/db", Authorization="Bearer s3cret.t0ken.x")
    assert [(line["status"], line["verb"], line["app"]) for line in client.lines] == [
        (202, "deploy", "web"),
        (403, "read", "db"),
    ]
    assert client.lines[0]["why"] == "grant 0"
    assert client.lines[1]["code"] == "deploy.forbidden"
    assert "s3cret" not in str(client.lines)


def test_shows_neither_leases_nor_keys_nor_files(client: Client, bench: Bench) -> None:
    client("POST", _ROOT, body(), idempotency_key="my-own-key")
    bench.settle("web", lease=Lease("runner-7", "lease-token", NOW + 60))
    shown = client("GET", WEB).encode() + client("GET", f"{WEB}/events").encode()
    for secret in (b"my-own-key", b"lease-token", b"runner-7", b"nginx"):
        assert secret not in shown


# ---- guests ----


EVENT = (
    b'{"version": 1, "boot": "6f2a90d1c4b7e835", "sequence": 8, "step": "keys", "status": "failed",'
    b' "code": "kms.refused"}'
)


def test_a_guest_tells_with_its_word_alone_and_the_deployment_shows_it_as_unverified(
    client: Client, bench: Bench
) -> None:
    client("POST", _ROOT, body())
    made, word = bench.store.get("web"), "w" * 43
    bench.store.replace(msgspec.structs.replace(made, version=2, progress_token=word), 1)
    client.claims = InvalidEvidence("deploy.token.missing", "nobody asks for one")
    answer = client("POST", f"{WEB}/progress/{word}", EVENT)
    assert (answer.status, answer.body, client.lines[-1]["status"]) == (204, None, 204)
    assert client.lines[-1]["path"] == f"{WEB}/progress/"
    client.claims = github_claims()
    shown = client("GET", WEB)
    assert shown.body is not None
    assert [one["code"] for one in shown.body["unverified_progress"]] == ["kms.refused"]
    assert word not in json.dumps(shown.body)


def test_a_guest_without_the_word_is_told_the_same_for_every_name(client: Client) -> None:
    client("POST", _ROOT, body())
    known, unknown = (client("POST", f"{_ROOT}/{name}/progress/{'v' * 43}", EVENT) for name in ("web", "x"))
    assert known == unknown
    assert (known.status, code(known)) == (404, "deploy.progress.unknown")


def test_the_guests_path_takes_json_by_post_alone(client: Client) -> None:
    path = f"{WEB}/progress/{'v' * 43}"
    asked = client("GET", path)
    assert (asked.status, asked.headers, code(asked)) == (405, {"Allow": "POST"}, "deploy.method")
    told = client("POST", path, EVENT, Content_Type="text/plain")
    assert (told.status, code(told)) == (400, "deploy.request.type")


def test_a_flood_of_hints_is_429(client: Client, bench: Bench) -> None:
    client("POST", _ROOT, body())
    made, word = bench.store.get("web"), "w" * 43
    bench.store.replace(msgspec.structs.replace(made, version=2, progress_token=word), 1)
    statuses = [client("POST", f"{WEB}/progress/{word}", EVENT).status for _ in range(33)]
    assert statuses == [204] * 32 + [429]

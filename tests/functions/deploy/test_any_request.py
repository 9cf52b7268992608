"""Whatever comes in, what comes out is an answer of the API or an error of ours."""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.deploy.api import _ROOT, DeployApi
from functions.deploy.grants import parse_grants
from functions.deploy.service import DeploymentService
from functions.lambda_event import HttpRequest, jwt_claims
from shared.errors import InvalidEvidence
from tests.functions.deploy.uploads import (
    Bench,
    github_claims,
    github_grant,
    grants_file,
)

TEXT = st.text(max_size=40)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["app.json", "docker-compose.yaml", ".env", ".user-config", "../x"]) | TEXT
BODIES = st.fixed_dictionaries(
    {
        "files": st.dictionaries(
            NAMES, st.binary(max_size=30).map(lambda raw: base64.b64encode(raw).decode()) | JSON
        )
    },
    optional=dict.fromkeys(("name", "cloud", "encrypted_env", "env_names", "replace", "options"), JSON),
)


CLAIMS = st.dictionaries(st.sampled_from(sorted(github_claims())), JSON)
GRANTS = parse_grants(grants_file(github_grant()))
NEEDED = ("iss", "aud", "repository_id", "repository_owner_id", "ref", "event_name")


@given(CLAIMS)
@settings(max_examples=100)
def test_other_claims_are_granted_nothing(changes: dict[str, Any]) -> None:
    claims = github_claims(**changes)
    is_same = all(claims[name] == github_claims()[name] for name in NEEDED)
    assert GRANTS.decide(claims, "deploy", "web").allowed is is_same


@given(
    st.recursive(
        JSON, lambda inner: st.fixed_dictionaries({"requestContext": inner, "version": st.just("2.0")})
    )
)
def test_events_without_an_authorizer_have_no_claims(event: Any) -> None:
    with suppress(InvalidEvidence):
        jwt_claims(event if isinstance(event, dict) else {"requestContext": event})
        raise AssertionError("there were claims")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeploymentService]:
    bench = Bench(tmp_path_factory.mktemp("fuzz"))
    yield bench.service
    bench.close()


PATHS = st.sampled_from(["", "/web", *(path.replace("{name}", "web") for path in DeployApi.ROUTES)]).map(
    lambda path: _ROOT + path
)


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]) | TEXT,
    path=PATHS | TEXT,
    query=TEXT | st.sampled_from(["limit=0", "after=%00", "cursor=\ud800", "port=1"]),
    headers=st.dictionaries(st.sampled_from(["Idempotency-Key", "If-None-Match", "X"]), TEXT),
    raw=st.binary(max_size=60) | (BODIES | JSON).map(lambda value: json.dumps(value).encode()),
)
@settings(max_examples=100)
def test_every_request_gets_an_answer(
    service: DeploymentService, method: str, path: str, query: str, headers: dict[str, str], raw: bytes
) -> None:
    grants = parse_grants(
        grants_file(github_grant(apps=["*"], verbs=["deploy", "read", "logs", "remove", "firewall"]))
    )
    request = HttpRequest(method, path, query, {"Content-Type": "application/json", **headers}, raw)
    answer = DeployApi(service).handle(request, grants, github_claims)
    assert answer.status in {200, 202, 304, 400, 403, 404, 405, 409, 413, 422}
    json.loads(answer.encode() or b"{}")

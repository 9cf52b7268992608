"""The fake refuses what Google's discovery documents do not know."""

import http.client
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.fakes.google_rest import Answer, ApiRequest, GoogleRest, Refusal

INSTANCES = "/compute/v1/projects/p1/zones/us-central1-a/instances"
INSERT = "compute.instances.insert"
INSTANCE = {"name": "vm", "machineType": "zones/us-central1-a/machineTypes/c3-standard-4"}


@pytest.fixture
def fake() -> Iterator[GoogleRest]:
    with GoogleRest(["compute.v1"]) as served:

        @served.handle(INSERT)
        def insert(request: ApiRequest) -> Answer:
            if request.body["name"] == "taken":
                raise Refusal(409, "The resource 'taken' already exists", "alreadyExists")
            return Answer(200, {"kind": "compute#operation", "name": "op", "status": "DONE"})

        @served.handle("compute.instances.get")
        def get(request: ApiRequest) -> Answer:
            return Answer(200, {"name": request.params["instance"], "status": "PERHAPS"})

        yield served


def ask(fake: GoogleRest, method: str, target: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", int(fake.url.rsplit(":", 1)[1]), timeout=20)
    try:
        raw = None if body is None else msgspec.json.encode(body)
        connection.request(method, target, raw, {"Content-Type": "application/json"} if raw else {})
        with connection.getresponse() as answer:
            return answer.status, msgspec.json.decode(answer.read() or b"null")
    finally:
        connection.close()


def test_serves_a_valid_request(fake: GoogleRest) -> None:
    body = INSTANCE | {
        "confidentialInstanceConfig": {"confidentialInstanceType": "TDX"},
        "labels": {"a": "b"},
    }

    status, answer = ask(fake, "POST", f"{INSTANCES}?requestId=x&alt=json", body)

    assert (status, answer["name"]) == (200, "op")
    assert fake.calls[0].params == {"project": "p1", "zone": "us-central1-a"}
    assert fake.calls[0].query == {"requestId": "x", "alt": "json"}
    assert fake.calls[0].body == body
    assert not fake.violations


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (INSTANCE | {"machine_type": "x"}, 'Unknown name "machine_type"'),
        (INSTANCE | {"disks": [{"sizeGb": 3}]}, "Unknown name \"sizeGb\" at 'disks[0]'"),
        (INSTANCE | {"disks": {"boot": True}}, "disks is an object, not a list"),
        (INSTANCE | {"disks": [{"boot": "true"}]}, "disks[0].boot"),
        (INSTANCE | {"disks": [{"diskSizeGb": "10 GB"}]}, "disks[0].diskSizeGb"),
        (INSTANCE | {"confidentialInstanceConfig": {"confidentialInstanceType": "tdx"}}, "Must be one of"),
        (INSTANCE | {"labels": {"a": 1}}, "labels.a"),
        (INSTANCE | {"labelFingerprint": "%%%"}, "labelFingerprint"),
        ({"machineType": "x"}, "Required field 'name'"),
        ([], "the body is a list, not an object"),
    ],
)
def test_refuses_a_body_that_the_schema_does_not_know(fake: GoogleRest, body: object, what: str) -> None:
    status, answer = ask(fake, "POST", INSTANCES, body)

    assert status == 400
    assert what in answer["error"]["message"]
    assert answer["error"]["errors"][0]["reason"] == "invalid"
    assert [violation.where for violation in fake.violations] == [INSERT]
    assert not fake.calls


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"{INSTANCES}?request_id=x", 400),
        (f"{INSTANCES}?requestId=x&requestId=y", 400),
        (INSTANCES.replace("us-central1-a", "US"), 400),
        (INSTANCES.replace("/instances", "/instance"), 404),
        (INSTANCES.replace("/compute", ""), 404),
    ],
)
def test_refuses_a_target_that_no_method_has(fake: GoogleRest, target: str, status: int) -> None:
    assert ask(fake, "POST", target, INSTANCE)[0] == status
    assert len(fake.violations) == 1


def test_refuses_a_body_where_none_belongs(fake: GoogleRest) -> None:
    assert ask(fake, "GET", f"{INSTANCES}/vm", {})[0] == 400
    assert "takes no body" in fake.violations[0].what


def test_refuses_an_integer_and_a_boolean_of_another_form(fake: GoogleRest) -> None:
    status, _ = ask(fake, "GET", f"{INSTANCES}?maxResults=many&returnPartialSuccess=1")

    assert status == 400
    assert "maxResults" in fake.violations[0].what
    assert "returnPartialSuccess" in fake.violations[0].what


def test_holds_the_fakes_own_answers_to_the_document(fake: GoogleRest) -> None:
    assert ask(fake, "GET", f"{INSTANCES}/vm")[0] == 500
    assert "PERHAPS" in fake.violations[0].what


def test_notices_a_method_that_nobody_serves(fake: GoogleRest) -> None:
    assert ask(fake, "DELETE", f"{INSTANCES}/vm")[0] == 501
    assert fake.violations[0].where == "compute.instances.delete"


def test_answers_a_refusal_in_googles_shape(fake: GoogleRest) -> None:
    status, answer = ask(fake, "POST", INSTANCES, INSTANCE | {"name": "taken"})

    assert status == 409
    assert answer["error"]["code"] == 409
    assert answer["error"]["errors"] == [
        {"message": "The resource 'taken' already exists", "domain": "global", "reason": "alreadyExists"}
    ]
    assert not fake.violations


def test_fails_before_and_after_the_effect_on_demand(fake: GoogleRest) -> None:
    done: list[str] = []
    fake.hook = lambda phase, request: done.append(f"{phase} {request.body['name']}")
    fake.fail(INSERT, 503, times=1)
    fake.fail(INSERT, 0, after=True)

    assert ask(fake, "POST", INSTANCES, INSTANCE)[0] == 503
    assert done == ["before vm"]
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(fake, "POST", INSTANCES, INSTANCE)
    assert done == ["before vm", "before vm", "after vm"]
    assert ask(fake, "POST", INSTANCES, INSTANCE)[0] == 200


def test_wants_the_token_it_was_told(fake: GoogleRest) -> None:
    fake.token = "t"

    assert ask(fake, "POST", INSTANCES, INSTANCE)[0] == 401

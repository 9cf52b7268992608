"""A session sends a token, bounds answers, and says who must act on an error."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.auth.credentials import Credentials
from google.auth.exceptions import RefreshError

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.google_api import rest as rest_module
from functions.google_api.credentials import anonymous_credentials, default_credentials
from functions.google_api.errors import GoogleError, error_of
from functions.google_api.rest import DEFAULT_SECONDS, GoogleSession
from shared.errors import CloudError
from tests.fakes.google_rest import Answer, ApiRequest, GoogleRest, Refusal
from tests.shared.refusal import refuses

GET = "compute.instances.get"
VM = "/compute/v1/projects/p1/zones/us-central1-a/instances/vm"


class Renewable(Credentials):
    """Credentials whose token is `t1`, `t2` ... after each refresh, until `fails` is raised."""

    def __init__(self, *, fails: RefreshError | None = None) -> None:
        super().__init__()
        self.refreshed = 0
        self.fails = fails

    def refresh(self, request: object) -> None:
        del request
        if self.fails is not None:
            raise self.fails
        self.refreshed += 1
        self.token = f"t{self.refreshed}"


@pytest.fixture
def fake() -> Iterator[GoogleRest]:
    with GoogleRest(["compute.v1"]) as served:

        @served.handle(GET)
        def get(request: ApiRequest) -> Answer:
            if request.params["instance"] != "vm":
                raise Refusal(404, "The resource was not found")
            return Answer(200, {"name": "vm", "description": "x" * 2000})

        yield served


@pytest.fixture
def session() -> GoogleSession:
    return GoogleSession(anonymous_credentials())


def test_returns_the_object_and_sends_the_query(fake: GoogleRest, session: GoogleSession) -> None:
    assert session.call("GET", fake.url + VM, query={"alt": "json", "prettyPrint": False})["name"] == "vm"
    assert fake.calls[0].query == {"alt": "json", "prettyPrint": False}
    assert not fake.violations


def test_bears_a_token_and_renews_it_once(fake: GoogleRest) -> None:
    credentials = Renewable()
    session = GoogleSession(credentials)
    fake.token = "t2"

    session.call("GET", fake.url + VM)
    session.call("GET", fake.url + VM)

    assert credentials.refreshed == 2
    assert fake.calls[-1].headers["authorization"] == "Bearer t2"


def test_refuses_when_a_new_token_is_refused_too(fake: GoogleRest) -> None:
    credentials = Renewable()
    fake.token = "another"

    with refuses("gcp.credentials", DeniedError) as caught:
        GoogleSession(credentials).call("GET", fake.url + VM)
    assert caught.value.hint == "gcloud auth application-default login"
    assert credentials.refreshed == 2


def test_says_how_to_log_in_when_the_refresh_fails(fake: GoogleRest) -> None:
    lapsed = Renewable(fails=RefreshError("Reauthentication is needed."))
    with refuses("gcp.credentials", DeniedError):
        GoogleSession(lapsed).call("GET", fake.url + VM)
    revoked = Renewable()
    revoked.token = "old"
    fake.token = "t1"
    revoked.fails = RefreshError("the account was deleted")
    with refuses("gcp.credentials", DeniedError):
        GoogleSession(revoked).call("GET", fake.url + VM)
    busy = Renewable(fails=RefreshError("the token endpoint is busy", retryable=True))
    with refuses("gcp.unavailable", TransientCloudError):
        GoogleSession(busy).call("GET", fake.url + VM)


@pytest.mark.parametrize(
    ("status", "reason", "code", "kind"),
    [
        (429, "", "gcp.throttled", TransientCloudError),
        (403, "rateLimitExceeded", "gcp.throttled", TransientCloudError),
        (500, "", "gcp.unavailable", TransientCloudError),
        (503, "", "gcp.unavailable", TransientCloudError),
        (0, "", "gcp.unavailable", TransientCloudError),
        (403, "", "gcp.permission", DeniedError),
        (403, "quotaExceeded", "gcp.quota", DeniedError),
        (403, "accessNotConfigured", "gcp.api_disabled", DeniedError),
        (400, "", "gcp.request", GoogleError),
        (409, "alreadyExists", "gcp.conflict", GoogleError),
        (412, "conditionNotMet", "gcp.conflict", GoogleError),
    ],
)
def test_maps_errors_by_who_must_act(
    fake: GoogleRest, session: GoogleSession, status: int, reason: str, code: str, kind: type[CloudError]
) -> None:
    fake.fail(GET, status, reason=reason)

    with refuses(code, kind):
        session.call("GET", fake.url + VM)
    # nothing was retried, and the next call finds the service
    assert len(fake.calls) == 1
    assert session.call("GET", fake.url + VM)["name"] == "vm"


def test_exposes_status_and_reason(fake: GoogleRest, session: GoogleSession) -> None:
    with refuses("gcp.missing", GoogleError) as caught:
        session.call("GET", fake.url + VM + "2")
    assert (caught.value.status, caught.value.reason) == (404, "notFound")


def test_returns_a_status_that_was_expected(fake: GoogleRest, session: GoogleSession) -> None:
    answer = session.call("GET", fake.url + VM + "2", expect=(200, 404))

    assert answer["error"]["code"] == 404


def details(reason: str, **metadata: str) -> list[dict[str, Any]]:
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return [{"@type": kind, "reason": reason, "domain": "googleapis.com", "metadata": metadata}]


@pytest.mark.parametrize(
    ("message", "extra", "code", "hint"),
    [
        (
            "Required 'compute.instances.create' permission for 'projects/p1/zones/z/instances/vm'",
            [],
            "gcp.permission",
            "grant the caller a role that holds compute.instances.create",
        ),
        (
            "a@p.iam.gserviceaccount.com does not have storage.objects.get access to the object.",
            [],
            "gcp.permission",
            "grant the caller a role that holds storage.objects.get",
        ),
        (
            "Permission denied",
            details("IAM_PERMISSION_DENIED", permission="cloudtasks.tasks.create", resource="projects/p1/q"),
            "gcp.permission",
            "grant the caller a role that holds cloudtasks.tasks.create on projects/p1/q",
        ),
        (
            "Compute Engine API has not been used in project 1 before or it is disabled.",
            details("SERVICE_DISABLED", service="compute.googleapis.com", consumer="projects/1"),
            "gcp.api_disabled",
            "gcloud services enable compute.googleapis.com --project 1",
        ),
        ("no", [], "gcp.permission", "grant the caller a role that holds the permission"),
    ],
)
def test_names_what_is_missing(
    fake: GoogleRest, session: GoogleSession, message: str, extra: list[Any], code: str, hint: str
) -> None:
    @fake.handle(GET)
    def deny(_: ApiRequest) -> Answer:
        raise Refusal(403, message, "forbidden", extra)

    with refuses(code, DeniedError) as caught:
        session.call("GET", fake.url + VM)
    assert caught.value.hint == hint


def test_takes_contention_as_passing() -> None:
    body = b'{"error": {"code": 409, "message": "Aborted due to contention.", "status": "ABORTED"}}'

    assert error_of("commit", 409, body).code == "gcp.contention"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"[{}]", b'{"error": 3}', b'{"error": {"code": {}}}']
)
def test_reads_an_error_without_googles_body(body: bytes) -> None:
    assert error_of("call", 404, body).code == "gcp.missing"
    assert error_of("call", 502, body).code == "gcp.unavailable"


def test_bounds_an_answer(fake: GoogleRest) -> None:
    session = GoogleSession(anonymous_credentials(), max_bytes=1000)

    with refuses("gcp.answer", CloudError):
        session.call("GET", fake.url + VM)


def test_refuses_an_answer_of_another_shape(fake: GoogleRest, session: GoogleSession) -> None:
    with refuses("gcp.answer", CloudError):
        session.call_list("GET", fake.url + VM)
    for raw in (b"[1", b"[1]", b"\xff"):
        fake.handle(GET)(lambda _, raw=raw: Answer(200, raw))
        with refuses("gcp.answer", CloudError):
            session.call("GET", fake.url + VM)
        with refuses("gcp.answer", CloudError):
            session.call_list("GET", fake.url + VM)


@pytest.mark.parametrize("status", [200, 503])
def test_takes_an_answer_that_breaks_off_for_none(
    fake: GoogleRest, session: GoogleSession, status: int
) -> None:
    fake.handle(GET)(lambda _: Answer(status, b"{", {"Content-Length": "100", "Connection": "close"}))

    with refuses("gcp.unavailable", TransientCloudError):
        session.call("GET", fake.url + VM)


def test_bounds_the_time_of_an_answer(
    fake: GoogleRest, session: GoogleSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an answer that keeps coming: at its first piece the time is up
    clock = iter([0.0, DEFAULT_SECONDS + 1])
    monkeypatch.setattr(rest_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    with refuses("gcp.unavailable", TransientCloudError):
        session.call("GET", fake.url + VM)


def test_a_redirect_is_no_answer(fake: GoogleRest, session: GoogleSession) -> None:
    fake.handle(GET)(lambda _: Answer(302, None, {"Location": fake.url + VM}))

    with refuses("gcp.request", GoogleError):
        session.call("GET", fake.url + VM)
    assert len(fake.calls) == 1


def test_says_when_nobody_listens(session: GoogleSession) -> None:
    with GoogleRest(["compute.v1"]) as gone:
        url = gone.url
    with refuses("gcp.unavailable", TransientCloudError):
        session.call("GET", url + VM)


def test_says_how_to_log_in_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")

    with refuses("gcp.credentials", DeniedError) as caught:
        default_credentials()
    assert caught.value.hint == "gcloud auth application-default login"


def test_says_so_when_the_key_file_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))

    with refuses("gcp.credentials", DeniedError):
        default_credentials()

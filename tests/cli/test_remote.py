"""The command line's side of the API, against answers in the order in which a network gives them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cli import main
from cli.remote import GITHUB_TOKEN, GITHUB_URL, TRIES, ApiError, RemoteDeployments, token_source
from functions.deploy.cloud import DeniedError
from shared.errors import ProtocolError, UnavailableError
from shared.net.response import Response
from tests.shared.refusal import refuses

LOST = UnavailableError("net.unreachable", "connection reset")


class Script:
    """An HTTP client that answers what it is told to."""

    def __init__(self, *answers: Response | UnavailableError) -> None:
        self._answers: Iterator[Response | UnavailableError] = iter(answers)
        self.keys: list[str] = []
        self.pauses: list[float] = []

    def request(self, _method: str, _url: str, _body: object, headers: dict[str, str], **_: Any) -> Response:
        self.keys.append(headers.get("Idempotency-Key", ""))
        answer = next(self._answers)
        if isinstance(answer, UnavailableError):
            raise answer
        return answer

    def deployments(self) -> RemoteDeployments:
        return RemoteDeployments("http://127.0.0.1:1", lambda: "token", self, sleep=self.pauses.append)  # type: ignore[arg-type] # all that it asks for


def answer(status: int = 200, document: object = None, **headers: str) -> Response:
    return Response(status, headers, json.dumps(document or {"step": "running"}).encode())


def test_a_lost_connection_in_the_middle_is_no_failure() -> None:
    script = Script(answer(), LOST, LOST, answer(), LOST, answer())
    deployments = script.deployments()
    deployments.get("web")
    deployments.get("web")
    deployments.act("web", "stop", "key")
    assert script.pauses == [1, 2, 1]
    assert script.keys[-2:] == ["key", "key"]  # it is the same request again


def test_an_api_that_never_answered_is_said_to_be_unreachable_at_once() -> None:
    script = Script(LOST)
    with refuses("net.unreachable", UnavailableError):
        script.deployments().get("web")
    assert script.pauses == []


def test_an_api_that_stays_away_is_given_up() -> None:
    script = Script(answer(), *[LOST] * TRIES)
    deployments = script.deployments()
    deployments.get("web")
    with refuses("net.unreachable", UnavailableError):
        deployments.get("web")
    assert len(script.pauses) == TRIES - 1


@pytest.mark.parametrize(("wait", "pause"), [("7", 7), ("3600", 30), ("\u00b2", 1), ("-1", 1), ("soon", 1)])
def test_a_busy_api_says_how_long_to_wait(wait: str, pause: float) -> None:
    script = Script(answer(503, **{"retry-after": wait}), answer())
    script.deployments().get("web")
    assert script.pauses == [pause]


def test_an_error_of_the_api_keeps_its_code_and_its_hint() -> None:
    script = Script(answer(409, {"error": "no quota", "code": "gcp.quota", "hint": "ask for more"}))
    with refuses("gcp.quota", ApiError) as caught:
        script.deployments().get("web")
    assert caught.value.hint == "ask for more"


def test_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise DeniedError("gcp.quota", "no quota is left", "ask for more")

    monkeypatch.setattr(main, "cli", refuse)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "dstack-cloud: no quota is left [gcp.quota]",
        "what to do: ask for more",
    ]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (Response(500, {}, b"busy"), UnavailableError),
        (Response(200, {}, b'{"count": 1}'), ProtocolError),
    ],
)
def test_a_job_without_its_token_is_told(
    given: Response, error: type[UnavailableError | ProtocolError]
) -> None:
    environ = {GITHUB_URL: "https://t.example", GITHUB_TOKEN: "bearer"}
    token = token_source(environ, AnyAnswer(given), "https://api.example")  # type: ignore[arg-type] # all that it asks for
    with refuses("api.token.github", error):
        token()


class AnyAnswer:
    """An HTTP client with one answer to everything."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def request(self, _method: str, _url: str, **_: Any) -> Response:
        return self._response

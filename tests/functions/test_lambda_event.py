"""API Gateway's two payload versions give the same request."""

from typing import Any

import pytest

from functions.lambda_event import HttpRequest, http_answer, read_event
from shared.errors import ProtocolError

EXPECTED = HttpRequest("POST", "/verify", "a=1&b=x+y", {"Content-Type": "text/plain"}, b"hi")


def http_api(**changes: Any) -> dict[str, Any]:
    return {
        "version": "2.0",
        "rawPath": "/verify",
        "rawQueryString": "a=1&b=x+y",
        "headers": {"Content-Type": "text/plain"},
        "requestContext": {"http": {"method": "POST", "path": "/verify"}, "stage": "$default"},
        "body": "hi",
        "isBase64Encoded": False,
        **changes,
    }


def rest_api(**changes: Any) -> dict[str, Any]:
    return {
        "httpMethod": "POST",
        "path": "/verify",
        "headers": {"Content-Type": "text/plain"},
        "queryStringParameters": {"a": "1", "b": "x y"},
        "requestContext": {"stage": "prod"},
        "body": "hi",
        "isBase64Encoded": False,
        **changes,
    }


@pytest.mark.parametrize("event", [http_api, rest_api])
class TestBothVersions:
    def test_give_the_same_request(self, event: Any) -> None:
        assert read_event(event()) == EXPECTED

    def test_decode_base64(self, event: Any) -> None:
        assert read_event(event(body="/wA=", isBase64Encoded=True)).body == b"\xff\x00"

    @pytest.mark.parametrize("body", ["a", "====", "\u20ac", "aGk=!"])
    def test_refuse_what_is_not_base64(self, event: Any, body: str) -> None:
        with pytest.raises(ProtocolError) as caught:
            read_event(event(body=body, isBase64Encoded=True))
        assert caught.value.code == "lambda.event.body"

    def test_may_lack_body_and_headers(self, event: Any) -> None:
        request = read_event(event(body=None, headers=None))
        assert (request.body, request.headers) == (b"", {})


def test_strips_the_stage_of_http_apis() -> None:
    context = {"http": {"method": "GET"}, "stage": "prod"}
    assert read_event(http_api(requestContext=context, rawPath="/prod/verify")).path == "/verify"
    assert read_event(http_api(requestContext=context, rawPath="/prod")).path == "/"


def test_answers_in_the_form_of_both_versions() -> None:
    assert http_answer(404, "application/json", b"{}") == {
        "statusCode": 404,
        "headers": {"content-type": "application/json"},
        "body": "{}",
        "isBase64Encoded": False,
    }

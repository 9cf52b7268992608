"""Google Cloud entry of the verify function, for functions-framework: target `verify`."""

import os
import time

import functions_framework
import msgspec
from flask import Request, Response

from functions.verify.service import HEALTH, HTTP_STATUS, MAX_BODY, VerifyService, anchors_from
from shared.errors import ProtocolError

_JSON = "application/json"

service = VerifyService(anchors_from(os.environ))


@functions_framework.http
def verify(request: Request) -> Response:
    """Serve `GET /health` and `POST /verify`."""
    match request.method, request.path:
        case "GET", "/health":
            return Response(msgspec.json.encode(HEALTH), 200, content_type=_JSON)
        case "POST", "/verify":
            try:
                # One byte beyond the limit shows that the body is too large; no more of it is read.
                answer = service.answer(request.stream.read(MAX_BODY + 1), now=int(time.time()))
            except ProtocolError as error:
                body = msgspec.json.encode({"error": error.message, "code": error.code})
                return Response(body, HTTP_STATUS.get(error.code, 400), content_type=_JSON)
            return Response(answer, 200, content_type=_JSON)
        case _:
            return Response(b'{"error":"no such path"}', 404, content_type=_JSON)

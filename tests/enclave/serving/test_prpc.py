"""A method may answer on the event loop; what would wait or compute for long goes to a worker thread."""

import asyncio
import threading
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from enclave.serving.prpc import PROMPT_BODY_BYTES, Procedure, PrpcService, WouldBlockError
from shared.errors import PolicyDenied
from shared.rpc import kms_pb2 as pb


class Service:
    """One method that says which thread answered."""

    def __init__(self, prompt: str = "answers", *, known: bool = True) -> None:
        self._prompt = prompt
        self._known = known
        self.calls: list[str] = []

    def handler(self, _request: object, caller: str) -> pb.BootstrapRequest:
        self.calls.append("handler")
        return pb.BootstrapRequest(domain=f"{caller} {threading.get_ident()}")

    def prompt(self, _request: object, caller: str) -> pb.BootstrapRequest:
        self.calls.append("prompt")
        if self._prompt == "would block":
            raise WouldBlockError
        if self._prompt == "refuses":
            raise PolicyDenied("test.refused", "no")
        return pb.BootstrapRequest(domain=f"{caller} {threading.get_ident()}")

    def recognise(self, _chain: list[bytes]) -> str:
        if not self._known:
            raise WouldBlockError
        return "known"

    def request(self, *, prompt: bool = True, **options: Any) -> tuple[httpx.Response, int]:
        """Return the answer and the event loop's thread."""
        procedure = Procedure(pb.BootstrapRequest, self.handler, self.prompt if prompt else None)
        service = PrpcService("Test", {"Run": procedure}, lambda _chain: "identified", self.recognise)
        transport = httpx.ASGITransport(app=Starlette(routes=[service.route()]))

        async def run() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
                return await client.post("/prpc/Test.Run?json", **({"content": b"{}"} | options))

        return asyncio.run(run()), threading.get_ident()


def _answered_by(response: httpx.Response) -> tuple[str, int]:
    caller, thread = msgspec.json.decode(response.content)["domain"].split()
    return caller, int(thread)


def test_a_prompt_answer_takes_no_thread() -> None:
    response, loop = Service().request()
    assert _answered_by(response) == ("known", loop)


def test_a_method_that_would_block_runs_in_a_worker() -> None:
    service = Service("would block")
    response, loop = service.request()
    caller, thread = _answered_by(response)
    assert (caller, service.calls) == ("identified", ["prompt", "handler"])
    assert thread != loop


def test_an_unknown_caller_is_identified_in_a_worker() -> None:
    service = Service(known=False)
    response, loop = service.request()
    assert _answered_by(response)[1] != loop
    assert service.calls == ["handler"]


def test_a_method_without_a_prompt_form_runs_in_a_worker() -> None:
    response, loop = Service().request(prompt=False)
    assert _answered_by(response)[1] != loop


def test_a_large_body_is_decoded_in_a_worker() -> None:
    service = Service()
    service.request(content=b"{}" + b" " * PROMPT_BODY_BYTES)
    assert service.calls == ["handler"]


def test_a_prompt_refusal_is_final() -> None:
    service = Service("refuses")
    response, _ = service.request()
    assert response.status_code == 400
    assert msgspec.json.decode(response.content) == {"error": "no", "code": "test.refused"}
    assert service.calls == ["prompt"]


@pytest.mark.parametrize(("path", "status"), [("/prpc/Test.Run/more", 404), ("/prpc/", 404)])
def test_only_one_segment_names_a_method(path: str, status: int) -> None:
    service = PrpcService("Test", {}, lambda _chain: None)
    transport = httpx.ASGITransport(app=Starlette(routes=[service.route()]))

    async def run() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
            return (await client.post(path)).status_code

    assert asyncio.run(run()) == status

"""A method may answer on the event loop; what would wait or compute for long goes to a worker thread."""

import asyncio
import threading
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from enclave.serving.prpc import (
    ANONYMOUS_THREADS,
    DEFAULT_BODY_BYTES,
    IDENTIFYING_THREADS,
    KNOWN_THREADS,
    MAX_BRACKETS,
    PROMPT_BODY_BYTES,
    PROMPT_BRACKETS,
    Procedure,
    PrpcService,
    WouldBlockError,
)
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

    def identify(self, _chain: list[bytes]) -> str:
        self.identified_by = threading.get_ident()
        return "identified"

    def recognise(self, _chain: list[bytes]) -> str:
        if not self._known:
            raise WouldBlockError
        return "known"

    def request(self, *, prompt: bool = True, **options: Any) -> tuple[httpx.Response, int]:
        """Return the answer and the event loop's thread."""
        procedure = Procedure(pb.BootstrapRequest, self.handler, self.prompt if prompt else None)
        service = PrpcService("Test", {"Run": procedure}, self.identify, self.recognise)
        transport = httpx.ASGITransport(app=Starlette(routes=[service.route()]))

        async def run() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
                return await client.post("/prpc/Test.Run?json", **({"content": b"{}"} | options))

        return asyncio.run(run()), threading.get_ident()


@pytest.mark.parametrize("verb", ["HEAD", "PUT", "OPTIONS", "DELETE"])
def test_other_verbs_than_get_and_post_run_nothing(verb: str) -> None:
    service = Service()
    procedure = Procedure(pb.BootstrapRequest, service.handler, service.prompt)
    route = PrpcService("Test", {"Run": procedure}, service.identify, service.recognise).route()
    transport = httpx.ASGITransport(app=Starlette(routes=[route]))

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
            return await client.request(verb, "/prpc/Run?json")

    assert asyncio.run(run()).status_code == 405
    assert service.calls == []


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
    assert (caller, service.calls) == ("known", ["prompt", "handler"])
    assert thread != loop


def test_an_unknown_caller_is_identified_in_a_worker() -> None:
    service = Service(known=False)
    response, loop = service.request()
    assert _answered_by(response) == ("identified", loop)
    assert service.identified_by != loop


def test_a_method_without_a_prompt_form_runs_in_a_worker() -> None:
    response, loop = Service().request(prompt=False)
    assert _answered_by(response)[1] != loop


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        (b"{}" + b" " * (PROMPT_BODY_BYTES - 2), ["prompt"]),
        (b"{}" + b" " * (PROMPT_BODY_BYTES - 1), ["handler"]),
        (b'{"x":[' + b",".join([b"{}"] * (PROMPT_BRACKETS - 2)) + b"]}", ["prompt"]),
        (b'{"x":[' + b",".join([b"{}"] * (PROMPT_BRACKETS - 1)) + b"]}", ["handler"]),
    ],
)
def test_a_body_that_takes_time_to_decode_is_decoded_in_a_worker(body: bytes, calls: list[str]) -> None:
    service = Service()
    service.request(content=body)
    assert service.calls == calls


def test_refuses_a_body_with_more_brackets_than_any_request_has() -> None:
    service = Service()
    bodies = [b'{"x":[' + b",".join([b"{}"] * (MAX_BRACKETS - missing)) + b"]}" for missing in (2, 1)]
    answers = [service.request(content=body)[0] for body in bodies]
    assert [answer.status_code for answer in answers] == [200, 400]
    assert msgspec.json.decode(answers[1].content)["code"] == "prpc.size"
    assert service.calls == ["handler"]


def test_a_prompt_refusal_is_final() -> None:
    service = Service("refuses")
    response, _ = service.request()
    assert response.status_code == 400
    assert msgspec.json.decode(response.content) == {"error": "no", "code": "test.refused"}
    assert service.calls == ["prompt"]


def test_refuses_a_body_beyond_the_methods_limit() -> None:
    service = Service()
    response, _ = service.request(content=b"{}" + b" " * DEFAULT_BODY_BYTES)
    assert msgspec.json.decode(response.content)["code"] == "prpc.size"
    assert service.calls == []


def test_anonymous_callers_cannot_hold_up_known_ones() -> None:
    """More anonymous calls than they have threads wait; a caller with evidence is answered all the same."""
    release = threading.Event()
    arrived = threading.Semaphore(0)

    def handler(_request: object, caller: str | None) -> pb.BootstrapRequest:
        if caller is None:
            arrived.release()
            assert release.wait(30)
        return pb.BootstrapRequest(domain=caller or "")

    callers = iter([None] * (3 * ANONYMOUS_THREADS) + ["known"])
    service = PrpcService(
        "Test",
        {"Run": Procedure(pb.BootstrapRequest, handler)},
        lambda _chain: None,
        lambda _chain: next(callers),
    )
    transport = httpx.ASGITransport(app=Starlette(routes=[service.route()]))

    async def run() -> tuple[str, bool]:
        async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
            waiting = [
                asyncio.create_task(client.post("/prpc/Run?json", content=b"{}"))
                for _ in range(3 * ANONYMOUS_THREADS)
            ]
            for _ in range(ANONYMOUS_THREADS):
                await asyncio.to_thread(arrived.acquire)
            answer = await client.post("/prpc/Run?json", content=b"{}")
            overtook = not any(task.done() for task in waiting)
            release.set()
            await asyncio.gather(*waiting)
            return msgspec.json.decode(answer.content)["domain"], overtook

    assert asyncio.run(run()) == ("known", True)


def test_evidence_that_is_slow_to_verify_cannot_hold_up_known_callers() -> None:
    """However many callers are being identified, one that is known gets a thread for its request."""
    release = threading.Event()
    arrived = threading.Semaphore(0)
    strangers = 100  # more than all worker threads together

    def identify(_chain: list[bytes]) -> str:
        arrived.release()
        assert release.wait(30)
        return "identified"

    turns = iter(range(strangers + 1))

    def recognise(_chain: list[bytes]) -> str:
        if next(turns) < strangers:
            raise WouldBlockError
        return "known"

    def handler(_request: object, caller: str) -> pb.BootstrapRequest:
        return pb.BootstrapRequest(domain=caller)

    procedures = {"Run": Procedure(pb.BootstrapRequest, handler)}
    service = PrpcService("Test", procedures, identify, recognise)
    transport = httpx.ASGITransport(app=Starlette(routes=[service.route()]))

    async def run() -> tuple[str, bool]:
        async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
            waiting = [
                asyncio.create_task(client.post("/prpc/Run?json", content=b"{}")) for _ in range(strangers)
            ]
            for _ in range(IDENTIFYING_THREADS):
                await asyncio.to_thread(arrived.acquire)
            answer = await client.post("/prpc/Run?json", content=b"{}", timeout=30)
            overtook = not any(task.done() for task in waiting)
            release.set()
            await asyncio.gather(*waiting)
            return msgspec.json.decode(answer.content)["domain"], overtook

    assert asyncio.run(run()) == ("known", True)


def test_known_callers_share_so_many_threads_and_leave_anonymous_ones_theirs() -> None:
    release = threading.Event()
    arrived = threading.Semaphore(0)

    def handler(_request: object, caller: str | None) -> pb.BootstrapRequest:
        if caller is not None:
            arrived.release()
            assert release.wait(30)
        return pb.BootstrapRequest(domain="anonymous")

    callers = iter(["known"] * (KNOWN_THREADS + 5) + [None])
    service = PrpcService(
        "Test",
        {"Run": Procedure(pb.BootstrapRequest, handler)},
        lambda _chain: None,
        lambda _chain: next(callers),
    )
    transport = httpx.ASGITransport(app=Starlette(routes=[service.route()]))

    async def run() -> tuple[str, bool]:
        async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
            waiting = [
                asyncio.create_task(client.post("/prpc/Run?json", content=b"{}"))
                for _ in range(KNOWN_THREADS + 5)
            ]
            for _ in range(KNOWN_THREADS):
                await asyncio.to_thread(arrived.acquire)
            answer = await client.post("/prpc/Run?json", content=b"{}")
            more = arrived.acquire(blocking=False)
            release.set()
            await asyncio.gather(*waiting)
            return msgspec.json.decode(answer.content)["domain"], more

    assert asyncio.run(run()) == ("anonymous", False)


def test_evidence_in_requests_cannot_hold_up_other_anonymous_calls() -> None:
    """A method that judges evidence runs in the threads for that, also when its caller is anonymous."""
    release = threading.Event()
    arrived = threading.Semaphore(0)

    def judge(_request: object, _caller: None) -> pb.BootstrapRequest:
        arrived.release()
        assert release.wait(30)
        return pb.BootstrapRequest()

    procedures = {
        "Judge": Procedure(pb.BootstrapRequest, judge, judges_evidence=True),
        "Run": Procedure(pb.BootstrapRequest, lambda _request, _caller: pb.BootstrapRequest(domain="ran")),
    }
    service = PrpcService("Test", procedures, lambda _chain: None, lambda _chain: None)
    transport = httpx.ASGITransport(app=Starlette(routes=[service.route()]))

    async def run() -> str:
        async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
            waiting = [
                asyncio.create_task(client.post("/prpc/Judge?json", content=b"{}"))
                for _ in range(3 * IDENTIFYING_THREADS)
            ]
            try:
                for _ in range(IDENTIFYING_THREADS):
                    assert await asyncio.to_thread(arrived.acquire, timeout=10)
                answer = await asyncio.wait_for(client.post("/prpc/Run?json", content=b"{}"), 10)
            finally:
                release.set()
                await asyncio.gather(*waiting)
            return msgspec.json.decode(answer.content)["domain"]

    assert asyncio.run(run()) == "ran"


@pytest.mark.parametrize(("path", "status"), [("/prpc/Test.Run/more", 404), ("/prpc/", 404)])
def test_only_one_segment_names_a_method(path: str, status: int) -> None:
    service = PrpcService("Test", {}, lambda _chain: None)
    transport = httpx.ASGITransport(app=Starlette(routes=[service.route()]))

    async def run() -> int:
        async with httpx.AsyncClient(transport=transport, base_url="http://kms.test") as client:
            return (await client.post(path)).status_code

    assert asyncio.run(run()) == status

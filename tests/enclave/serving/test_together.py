"""Servers on one event loop begin and end together."""

import asyncio
import signal
import socket
import threading
from typing import Any

import pytest

from enclave.serving.attested_tls import build_plain_server
from enclave.serving.together import Part, run_together
from tests.enclave.event_log import PATIENCE

Scope = dict[str, Any]


async def _app(scope: Scope, _receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


def _parts(count: int) -> list[Part]:
    return [Part(build_plain_server(_app), [socket.create_server(("127.0.0.1", 0))]) for _ in range(count)]


async def _answering(parts: list[Part]) -> None:
    for part in parts:
        await asyncio.wait_for(part.server.answering.wait(), PATIENCE)


@pytest.mark.parametrize("ending", [0, 1, 2])
def test_the_end_of_one_is_the_end_of_all(ending: int) -> None:
    parts = _parts(3)

    async def beside() -> None:
        await _answering(parts)
        parts[ending].server.should_exit = True

    assert run_together(parts, beside) is False
    assert all(one.fileno() == -1 for part in parts for one in part.sockets)


def test_all_answer_before_that() -> None:
    parts = _parts(3)
    heads: list[bytes] = []

    async def beside() -> None:
        await _answering(parts)
        for part in parts:
            reader, writer = await asyncio.open_connection(*part.sockets[0].getsockname())
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            heads.append(await reader.readline())
            writer.close()
        parts[0].server.should_exit = True

    run_together(parts, beside)
    assert heads == [b"HTTP/1.1 204 No Content\r\n"] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_and_is_told(number: int) -> None:
    parts = _parts(2)
    before = signal.getsignal(number)

    async def beside() -> None:
        await _answering(parts)
        signal.raise_signal(number)

    assert threading.current_thread() is threading.main_thread()
    assert run_together(parts, beside) is True
    assert signal.getsignal(number) is before


def test_a_failure_of_what_runs_beside_ends_all() -> None:
    parts = _parts(2)

    async def beside() -> None:
        await _answering(parts)
        raise RuntimeError("beside")

    with pytest.raises(RuntimeError, match="beside"):
        run_together(parts, beside)


def test_what_runs_beside_is_cancelled_at_the_end() -> None:
    parts = _parts(1)
    ended: list[str] = []

    async def beside() -> None:
        await _answering(parts)
        parts[0].server.should_exit = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    run_together(parts, beside)
    assert ended == ["cancelled"]

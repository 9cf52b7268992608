"""A server stops as it was told to, whatever becomes of the line that says so."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn

from enclave.serving.stopping import StoppableServer
from tests.enclave.event_log import PATIENCE


async def _app(_scope: dict[str, Any], _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def test_a_log_that_cannot_be_written_keeps_no_connection_open() -> None:
    def broken(_connections: int) -> None:
        raise BrokenPipeError

    config = uvicorn.Config(_app, log_config=None, lifespan="off")
    server = StoppableServer(config, broken)
    server.takes_signals = False
    listener = socket.create_server(("127.0.0.1", 0))

    async def run() -> bytes:
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        await asyncio.wait_for(server.answering.wait(), PATIENCE)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        server.should_exit = True
        rest = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        with pytest.raises(BrokenPipeError):
            await asyncio.wait_for(serving, PATIENCE)
        return rest

    assert asyncio.run(run()) == b""
    assert listener.fileno() == -1

"""HTTP in front of the methods, and the clock that mines: one process, one thread, loopback only."""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cli.devchain.accounts import BALANCE, CHAIN_ID, development_accounts
from cli.devchain.evm import Evm
from cli.devchain.methods import Methods

# The largest body we expect is a contract's creation code in hex, about 50 KiB.
MAX_BODY = 1 << 20


def serve(*, port: int, block_time: int) -> None:
    """Run the chain until SIGTERM or SIGINT. Prints one JSON line when it accepts connections.

    `port` 0 takes a free one. `block_time` is in seconds; 0 mines on each transaction instead.
    """
    balances = {account.address_bytes: BALANCE for account in development_accounts()}
    methods = Methods(Evm(balances, now=int(time.time())), mine_on_submit=block_time == 0)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    ready = {
        "url": f"http://127.0.0.1:{listener.getsockname()[1]}",
        "engine": "py-evm",
        "chain_id": CHAIN_ID,
    }

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        mining = asyncio.create_task(_mine_for_ever(methods, block_time)) if block_time else None
        if mining is not None:
            mining.add_done_callback(_stop_when_it_failed)
        print(json.dumps(ready), flush=True)
        yield
        if mining is not None:
            mining.cancel()

    async def answer(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return Response(f"a body above {MAX_BODY} bytes is not read", status_code=413)
        return Response(methods.answer(bytes(body)) or b"", media_type="application/json")

    application = Starlette(routes=[Route("/", answer, methods=["POST"])], lifespan=lifespan)
    config = uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


async def _mine_for_ever(methods: Methods, block_time: int) -> None:
    while True:
        # wake up just after the clock's next tick, so that a block is stamped with the second it is made in
        now = time.time()
        await asyncio.sleep(block_time - now % block_time + 0.001)
        methods.mine_if_due()


def _stop_when_it_failed(mining: "asyncio.Task[None]") -> None:
    if not mining.cancelled():
        logging.getLogger(__name__).error("mining ended", exc_info=mining.exception())
        signal.raise_signal(signal.SIGTERM)

"""`python -m bench.agent_guest`: the agent's daemon in a guest whose evidence was recorded before.

Nothing but production's modules is loaded, so that the process is as large, and starts as fast, as in a
guest. `python -m bench.agent_guest ping SOCKET` is what it is compared with: uvicorn, answering four bytes.
"""

import socket
import sys
from pathlib import Path
from typing import Any

from starlette.types import Receive, Send

from enclave.agent.daemon import main
from enclave.devices.clock import SystemClock
from enclave.platform import Platform
from shared.net.dialer import DirectDialer

EVIDENCE = "evidence"


class RecordedTee:
    """A guest that has nothing but its evidence."""

    needs_collateral = False
    vsock = None

    def __init__(self, evidence: bytes) -> None:
        self._evidence = evidence

    def attestor(self, _app_id: bytes | None) -> "RecordedTee":
        return self

    def attest(self, _report_data: bytes) -> bytes:
        return self._evidence

    def clock(self, _anchors: object) -> SystemClock:
        return SystemClock()

    def listen(self, _address: str, _port: int) -> socket.socket:
        return socket.create_server(("127.0.0.1", 0))

    def listen_to_host(self, _port: int) -> None:
        return None

    def dialer(self) -> DirectDialer:
        return DirectDialer()


def run_agent(directory: Path) -> int:
    """Run the daemon in a guest whose root is `directory`."""
    tee: Any = RecordedTee((directory / EVIDENCE).read_bytes())
    return main([], Platform(image=directory / "image", writable=directory, tee=tee))


def run_ping(path: str) -> int:
    """Answer every request with four bytes."""
    import uvicorn  # noqa: PLC0415 - the agent's process loads its own

    async def ping(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await receive()
            headers = [(b"content-length", b"4"), (b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"pong"})

    uvicorn.run(
        ping,  # type: ignore[arg-type]  # a bare dict for a scope
        uds=path,
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_ping(sys.argv[2]) if sys.argv[1] == "ping" else run_agent(Path(sys.argv[1])))

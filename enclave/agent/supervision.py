"""What systemd is told: that the agent is ready, and that it answers."""

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Final

from enclave.agent.sockets import notify_address
from enclave.log import log_event

READY: Final = "READY=1"
ALIVE: Final = "WATCHDOG=1"
STOPPING: Final = "STOPPING=1"

_MICROSECONDS: Final = 1_000_000
_SHORTEST: Final = 1.0  # seconds between two checks
_PATIENCE: Final = 5.0  # seconds for one
_MAX_ANSWER: Final = 4096
_REQUEST: Final = b"GET /prpc/Worker.Version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def notify(message: str, environment: Mapping[str, str]) -> None:
    """Tell systemd, where it waits to be told. A message that cannot be sent is logged, and no failure."""
    address = notify_address(environment)
    if address is None:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), address)
    except OSError as error:
        log_event("agent.notify.failed", reason=error.strerror or "")


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Return how often systemd is to be told that the agent answers; None where it does not watch us."""
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (text.isdecimal() and text.isascii()) or pid not in ("", str(os.getpid())):
        return None
    return max(int(text) / _MICROSECONDS / 2, _SHORTEST)


async def watch(address: tuple[str, int], seconds: float, environment: Mapping[str, str]) -> None:
    """Ask the external port for its version for ever, and tell systemd each time that it answered."""
    while True:
        if await answers(address):
            notify(ALIVE, environment)
        else:
            log_event("agent.watchdog.silent", port=address[1])
        await asyncio.sleep(seconds)


async def answers(address: tuple[str, int]) -> bool:
    """Tell whether the external port answers Version with a status of 2xx, in a few seconds."""
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(_REQUEST)
                answer = await reader.read(_MAX_ANSWER)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"HTTP/1.1 2")

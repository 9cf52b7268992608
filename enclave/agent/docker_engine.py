"""The guest's container engine, asked over its unix socket (Docker's HTTP API).

Names, images and logs are what the app's author and its containers wrote. The engine itself is the guest's,
and may be slow, absent or another than we know: every wait and every size is bounded.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Final, Protocol
from urllib.parse import quote, urlencode

import msgspec

from enclave.agent.docker_logs import LogDecoder, LogMessage
from enclave.agent.log_query import LogRequest
from enclave.serving.http_response import HttpResponse
from shared.errors import ProtocolError, UnavailableError

SOCKET: Final = Path("/var/run/docker.sock")

MAX_LIST: Final = 16 * 1024 * 1024
"""A thousand containers with 16 KiB of labels each."""

MAX_COMPLAINT: Final = 64 * 1024
"""The engine's words when it refuses."""

ANSWER_SECONDS: Final = 5.0
"""For the list of containers, and until a log begins. Prometheus waits ten for the page that counts them."""

COMPOSE_PROJECT: Final = "com.docker.compose.project"
"""The label of every container that compose started."""

_READ: Final = 64 * 1024
_SHOWN: Final = 200
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_FRAMED: Final = "application/vnd.docker.multiplexed-stream"

_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """One container as the engine lists it. `created` is in unix seconds, `names` start with a slash."""

    id: str = msgspec.field(default="", name="Id")
    names: tuple[str, ...] | None = msgspec.field(default=None, name="Names")
    image: str = msgspec.field(default="", name="Image")
    image_id: str = msgspec.field(default="", name="ImageID")
    created: _Int64 = msgspec.field(default=0, name="Created")
    state: str = msgspec.field(default="", name="State")
    status: str = msgspec.field(default="", name="Status")
    labels: dict[str, str] | None = msgspec.field(default=None, name="Labels")

    @property
    def name(self) -> str:
        """The name that people use: the first, without its slash; the id where there is none."""
        return self.names[0].removeprefix("/") if self.names else self.id

    @property
    def is_of_compose(self) -> bool:
        """Whether compose started it."""
        return COMPOSE_PROJECT in (self.labels or {})


class _Complaint(msgspec.Struct, frozen=True):
    message: str


class ContainerEngine(Protocol):
    """What runs the app's containers."""

    async def containers(self) -> tuple[Container, ...]:
        """Return all containers, stopped ones too. Raises `UnavailableError`, `ProtocolError`: `docker.*`."""
        ...

    def logs(self, name: str, request: LogRequest) -> AsyncGenerator[LogMessage]:
        """Yield a container's output, for as long as it is asked for. Raises as `containers` does.

        Close the iterator (`contextlib.aclosing`) to end it.
        """
        ...


class DockerEngine:
    """Docker, or what speaks like it. `seconds` is for one answer, or the beginning of a log."""

    def __init__(self, path: Path = SOCKET, *, seconds: float = ANSWER_SECONDS) -> None:
        self._path = path
        self._seconds = seconds

    async def containers(self) -> tuple[Container, ...]:
        """See `ContainerEngine.containers`.

        Codes: `docker.unreachable`, `docker.timeout`, `docker.status`, `docker.response.head`, `.malformed`,
        `.cut`, `.size`, `.json`.
        """
        async with self._deadline(), self._get("/containers/json", {"all": "true"}) as (response, body):
            await _check_status(response, body)
            raw = await _whole(body, MAX_LIST)
        try:
            return msgspec.json.decode(raw, type=tuple[Container, ...])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(
                "docker.response.json", "the container engine's list of containers is none"
            ) from error

    async def logs(self, name: str, request: LogRequest) -> AsyncGenerator[LogMessage]:
        """See `ContainerEngine.logs`.

        Codes: those of `containers` without `.json`, and `docker.logs.frame`, `docker.logs.failed`.
        """
        if not is_container_name(name):
            raise _refused(404, f"No such container: {name[:_SHOWN]}")
        query = {"stdout": "true", "stderr": "true", **request.engine_query()}
        async with contextlib.AsyncExitStack() as open_things:
            async with self._deadline():
                exchange = self._get(f"/containers/{quote(name, safe='')}/logs", query)
                response, body = await open_things.enter_async_context(exchange)
                await _check_status(response, body)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            decoder = LogDecoder(framed=True if kind == _FRAMED else None)
            async for piece in body:
                for message in decoder.feed(piece):
                    yield message
            for message in decoder.end():
                yield message

    @asynccontextmanager
    async def _get(
        self, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[HttpResponse, AsyncIterator[bytes]]]:
        """Ask, and give the answer's head with an iterator over its body."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path))
        except OSError as error:
            raise UnavailableError(
                "docker.unreachable", f"no container engine answers on {self._path}: {error.strerror}"
            ) from error
        try:
            head = f"GET {path}?{urlencode(query)} HTTP/1.1\r\nhost: docker\r\nconnection: close\r\n\r\n"
            writer.write(head.encode("ascii"))
            response = HttpResponse("docker.response")
            begun = b""
            while not response.has_head:
                begun += await _received(reader, response)
            async with aclosing(_body(reader, response, begun)) as body:
                yield response, body
        except OSError as error:
            raise UnavailableError(
                "docker.unreachable", f"the container engine broke off: {error.strerror}"
            ) from error
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._seconds):
                yield
        except TimeoutError as error:
            raise UnavailableError(
                "docker.timeout", f"the container engine did not answer within {self._seconds:g} seconds"
            ) from error


def is_container_name(text: str) -> bool:
    """Tell whether a container can have this name or id: nothing else becomes part of a path."""
    return _NAME.fullmatch(text) is not None


async def _received(reader: asyncio.StreamReader, response: HttpResponse) -> bytes:
    data = await reader.read(_READ)
    if data:
        return response.feed(data)
    response.ended()
    return b""


async def _body(reader: asyncio.StreamReader, response: HttpResponse, begun: bytes) -> AsyncGenerator[bytes]:
    if begun:
        yield begun
    while not response.complete:
        piece = await _received(reader, response)
        if piece:
            yield piece


async def _whole(body: AsyncIterator[bytes], limit: int) -> bytes:
    pieces = bytearray()
    async for piece in body:
        pieces += piece
        if len(pieces) > limit:
            raise ProtocolError(
                "docker.response.size", f"the container engine answers more than {limit} bytes"
            )
    return bytes(pieces)


async def _check_status(response: HttpResponse, body: AsyncIterator[bytes]) -> None:
    if response.status == 200:
        return
    raw = await _whole(body, MAX_COMPLAINT)
    try:
        said = msgspec.json.decode(raw, type=_Complaint).message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = ""
    raise _refused(response.status, said[:_SHOWN])


def _refused(status: int, said: str) -> UnavailableError:
    # The words that upstream's clients show
    return UnavailableError("docker.status", f"Docker responded with status code {status}: {said}")

"""The forwarder: TCP to VSOCK, and CONNECT from VSOCK to an allow-list of TCP targets (spec deploy 5B.5).

It runs on the parent, outside any TEE, and (as the bridge) inside the enclave. It moves bytes whose TLS ends
elsewhere and decides nothing about keys; its allow-list and limits protect the parent's network and the
forwarder itself. One bad connection never ends it: each runs in a task of its own that turns every failure
into an outcome and one log line.
"""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol

from enclave.log import log_event
from enclave.vsock.config import ConnectProxy, FileOffer, ForwarderConfig, Rule, TcpToVsock, VsockToTcp
from enclave.vsock.connect_request import ESTABLISHED, HEAD_END, Target, parse_connect, refusal
from enclave.vsock.pump import CHUNK, CLOSED, RESET, Pump
from enclave.vsock.transport import VsockTransport, connect_async
from shared.errors import DstackError, PolicyDenied, ProtocolError, UnavailableError

STOPPED = "stopped"  # outcome of a connection that was cut because the forwarder stopped

_BACKLOG = 512
_ACCEPT_PAUSE = 0.1  # after a failed accept (out of descriptors): others must finish first
_LINGER_SECONDS = 1.0  # a refused client gets this long to read why
_LINGER_BYTES = 1 << 20
_MAX_OFFER = 1 << 20  # four times what an enclave takes
_RESOLVER_THREADS = 16  # a slow name server must not stop other names from resolving


class Log(Protocol):
    """Where events go: `enclave.log.log_event`, or a list in tests."""

    def __call__(self, event: str, **fields: str | float | bool | None) -> None:
        """Record one event."""


class _Connection:
    """What the log line of one connection says."""

    def __init__(self, rule: Rule, peer: str) -> None:
        self.rule = rule.name
        self.peer = peer
        # a CONNECT head names it later
        self.target = rule.target if isinstance(rule, TcpToVsock | VsockToTcp) else None
        self.sent = 0
        self.received = 0
        self.started = time.monotonic()


_Handler = Callable[[socket.socket, _Connection], Awaitable[str]]


class Forwarder:
    """All rules of one configuration. `start`, then `stop`, once each, on one event loop."""

    def __init__(
        self,
        config: ForwarderConfig,
        *,
        transport: VsockTransport | None = None,
        log: Log = log_event,
    ) -> None:
        self._limits = config.limits
        self._config = config
        self._transport = transport or config.open_transport()
        self._log = log
        self._buffer = bytearray(CHUNK)
        self._closers: list[Callable[[], None]] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._per_rule: Counter[str] = Counter()
        self.listeners: dict[str, str] = {}

    @property
    def connections(self) -> int:
        """How many connections are open, those still being refused included."""
        return len(self._serving)

    async def start(self) -> None:
        """Open every listener; afterwards `listeners` maps rule names to `host:port` or `vsock:port`.

        Raises `UnavailableError("forwarder.listen.failed")` or `vsock.listen.*` with nothing left open.
        """
        asyncio.get_running_loop().set_default_executor(
            ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolver")
        )
        try:
            for tcp_rule in (*self._config.inbound, *self._config.bridge):
                self._listen_tcp(tcp_rule)
            for proxy in self._config.outbound:
                self._listen_vsock(proxy, partial(self._serve_connect, proxy))
            for entrance in self._config.ingress:
                self._listen_vsock(entrance, partial(self._carry_to_tcp, entrance))
            for offer in self._config.offer:
                self._listen_vsock(offer, partial(self._send_file, offer))
        except DstackError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Accept nothing more, let running connections finish for `drain_seconds`, then cut them."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for close in self._closers:
            close()
        self._closers.clear()
        if self._serving:
            await asyncio.wait(self._serving, timeout=self._limits.drain_seconds)
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _listen_tcp(self, rule: TcpToVsock) -> None:
        address = rule.listen_address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            listener = socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise UnavailableError(
                "forwarder.listen.failed", f"cannot listen on {rule.listen}: {error.strerror}"
            ) from error
        host, port = listener.getsockname()[:2]

        async def carry(client: socket.socket, record: _Connection) -> str:
            return await self._carry_to_vsock(rule, client, record)

        self._closers.append(listener.close)
        self._accept_on(rule, listener, carry, str(Target(host, port)))

    def _listen_vsock(self, rule: ConnectProxy | VsockToTcp | FileOffer, serve: _Handler) -> None:
        listener = self._transport.listen(rule.listen, _BACKLOG)
        self._closers.append(lambda: self._transport.close_listener(listener))
        self._accept_on(rule, listener, serve, f"vsock:{self._transport.local_port(listener)}")

    def _accept_on(self, rule: Rule, listener: socket.socket, handler: _Handler, bound: str) -> None:
        listener.setblocking(False)
        self.listeners[rule.name] = bound
        self._accepting.append(asyncio.create_task(self._accept(rule, listener, handler)))

    async def _accept(self, rule: Rule, listener: socket.socket, handler: _Handler) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._log("accept_failed", rule=rule.name, error=error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            client.setblocking(False)
            record = _Connection(rule, self._peer(client))
            limit = self._over_limit(rule)
            if limit is not None:
                self._turn_away(rule, client, record, limit)
                continue
            self._per_rule[rule.name] += 1
            task = asyncio.create_task(self._serve(client, handler, record))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    def _over_limit(self, rule: Rule) -> UnavailableError | None:
        if len(self._serving) >= self._limits.connections:
            return UnavailableError("forwarder.limit.total", "the forwarder has no free connection")
        if self._per_rule[rule.name] >= (rule.connections or self._limits.connections_per_listener):
            return UnavailableError("forwarder.limit.listener", f"rule {rule.name} has no free connection")
        return None

    def _turn_away(
        self, rule: Rule, client: socket.socket, record: _Connection, error: UnavailableError
    ) -> None:
        """Refuse at once and keep nothing: a flood must not hold what the limit protects."""
        with client, contextlib.suppress(OSError):
            if isinstance(rule, ConnectProxy):
                client.send(refusal(error))
        self._finish(record, error.code)

    async def _serve(self, client: socket.socket, handler: _Handler, record: _Connection) -> None:
        outcome = STOPPED  # unless something else happens before the task is cancelled
        try:
            with client:
                outcome = await handler(client, record)
        except DstackError as error:
            outcome = error.code
        except OSError:
            outcome = RESET
        except Exception as error:  # noqa: BLE001 - one connection's bug must not end the others
            outcome = f"internal.{type(error).__name__}"
        finally:
            self._per_rule[record.rule] -= 1
            self._finish(record, outcome)

    async def _carry_to_vsock(self, rule: TcpToVsock, client: socket.socket, record: _Connection) -> str:
        _no_delay(client)
        target = rule.target_address
        upstream = await connect_async(self._transport, target.cid, target.port, self._limits.connect_seconds)
        with upstream:
            return await self._pump(client, upstream, record)

    async def _carry_to_tcp(self, rule: VsockToTcp, client: socket.socket, record: _Connection) -> str:
        self._check_peer(rule, client)
        address = rule.target_address
        upstream = await self._dial(Target(address.host, address.port))
        with upstream:
            _no_delay(upstream)
            return await self._pump(client, upstream, record)

    async def _send_file(self, rule: FileOffer, client: socket.socket, record: _Connection) -> str:
        self._check_peer(rule, client)
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(None, _read_offer, Path(rule.file))
        try:
            async with asyncio.timeout(self._limits.idle_seconds):
                await loop.sock_sendall(client, content)
        except TimeoutError as error:
            raise UnavailableError("forwarder.offer.stalled", "the peer does not read the file") from error
        record.received = len(content)
        return CLOSED

    async def _serve_connect(self, rule: ConnectProxy, client: socket.socket, record: _Connection) -> str:
        try:
            self._check_peer(rule, client)
            head, early = await self._read_head(client)
            target = parse_connect(head)
            record.target = str(target)
            if not rule.allows(target.host, target.port):
                raise PolicyDenied("forwarder.target.denied", f"{target} is not in the allow-list")
            upstream = await self._dial(target)
        except DstackError as error:
            await _refuse(client, refusal(error))
            raise
        with upstream:
            _no_delay(upstream)
            async with asyncio.timeout(self._limits.head_seconds):
                await asyncio.get_running_loop().sock_sendall(client, ESTABLISHED)
            return await self._pump(client, upstream, record, early)

    def _check_peer(self, rule: ConnectProxy | VsockToTcp | FileOffer, client: socket.socket) -> None:
        if rule.peers is None:
            return
        cid = self._transport.peer_cid(client)
        if cid not in rule.peers:
            raise PolicyDenied("forwarder.peer.denied", f"peer cid {cid} may not use rule {rule.name}")

    async def _read_head(self, client: socket.socket) -> tuple[bytes, bytes]:
        """Return the request head and whatever came after it."""
        loop = asyncio.get_running_loop()
        limit = self._limits.head_bytes
        data = b""
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                while len(data) <= limit:
                    chunk = await loop.sock_recv(client, limit + 1 - len(data))
                    if not chunk:
                        raise ProtocolError(
                            "forwarder.head.malformed", "the client ended inside its request head"
                        )
                    data += chunk
                    head, end, early = data.partition(HEAD_END)
                    if end:
                        return head, early
        except TimeoutError as error:
            raise UnavailableError("forwarder.head.timeout", "no complete request head in time") from error
        raise ProtocolError("forwarder.head.oversize", f"the request head is longer than {limit} bytes")

    async def _dial(self, target: Target) -> socket.socket:
        """Resolve here and now, then try each address with its share of the time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.connect_seconds
        try:
            async with asyncio.timeout_at(deadline):
                found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise UnavailableError("forwarder.target.timeout", f"{target} did not resolve in time") from error
        except OSError as error:
            raise UnavailableError("forwarder.target.unresolved", f"cannot resolve {target.host}") from error
        failure: OSError = OSError("no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                share = (deadline - loop.time()) / (len(found) - index)
                async with asyncio.timeout(share):
                    await loop.sock_connect(sock, address)
            except OSError as error:  # TimeoutError is one
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        if isinstance(failure, TimeoutError):
            raise UnavailableError(
                "forwarder.target.timeout", f"{target} did not answer in time"
            ) from failure
        raise UnavailableError("forwarder.target.unreachable", f"cannot reach {target}") from failure

    async def _pump(
        self, client: socket.socket, upstream: socket.socket, record: _Connection, early: bytes = b""
    ) -> str:
        pump = Pump(
            client, upstream, buffer=self._buffer, idle_seconds=self._limits.idle_seconds, early=early
        )
        try:
            return await pump.run()
        finally:
            record.sent, record.received = pump.sent, pump.received

    def _peer(self, client: socket.socket) -> str:
        try:
            if client.family in {socket.AF_INET, socket.AF_INET6}:
                host, port = client.getpeername()[:2]
                return str(Target(host, port))
            return f"vsock:{self._transport.peer_cid(client)}"
        except OSError:
            return "gone"

    def _finish(self, record: _Connection, outcome: str) -> None:
        self._log(
            "connection",
            rule=record.rule,
            peer=record.peer,
            target=record.target,
            sent=record.sent,
            received=record.received,
            ms=round((time.monotonic() - record.started) * 1000, 3),
            outcome=outcome,
        )


def _read_offer(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_OFFER + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UnavailableError(
            "forwarder.offer.unreadable", f"cannot read {path}: {error.strerror}"
        ) from error
    if len(content) > _MAX_OFFER:
        raise UnavailableError("forwarder.offer.oversize", f"{path} is larger than {_MAX_OFFER} bytes")
    return content


async def _refuse(client: socket.socket, answer: bytes) -> None:
    """Send the answer and let the client read it: closing with unread input would reset the connection."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # TimeoutError is one; the client may be gone
        async with asyncio.timeout(_LINGER_SECONDS):
            await loop.sock_sendall(client, answer)
            client.shutdown(socket.SHUT_WR)
            read = 0
            while read < _LINGER_BYTES and (chunk := await loop.sock_recv(client, 65536)):
                read += len(chunk)


def _no_delay(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

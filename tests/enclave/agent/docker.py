"""A Docker daemon on a unix socket, which answers what a test says, in the bytes of a real one."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from tests.enclave.event_log import PATIENCE

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"

Answer = Callable[[socket.socket], None]


def container(name: str = "/dstack-web-1", **changes: Any) -> dict[str, Any]:
    """Return an entry of the list as Docker 28 (API 1.48) writes it."""
    return {
        "Id": "8dfafdbc3a40f1d7b1e9a1b6f0c3e4e5a4b0c1d2e3f405162738495a6b7c8d9e",
        "Names": [name],
        "Image": "nginx:1.27",
        "ImageID": "sha256:" + "ab" * 32,
        "Command": "/docker-entrypoint.sh nginx -g 'daemon off;'",
        "Created": 1764000000,
        "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 80, "Type": "tcp"}],
        "Labels": {"com.docker.compose.project": "dstack", "com.docker.compose.service": "web"},
        "State": "running",
        "Status": "Up 3 minutes",
        "HostConfig": {"NetworkMode": "dstack_default"},
        "NetworkSettings": {"Networks": {"dstack_default": {"IPAddress": "172.18.0.2"}}},
        "Mounts": [],
        **changes,
    }


def frame(message: bytes, kind: int = 1) -> bytes:
    """Return a frame of a log; 0, 1 and 2 are stdin, stdout and stderr."""
    return struct.pack(">BxxxI", kind, len(message)) + message


def answer(body: bytes, *, status: str = "200 OK", kind: str = "application/json") -> Answer:
    """Answer with a body of a known length."""

    def run(peer: socket.socket) -> None:
        head = f"HTTP/1.1 {status}\r\nApi-Version: 1.48\r\nContent-Type: {kind}\r\n"
        peer.sendall(
            f"{head}Content-Length: {len(body)}\r\nServer: Docker/28.0.1 (linux)\r\n\r\n".encode() + body
        )

    return run


def containers(*found: dict[str, Any]) -> Answer:
    """Answer with a list."""
    return answer(msgspec.json.encode(found) + b"\n")


def refusal(status: str, message: str) -> Answer:
    """Refuse as Docker does."""
    return answer(msgspec.json.encode({"message": message}) + b"\n", status=status)


def begin_log(peer: socket.socket, kind: str = MULTIPLEXED) -> None:
    """Send the head of a log."""
    peer.sendall(
        f"HTTP/1.1 200 OK\r\nApi-Version: 1.48\r\nContent-Type: {kind}\r\n"
        "Server: Docker/28.0.1 (linux)\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )


def send_chunk(peer: socket.socket, data: bytes) -> None:
    """Send a chunk; an empty one is the last."""
    peer.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def log(*pieces: bytes, kind: str = MULTIPLEXED) -> Answer:
    """Answer with a whole log."""

    def run(peer: socket.socket) -> None:
        begin_log(peer, kind)
        for piece in (*pieces, b""):
            send_chunk(peer, piece)

    return run


class FakeDocker:
    """Answers each path with what `answers` has under its beginning, and keeps what was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.forget()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def forget(self) -> None:
        """Begin anew, without a container."""
        self.asked: list[str] = []
        self.answers: dict[str, Answer] = {"/containers/json": containers()}
        self.left = threading.Semaphore(0)
        """Released each time that a client closes a connection."""
        self.arrived = threading.Semaphore(0)
        """Released each time that a request was read, and its answer is settled."""

    def answers_list(self, *found: dict[str, Any]) -> None:
        """Answer the list so."""
        self.answers["/containers/json"] = containers(*found)

    def answers_log(self, name: str, how: Answer) -> None:
        """Answer a container's log so."""
        self.answers[f"/containers/{name}/logs"] = how

    def close(self) -> None:
        """End; every client must have left."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, peer: socket.socket) -> None:
        left = self.left
        with peer:
            peer.settimeout(PATIENCE)
            head = b""
            while b"\r\n\r\n" not in head:
                data = peer.recv(1 << 16)
                if not data:
                    return  # nobody waits any more
                head += data
            target = head.split(b" ")[1].decode()
            self.asked.append(target)
            how = next(
                (one for path, one in self.answers.items() if target.startswith(path)),
                refusal("404 Not Found", f"No such container: {target}"),
            )
            self.arrived.release()
            with suppress(BrokenPipeError, ConnectionResetError):
                how(peer)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 16):
                    pass
            left.release()


@contextmanager
def fake_docker(directory: Path) -> Iterator[FakeDocker]:
    """Run a daemon until the block ends."""
    daemon = FakeDocker(directory / "docker.sock")
    try:
        yield daemon
    finally:
        daemon.close()

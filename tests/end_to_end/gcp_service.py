"""A service of Cloud Run on this machine: instances of a staged source, and a front at one address."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

START_SECONDS = 60

SERVE = """
import sys
sys.path[:0] = sys.argv[1:3]
from functions_framework._cli import _cli
_cli(sys.argv[3:])
"""
"""Python source: functions-framework over a source and its requirements, and nothing else of this machine."""

_LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")

Answered = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""


class Service:
    """One instance at a time, a new one where the last one ended. `url` has the function's name as path."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], logs: Path) -> None:
        self._name = name
        self._command = command
        self._environment = environment
        self._logs = logs
        self._lock = threading.Lock()
        self.starts = 0
        self._start()
        self._front = _Front(self)
        self._thread = threading.Thread(target=self._front.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._front.server_port}/{self._name}"

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answered:
        """Send a request to the function; an instance that ends at it is answered for with 503."""
        with self._lock:
            if self._is_killed or self._process.poll() is not None:
                self._process.wait()
                self._start()
            port = self._wait()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read()
        except (OSError, http.client.HTTPException):
            return 503, {}, b"Service Unavailable"
        finally:
            connection.close()

    def front(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """Answer a request to `url`: the function sees no name in its paths."""
        prefix = f"/{self._name}/"
        if not target.startswith(prefix):
            return 404, {}, b"Page not found"
        return self.request(method, target.removeprefix(prefix[:-1]), headers, body)

    def kill(self) -> None:
        """End the instance and all that it is doing, at once."""
        # its connections may end before it counts as ended itself
        self._is_killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._front.shutdown()
        self._thread.join()
        self._front.server_close()
        self.kill()
        self._process.wait()

    def _start(self) -> None:
        self.starts += 1
        self._is_killed = False
        self._log = self._logs / f"{self._name}-{self.starts}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._logs,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self) -> int:
        """Return the port where the instance listens."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            said = self._log.read_text(errors="replace")
            if found := _LISTENING.search(said):
                return int(found[1])
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"the service does not listen:\n{said}")
            time.sleep(0.02)


class _Front(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, service: Service) -> None:
        super().__init__(("127.0.0.1", 0), _FrontHandler)
        self.service = service


class _FrontHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Front

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, content = self.server.service.front(
            self.command, self.path, dict(self.headers), body
        )
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"connection", "content-length", "date", "server", "transfer-encoding"}:
                self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815 - names of the base class

    def log_message(self, *_: Any) -> None:
        """Be quiet."""

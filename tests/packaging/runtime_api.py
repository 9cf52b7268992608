"""A Lambda Runtime API on loopback, and a package's own process that asks it for work.

The process sees the standard library, the unpacked package and awslambdaric, and nothing of this repository.
"""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

PREFIX = "/2018-06-01/runtime"
RUNTIME_DISTRIBUTIONS = ("awslambdaric", "simplejson", "snapshot-restore-py")
# a function that has not answered by then never will
ANSWER_SECONDS = 60.0

BOOT = """
import sys
sys.path[:0] = sys.argv[1:3]
from awslambdaric.__main__ import main
main([sys.argv[0], sys.argv[3]])
"""


class FunctionError(AssertionError):
    """What the function told the Runtime API instead of an answer."""


class RuntimeApi(ThreadingHTTPServer):
    """Hands events to one function, and takes what it makes of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self.answers: queue.Queue[tuple[str, str, Any]] = queue.Queue()

    @property
    def address(self) -> str:
        return "{}:{}".format(*self.server_address)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # else each answer waits for the acknowledgement of its headers, 44 ms
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over connections of a process that was ended while it asked for work."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: RuntimeApi

    def do_GET(self) -> None:
        assert self.path == f"{PREFIX}/invocation/next"
        work = self.server.events.get()
        if work is None:  # the test is over, and the process is being ended
            self.close_connection = True
            return
        invocation, event = work
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation,
            "Lambda-Runtime-Deadline-Ms": "4102444800000",
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-west-1:123456789012:function:packaged",
        }
        self._send(200, headers, json.dumps(event).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        document = json.loads(body) if body else None
        parts = self.path.removeprefix(f"{PREFIX}/").split("/")
        invocation, kind = ("", "init") if parts[0] == "init" else (parts[1], parts[2])
        self.server.answers.put((invocation, kind, document))
        self._send(202, {}, b'{"status":"OK"}')

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *arguments: Any) -> None:
        """Be quiet."""


class RunningFunction:
    """One process of a function."""

    def __init__(self, api: RuntimeApi, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._api = api
        self._process = process
        self._log = log
        self._count = 0

    def invoke(self, event: Any) -> Any:
        """Hand in one event and return the function's answer. Raises `FunctionError`."""
        self._count += 1
        wanted = f"00000000-0000-4000-8000-{self._count:012}"
        self._api.events.put((wanted, event))
        invocation, kind, document = self._wait()
        if (invocation, kind) != (wanted, "response"):
            raise FunctionError(f"{kind}: {document}\n{self.log()}")
        return document

    def http(self, method: str, path: str, body: Any = None, query: str = "", **context: Any) -> Any:
        """Hand in an HTTP API event; return the status and the decoded body."""
        answer = self.invoke(http_event(method, path, body, query, **context))
        assert answer["headers"]["content-type"].startswith("application/json")
        return answer["statusCode"], json.loads(answer["body"])

    def log(self) -> str:
        """Return what the process wrote."""
        return self._log.read_text(errors="replace")

    def _wait(self) -> tuple[str, str, Any]:
        waited = 0.0
        while waited < ANSWER_SECONDS:
            with suppress(queue.Empty):
                return self._api.answers.get(timeout=1)
            waited += 1
            if self._process.poll() is not None:
                with suppress(queue.Empty):
                    return self._api.answers.get_nowait()
                raise FunctionError(f"the process ended with {self._process.returncode}\n{self.log()}")
        raise FunctionError(f"no answer in {ANSWER_SECONDS} s\n{self.log()}")


def http_event(method: str, path: str, body: Any = None, query: str = "", **context: Any) -> dict[str, Any]:
    """Return what an HTTP API sends (payload format 2.0). `context` are members of its `requestContext`."""
    text = None if body is None else json.dumps(body)
    return {
        "version": "2.0",
        "routeKey": f"{method} {path}",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {"host": "api.example", **({"content-type": "application/json"} if text else {})},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "domainName": "api.example",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "test",
            },
            "requestId": "id",
            "stage": "$default",
            "time": "12/Mar/2026:19:03:58 +0000",
            "timeEpoch": 1773342238000,
            **context,
        },
        **({"body": text} if text is not None else {}),
        "isBase64Encoded": False,
    }


def runtime_directory(directory: Path) -> Path:
    """Fill a directory with awslambdaric and what it stands on, and with nothing else."""
    for name in RUNTIME_DISTRIBUTIONS:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if ".." not in file.parts}:
            (directory / top).symlink_to(Path(str(found.locate_file(top))))
    return directory


@contextmanager
def running(
    package: Path, runtime: Path, handler: str, tmp_path: Path, environ: Mapping[str, str] | None = None
) -> Iterator[RunningFunction]:
    """Run a handler of an unpacked package as Lambda does."""
    log = tmp_path / "function.log"
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ},
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "LAMBDA_TASK_ROOT": str(package),
        "AWS_LAMBDA_FUNCTION_NAME": "packaged",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        **(environ or {}),
    }
    with RuntimeApi() as api, log.open("wb") as output:
        thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, str(package), str(runtime), handler],
            env=environment | {"AWS_LAMBDA_RUNTIME_API": api.address},
            cwd=package,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield RunningFunction(api, process, log)
        finally:
            process.kill()
            process.wait()
            api.events.put(None)
            api.shutdown()
            thread.join()

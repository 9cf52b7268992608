"""A loopback server of files, which may answer anything else instead."""

import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileServer:
    """Answers by path: bytes, a status, or where it has moved to."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | int | str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = outer.answers.get(self.path, 404)
                self.send_response(
                    200 if isinstance(answer, bytes) else 302 if isinstance(answer, str) else answer
                )
                if isinstance(answer, str):
                    self.send_header("Location", answer)
                body = answer if isinstance(answer, bytes) else b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def archive(directory: Path, prefix: str) -> bytes:
    """Return a tar.gz of a directory's files, each with `prefix` before its name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(directory.iterdir()):
            tar.add(path, f"{prefix}{path.name}")
    return buffer.getvalue()

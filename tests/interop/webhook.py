"""An authorization webhook as upstream's KMS expects it (spec kms 6.1), whose answer a test sets."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

CONTRACT = "0x" + "ab" * 20
IMPLEMENTATION = "0x" + "cd" * 20
GATEWAY = "0x" + "9c" * 20


class Webhook:
    """Allows what no one denies; `asked` has every (path, BootInfo) so far."""

    def __init__(self) -> None:
        self._denials: dict[str, tuple[str, str]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                boot_info = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webhook.asked.append((self.path, boot_info))
                reason, image = webhook._denials.get(self.path, ("", ""))
                if image not in {"", boot_info["osImageHash"]}:
                    reason = ""
                self._answer({"isAllowed": not reason, "gatewayAppId": GATEWAY, "reason": reason})

            def do_GET(self) -> None:
                self._answer(
                    {
                        "status": "ok",
                        "kmsContractAddr": CONTRACT,
                        "gatewayAppId": GATEWAY,
                        "chainId": 31337,
                        "appImplementation": IMPLEMENTATION,
                        "appAuthImplementation": IMPLEMENTATION,
                    }
                )

            def log_message(self, *_: object) -> None: ...

            def _answer(self, document: object) -> None:
                body = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def denying(self, kind: Literal["app", "kms"], reason: str, *, image: str = "") -> Iterator[None]:
        """Deny apps, or KMSs, for a while: those of an image, or all."""
        path = f"/bootAuth/{kind}"
        self._denials[path] = (reason, image)
        try:
            yield
        finally:
            del self._denials[path]

    @contextmanager
    def running(self) -> Iterator["Webhook"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

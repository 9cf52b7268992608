"""A loopback server of what Intel, Google and AWS publish: collateral, issuers, revocation lists.

It speaks the routes of a PCCS (spec attestation 3.6, 8) and hands out files by path, for the AIA and CRL
addresses that simulated certificates name. What it says comes from its callers; it signs nothing and knows no
key.
"""

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from shared.attestation.endorsements import TdxCollateral

Provider = Callable[[str, str], TdxCollateral | None]
"""Collateral for an FMSPC (12 lower-case hex digits) and a CA (`processor` or `platform`), None where there
is none. A route that names no FMSPC or no CA asks with the empty string: any will do."""

File = bytes | Callable[[], bytes]
"""What stands at a path; a callable is asked at each request."""

_PREFIXES = ("/sgx/certification/v4", "/tdx/certification/v4")


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer."""

    body: bytes
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = {}
    status: int = 200


_NOT_FOUND = Answer(b"not found", "text/plain", status=404)


class CollateralServer:
    """Serves in threads of its own while it is used as a context manager.

    `requests` lists the targets that were asked for, in order, so that a test can say that none was.
    """

    def __init__(
        self,
        collateral: Provider = lambda _fmspc, _ca: None,
        files: Mapping[str, File] | None = None,
        *,
        port: int = 0,
    ) -> None:
        self._collateral = collateral
        self.files: dict[str, File] = dict(files or {})
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def serve_forever(self) -> None:
        """Serve in the calling thread until the process ends."""
        with self._server:
            self._server.serve_forever()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, target: str) -> Answer:
        """Return what a GET of `target` is answered with."""
        parts = urlsplit(target)
        if parts.path in self.files:
            content = self.files[parts.path]
            body = content if isinstance(content, bytes) else content()
            return Answer(body)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        fmspc, ca = query.get("fmspc", "").lower(), query.get("ca", "")
        prefix = next((prefix for prefix in _PREFIXES if parts.path.startswith(f"{prefix}/")), None)
        if prefix is None or (found := self._collateral(fmspc, ca)) is None:
            return _NOT_FOUND
        return _part(parts.path.removeprefix(prefix), found)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a body would wait 40 ms for its head to be acknowledged

            def do_GET(self) -> None:
                server.requests.append(self.path)
                answer = server.answer(self.path)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_: object) -> None:
                """Say nothing: `requests` is the log."""

        return Handler


def _part(route: str, found: TdxCollateral) -> Answer:
    """Return one of the answers that a set of collateral is spread over."""
    match route:
        case "/pckcrl":
            chain = {"SGX-PCK-CRL-Issuer-Chain": quote(found.pck_crl_issuer_chain)}
            return Answer(found.pck_crl, "application/pkix-crl", chain)
        case "/rootcacrl":
            return Answer(found.root_ca_crl.hex().encode(), "text/plain")
        case "/tcb":
            return _signed(
                "tcbInfo",
                found.tcb_info,
                found.tcb_info_signature,
                {"TCB-Info-Issuer-Chain": quote(found.tcb_info_issuer_chain)},
            )
        case "/qe/identity":
            return _signed(
                "enclaveIdentity",
                found.qe_identity,
                found.qe_identity_signature,
                {"SGX-Enclave-Identity-Issuer-Chain": quote(found.qe_identity_issuer_chain)},
            )
        case _:
            return _NOT_FOUND


def _signed(member: str, text: str, signature: bytes, headers: Mapping[str, str]) -> Answer:
    # not through a JSON encoder: the text is signed as it is spelled
    return Answer(
        f'{{"{member}":{text},"signature":"{signature.hex()}"}}'.encode(), "application/json", headers
    )

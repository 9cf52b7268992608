"""A Safe Transaction Service: a real HTTP server with the paths and the JSON of Safe's own, v1 and v2.

It keeps what it is handed, and tells it as it is told to: honest, or forged in one field.
"""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from eth_utils import to_checksum_address

_LIST = re.compile(r"/api/(v[12])/safes/(0x[0-9a-fA-F]{40})/multisig-transactions/")
_INFO = re.compile(r"/api/v1/safes/(0x[0-9a-fA-F]{40})/")
_MAX_LIMIT, _DEFAULT_LIMIT = 200, 100
_TIME = "2026-01-01T00:00:00Z"
_NUMBERS = ("nonce", "baseGas", "safeTxGas")
"""What v2 writes as text, and v1 as numbers."""

Answer = tuple[int, bytes, dict[str, str]]


class TransactionService:
    """`infos` and `transactions` by the Safe's address; `answer` may take the place of what it would say."""

    def __init__(self) -> None:
        self.url = ""
        self.infos: dict[str, dict[str, Any]] = {}
        self.transactions: dict[str, list[dict[str, Any]]] = {}
        self.versions = {"v1", "v2"}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[str], Answer | None] = lambda _: None

    def respond(self, target: str, headers: dict[str, str]) -> Answer:
        self.asked.append((target, headers))
        given = self.answer(target)
        if given is not None:
            return given
        parts = urlsplit(target)
        if found := _LIST.fullmatch(parts.path):
            version, safe = found.groups()
            if version in self.versions:
                return self._checked(safe, lambda: self._page(version, safe, parse_qs(parts.query), target))
        elif found := _INFO.fullmatch(parts.path):
            safe = found[1]
            if safe in self.infos:
                return self._checked(safe, lambda: self.infos[safe])
        return 404, b"", {}

    def _checked(self, safe: str, told: Callable[[], dict[str, Any]]) -> Answer:
        if to_checksum_address(safe) != safe:
            error = {"code": 1, "message": "Checksum address validation failed", "arguments": [safe]}
            return 422, json.dumps(error).encode(), {}
        return 200, json.dumps(told()).encode(), {}

    def _page(self, version: str, safe: str, query: dict[str, list[str]], target: str) -> dict[str, Any]:
        asked = {name: values[0] for name, values in query.items()}
        found = [
            one
            for one in self.transactions.get(safe, [])
            if int(one["nonce"]) >= int(asked.get("nonce__gte", 0))
            and (asked.get("executed") is None or (asked["executed"] == "true") == one["isExecuted"])
        ]
        ordering = asked.get("ordering", "-nonce")
        found.sort(key=lambda one: int(one["nonce"]), reverse=ordering.startswith("-"))
        offset, limit = int(asked.get("offset", 0)), min(_MAX_LIMIT, int(asked.get("limit", _DEFAULT_LIMIT)))
        part = found[offset : offset + limit]
        is_last = offset + limit >= len(found)
        return {
            "count": len(found),
            # where a client that follows it blindly would be led
            "next": None if is_last else "http://203.0.113.1/elsewhere",
            "previous": None if offset == 0 else target,
            "results": [_numbers(one, version) for one in part],
            "count_unique_nonce": len({one["nonce"] for one in found}),
        }


def told(
    safe: str, fields: dict[str, Any], safe_tx_hash: bytes, signatures: dict[str, bytes]
) -> dict[str, Any]:
    """Return a transaction as the service tells one that waits; `signatures` by who made them."""
    return {
        "safe": safe,
        "to": fields["to"],
        "value": str(fields.get("value", 0)),
        "data": f"0x{fields['data'].hex()}" if fields.get("data") else None,
        "operation": fields.get("operation", 0),
        "gasToken": fields.get("gasToken", "0x" + "00" * 20),
        "safeTxGas": fields.get("safeTxGas", 0),
        "baseGas": fields.get("baseGas", 0),
        "gasPrice": str(fields.get("gasPrice", 0)),
        "refundReceiver": fields.get("refundReceiver", "0x" + "00" * 20),
        "nonce": fields["nonce"],
        "executionDate": None,
        "submissionDate": _TIME,
        "modified": _TIME,
        "blockNumber": None,
        "transactionHash": None,
        "safeTxHash": f"0x{safe_tx_hash.hex()}",
        "proposer": next(iter(signatures), None),
        "proposedByDelegate": None,
        "executor": None,
        "isExecuted": False,
        "isSuccessful": None,
        "ethGasPrice": None,
        "maxFeePerGas": None,
        "maxPriorityFeePerGas": None,
        "gasUsed": None,
        "fee": None,
        "payment": None,
        "origin": '{"url": "https://example.com", "name": "\\u001b[2Ja name"}',
        "dataDecoded": {"method": "addOsImageHash", "parameters": []},
        "confirmationsRequired": 2,
        "confirmations": [
            {
                "owner": owner,
                "submissionDate": _TIME,
                "transactionHash": None,
                "signature": f"0x{signature.hex()}",
                "signatureType": "EOA",
            }
            for owner, signature in signatures.items()
        ],
        "trusted": True,
        "signatures": None,
    }


@contextlib.contextmanager
def transaction_service() -> Iterator[TransactionService]:
    """Run a service on a free port for the length of a `with` block."""
    service = TransactionService()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body, headers = service.respond(self.path, dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        service.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()


def _numbers(one: dict[str, Any], version: str) -> dict[str, Any]:
    kind: type = str if version == "v2" else int
    # an entry that is no transaction is told as it is
    return one | {name: kind(one[name]) for name in _NUMBERS} if "safeTxHash" in one else one

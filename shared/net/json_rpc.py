"""JSON-RPC 2.0 over HTTP: batches, matched by id, and the few value forms that Ethereum nodes answer in."""

import re
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.hex import decode_hex
from shared.net.fetch import HttpClient
from shared.strict_json import has_more_brackets

Call = tuple[str, Sequence[object]]
# Two blocks and ten proofs are below 500. This bounds how deep an answer nests, by our limit.
MAX_CONTAINERS = 2000
# Of a range's logs, each of which has two, in some 600 bytes: about 5000 of them.
MAX_LOG_CONTAINERS = 10_000
MAX_LOG_BYTES = 4 * 1024 * 1024
# Seconds, also for a client of less patience: a range is searched, where everything else is looked up.
LOG_TIMEOUT = 10.0
# Nodes agree neither on the code nor on the words of a call that the contract itself ended.
_REVERTED_CODES = frozenset({3, -32015})
# A contract that burns what gas there is ended it, too: anyone can register such a one as an app.
_REVERTED = re.compile(
    r"revert|invalid opcode|invalid jump|stack underflow|stack limit|out of gas|out of bounds"
    r"|write protection|gas uint64 overflow|evm error",
    re.IGNORECASE,
)
# How much of an endpoint's own words an error repeats.
_MAX_TEXT = 200
# A reason string is a sentence; our contracts' longest is below 60 characters.
_MAX_REVERT_DIGITS = 2 * 1024


class RevertedError(UnavailableError):
    """The contract itself ended a call: `data` is what it ended with, as far as the endpoint tells it."""

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__("rpc.reverted", message)
        self.data = data


class Endpoint(Protocol):
    """Something that answers JSON-RPC batches; `host` names who operates it, `secure` says it is TLS."""

    @property
    def host(self) -> str:
        """The host name, lowercase and without a trailing dot."""
        ...

    @property
    def secure(self) -> bool:
        """Whether the answers come over TLS."""
        ...

    def batch(self, calls: Sequence[Call]) -> list[object]:
        """Return the results in the order of `calls`; one error fails the batch."""
        ...


class JsonRpc:
    """One JSON-RPC endpoint. Its URL may hold a secret: no error and no `repr` shows more than the host."""

    def __init__(self, url: str, http: HttpClient) -> None:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower().removesuffix(".")  # one host with or without the root's dot
        if parts.scheme not in {"http", "https"} or not host:
            raise ConfigError("rpc.url.invalid", "an rpc url must start with http:// or https:// and a host")
        self._url = url
        self._http = http
        self.host = host
        self.secure = parts.scheme == "https"

    def __repr__(self) -> str:
        return f"JsonRpc({self.host})"

    def call(self, method: str, params: Sequence[object] = ()) -> object:
        """Return the result of one call. Raises as `batch` does."""
        return self.batch([(method, params)])[0]

    def batch(self, calls: Sequence[Call]) -> list[object]:
        """Return the results of several calls, sent as one request, in order.

        Raises `UnavailableError("rpc.error")` with the endpoint's text where it answers any with an error, or
        `RevertedError("rpc.reverted")` where the error is the contract's own;
        `UnavailableError("rpc.status")` for another HTTP status than 200, `ProtocolError("rpc.malformed")`
        for what is not the answer to this request, and what `HttpClient.request` raises.
        """
        request = [
            {"jsonrpc": "2.0", "id": index, "method": method, "params": params}
            for index, (method, params) in enumerate(calls, 1)
        ]
        is_logs = any(method == "eth_getLogs" for method, _ in calls)
        response = self._http.request(
            "POST",
            self._url,
            msgspec.json.encode(request),
            {"Content-Type": "application/json"},
            max_bytes=MAX_LOG_BYTES if is_logs else None,
            timeout=LOG_TIMEOUT if is_logs else None,
        )
        bound = MAX_LOG_CONTAINERS if is_logs else MAX_CONTAINERS
        answers = self._parse(response.status, response.body, bound)
        results: dict[int, object] = {}
        for answer in answers:
            index, result = self._result(answer)
            if index in results:
                raise self._malformed(f"answered request {index} twice")
            results[index] = result
        if results.keys() != set(range(1, len(calls) + 1)):
            raise self._malformed(f"answered {len(results)} of {len(calls)} requests, or others")
        return [results[index] for index in range(1, len(calls) + 1)]

    def _parse(self, status: int, body: bytes, bound: int) -> list[object]:
        if has_more_brackets(body, bound):
            raise self._malformed(f"answered with more than {bound} lists and objects")
        try:
            answers: object = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if status != 200:
                raise self._status(status) from error
            raise self._malformed("answered something that is not json") from error
        if isinstance(answers, dict) and isinstance(answers.get("error"), dict):
            raise self._error(answers["error"])
        if status != 200:
            raise self._status(status)
        if not isinstance(answers, list):
            raise self._malformed("did not answer a batch with a list")
        return answers

    def _result(self, answer: object) -> tuple[int, object]:
        if not isinstance(answer, dict):
            raise self._malformed("answered with something that is not an object")
        if answer.get("error") is not None:
            raise self._error(answer["error"])
        index = answer.get("id")
        if type(index) is not int or "result" not in answer:
            raise self._malformed("answered without an id or a result")
        return index, answer["result"]

    def _status(self, status: int) -> UnavailableError:
        return UnavailableError("rpc.status", f"{self.host} answered http {status}, expected 200")

    def _malformed(self, message: str) -> ProtocolError:
        return ProtocolError("rpc.malformed", f"{self.host} {message}")

    def _error(self, error: object) -> DstackError:
        text = error.get("message") if isinstance(error, dict) else None
        if not isinstance(error, dict) or not isinstance(text, str):
            return self._malformed("answered with an error that has no message")
        printable = "".join(char if char.isprintable() else " " for char in text[:_MAX_TEXT])
        message = f"{self.host} answered with an error: {printable}"
        if error.get("code") in _REVERTED_CODES or _REVERTED.search(printable) is not None:
            return RevertedError(message, _revert_data(error.get("data")))
        return UnavailableError("rpc.error", message)


def _revert_data(told: object) -> bytes:
    """Return the bytes that a contract ended a call with; nothing where they are told in another form."""
    if not isinstance(told, str) or not told.startswith("0x") or len(told) > _MAX_REVERT_DIGITS:
        return b""
    try:
        return decode_hex(told, what="the revert data")
    except ProtocolError:
        return b""


def quantity(value: object, *, what: str) -> int:
    """Read a JSON-RPC quantity (`0x10`) of at most 8 bytes. Raises `ProtocolError("rpc.malformed")`."""
    if isinstance(value, str) and value.startswith("0x") and 3 <= len(value) <= 18:
        digits = value[2:]
        if set(digits) <= set("0123456789abcdefABCDEF"):
            return int(digits, 16)
    raise ProtocolError("rpc.malformed", f"{what} is no quantity of at most 8 bytes")


def data(value: object, *, what: str, length: int | None = None) -> bytes:
    """Read JSON-RPC bytes (`0x00ff`), exactly `length` of them. Raises `ProtocolError("rpc.malformed")`."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ProtocolError("rpc.malformed", f"{what} is no 0x string")
    try:
        return decode_hex(value, what=what, length=length)
    except ProtocolError as error:
        raise ProtocolError("rpc.malformed", error.message) from error


def fields(value: object, *, what: str) -> dict[str, object]:
    """Read a JSON object. Raises `ProtocolError("rpc.malformed")`; a null, which means unknown, too."""
    if not isinstance(value, dict):
        raise ProtocolError("rpc.malformed", f"{what} is {type(value).__name__}, expected an object")
    return value

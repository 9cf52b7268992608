"""What a delivery comes down to: where on the chain to look. Its decoded values are never read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

from shared.errors import ProtocolError
from shared.hex import decode_hex

MAX_LOGS: Final = 2000
"""In one delivery. A block of our contracts' events has a handful."""

MAX_ID: Final = 200
_MAX_NUMBER: Final = 2**63


class LogHint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a log is said to be: address of 20 bytes, hashes of 32. `chain_id` is None where nobody says.

    `topic` is its first, of 32 bytes; an anonymous log has none. With `removed` its block was dropped.
    """

    address: bytes
    block_hash: bytes
    block_number: int
    log_index: int
    topic: bytes
    chain_id: int | None = None
    removed: bool = False

    def key(self, chain_id: int) -> str:
        """Return what makes it the same log, whoever delivers it; a dropped one is news of its own.

        It holds all that a look depends on. So what is taken for the same where it is not, since a provider
        counts logs within a transaction, or lies about one, has the same look made.
        """
        where = f"{self.block_number}:{self.block_hash.hex()}:{self.log_index}"
        end = ":removed" if self.removed else ""
        return f"log:{chain_id}:{where}:{self.address.hex()}:{self.topic.hex()}{end}"

    @property
    def opposite(self) -> "LogHint":
        """The same log as its block is dropped, or is back."""
        return msgspec.structs.replace(self, removed=not self.removed)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery: the provider's id for it, and its hints. With `anywhere` it says no more than that."""

    id: str
    hints: tuple[LogHint, ...] = ()
    anywhere: bool = False


def read_id(document: Mapping[str, Any], name: str) -> str:
    """Return a delivery's id. Raises `ProtocolError("governance.body.shape")`."""
    found = document.get(name)
    if not isinstance(found, str) or not 0 < len(found) <= MAX_ID:
        refuse(f"{name} is no text of 1 to {MAX_ID} characters")
    return found


def read_log(log: object, *, index: int, **given: Any) -> LogHint:  # noqa: ANN401 - JSON is untyped
    """Read one log in any of the spellings that providers use; `given` is what stands beside it.

    Raises `ProtocolError("governance.body.shape")`.
    """
    if not isinstance(log, dict):
        refuse("a log is no object")
    account = log.get("account")
    address = log.get("address", account.get("address") if isinstance(account, dict) else None)
    topics = log["topics"] if "topics" in log else [log["topic0"]] if "topic0" in log else None
    if not isinstance(topics, list):
        refuse("a log has no topics")
    first = topics[0] if topics else None
    return LogHint(
        address=_bytes(address, 20, "a log's address"),
        block_hash=_bytes(_first(log, given, "blockHash", "block_hash"), 32, "a log's block hash"),
        block_number=_number(_first(log, given, "blockNumber", "block_number"), "a log's block number"),
        log_index=_number(
            _first(log, {"at": index}, "logIndex", "log_index", "index", "at"), "a log's index"
        ),
        topic=b"" if first is None else _bytes(first, 32, "a log's first topic"),
        chain_id=given.get("chain_id"),
        removed=log.get("removed") is True,
    )


def read_logs(logs: object, **given: Any) -> tuple[LogHint, ...]:  # noqa: ANN401 - JSON is untyped
    """Read a list of logs. Raises `ProtocolError`: `governance.body.shape`, `governance.body.logs`."""
    if not isinstance(logs, list):
        refuse("the logs are no list")
    if len(logs) > MAX_LOGS:
        raise ProtocolError("governance.body.logs", f"got {len(logs)} logs, expected at most {MAX_LOGS}")
    return tuple(read_log(log, index=index, **given) for index, log in enumerate(logs))


def logs_within(document: object) -> Sequence[object]:
    """Return every object that looks like a log, wherever it stands: a stream's shape is its user's own."""
    return list(_walk(document))


def chain_number(value: object) -> int | None:
    """Return a chain id in any spelling, None where there is none."""
    return None if value is None or value == "" else _number(value, "the chain id")


def check_texts(document: object) -> None:
    """Check that every text is one: half a surrogate pair can be spelt. Raises as `object_of`."""
    try:
        msgspec.json.encode(document)
    except UnicodeEncodeError as error:
        raise ProtocolError("governance.body.shape", "a text of the body has half a character") from error


def object_of(value: object, what: str) -> dict[str, Any]:
    """Return an object. Raises `ProtocolError("governance.body.shape")`."""
    if not isinstance(value, dict):
        refuse(f"{what} is no object")
    return value


def refuse(message: str) -> NoReturn:
    """Raise `ProtocolError("governance.body.shape")`."""
    raise ProtocolError("governance.body.shape", message)


def _walk(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        if "topics" in value and "address" in value:
            yield value
            return
        for one in value.values():
            yield from _walk(one)
    elif isinstance(value, list):
        for one in value:
            yield from _walk(one)


def _first(log: Mapping[str, Any], given: Mapping[str, Any], *names: str) -> object:
    return next(
        (where[name] for where in (log, given) for name in names if where.get(name) is not None), None
    )


def _bytes(value: object, length: int, what: str) -> bytes:
    try:
        return decode_hex(value if isinstance(value, str) else "", what=what, length=length)
    except ProtocolError as error:
        raise ProtocolError("governance.body.shape", error.message) from error


def _number(value: object, what: str) -> int:
    number = -1
    if type(value) is int:
        number = value
    elif isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isalnum():
        digits = value.removeprefix("0x")
        try:
            number = int(digits, 16 if digits != value else 10)
        except ValueError:
            number = -1
    if not 0 <= number < _MAX_NUMBER:
        refuse(f"{what} is no number")
    return number

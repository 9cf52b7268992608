"""Who delivers events: how each signs, and where in its body the logs are (contracts section 5.1).

A provider is a row of `PROVIDERS`. Signatures are over the raw body, checked before anything of it is parsed.
"""

import datetime as dt
import hashlib
import hmac
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from functions.governance import delivery
from functions.governance.delivery import Delivery
from functions.governance.networks import UNKNOWN, chain_of
from shared.errors import InvalidEvidence, ProtocolError
from shared.keccak import keccak256

MAX_BODY: Final = 1 << 20
"""Bytes, compressed or not. A delivery has one block's logs, a few KiB; gateways take up to 10 MB."""

MAX_SKEW: Final = 300
"""Seconds by which a signed timestamp may differ from our clock."""

_MAX_STAMP: Final = 20

Headers = Mapping[str, str]
"""With names in lower case."""


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One row. `digest` returns what the signature header must be, for a secret, the headers and the body.

    `stamped_at` returns the signed time in unix seconds, where one is signed. `read` takes the body's JSON.
    """

    signature: str
    digest: Callable[[bytes, Headers, bytes], str]
    read: Callable[[dict[str, Any]], Delivery]
    stamped_at: Callable[[Headers], int] | None = None
    unpacks: bool = False


def verify(provider: Provider, secrets: Sequence[bytes], headers: Headers, body: bytes, now: int) -> None:
    """Check that a body is signed with one of the secrets, and when.

    Raises `InvalidEvidence`: `governance.signature.missing`, `governance.signature`, `governance.timestamp`.
    """
    given = headers.get(provider.signature, "")
    if not given:
        raise InvalidEvidence("governance.signature.missing", f"there is no header {provider.signature}")
    raw = given.strip().lower().encode("utf-8", "replace")
    # every secret is tried, so that the time taken does not tell which one it was
    matches = [hmac.compare_digest(provider.digest(one, headers, body).encode(), raw) for one in secrets]
    if not any(matches):
        raise InvalidEvidence("governance.signature", "the body is not signed with a secret of this provider")
    if provider.stamped_at is not None:
        skew = abs(now - provider.stamped_at(headers))
        if skew > MAX_SKEW:
            raise InvalidEvidence(
                "governance.timestamp", f"the delivery is {skew} seconds off, expected at most {MAX_SKEW}"
            )


def plain_body(headers: Headers, body: bytes) -> bytes:
    """Return a body without its compression. Raises `ProtocolError`: `governance.body.gzip`, `.size`."""
    if headers.get("content-encoding", "").strip().lower() != "gzip":
        return body
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(body, MAX_BODY + 1)
    except zlib.error as error:
        raise ProtocolError("governance.body.gzip", "the body is not gzip as its header says") from error
    if len(plain) > MAX_BODY:
        raise ProtocolError("governance.body.size", f"the body unpacks to more than {MAX_BODY} bytes")
    if not inflater.eof:
        raise ProtocolError("governance.body.gzip", "the body's gzip ends too early")
    return plain


def _hmac(secret: bytes, *parts: bytes) -> str:
    return hmac.new(secret, b"".join(parts), hashlib.sha256).hexdigest()


def _header(headers: Headers, name: str) -> bytes:
    return headers.get(name, "").encode("utf-8", "replace")


def _seconds(name: str, divisor: int = 1) -> Callable[[Headers], int]:
    def stamped_at(headers: Headers) -> int:
        text = headers.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_STAMP):
            raise InvalidEvidence("governance.timestamp", f"the header {name} is no time")
        return int(text) // divisor

    return stamped_at


def _go_time(headers: Headers) -> int:
    """Read Go's text of a time, `2026-01-01 00:00:00.0 +0000 UTC m=+1.0`, which Tenderly signs."""
    words = headers.get("date", "").split()
    try:
        day, clock, zone = words[:3]
        parsed = dt.datetime.strptime(f"{day} {clock.partition('.')[0]} {zone}", "%Y-%m-%d %H:%M:%S %z")
    except ValueError as error:
        raise InvalidEvidence(
            "governance.timestamp", "the header date is no time as tenderly writes it"
        ) from error
    return int(parsed.timestamp())


def _body_id(document: object) -> str:
    """Return an id of a body whose provider gives it none."""
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()


def _named_chain(network: object) -> int | None:
    """Return the chain of a network's name, `UNKNOWN` where that is not known, None where none is told."""
    if network is None or network == "":
        return None
    if not isinstance(network, str):
        delivery.refuse("the network is no text")
    return chain_of(network)


def _read_plain(document: dict[str, Any]) -> Delivery:
    chain_id = delivery.chain_number(document.get("chainId"))
    if chain_id is None:
        delivery.refuse("chainId is missing")
    return Delivery(
        id=delivery.read_id(document, "id"),
        hints=delivery.read_logs(document.get("logs"), chain_id=chain_id),
    )


def _read_alchemy(document: dict[str, Any]) -> Delivery:
    event = delivery.object_of(document.get("event"), "event")
    data = delivery.object_of(event.get("data"), "event.data")
    block = delivery.object_of(data.get("block"), "event.data.block")
    return Delivery(
        id=delivery.read_id(document, "id"),
        hints=delivery.read_logs(
            block.get("logs"),
            chain_id=_named_chain(event.get("network")),
            blockHash=block.get("hash"),
            blockNumber=block.get("number"),
        ),
    )


def _read_openzeppelin(document: dict[str, Any]) -> Delivery:
    if "EVM" not in document:  # a template of text: it says that there is news, and not where
        return Delivery(id=_body_id(document), anywhere=True)
    match = delivery.object_of(document["EVM"], "EVM")
    transaction = delivery.object_of(match.get("transaction"), "EVM.transaction")
    chain_id = delivery.chain_number(transaction.get("chainId"))
    if chain_id is None:
        chain_id = _named_chain(match.get("network_slug"))
        if chain_id == UNKNOWN:
            chain_id = None  # a slug is the operator's own word
    return Delivery(
        id=_body_id(document),
        hints=delivery.read_logs(
            match.get("logs"),
            chain_id=chain_id,
            blockHash=transaction.get("blockHash"),
            blockNumber=transaction.get("blockNumber"),
        ),
    )


def _read_quicknode(document: dict[str, Any]) -> Delivery:
    logs = delivery.logs_within(document.get("data"))
    metadata = document.get("metadata")  # where the stream has it in the body
    network = metadata.get("network") if isinstance(metadata, dict) else None
    return Delivery(
        id=_body_id(document), hints=delivery.read_logs(list(logs), chain_id=_named_chain(network))
    )


def _read_tenderly(document: dict[str, Any]) -> Delivery:
    transaction = delivery.object_of(document.get("transaction"), "transaction")
    if document.get("event_type") == "TEST" or not transaction:
        return Delivery(id=delivery.read_id(document, "id"))
    return Delivery(
        id=delivery.read_id(document, "id"),
        hints=delivery.read_logs(
            transaction.get("logs"),
            chain_id=delivery.chain_number(transaction.get("network")),
            blockHash=transaction.get("block_hash"),
            blockNumber=transaction.get("block_number"),
        ),
    )


def _read_moralis(document: dict[str, Any]) -> Delivery:
    logs = document.get("logs") or []
    if not logs:  # the test body, which must be accepted, has empty fields
        return Delivery(id=_body_id(document))
    block = delivery.object_of(document.get("block"), "block")
    return Delivery(
        id=_body_id(document),
        hints=delivery.read_logs(
            logs,
            chain_id=delivery.chain_number(document.get("chainId")),
            blockHash=block.get("hash"),
            blockNumber=block.get("number"),
        ),
    )


PROVIDERS: Final = {
    "plain": Provider(
        signature="x-dstack-signature",
        digest=lambda secret, headers, body: (
            "sha256=" + _hmac(secret, _header(headers, "x-dstack-timestamp"), b".", body)
        ),
        read=_read_plain,
        stamped_at=_seconds("x-dstack-timestamp"),
    ),
    "alchemy": Provider(
        signature="x-alchemy-signature",
        digest=lambda secret, _, body: _hmac(secret, body),
        read=_read_alchemy,
    ),
    "openzeppelin": Provider(
        signature="x-signature",
        digest=lambda secret, headers, body: _hmac(secret, body, _header(headers, "x-timestamp")),
        read=_read_openzeppelin,
        stamped_at=_seconds("x-timestamp", 1000),
    ),
    "quicknode": Provider(
        signature="x-qn-signature",
        digest=lambda secret, headers, body: _hmac(
            secret, _header(headers, "x-qn-nonce"), _header(headers, "x-qn-timestamp"), body
        ),
        read=_read_quicknode,
        stamped_at=_seconds("x-qn-timestamp"),
        unpacks=True,
    ),
    "tenderly": Provider(
        signature="x-tenderly-signature",
        digest=lambda secret, headers, body: _hmac(secret, body, _header(headers, "date")),
        read=_read_tenderly,
        stamped_at=_go_time,
    ),
    "moralis": Provider(
        signature="x-signature",
        digest=lambda secret, _, body: f"0x{keccak256(body, secret).hex()}",
        read=_read_moralis,
    ),
}

"""The file that a Safe's Transaction Builder imports: calls that its owners sign as one transaction.

The same calls give the same bytes, whoever writes them and when, so that owners can compare what they got.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from shared.chain.abi import checksum_address
from shared.errors import ConfigError
from shared.hex import decode_hex_setting
from shared.keccak import keccak256

NAME: Final = "dstack governance"
# A Safe signs what fits into a block; a file of more calls was not written by hand.
MAX_CALLS: Final = 500

Sent = tuple[bytes, bytes]
"""A call: the contract's address, 20 bytes, and the calldata."""


class _Transaction(msgspec.Struct):
    to: str
    data: str
    value: str = "0"


class _Meta(msgspec.Struct):
    checksum: str = ""


class _Batch(msgspec.Struct):
    version: str
    meta: _Meta
    chainId: str  # noqa: N815 - the builder's name
    transactions: list[_Transaction]


def batch_text(chain_id: int, calls: Sequence[Sent]) -> str:
    """Return the file's text."""
    document: dict[str, Any] = {
        "version": "1.0",
        "chainId": str(chain_id),
        "createdAt": 0,
        "meta": {"name": NAME},
        "transactions": [
            {
                "to": checksum_address(to),
                "value": "0",
                "data": f"0x{data.hex()}",
                "contractMethod": None,
                "contractInputsValues": None,
            }
            for to, data in calls
        ],
    }
    document["meta"]["checksum"] = checksum(document)
    return json.dumps(document, indent=1) + "\n"


def read_batch(text: str, chain_id: int) -> list[Sent]:
    """Return the calls of a file.

    Raises `ConfigError("gov.safe_file")` where it is of another chain, or its checksum is of something else.
    """
    try:
        document = msgspec.json.decode(text.encode())
        batch = msgspec.convert(document, _Batch)
        expected = checksum(document)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError("gov.safe_file", f"the file is no batch of calls: {error}") from error
    if batch.chainId != str(chain_id) or len(batch.transactions) > MAX_CALLS:
        raise ConfigError(
            "gov.safe_file",
            f"the file has {len(batch.transactions)} calls for chain {batch.chainId[:20]!a}, "
            f"expected at most {MAX_CALLS} for chain {chain_id}",
        )
    if batch.meta.checksum != expected:
        raise ConfigError(
            "gov.safe_file", "the file was changed since it was written: its checksum is another"
        )
    calls = []
    for one in batch.transactions:
        if one.value != "0":
            raise ConfigError("gov.safe_file", "the file sends ether along, which no call of ours does")
        to = decode_hex_setting(one.to, what="to", length=20, code="gov.safe_file")
        size = max(0, len(one.data) - 2) // 2
        calls.append((to, decode_hex_setting(one.data, what="data", length=size, code="gov.safe_file")))
    return calls


def checksum(document: Mapping[str, Any]) -> str:
    """Return the checksum that Transaction Builder compares: over all but the name and itself."""
    meta = {name: value for name, value in document["meta"].items() if name != "checksum"} | {"name": None}
    return f"0x{keccak256(_serialized({**document, 'meta': meta}).encode()).hex()}"


def _serialized(value: object) -> str:
    """Write a value as the builder does: the sorted names of an object first, then its values."""
    if isinstance(value, list):
        return f"[{','.join(map(_serialized, value))}]"
    if isinstance(value, dict):
        names = sorted(value)
        values = "".join(f"{_serialized(value[name])}," for name in names)
        return f"{{{_json(names)}{values}}}"
    return _json(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

"""Calldata of the governance functions that a deployment may need (contracts section 1.3), and back.

All arguments are static, so a call is its selector and one word per argument. Decoding is strict: a word that
is no value of its type is refused, so what a person reads is what the contract will do.
"""

from typing import Final, Literal

import msgspec

from shared.chain.abi import checksum_address
from shared.errors import ProtocolError

_WORD: Final = 32
_ADDRESS: Final = 20

Target = Literal["kms", "app"]
ArgumentType = Literal["address", "bytes32", "bool"]
Value = bytes | bool


class Function(msgspec.Struct, frozen=True):
    """A function of one of the contracts: `parameters` as (name, type), `selector` 4 bytes.

    `owner_only` is False where the contract takes the call from anyone.
    """

    name: str
    target: Target
    selector: bytes
    parameters: tuple[tuple[str, ArgumentType], ...]
    owner_only: bool = True

    @property
    def signature(self) -> str:
        """The canonical signature, whose hash begins with the selector."""
        return f"{self.name}({','.join(kind for _, kind in self.parameters)})"


ADD_OS_IMAGE_HASH: Final = Function(
    "addOsImageHash", "kms", bytes.fromhex("06a3ae96"), (("osImageHash", "bytes32"),)
)
REGISTER_APP: Final = Function(
    "registerApp", "kms", bytes.fromhex("17a1d80f"), (("appId", "address"),), owner_only=False
)
DEPLOY_AND_REGISTER_APP: Final = Function(
    "deployAndRegisterApp",
    "kms",
    bytes.fromhex("9cb9c31f"),
    (
        ("initialOwner", "address"),
        ("disableUpgrades", "bool"),
        ("requireTcbUpToDate", "bool"),
        ("allowAnyDevice", "bool"),
        ("initialDeviceId", "bytes32"),
        ("initialComposeHash", "bytes32"),
    ),
    owner_only=False,
)
ADD_COMPOSE_HASH: Final = Function(
    "addComposeHash", "app", bytes.fromhex("dfc77223"), (("composeHash", "bytes32"),)
)
ADD_DEVICE: Final = Function("addDevice", "app", bytes.fromhex("2a819728"), (("deviceId", "bytes32"),))
SET_REQUIRE_TCB_UP_TO_DATE: Final = Function(
    "setRequireTcbUpToDate", "app", bytes.fromhex("6e4c7422"), (("requireUpToDate", "bool"),)
)

FUNCTIONS: Final = {
    function.selector: function
    for function in (
        *(ADD_OS_IMAGE_HASH, REGISTER_APP, DEPLOY_AND_REGISTER_APP),
        *(ADD_COMPOSE_HASH, ADD_DEVICE, SET_REQUIRE_TCB_UP_TO_DATE),
    )
}


def encode_call(function: Function, *arguments: Value) -> bytes:
    """Return the calldata of one call.

    Raises `ProtocolError("calldata.argument")` where an argument is not of its parameter's type and length.
    """
    if len(arguments) != len(function.parameters):
        raise ProtocolError(
            "calldata.argument",
            f"{function.signature} got {len(arguments)} arguments, expected {len(function.parameters)}",
        )
    words = [
        _word(name, kind, value) for (name, kind), value in zip(function.parameters, arguments, strict=True)
    ]
    return function.selector + b"".join(words)


def decode_call(calldata: bytes) -> tuple[Function, tuple[Value, ...]]:
    """Return the function and the arguments that calldata means.

    Raises `ProtocolError`: `calldata.selector` (none of our functions), `calldata.length`, `calldata.word`
    (padding that is not zero, or a bool above 1).
    """
    function = FUNCTIONS.get(calldata[:4])
    if function is None:
        raise ProtocolError("calldata.selector", f"the selector {calldata[:4].hex()} is none that we write")
    expected = 4 + _WORD * len(function.parameters)
    if len(calldata) != expected:
        raise ProtocolError(
            "calldata.length", f"calldata of {function.name} has {len(calldata)} bytes, expected {expected}"
        )
    words = [calldata[at : at + _WORD] for at in range(4, expected, _WORD)]
    return function, tuple(
        _value(name, kind, word) for (name, kind), word in zip(function.parameters, words, strict=True)
    )


def shown(value: Value) -> str:
    """Return an argument as people write it: an address in EIP-55 form, 32 bytes in hex, true or false."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return checksum_address(value) if len(value) == _ADDRESS else f"0x{value.hex()}"


def _word(name: str, kind: ArgumentType, value: Value) -> bytes:
    if kind == "bool" and isinstance(value, bool):
        return int(value).to_bytes(_WORD, "big")
    if isinstance(value, bytes) and len(value) == {"address": _ADDRESS, "bytes32": _WORD}.get(kind):
        return value.rjust(_WORD, b"\0")
    raise ProtocolError("calldata.argument", f"{name} is no {kind}")


def _value(name: str, kind: ArgumentType, word: bytes) -> Value:
    if kind == "bytes32":
        return word
    size = _ADDRESS if kind == "address" else 1
    padding, value = word[:-size], word[-size:]
    if any(padding) or (kind == "bool" and value[0] > 1):
        raise ProtocolError("calldata.word", f"the word of {name} is no {kind}")
    return bool(value[0]) if kind == "bool" else value

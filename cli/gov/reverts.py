"""Why a contract ended a call, in words (contracts section 1.4)."""

from typing import Final

from shared.chain.abi_values import Kind, decode_values
from shared.chain.calldata import shown
from shared.errors import ProtocolError

_REASON: Final = bytes.fromhex("08c379a0")
_PANIC: Final = bytes.fromhex("4e487b71")
_ERRORS: Final[dict[str, tuple[str, tuple[Kind, ...]]]] = {
    "118cdaa7": ("OwnableUnauthorizedAccount", ("address",)),
    "1e4fbdf7": ("OwnableInvalidOwner", ("address",)),
    "f92ee8a9": ("InvalidInitialization", ()),
    "d7e6bcf8": ("NotInitializing", ()),
    "e07c8dba": ("UUPSUnauthorizedCallContext", ()),
    "aa1d49a4": ("UUPSUnsupportedProxiableUUID", ("bytes32",)),
    "4c9c8ce3": ("ERC1967InvalidImplementation", ("address",)),
    "b398979f": ("ERC1967NonPayable", ()),
    "9996b315": ("AddressEmptyCode", ("address",)),
    "d6bda275": ("FailedCall", ()),
}


def revert_reason(raw: bytes) -> str:
    """Return what revert data means; bytes that mean nothing to us in hex."""
    selector, body = raw[:4], raw[4:]
    if not raw:
        return "no reason given"
    try:
        if selector == _REASON:
            return shown(decode_values(("string",), body)[0])
        if selector == _PANIC and len(body) == 32:
            return f"Panic(0x{int.from_bytes(body, 'big'):x})"
        if selector.hex() in _ERRORS:
            name, kinds = _ERRORS[selector.hex()]
            return f"{name}({', '.join(map(shown, decode_values(kinds, body)))})"
    except ProtocolError:
        pass
    return f"0x{raw.hex()}"

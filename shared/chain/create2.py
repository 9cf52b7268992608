"""Contracts whose addresses follow from their code alone (EIP-1014), made through one well-known contract.

The deterministic deployment proxy has no owner and keeps nothing: it creates what it is handed, for whoever
calls it. It is at the same address, with the same code, on most chains.
"""

from typing import Final

from shared.errors import ProtocolError
from shared.keccak import keccak256

DEPLOYER: Final = bytes.fromhex("4e59b44847b379578588920ca78fbf26c0b4956c")
DEPLOYER_CODE: Final = bytes.fromhex(
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe0"
    "3601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
)
SALT_BYTES: Final = 32


def create2_address(salt: bytes, code: bytes) -> bytes:
    """Return the 20-byte address of what `code`, with its arguments behind, creates under a salt of 32."""
    return keccak256(b"\xff", DEPLOYER, salt, keccak256(code))[12:]


def creation_call(salt: bytes, code: bytes) -> bytes:
    """Return the calldata that has the proxy create it."""
    return salt + code


def read_creation_call(calldata: bytes) -> tuple[bytes, bytes]:
    """Return salt and code of calldata to the proxy. Raises `ProtocolError("calldata.length")`."""
    if len(calldata) <= SALT_BYTES:
        raise ProtocolError("calldata.length", f"{len(calldata)} bytes are no salt and no code behind it")
    return calldata[:SALT_BYTES], calldata[SALT_BYTES:]

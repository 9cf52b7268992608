"""What `gov deploy` creates: code with its constructor's arguments, and the address where that follows."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from cli.devchain.artifacts import artifact
from shared.chain.abi import checksum_address
from shared.chain.abi_values import decode_values, encode_values
from shared.chain.calldata import INITIALIZE_KMS, decode_call, encode_call, shown
from shared.chain.code import APP, KMS, PROXY
from shared.chain.create2 import DEPLOYER, create2_address, creation_call, read_creation_call
from shared.errors import ProtocolError
from shared.hex import decode_hex
from shared.keccak import keccak256

_NAMES: Final = (APP, KMS, PROXY)


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """One contract to create.

    `arguments` is the ABI form of its constructor's, which the proxy alone has: `implementation`, 20 bytes,
    and `initializer`, the call that it makes there. `salt` is 32 bytes where the deterministic deployment
    proxy creates it, None where its sender does: then the address follows from that account's nonce.
    """

    name: str
    arguments: bytes = b""
    initializer: bytes = b""
    implementation: bytes = b""
    salt: bytes | None = None

    @property
    def code(self) -> bytes:
        """What creates it: the contract's creation code, and the arguments."""
        return bytecode(self.name) + self.arguments

    @property
    def address(self) -> bytes | None:
        """Where it will be, 20 bytes; None where that depends on who sends it."""
        return None if self.salt is None else create2_address(self.salt, self.code)

    @property
    def to(self) -> bytes | None:
        """To whom it is sent: None creates."""
        return None if self.salt is None else DEPLOYER

    @property
    def calldata(self) -> bytes:
        """What is sent."""
        return self.code if self.salt is None else creation_call(self.salt, self.code)

    @property
    def named(self) -> list[tuple[str, str, str]]:
        """The constructor's arguments as (name, type, value), the call in them decoded."""
        if self.name != PROXY:
            return []
        implementation = checksum_address(self.implementation)
        return [("implementation", "address", implementation), ("data", "bytes", call_text(self.initializer))]

    @property
    def text(self) -> str:
        """The creation as people write it."""
        if not self.named:
            return f"{self.name}()"
        return f"{self.name}(" + "".join(f"\n          {name}={value}" for name, _, value in self.named) + ")"


def creation(name: str, places: dict[str, bytes], owner: bytes, salt: bytes | None) -> Creation:
    """Return what creates a contract. The proxy needs the `places` of the other two, and `owner`."""
    if name != PROXY:
        return Creation(name=name, salt=salt)
    initializer = encode_call(INITIALIZE_KMS, owner, places[APP])
    return Creation(
        name=name,
        arguments=encode_values(("address", "bytes"), (places[KMS], initializer)),
        initializer=initializer,
        implementation=places[KMS],
        salt=salt,
    )


def creations(names: Sequence[str], app: bytes | None, owner: bytes, salt: bytes) -> list[Creation]:
    """Return what the deterministic deployment proxy creates, one behind another: all addresses are known."""
    places = {APP: app} if app else {}
    found = []
    for name in names:
        one = creation(name, places, owner, salt)
        places[name] = one.address or b""
        found.append(one)
    return found


def created_text(calldata: bytes) -> str | None:
    """Return what calldata to the deterministic deployment proxy creates; None where that is not ours."""
    try:
        salt, code = read_creation_call(calldata)
    except ProtocolError:
        return None
    for name in _NAMES:
        begin = bytecode(name)
        if not code.startswith(begin):
            continue
        at = checksum_address(create2_address(salt, code))
        if name != PROXY:
            return f"create {name} at {at}" if code == begin else None
        proxy = _read_proxy(code[len(begin) :])
        return None if proxy is None else f"create {name}{proxy} at {at}"
    return None


def bytecode(name: str) -> bytes:
    """Return the creation code of one of our contracts."""
    return decode_hex(artifact(name).bytecode, what=f"the code of {name}")


def runtime_code(name: str, address: bytes) -> bytes:
    """Return the code that an implementation of ours has at an address."""
    made = artifact(name)
    code = bytearray(decode_hex(made.deployed_bytecode, what=f"the code of {name}"))
    for offset in made.immutable_offsets:
        code[offset : offset + 32] = address.rjust(32, b"\0")
    return bytes(code)


def is_made_of(name: str, code: bytes) -> bool:
    """Tell whether code is what one of our contracts has, wherever it is."""
    offsets = artifact(name).immutable_offsets
    return code == runtime_code(name, code[offsets[0] + 12 : offsets[0] + 32] if offsets else bytes(20))


def call_text(calldata: bytes) -> str:
    """Return a call of ours on one line; raises as `decode_call`."""
    function, arguments = decode_call(calldata)
    pairs = zip(function.parameters, arguments, strict=True)
    return f"{function.name}({', '.join(f'{name}={shown(value)}' for (name, _), value in pairs)})"


def creation_json(one: Creation, *, is_there: bool) -> dict[str, Any]:
    """Return what JSON says of a creation. What follows from the nonce of who sends it is null."""
    is_known = one.address is not None or not one.arguments
    return {
        "contract": one.name,
        "bytes": len(bytecode(one.name)),
        "creation_hash": f"0x{keccak256(bytecode(one.name)).hex()}",
        "arguments": [{"name": name, "type": kind, "value": value} for name, kind, value in one.named]
        if is_known
        else None,
        "init_hash": f"0x{keccak256(one.code).hex()}" if is_known else None,
        "salt": None if one.salt is None else f"0x{one.salt.hex()}",
        "address": one.address and checksum_address(one.address),
        "to": one.to and checksum_address(one.to),
        "calldata": f"0x{one.calldata.hex()}" if is_known else None,
        "is_there": is_there,
    }


def _read_proxy(arguments: bytes) -> str | None:
    try:
        implementation, initializer = decode_values(("address", "bytes"), arguments)
        if not isinstance(implementation, bytes) or not isinstance(initializer, bytes):
            return None
        return f"(implementation={checksum_address(implementation)}, data={call_text(initializer)})"
    except ProtocolError:
        return None

"""Which build a contract's code is, and whether one build's storage is another's continued."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from cli.devchain.artifacts import artifact_path
from cli.gov.chain import Block, Contracts, Proxy
from shared.chain.abi import checksum_address
from shared.chain.code import APP, KMS, CodeList
from shared.chain.known_builds import KNOWN_BUILDS, KnownBuild
from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex
from shared.keccak import keccak256

_GAP: Final = "__gap"
_NO_CODE: Final = keccak256(b"")


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """The code behind a proxy: where it is, its hash, and of whom it is; empty where that is not known."""

    address: bytes
    code_hash: bytes
    contract: str = ""
    build: str = ""
    is_known_proxy: bool = False

    @property
    def is_known(self) -> bool:
        """Whether a KMS re-decides what this code says."""
        return bool(self.contract) and self.is_known_proxy


class Variable(msgspec.Struct, frozen=True):
    """One variable in storage, as `contracts/build.mjs` writes it; sizes in bytes."""

    label: str
    slot: int
    offset: int
    bytes: int
    type: str


class _Described(msgspec.Struct, frozen=True, rename="camel"):
    deployed_bytecode: str
    immutable_offsets: tuple[int, ...]
    storage_layout: tuple[Variable, ...]


def code_of(contracts: Contracts, proxy: bytes, at: Block) -> Code:
    """Return the code that a proxy runs."""
    return codes_of(contracts, contracts.proxies([proxy], at), at)[0]


def codes_of(contracts: Contracts, proxies: Sequence[Proxy], at: Block) -> list[Code]:
    """Return the code that each of several proxies runs; most share it, and it is read once."""
    places = list({one.implementation: None for one in proxies})
    found = {
        place: identified(code, place)
        for place, code in zip(places, contracts.codes(places, at), strict=True)
    }
    known = CodeList(KNOWN_BUILDS)
    return [
        msgspec.structs.replace(found[one.implementation], is_known_proxy=known.is_proxy(keccak256(one.code)))
        for one in proxies
    ]


def implementation_code(contracts: Contracts, address: bytes, at: Block) -> Code:
    """Return what is known of the code of an implementation."""
    return identified(contracts.code(address, at), address)


def identified(code: bytes, address: bytes) -> Code:
    """Return what is known of code that an implementation has at an address."""
    found = Code(address=address, code_hash=keccak256(code))
    for build in KNOWN_BUILDS:
        if build.contract in {KMS, APP} and _is(build, code, address):
            return msgspec.structs.replace(
                found, contract=build.contract, build=f"{build.build}, {build.evm}"
            )
    return found


def layout(contract: str) -> tuple[Variable, ...]:
    """Return the storage layout of all known builds of `DstackKms` or `DstackApp`: they share it."""
    return read_described(artifact_path(contract)).storage_layout


def read_described(path: Path) -> _Described:
    """Read an artefact as `contracts/build.mjs` writes it. Raises `ConfigError("gov.artifact")`."""
    try:
        described = msgspec.json.decode(path.read_bytes(), type=_Described)
        decode_hex(described.deployed_bytecode, what="deployedBytecode")
    except (OSError, msgspec.DecodeError, ProtocolError) as error:
        raise ConfigError("gov.artifact", f"{path} is no artefact of contracts/build.mjs: {error}") from error
    return described


def describes(described: _Described, code: bytes, address: bytes) -> bool:
    """Tell whether code at an address is what an artefact describes."""
    offsets = described.immutable_offsets
    expected = bytearray(decode_hex(described.deployed_bytecode, what="deployedBytecode"))
    if not offsets or any(not 0 <= offset <= len(expected) - 32 for offset in offsets):
        return False
    for offset in offsets:
        expected[offset : offset + 32] = address.rjust(32, b"\0")
    return bytes(expected) == code


def layout_problems(old: Sequence[Variable], new: Sequence[Variable]) -> list[str]:
    """Return why storage of one layout would be misread with another; nothing where it would not.

    What there is must stay; what is new may only take from the gap that was left for it.
    """
    kept = [one for one in old if one.label != _GAP]
    gap = min((one.slot for one in old if one.label == _GAP), default=max(one.slot for one in old) + 1)
    by_place = {(one.slot, one.offset): one for one in new if one.label != _GAP}
    problems = []
    for one in kept:
        found = by_place.pop((one.slot, one.offset), None)
        if found is None or (found.label, found.type, found.bytes) != (one.label, one.type, one.bytes):
            now = "nothing" if found is None else f"{found.label} ({found.type})"
            problems.append(f"slot {one.slot} holds {one.label} ({one.type}), and would be read as {now}")
    problems += [
        f"{one.label} would be in slot {one.slot}, which holds something already"
        for one in by_place.values()
        if one.slot < gap
    ]
    return problems


def _is(build: KnownBuild, code: bytes, address: bytes) -> bool:
    return CodeList((build,)).is_implementation(build.contract, code, address)


def code_json(code: Code) -> Mapping[str, Any]:
    """Return what JSON says of code."""
    return {
        "implementation": checksum_address(code.address),
        "code_hash": f"0x{code.code_hash.hex()}",
        "known": code.is_known,
        "contract": code.contract,
        "build": code.build,
    }


def code_text(code: Code) -> str:
    """Return what people read of code."""
    if code.is_known:
        return f"{code.contract} of {code.build}"
    if code.contract:
        return f"{code.contract} of {code.build}, behind a proxy that nobody here knows"
    if not any(code.address):
        return "no proxy: its own code answers, and nobody here knows it"
    if code.code_hash == _NO_CODE:
        return f"no code at all at {checksum_address(code.address)}"
    return f"unknown code, hash 0x{code.code_hash.hex()}"

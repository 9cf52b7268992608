"""Which build a contract's code is: what makes a re-decision in Python legitimate (DESIGN section 2)."""

from collections.abc import Iterable, Mapping

import msgspec

from shared.chain.known_builds import KNOWN_BUILDS, KnownBuild
from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex
from shared.keccak import keccak256

# EIP-170; no chain that we know of lets a contract be larger by default.
MAX_CODE_BYTES = 24_576
KMS, APP, PROXY = "DstackKms", "DstackApp", "ERC1967Proxy"
_CONTRACTS = (KMS, APP, PROXY)
_WORD = 32

# One of each contract and what an upgrade leaves behind; apps of other people's are why it is bounded.
MAX_KNOWN = 256


class CodeList:
    """The builds whose rules we re-decide: ours, upstream's, and what the operator pins beside them."""

    def __init__(self, builds: Iterable[KnownBuild]) -> None:
        self._proxies: set[bytes] = set()
        # code of one length may come from several builds, with the immutables in different places
        self._layouts: dict[tuple[str, int], dict[tuple[int, ...], set[bytes]]] = {}
        self._known: dict[tuple[str, bytes, bytes], bool] = {}
        for build in builds:
            masked = _check(build)
            if build.contract == PROXY:
                self._proxies.add(masked)
                continue
            layouts = self._layouts.setdefault((build.contract, build.length), {})
            layouts.setdefault(build.immutable_offsets, set()).add(masked)

    def is_proxy(self, code_hash: bytes) -> bool:
        """Whether an account's proven code hash is that of a known ERC1967Proxy."""
        return code_hash in self._proxies

    def is_deployed(self, contract: str, code: bytes, code_hash: bytes, address: bytes) -> bool:
        """Tell what `is_implementation` does of code with this hash; a contract's is looked at once."""
        key = (contract, code_hash, address)
        known = self._known.get(key)
        if known is None:
            known = self.is_implementation(contract, code, address)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = known
        return known

    def is_implementation(self, contract: str, code: bytes, address: bytes) -> bool:
        """Whether `code`, deployed at `address` (20 bytes), is a known build of `contract`.

        The word at every immutable offset must be that very address; it is zeroed before the lookup.
        """
        own_address = address.rjust(_WORD, b"\0")
        for offsets, hashes in self._layouts.get((contract, len(code)), {}).items():
            if any(code[offset : offset + _WORD] != own_address for offset in offsets):
                continue
            masked = bytearray(code)
            for offset in offsets:
                masked[offset : offset + _WORD] = bytes(_WORD)
            if keccak256(bytes(masked)) in hashes:
                return True
        return False


def code_list(pins: Iterable[Mapping[str, object]] = ()) -> CodeList:
    """Return the list of known builds with the operator's pins (rows shaped as `KnownBuild`) added.

    Raises `ConfigError("chain.implementations.invalid")` for a row that does not describe a build.
    """
    try:
        pinned = msgspec.convert(list(pins), tuple[KnownBuild, ...])
    except msgspec.ValidationError as error:
        raise ConfigError(
            "chain.implementations.invalid", f"a pinned implementation is malformed: {error}"
        ) from error
    return CodeList((*KNOWN_BUILDS, *pinned))


def _check(build: KnownBuild) -> bytes:
    """Refuse a row that could match code it does not describe; returns its masked hash."""
    offsets = build.immutable_offsets
    well_placed = all(0 <= offset <= build.length - _WORD for offset in offsets)
    if (
        build.contract not in _CONTRACTS
        or not 0 < build.length <= MAX_CODE_BYTES
        or not well_placed
        or bool(offsets) != (build.contract != PROXY)
    ):
        raise ConfigError(
            "chain.implementations.invalid",
            f"{build.contract} ({build.build}) is not a build of {', '.join(_CONTRACTS)} with immutables "
            "inside its code",
        )
    try:
        return decode_hex(build.masked_keccak256, what=f"masked_keccak256 of {build.contract}", length=32)
    except ProtocolError as error:
        raise ConfigError("chain.implementations.invalid", error.message) from error

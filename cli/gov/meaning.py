"""What the calls of a proposal would do, in words, and what of it nobody should sign without a thought."""

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from cli.gov.cautions import weakens
from cli.gov.chain import ZERO_ADDRESS, Block, Contracts
from cli.gov.code import code_text, identified
from cli.gov.creation import call_text, created_text
from cli.gov.safe_tx import CALL, DELEGATE_CALL, MULTI_SENDS, Inner, read_multi_send
from shared.chain import calldata
from shared.chain.abi import checksum_address
from shared.chain.abi_values import Value
from shared.chain.calldata import Function, decode_call
from shared.chain.code import APP, KMS
from shared.chain.create2 import DEPLOYER
from shared.errors import ProtocolError
from shared.keccak import keccak256

# Batches in batches: people write one level.
_MAX_DEPTH: Final = 3
# Accounts whose code is looked at for one proposal: a service can make up as many as it likes.
_MAX_LOOKS: Final = 20
# Of calldata: no function of a Safe that is named here takes more; published evidence is long.
_MAX_WORDS: Final = 4
_MAX_TEXT: Final = 1000
_RENOUNCE: Final = bytes.fromhex("715018a6")
# What changes who decides for a Safe, by selector.
_SAFE_FUNCTIONS: Final[Mapping[str, str]] = {
    "0d582f13": "addOwnerWithThreshold",
    "f8dc5dd9": "removeOwner",
    "e318b52b": "swapOwner",
    "694e80c3": "changeThreshold",
    "610b5925": "enableModule",
    "e009cfde": "disableModule",
    "e19a9dd9": "setGuard",
    "e068df37": "setModuleGuard",
    "f08a0323": "setFallbackHandler",
}


class Meaning(msgspec.Struct, frozen=True):
    """Lowercase sentences: what happens, in order, and what is dangerous of it."""

    calls: tuple[str, ...]
    dangers: tuple[str, ...]


def meaning_of(contracts: Contracts, safe: bytes, apps: Collection[bytes], call: Inner, at: Block) -> Meaning:
    """Return what a call of a Safe would do to the KMS contract and to `apps`."""
    reading = _Reading(contracts, safe, apps, at)
    reading.take(call, 0)
    return Meaning(tuple(reading.calls), tuple(dict.fromkeys(reading.dangers)))


class _Reading:
    def __init__(self, contracts: Contracts, safe: bytes, apps: Collection[bytes], at: Block) -> None:
        self.calls: list[str] = []
        self.dangers: list[str] = []
        self._contracts = contracts
        self._safe = safe
        self._apps = apps
        self._at = at
        self._looks: dict[bytes, bytes] = {}

    def take(self, call: Inner, depth: int) -> None:
        if call.value:
            self.dangers.append(f"sends {call.value} wei to {checksum_address(call.to)}")
        if call.operation == DELEGATE_CALL:
            self._delegate_call(call, depth)
        elif call.operation != CALL:
            self._danger(
                f"operation {call.operation} on {checksum_address(call.to)}", "is no call that a Safe makes"
            )
        elif call.to == self._safe:
            self._own(call)
        elif call.to == DEPLOYER:
            self._create(call)
        elif call.to == self._contracts.kms or call.to in self._apps:
            self._governance(call)
        else:
            self.calls.append(
                f"calls {checksum_address(call.to)}, which is no contract of this kms: {_raw(call.data)}"
            )

    def _code(self, address: bytes) -> bytes:
        """Return an account's code; none where too many were looked at already, which is then not known."""
        if address not in self._looks and len(self._looks) < _MAX_LOOKS:
            self._looks[address] = self._contracts.code(address, self._at)
        return self._looks.get(address, b"")

    def _danger(self, text: str, why: str) -> None:
        self.calls.append(text)
        self.dangers.append(f"{text.partition('(')[0]} {why}")

    def _delegate_call(self, call: Inner, depth: int) -> None:
        named = f"delegatecall to {checksum_address(call.to)}"
        if keccak256(self._code(call.to)) not in MULTI_SENDS:
            self._danger(
                named, "runs unknown code as the Safe itself: it can take over all that the Safe owns"
            )
            return
        try:
            inner = read_multi_send(call.data, self._safe)
        except ProtocolError as error:
            self._danger(named, f"cannot be read: {error.message}")
            return
        if depth >= _MAX_DEPTH:
            self._danger(named, f"is a batch within {depth} batches, and is not read")
            return
        for one in inner:
            self.take(one, depth + 1)

    def _own(self, call: Inner) -> None:
        if not call.data:
            self.calls.append("does nothing, and takes the place of what else has its nonce")
            return
        name = _SAFE_FUNCTIONS.get(call.data[:4].hex())
        if name is None:
            self._danger("a call of the Safe to itself", f"is not known here: {_raw(call.data)}")
            return
        end = min(len(call.data), 4 + 32 * _MAX_WORDS)
        words = [call.data[start : start + 32] for start in range(4, end, 32)]
        self._danger(
            f"{name}({', '.join(map(_word, words))}) of the Safe", "changes who decides for the Safe"
        )

    def _create(self, call: Inner) -> None:
        text = created_text(call.data)
        if text is None:
            self.calls.append(f"creates a contract of unknown code, {len(call.data)} bytes")
        else:
            self.calls.append(text)

    def _governance(self, call: Inner) -> None:
        is_kms = call.to == self._contracts.kms
        where = f"of the {'kms contract' if is_kms else 'app'} {checksum_address(call.to)}"
        if call.data == _RENOUNCE:
            self._danger(
                f"renounceOwnership() {where}", "gives the contract up for ever: nobody could revoke anything"
            )
            return
        try:
            function, arguments = decode_call(call.data)
            told = call_text(call.data)
            text = f"{told if len(told) <= _MAX_TEXT else told[:_MAX_TEXT] + '…'} {where}"
        except ProtocolError as error:
            self._danger(f"a call {where}", f"cannot be read: {error.message}, {_raw(call.data)}")
            return
        if function.target not in {"both", "kms" if is_kms else "app"}:
            self._danger(text, "is a function that this contract does not have")
            return
        self.calls.append(text)
        self.dangers += [f"{function.name} {why}" for why in self._why(function, arguments, is_kms=is_kms)]

    def _why(self, function: Function, arguments: tuple[Value, ...], *, is_kms: bool) -> list[str]:
        if function == calldata.UPGRADE_TO_AND_CALL:
            new, initializer = arguments
            found = self._unknown_code(new, KMS if is_kms else APP)
            return [*found, *(["makes the new code call something at once"] if initializer else [])]
        if function == calldata.SET_APP_IMPLEMENTATION:
            return self._unknown_code(arguments[0], APP)
        if function == calldata.SET_KMS_INFO:
            return ["replaces the root keys that deployers encrypt to"]
        if function == calldata.TRANSFER_OWNERSHIP and isinstance(new_owner := arguments[0], bytes):
            return [self._offer(new_owner)] if new_owner != ZERO_ADDRESS else []
        if function.name.startswith("add") and arguments[0] == bytes(32):
            return ["allows the all-zero hash, which an absent one becomes"]
        return weakens(function, arguments)

    def _offer(self, new_owner: bytes) -> str:
        kind = "a contract" if self._code(new_owner) else "a single key's account"
        return f"offers the contract to {checksum_address(new_owner)}, {kind}"

    def _unknown_code(self, new: Value, wanted: str) -> list[str]:
        if not isinstance(new, bytes):
            return []
        code = self._code(new)
        found = identified(code, new)
        if found.contract == wanted:
            return []
        told = code_text(found) if code else "no contract at all"
        return [f"puts code in place that is no known build of {wanted}: {told}"]


def _raw(data: bytes) -> str:
    """Return how calldata begins, and how long it is."""
    return f"selector 0x{data[:4].hex()}, {len(data)} bytes" if data else "no calldata"


def _word(word: bytes) -> str:
    """Return a word of calldata as an address where it can be one, and as a number where it is small."""
    number = int.from_bytes(word, "big")
    if len(word) == 32 and 1 << 64 <= number < 1 << 160:
        return checksum_address(word[12:])
    return str(number) if number < 1 << 64 else f"0x{word.hex()}"

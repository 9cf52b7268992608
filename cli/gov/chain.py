"""What endpoints say of the contracts, each set of answers at one pinned block.

A single endpoint is believed, as by `dstack-cloud plan`, and that is said: owners compare what they sign, and
a KMS wants proofs.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from cli.gov.agreed import AgreedEndpoint
from shared.chain import abi, slots, views
from shared.chain.abi_values import Kind, decode_values
from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.net.json_rpc import Call, Endpoint, data, fields, quantity

ZERO_ADDRESS: Final = bytes(20)
_UPGRADES_DISABLED: Final = slots.APP_FLAGS
# A contract that lacks a view answers by reverting, or with something else than a word.
_FOREIGN: Final = frozenset({"rpc.reverted", "abi.malformed"})
# For a view of an app, or of who owns it, which anybody may have written: ours take a fifth of that.
VIEW_GAS: Final = 500_000
# Questions in one request: an account's code has 24 KiB at most, and endpoints and we bound an answer.
_BATCH: Final = 60
# A Safe of more owners than that is none that people made.
_MAX_SAFE_OWNERS: Final = 100


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """The block that answers are about: `hash` 32 bytes, `time` unix seconds.

    `agreeing` of `asked` endpoints had to say the same.
    """

    chain_id: int
    number: int
    hash: bytes
    time: int
    asked: int = 1
    agreeing: int = 1


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who may change a contract: addresses of 20 bytes, `pending` zero where no transfer is under way.

    `threshold` of `signers` must sign where the owner answers as a Safe does; 0 where it does not.
    """

    address: bytes
    pending: bytes
    has_code: bool
    threshold: int = 0
    signers: tuple[bytes, ...] = ()


class Account(msgspec.Struct, frozen=True):
    """What kind of account may own something; `threshold` is 0 where it does not answer as a Safe does."""

    has_code: bool
    threshold: int = 0
    signers: tuple[bytes, ...] = ()


class Proxy(msgspec.Struct, frozen=True):
    """What an endpoint keeps of a contract, whatever it answers: its code, and two words of storage."""

    code: bytes
    implementation: bytes
    upgrades_disabled: bool


class Contracts:
    """The KMS contract at `kms` (20 bytes) and its apps. `chain_id` must answer; None takes any chain."""

    def __init__(self, endpoint: Endpoint, kms: bytes, chain_id: int | None = None) -> None:
        self.endpoint = endpoint
        self.kms = kms
        self._chain_id = chain_id

    def pin(self, tag: str = "latest") -> Block:
        """Return a block that answers can be about.

        Raises `ConfigError("gov.chain_id")` where another chain answers, and what the endpoint raises.
        """
        answered, head = self.endpoint.batch([("eth_chainId", []), ("eth_getBlockByNumber", [tag, False])])
        chain_id = quantity(answered, what="the chain id")
        if self._chain_id not in {None, chain_id}:
            raise ConfigError(
                "gov.chain_id", f"the endpoint is of chain {chain_id}, expected chain {self._chain_id}"
            )
        block = fields(head, what=f"the {tag} block")
        agreed = self.endpoint if isinstance(self.endpoint, AgreedEndpoint) else None
        return Block(
            asked=agreed.size if agreed else 1,
            agreeing=agreed.quorum if agreed else 1,
            chain_id=chain_id,
            number=quantity(block.get("number"), what="the block number"),
            hash=data(block.get("hash"), what="the block hash", length=32),
            time=quantity(block.get("timestamp"), what="the block's time"),
        )

    def require_code(self, address: bytes, at: Block) -> None:
        """Raise `ConfigError("gov.contract")` where no code is: a call there succeeds, and does nothing."""
        if not self.code(address, at):
            raise ConfigError(
                "gov.contract", f"no contract is at {abi.checksum_address(address)} on chain {at.chain_id}"
            )

    def require_kms(self, at: Block) -> None:
        """Raise `ConfigError("gov.contract")` where the KMS contract's views do not answer at its address."""
        self.require_code(self.kms, at)
        try:
            abi.decode_string(self.views(at, (self.kms, abi.call(abi.GATEWAY_APP_ID)))[0])
            self.flags(at, (self.kms, abi.call(views.ALLOWED_OS_IMAGES, bytes(32))))
        except (UnavailableError, ProtocolError) as error:
            if error.code in _FOREIGN:
                raise self.another_kind(self.kms) from error
            raise

    @staticmethod
    def another_kind(address: bytes) -> ConfigError:
        """Return what to raise of a contract whose views do not answer as ours do."""
        return ConfigError(
            "gov.contract",
            f"{abi.checksum_address(address)} does not answer as that contract of ours: is it another one?",
        )

    def views(self, at: Block, *calls: tuple[bytes, bytes]) -> list[bytes]:
        """Return the results of views, each as (contract, calldata). Raises as the endpoint does."""
        asked: list[Call] = [
            (
                "eth_call",
                [
                    {"to": as_hex(contract), "data": as_hex(call)}
                    | ({} if contract == self.kms else {"gas": hex(VIEW_GAS)}),
                    _at(at),
                ],
            )
            for contract, call in calls
        ]
        return [data(one, what="a view") for one in self.endpoint.batch(asked)] if asked else []

    def flags(self, at: Block, *calls: tuple[bytes, bytes]) -> list[bool]:
        """Return the results of views that answer yes or no."""
        return [abi.decode_bool(one) for one in self.views(at, *calls)]

    def code(self, address: bytes, at: Block) -> bytes:
        """Return the code at an address, empty where there is none."""
        answer = self.endpoint.batch([("eth_getCode", [as_hex(address), _at(at)])])[0]
        return data(answer, what="the code")

    def storage(self, address: bytes, slot: bytes, at: Block) -> bytes:
        """Return a storage word, 32 bytes."""
        answer = self.endpoint.batch([("eth_getStorageAt", [as_hex(address), as_hex(slot), _at(at)])])[0]
        return data(answer, what="a storage word", length=32)

    def implementation(self, proxy: bytes, at: Block) -> bytes:
        """Return what a proxy delegates to, zero where it is none."""
        return self.storage(proxy, slots.ERC1967_IMPLEMENTATION, at)[12:]

    def upgrades_disabled(self, app: bytes, at: Block) -> bool:
        """Tell whether an app's code can never change again: no view does."""
        return slots.bool_at(self.storage(app, _UPGRADES_DISABLED, at))

    def codes(self, addresses: Sequence[bytes], at: Block) -> list[bytes]:
        """Return the code of several accounts."""
        return [
            data(one, what="the code")
            for one in self._in_parts([("eth_getCode", [as_hex(address), _at(at)]) for address in addresses])
        ]

    def proxies(self, addresses: Sequence[bytes], at: Block) -> list[Proxy]:
        """Return what is kept of several contracts: none of them can fail it, as their code is not run."""
        asked: list[Call] = []
        for address in map(as_hex, addresses):
            asked.append(("eth_getCode", [address, _at(at)]))
            asked += [
                ("eth_getStorageAt", [address, as_hex(slot), _at(at)])
                for slot in (slots.ERC1967_IMPLEMENTATION, _UPGRADES_DISABLED)
            ]
        told = self._in_parts(asked)
        return [
            Proxy(
                code=data(code, what="the code"),
                implementation=data(implementation, what="a storage word", length=32)[12:],
                upgrades_disabled=slots.bool_at(data(flags, what="a storage word", length=32)),
            )
            for code, implementation, flags in zip(told[::3], told[1::3], told[2::3], strict=True)
        ]

    def _in_parts(self, asked: Sequence[Call]) -> list[object]:
        found: list[object] = []
        for start in range(0, len(asked), _BATCH):
            found += self.endpoint.batch(asked[start : start + _BATCH])
        return found

    def nonce(self, address: bytes, at: Block) -> int:
        """Return how many transactions an account sent, or how many contracts a contract made."""
        answer = self.endpoint.batch([("eth_getTransactionCount", [as_hex(address), _at(at)])])[0]
        return quantity(answer, what="the nonce")

    def owner(self, contract: bytes, at: Block) -> Owner:
        """Return who may change a contract, and what kind of account that is."""
        owner, pending = (
            abi.decode_address(word)
            for word in self.views(
                at, (contract, abi.call(views.OWNER)), (contract, abi.call(views.PENDING_OWNER))
            )
        )
        kind = self.account(owner, at)
        return Owner(
            address=owner,
            pending=pending,
            has_code=kind.has_code,
            threshold=kind.threshold,
            signers=kind.signers,
        )

    def account(self, address: bytes, at: Block) -> Account:
        """Return what kind of account one is."""
        if not self.code(address, at):
            return Account(has_code=False)
        threshold, signers = self._safe(address, at)
        return Account(has_code=True, threshold=threshold, signers=signers)

    def simulate(self, sender: bytes, to: bytes | None, calldata: bytes, at: Block) -> None:
        """Carry a call out without sending it. Raises `RevertedError` where the contract refuses it."""
        call = {"from": as_hex(sender), "data": as_hex(calldata)} | ({} if to is None else {"to": as_hex(to)})
        data(self.endpoint.batch([("eth_call", [call, _at(at)])])[0], what="the result")

    def _safe(self, owner: bytes, at: Block) -> tuple[int, tuple[bytes, ...]]:
        """Return how many of whom must sign, or none where the owner is no Safe."""
        try:
            threshold, owners = self.views(
                at, (owner, abi.call(views.SAFE_THRESHOLD)), (owner, abi.call(views.SAFE_OWNERS))
            )
            signers = _addresses(owners)
        except (UnavailableError, ProtocolError) as error:
            if error.code in _FOREIGN:
                return 0, ()
            raise
        wanted = int.from_bytes(threshold, "big")
        return (wanted, signers) if 0 < wanted <= len(signers) else (0, ())


def head_text(at: Block) -> str:
    """Return what block answers are about, and on whose word they rest."""
    word = "by the word of one endpoint" if at.asked == 1 else f"as {at.agreeing} of {at.asked} endpoints say"
    return f"chain {at.chain_id} at block {at.number}, {word}"


def head_json(at: Block) -> dict[str, Any]:
    """Return the same for JSON."""
    return {
        "chain_id": at.chain_id,
        "block": {"number": at.number, "hash": as_hex(at.hash), "time": at.time},
        "endpoints": {"asked": at.asked, "agreeing": at.agreeing},
    }


def unread(error: DstackError) -> str:
    """Return why it is not known what the contracts say of something."""
    return f"what the contracts say could not be read: {error.message} [{error.code}]"


def as_hex(raw: bytes) -> str:
    """Return bytes as JSON-RPC writes them."""
    return f"0x{raw.hex()}"


def _at(block: Block) -> dict[str, str]:
    return {"blockHash": as_hex(block.hash)}


def _addresses(raw: bytes) -> tuple[bytes, ...]:
    """Read a lone list of addresses."""
    count = int.from_bytes(raw[32:64], "big")
    if raw[:32] != (32).to_bytes(32, "big") or count > _MAX_SAFE_OWNERS or len(raw) != 64 + 32 * count:
        raise ProtocolError("abi.malformed", "the result is no list of addresses")
    kind: Kind = "address"
    decoded = decode_values((kind,) * count, raw[64:])
    return tuple(one for one in decoded if isinstance(one, bytes))

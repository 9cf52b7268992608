"""Sends transactions of one account, each at most once, and waits for their blocks.

What is about to be sent is written down first. Whoever repeats a command that did not end finds what it sent:
it is waited for, handed in again, or signed again under the same nonce, of which a chain takes one alone.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from cli.gov.chain import Block, Contracts, as_hex
from cli.gov.key_file import Account
from cli.gov.refusals import is_known, is_refused
from cli.gov.reverts import revert_reason
from cli.gov.transaction import Transaction
from cli.whole_file import write_whole
from shared.chain.abi import checksum_address
from shared.chain.approval import create_address
from shared.chain.events import APP_DEPLOYED_VIA_FACTORY, topic_of
from shared.errors import (
    ConfigError,
    ExitCode,
    PolicyDenied,
    ProtocolError,
    StorageError,
    UnavailableError,
)
from shared.hex import decode_hex
from shared.keccak import keccak256
from shared.net.json_rpc import RevertedError, data, fields, quantity

GWEI: Final = 10**9
ETHER: Final = 10**18
POLL_SECONDS: Final = 1
# EIP-7825: no transaction may have more
MAX_GAS: Final = 1 << 24
# A call that changes a word needs little more than was estimated, where others changed the state before it.
_GAS_MARGIN: Final = 5, 4
# What nodes want on top of the fees of a transaction that another one takes the place of.
_REPLACEMENT: Final = 9, 8
# What endpoints say of a transaction that offers too little.
_TOO_CHEAP: Final = ("fee", "underpriced")


class NotMinedError(UnavailableError):
    """A transaction was sent, and is in no block yet."""

    exit_code = ExitCode.TIMED_OUT


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Where a transaction is: `hash` and `block_hash` 32 bytes.

    `contract` is what it made itself, `app_id` what it had the factory make; None where that is nothing.
    """

    hash: bytes
    block_number: int
    block_hash: bytes
    contract: bytes | None
    app_id: bytes | None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What was signed for one call: all under one nonce, each as (fee, tip, bytes as 0x hex)."""

    chain_id: int
    sender: str
    nonce: int
    signed: tuple[tuple[int, int, str], ...]


class Outbox:
    """What was sent and not yet reported, one file for each call, in a directory of the user's own."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def path(self, chain_id: int, sender: bytes, to: bytes | None, calldata: bytes) -> Path:
        """Return the file of a call."""
        name = keccak256(chain_id.to_bytes(8, "big"), sender, to or b"", keccak256(calldata)).hex()
        return self._place / f"{name[:40]}.json"

    def read(self, path: Path) -> Entry | None:
        """Return what was sent for a call. Raises `StorageError("gov.outbox")`."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=Entry)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise StorageError("gov.outbox", f"{path} cannot be read: {error}") from error

    def write(self, path: Path, entry: Entry) -> None:
        """Write what is about to be sent, so that it is there after a crash."""
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, msgspec.json.encode(entry))
        except OSError as error:
            raise StorageError("gov.outbox", f"{path} cannot be written: {error.strerror}") from error


class Sender:
    """Sends for one account. `timeout` bounds the wait for each block, `max_fee` is in wei per gas.

    `say` is told what each transaction may cost, before it is sent.
    """

    def __init__(
        self,
        contracts: Contracts,
        account: Account,
        outbox: Outbox,
        *,
        timeout: float,
        max_fee: int,
        say: Callable[[str], object] = lambda _: None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = contracts.endpoint
        self._account = account
        self._outbox = outbox
        self._timeout = timeout
        self._max_fee = max_fee
        self._say = say
        self._sleep = sleep
        self._clock = clock
        self._reported: list[Path] = []
        self._next_nonce = 0

    def send(self, to: bytes | None, calldata: bytes, at: Block, *, once: bool) -> Receipt:
        """Send a call, or wait for the one that was sent before, and return where it is.

        `at` is the block whose state wants the call. `once` is True where the state does not tell whether it
        was made: then one that is mined, and was not reported yet, is the one that is meant.

        Raises `PolicyDenied`: `gov.would_revert`, `gov.reverted`; `ConfigError("gov.fee")`;
        `UnavailableError`: `gov.pending`, `gov.nonce_taken`, `gov.refused` where the call is not on its way,
        `gov.maybe_sent` where it may be; `NotMinedError("gov.not_mined")`;
        `StorageError("gov.outbox")`; `ProtocolError("gov.reorg")` where what this sender sent before is in no
        block any more; and what the endpoint raises.
        """
        path = self._outbox.path(at.chain_id, self._account.address, to, calldata)
        entry = self._outbox.read(path)
        try:
            before = None if entry is None else self._receipt(entry, to)
            if before is not None and not once and before.block_number <= at.number:
                entry = None  # it was made, and undone since
            if entry is None:
                entry = self._first(path, to, calldata, at)
            elif before is None:
                entry = self._again(path, entry, to, calldata, at)
            receipt = self._await(entry, to)
        except PolicyDenied as error:
            if error.code == "gov.reverted":
                path.unlink(missing_ok=True)  # it is over, and told
            raise
        self._reported.append(path)
        self._next_nonce = entry.nonce + 1
        return receipt

    def done(self) -> None:
        """Forget what was sent, now that it is reported: the same command means a new call again."""
        for path in self._reported:
            path.unlink(missing_ok=True)
        self._reported.clear()

    def _first(self, path: Path, to: bytes | None, calldata: bytes, at: Block) -> Entry:
        entry = self._sign(path, self._free_nonce(), to, calldata, at)
        try:
            self._hand_in(entry)
        except UnavailableError as error:
            if not is_refused(error):
                raise _maybe_sent(error) from error
            path.unlink(missing_ok=True)
            raise UnavailableError(
                "gov.refused", f"the transaction was not taken: {error.message}"
            ) from error
        return entry

    def _free_nonce(self) -> int:
        """Return the account's next nonce, if nothing of it is on its way."""
        mined, pending = self._nonces()
        if pending > mined:
            raise UnavailableError(
                "gov.pending",
                f"{pending - mined} transactions of {self._name} are in no block yet: wait for them",
            )
        if mined < self._next_nonce:
            # the same nonce would put this call, or contract, in the place of that one
            raise ProtocolError(
                "gov.reorg",
                f"the chain dropped the transaction of {self._name} with nonce {self._next_nonce - 1}, or "
                "this endpoint lags: repeat the command, which sends it again",
            )
        return mined

    def _again(self, path: Path, entry: Entry, to: bytes | None, calldata: bytes, at: Block) -> Entry:
        """Hand in again what was sent before; under the same nonce where it must be signed anew."""
        mined, _ = self._nonces()
        if mined > entry.nonce:
            raise UnavailableError(
                "gov.nonce_taken",
                f"another transaction of {self._name} with nonce {entry.nonce} is mined, or this endpoint "
                f"lags: look at the chain, and remove {path} to send anew",
            )
        try:
            self._hand_in(entry)
        except UnavailableError as error:
            if not any(word in error.message.lower() for word in _TOO_CHEAP):
                raise _maybe_sent(error) from error
            entry = self._sign(path, entry.nonce, to, calldata, at, before=entry)
            try:
                self._hand_in(entry)
            except UnavailableError as again:
                raise _maybe_sent(again) from again
        return entry

    def _sign(
        self,
        path: Path,
        nonce: int,
        to: bytes | None,
        calldata: bytes,
        at: Block,
        before: Entry | None = None,
    ) -> Entry:
        fee, tip = self._fees(before.signed[-1][:2] if before else (0, 0))
        transaction = Transaction(
            chain_id=at.chain_id,
            nonce=nonce,
            max_priority_fee=tip,
            max_fee=fee,
            gas=self._gas(to, calldata),
            to=to,
            data=calldata,
        )
        self._say(
            f"pays at most {fee * transaction.gas / ETHER:.6f} ether: {transaction.gas} gas at up to "
            f"{fee / GWEI:g} gwei, a tip of {tip / GWEI:g} in it"
        )
        raw = as_hex(transaction.signed(self._account.key))
        entry = Entry(
            chain_id=at.chain_id,
            sender=self._name,
            nonce=nonce,
            signed=(*(before.signed if before else ()), (fee, tip, raw)),
        )
        self._outbox.write(path, entry)
        return entry

    def _hand_in(self, entry: Entry) -> None:
        """Give the newest form to the endpoint, which may have it already. Raises what it answers."""
        raw = entry.signed[-1][2]
        expected = keccak256(decode_hex(raw, what="the transaction"))
        try:
            answer = self._endpoint.batch([("eth_sendRawTransaction", [raw])])[0]
        except UnavailableError as error:
            if error.code not in {"rpc.error", "rpc.reverted"} or is_known(error):
                return  # it may have come through: the receipt tells
            raise
        if data(answer, what="the transaction's hash", length=32) != expected:
            raise ProtocolError("rpc.malformed", "the endpoint names another transaction than was sent")

    def _await(self, entry: Entry, to: bytes | None) -> Receipt:
        deadline = self._clock() + self._timeout
        while True:
            try:
                receipt = self._receipt(entry, to)
            except UnavailableError:
                receipt = None
            if receipt is not None:
                return receipt
            if self._clock() >= deadline:
                raise NotMinedError(
                    "gov.not_mined",
                    f"transaction {as_hex(_hashes(entry)[-1])} is in no block after {self._timeout:g} s: "
                    "the same command waits on, and sends nothing twice",
                )
            self._sleep(POLL_SECONDS)

    def _receipt(self, entry: Entry, to: bytes | None) -> Receipt | None:
        """Return where a transaction is. Raises `PolicyDenied("gov.reverted")` where it failed.

        Where a contract is follows from the account and its nonce, whatever the endpoint says.
        """
        made = create_address(self._account.address, entry.nonce) if to is None else None
        hashes = _hashes(entry)
        answers = self._endpoint.batch([("eth_getTransactionReceipt", [as_hex(one)]) for one in hashes])
        for wanted, answer in zip(hashes, answers, strict=True):
            if answer is None:
                continue
            found = fields(answer, what="the receipt")
            if data(found.get("transactionHash"), what="the transaction's hash", length=32) != wanted:
                raise ProtocolError("rpc.malformed", "the receipt is of another transaction")
            number = quantity(found.get("blockNumber"), what="the block number")
            if quantity(found.get("status"), what="the status") != 1:
                raise PolicyDenied(
                    "gov.reverted", f"transaction {as_hex(wanted)} failed in block {number}: nothing changed"
                )
            told = found.get("contractAddress")
            if (None if told is None else data(told, what="the contract's address", length=20)) != made:
                raise ProtocolError("rpc.malformed", "the receipt names another contract than was created")
            return Receipt(
                hash=wanted,
                block_number=number,
                block_hash=data(found.get("blockHash"), what="the block hash", length=32),
                contract=made,
                app_id=None if to is None else _made_app(found.get("logs"), to),
            )
        return None

    def _nonces(self) -> tuple[int, int]:
        address = as_hex(self._account.address)
        mined, pending = (
            quantity(one, what="the nonce")
            for one in self._endpoint.batch(
                [
                    ("eth_getTransactionCount", [address, "latest"]),
                    ("eth_getTransactionCount", [address, "pending"]),
                ]
            )
        )
        return mined, pending

    def _fees(self, before: tuple[int, int]) -> tuple[int, int]:
        """Return the highest fee and the tip, in wei per gas: enough to take the place of `before`."""
        head, told = self._endpoint.batch(
            [("eth_getBlockByNumber", ["latest", False]), ("eth_maxPriorityFeePerGas", [])]
        )
        base = fields(head, what="the newest block").get("baseFeePerGas")
        if base is None:
            raise ConfigError("gov.fee", "the chain has no base fee, so no transaction of ours can be sent")
        least_fee, least_tip = (one * _REPLACEMENT[0] // _REPLACEMENT[1] + (one > 0) for one in before)
        tip = max(least_tip, quantity(told, what="the priority fee"))
        fee = max(least_fee, 2 * quantity(base, what="the base fee") + tip)
        if fee > self._max_fee:
            raise ConfigError(
                "gov.fee",
                f"the chain asks for up to {fee / GWEI:g} gwei a gas, more than {self._max_fee / GWEI:g}",
            )
        return fee, tip

    def _gas(self, to: bytes | None, calldata: bytes) -> int:
        call = {"from": as_hex(self._account.address), "data": as_hex(calldata)}
        if to is not None:
            call["to"] = as_hex(to)
        try:
            answer = self._endpoint.batch([("eth_estimateGas", [call])])[0]
        except RevertedError as error:
            raise PolicyDenied(
                "gov.would_revert", f"the contract would refuse the call: {revert_reason(error.data)}"
            ) from error
        gas = quantity(answer, what="the gas") * _GAS_MARGIN[0] // _GAS_MARGIN[1]
        if gas > MAX_GAS:
            raise ProtocolError("rpc.malformed", f"the endpoint estimates {gas} gas, more than any call has")
        return gas

    @property
    def _name(self) -> str:
        return checksum_address(self._account.address)


def _maybe_sent(error: UnavailableError) -> UnavailableError:
    return UnavailableError(
        "gov.maybe_sent",
        f"the transaction may be on its way all the same, as this is no clear refusal: {error.message}; "
        "repeat the command, which looks for it first, and sends nothing twice",
    )


def _hashes(entry: Entry) -> list[bytes]:
    return [keccak256(decode_hex(raw, what="the transaction")) for *_, raw in entry.signed]


def _made_app(logs: object, to: bytes) -> bytes | None:
    """Return which app the factory at `to` says that it made."""
    for one in logs if isinstance(logs, list) else []:
        log = fields(one, what="a log")
        topics = log.get("topics")
        address = data(log.get("address"), what="a log's contract", length=20)
        if address == to and isinstance(topics, list) and len(topics) == 3:
            first, app_id, _ = (data(topic, what="a topic", length=32) for topic in topics)
            if first == topic_of(APP_DEPLOYED_VIA_FACTORY):
                return app_id[12:]
    return None

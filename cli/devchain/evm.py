"""The chain itself: blocks, a queue of transactions, calls and state proofs over py-evm. No socket, no clock.

Everything is kept in memory and nothing is pruned, so any block of a run can be called and proven.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import rlp
from eth.abc import (
    BlockHeaderAPI,
    ComputationAPI,
    ReceiptAPI,
    SignedTransactionAPI,
    StateAPI,
    UnsignedTransactionAPI,
)
from eth.chains.base import MiningChain
from eth.constants import CREATE_CONTRACT_ADDRESS, ZERO_ADDRESS
from eth.db.atomic import AtomicDB
from eth.exceptions import PyEVMError, Revert
from eth.rlp.accounts import Account
from eth.typing import AccountDetails, HeaderParams
from eth.vm.forks.prague import PragueVM
from eth.vm.forks.prague.headers import create_prague_header_from_parent
from eth.vm.spoof import SpoofTransaction
from eth_typing import Address, BlockNumber
from eth_utils.exceptions import ValidationError
from rlp.exceptions import RLPException
from rlp.sedes import big_endian_int
from trie.hexary import HexaryTrie

from cli.devchain.accounts import CHAIN_ID
from shared.chain.create2 import DEPLOYER, DEPLOYER_CODE
from shared.errors import DstackError, ProtocolError
from shared.keccak import keccak256

GAS_LIMIT = 30_000_000
GENESIS_BASE_FEE = 10**9
# A queue this long means that somebody sends and nobody mines.
MAX_QUEUED = 1024


class Reverted(DstackError):  # noqa: N818 - named like py-evm's own
    """A call or an estimate ended in a revert or another failure; `output` is what the contract returned."""

    def __init__(self, output: bytes, sentence: str) -> None:
        super().__init__("devchain.call.reverted", sentence)
        self.output = output


class _DevelopmentVM(PragueVM):
    """Prague with a block gas limit that does not decay when the chain is idle."""

    @staticmethod
    def create_header_from_parent(  # type: ignore[override] # a curried function upstream
        parent: BlockHeaderAPI | None,
        **fields: Any,  # noqa: ANN401 - py-evm's own header fields
    ) -> BlockHeaderAPI:
        fields.setdefault("gas_limit", GAS_LIMIT)
        return cast("BlockHeaderAPI", create_prague_header_from_parent(parent, **fields))


class _DevelopmentChain(MiningChain):
    chain_id = CHAIN_ID
    vm_configuration = ((BlockNumber(0), _DevelopmentVM),)


class Log(msgspec.Struct, frozen=True):
    """One log entry, with its position in the block."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    index: int
    transaction_index: int
    transaction_hash: bytes


class Mined(msgspec.Struct, frozen=True):
    """A transaction that is in a block; `contract` is the address it created, if it succeeded in that."""

    transaction: Any
    hash: bytes
    index: int
    succeeded: bool
    contract: bytes | None
    gas_used: int
    cumulative_gas_used: int
    effective_gas_price: int
    bloom: int
    logs: tuple[Log, ...]


class Block(msgspec.Struct, frozen=True):
    """A mined block; `header` is py-evm's, whose RLP hashes to `header.hash`."""

    header: Any
    mined: tuple[Mined, ...]

    @property
    def number(self) -> int:
        """The block number."""
        return int(self.header.block_number)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What eth_call and eth_estimateGas execute. No `to` means contract creation."""

    sender: bytes = ZERO_ADDRESS
    to: bytes | None = None
    data: bytes = b""
    value: int = 0
    gas: int | None = None


class AccountProof(msgspec.Struct, frozen=True):
    """Proof nodes of one account, and per storage slot its value and proof nodes, as RLP, root first."""

    nonce: int
    balance: int
    storage_hash: bytes
    code_hash: bytes
    nodes: tuple[bytes, ...]
    storage: tuple[tuple[int, int, tuple[bytes, ...]], ...]


class Evm:
    """A chain of one node. `now` is unix seconds; block timestamps follow it and always increase."""

    def __init__(self, balances: Mapping[bytes, int], *, now: int) -> None:
        genesis_state: dict[Address, AccountDetails] = {
            Address(address): {"balance": wei, "nonce": 0, "code": b"", "storage": {}}
            for address, wei in balances.items()
        }
        # where most chains have it, and anvil from its first block
        genesis_state[Address(DEPLOYER)] = {"balance": 0, "nonce": 1, "code": DEPLOYER_CODE, "storage": {}}
        genesis: dict[str, HeaderParams] = {
            "gas_limit": GAS_LIMIT,
            "timestamp": now,
            "base_fee_per_gas": GENESIS_BASE_FEE,
            "difficulty": 0,
        }
        self._chain = cast(
            "MiningChain",
            _DevelopmentChain.from_genesis(AtomicDB(), genesis, genesis_state),
        )
        self._blocks = [Block(self._chain.get_canonical_head(), ())]
        self._by_hash = {self._blocks[0].header.hash: self._blocks[0]}
        self._mined: dict[bytes, tuple[Block, Mined]] = {}
        self._queue: list[SignedTransactionAPI] = []

    # ---- blocks and transactions ----

    @property
    def head(self) -> Block:
        """The newest block."""
        return self._blocks[-1]

    @property
    def finalized(self) -> Block:
        """The block two below the head, or the genesis block: what anvil calls final with one-slot epochs."""
        return self._blocks[max(0, len(self._blocks) - 3)]

    def block(self, number: int) -> Block | None:
        """Return the block of that number."""
        return self._blocks[number] if 0 <= number < len(self._blocks) else None

    def block_by_hash(self, block_hash: bytes) -> Block | None:
        """Return the block of that hash."""
        return self._by_hash.get(block_hash)

    def mined(self, transaction_hash: bytes) -> tuple[Block, Mined] | None:
        """Return the block that holds the transaction, and the transaction."""
        return self._mined.get(transaction_hash)

    def submit(self, raw: bytes) -> bytes:
        """Queue a signed transaction for the next block and return its hash.

        Raises `ProtocolError("devchain.transaction.refused")` with a client's customary words.
        """
        vm = self._chain.get_vm()
        try:
            transaction = vm.get_transaction_builder().decode(raw)
            transaction.validate()
            sender = transaction.sender
        except (PyEVMError, ValidationError, RLPException, ValueError, TypeError) as error:
            raise _refused(f"not a valid signed transaction: {error}") from error
        if transaction.chain_id != CHAIN_ID:
            raise _refused(f"the transaction is for chain {transaction.chain_id}, this is chain {CHAIN_ID}")
        if any(queued.hash == transaction.hash for queued in self._queue) or transaction.hash in self._mined:
            raise _refused("already known")
        if transaction.nonce < vm.state.get_nonce(sender):
            raise _refused("nonce too low")
        if any(one.sender == sender and one.nonce == transaction.nonce for one in self._queue):
            raise _refused("replacement transaction underpriced")
        if transaction.gas > GAS_LIMIT:
            raise _refused(f"gas limit {transaction.gas} is above the block's {GAS_LIMIT}")
        if len(self._queue) >= MAX_QUEUED:
            raise _refused(f"{MAX_QUEUED} transactions are waiting already")
        highest = transaction.value + transaction.gas * _max_fee(transaction)
        if highest > vm.state.get_balance(sender):
            raise _refused("insufficient funds for gas * price + value")
        self._queue.append(transaction)
        return bytes(transaction.hash)

    def mine(self, *, now: int) -> Block:
        """Mine one block out of what is queued and executable, or an empty one."""
        chain = self._chain
        chain.set_header_timestamp(max(now, self.head.header.timestamp + 1))
        done: list[tuple[SignedTransactionAPI, ReceiptAPI, ComputationAPI]] = []
        base_fee = chain.header.base_fee_per_gas or 0
        progress = True
        while progress:
            progress = False
            for transaction in list(self._queue):
                if transaction.nonce != chain.get_vm().state.get_nonce(transaction.sender):
                    continue  # waits for an earlier one of the same sender
                fits = chain.header.gas_used + transaction.gas <= chain.header.gas_limit
                if not fits or _max_fee(transaction) < base_fee:
                    continue
                self._queue.remove(transaction)
                try:
                    _, receipt, computation = chain.apply_transaction(transaction)
                except ValidationError:
                    continue  # its sender spent the money meanwhile: dropped, as every node does
                done.append((transaction, receipt, computation))
                progress = True
        header = chain.mine_block().header
        block = Block(header, _mined(done, base_fee))
        self._blocks.append(block)
        self._by_hash[header.hash] = block
        self._mined.update({one.hash: (block, one) for one in block.mined})
        return block

    def pending_nonce(self, address: bytes) -> int:
        """Return the nonce that the account's next transaction needs, behind what is queued."""
        nonce = self._state(self.head).get_nonce(Address(address))
        waiting = {one.nonce for one in self._queue if one.sender == address}
        while nonce in waiting:
            nonce += 1
        return nonce

    # ---- execution ----

    def call(self, call: Call, at: Block) -> bytes:
        """Execute on the state after block `at` and return the output; raises `Reverted`."""
        with self._chain.get_vm(at.header).in_costless_state() as state:
            try:
                computation = state.costless_execute_transaction(self._spoof(call, state))
            except ValidationError as error:
                raise _refused(str(error)) from error
        return _output(computation)

    def estimate(self, call: Call, at: Block) -> int:
        """Return gas enough for the call on the state after block `at`; raises `Reverted`."""
        self.call(call, at)
        with self._chain.get_vm(at.header).in_costless_state() as state:
            return self._chain.gas_estimator(state, self._spoof(call, state))

    def _spoof(self, call: Call, state: StateAPI) -> SignedTransactionAPI:
        sender = Address(call.sender)
        unsigned: UnsignedTransactionAPI = self._chain.get_vm_class_for_block_number(
            BlockNumber(0)
        ).create_unsigned_transaction(
            nonce=state.get_nonce(sender),
            gas_price=0,
            gas=min(call.gas or GAS_LIMIT, GAS_LIMIT),
            to=CREATE_CONTRACT_ADDRESS if call.to is None else Address(call.to),
            value=call.value,
            data=call.data,
        )
        return cast("SignedTransactionAPI", SpoofTransaction(unsigned, from_=sender))

    # ---- state ----

    def code(self, address: bytes, at: Block) -> bytes:
        """Return the code of the account after block `at`."""
        return self._state(at).get_code(Address(address))

    def prove(self, address: bytes, slots: Sequence[int], at: Block) -> AccountProof:
        """Prove the account and the slots against the state root of block `at`; absence is proven too."""
        database = cast("Any", self._chain.chaindb.db)
        accounts = HexaryTrie(database, at.header.state_root)
        encoded = accounts.get(keccak256(address))
        account = rlp.decode(encoded, sedes=Account) if encoded else Account()
        cells = HexaryTrie(database, account.storage_root)

        def cell(slot: int) -> tuple[int, int, tuple[bytes, ...]]:
            key = keccak256(slot.to_bytes(32, "big"))
            value = cells.get(key)
            return slot, rlp.decode(value, sedes=big_endian_int) if value else 0, _proof(cells, key)

        return AccountProof(
            nonce=account.nonce,
            balance=account.balance,
            storage_hash=account.storage_root,
            code_hash=account.code_hash,
            nodes=_proof(accounts, keccak256(address)),
            storage=tuple(cell(slot) for slot in slots),
        )

    def _state(self, at: Block) -> StateAPI:
        return self._chain.get_vm(at.header).state


def _refused(sentence: str) -> ProtocolError:
    return ProtocolError("devchain.transaction.refused", sentence)


def _max_fee(transaction: SignedTransactionAPI) -> int:
    return int(getattr(transaction, "max_fee_per_gas", None) or transaction.gas_price)


def _proof(trie: HexaryTrie, key: bytes) -> tuple[bytes, ...]:
    """Encode the nodes on the way to `key`; a node shorter than a hash is part of its parent already."""
    encoded = [rlp.encode(node) for node in cast("Any", trie).get_proof(key)]
    return tuple(node for index, node in enumerate(encoded) if index == 0 or len(node) >= 32)


def _output(computation: ComputationAPI) -> bytes:
    if computation.is_success:
        return computation.output
    if isinstance(computation.error, Revert):
        raise Reverted(computation.output, _revert_sentence(computation.output))
    raise Reverted(b"", f"execution failed: {type(computation.error).__name__}")


def _revert_sentence(output: bytes) -> str:
    """Read Solidity's `Error(string)`, so that the message alone tells a person what happened."""
    if output[:4] != bytes.fromhex("08c379a0") or len(output) < 68:
        return "execution reverted"
    size = int.from_bytes(output[36:68], "big")
    return f"execution reverted: {output[68 : 68 + size].decode(errors='replace')}"


def _mined(
    done: Sequence[tuple[SignedTransactionAPI, ReceiptAPI, ComputationAPI]], base_fee: int
) -> tuple[Mined, ...]:
    mined = []
    before = 0
    log_index = 0
    for index, (transaction, receipt, computation) in enumerate(done):
        logs = tuple(
            Log(
                address=log.address,
                topics=tuple(topic.to_bytes(32, "big") for topic in log.topics),
                data=log.data,
                index=log_index + position,
                transaction_index=index,
                transaction_hash=transaction.hash,
            )
            for position, log in enumerate(receipt.logs)
        )
        tip = getattr(transaction, "max_priority_fee_per_gas", None)
        tip = _max_fee(transaction) - base_fee if tip is None else tip
        creates = transaction.to == CREATE_CONTRACT_ADDRESS
        mined.append(
            Mined(
                transaction=transaction,
                hash=transaction.hash,
                index=index,
                succeeded=computation.is_success,
                contract=computation.msg.storage_address if creates else None,
                gas_used=receipt.gas_used - before,
                cumulative_gas_used=receipt.gas_used,
                effective_gas_price=min(_max_fee(transaction), base_fee + tip),
                bloom=receipt.bloom,
                logs=logs,
            )
        )
        before = receipt.gas_used
        log_index += len(logs)
    return tuple(mined)

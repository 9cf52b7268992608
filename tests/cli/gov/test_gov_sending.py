"""Sending: at most once however often it is repeated, within bounds, in the bytes that others sign too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account as EthAccount
from hypothesis import given
from hypothesis import strategies as st

from cli.gov.chain import Block, Contracts
from cli.gov.key_file import Account
from cli.gov.sending import GWEI, NotMinedError, Outbox, Receipt, Sender
from cli.gov.transaction import Transaction, address_of
from shared.chain import rlp
from shared.chain.approval import create_address
from shared.chain.events import APP_DEPLOYED_VIA_FACTORY, topic_of
from shared.errors import ConfigError, DstackError, ExitCode, PolicyDenied, ProtocolError, UnavailableError
from shared.keccak import keccak256
from shared.keys.k256 import SigningKey
from shared.net.json_rpc import Call, RevertedError
from tests.shared.refusal import refuses

PRIVATE = bytes(31) + b"\7"
TO, CALLDATA = b"\xaa" * 20, b"\1\2\3\4"
AT = Block(chain_id=1, number=10, hash=bytes(32), time=0)


class Node:
    """A node of one account: what it mines, what it keeps, and how it misbehaves."""

    host, secure = "node.example", True

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.mined: dict[bytes, dict[str, Any]] = {}
        self.nonce = 5
        self.pending = 5
        self.base_fee = GWEI
        self.mines = True
        self.refuses: DstackError | None = None
        self.answers: dict[str, Any] = {}

    def batch(self, calls: Sequence[Call]) -> list[object]:
        return [self._one(method, params) for method, params in calls]

    def mine(self, status: str = "0x1") -> None:
        """Take the newest transaction into block 11."""
        raw = self.taken[-1]
        hashed = f"0x{keccak256(raw).hex()}"
        self.mined[keccak256(raw)] = {
            "transactionHash": hashed,
            "blockNumber": "0xb",
            "blockHash": "0x" + "bb" * 32,
            "status": status,
            "contractAddress": None,
            "logs": [],
        }
        self.nonce = self.pending = 6

    def _one(self, method: str, params: Sequence[Any]) -> object:
        fixed = {
            "eth_getBlockByNumber": {"baseFeePerGas": hex(self.base_fee)},
            "eth_maxPriorityFeePerGas": hex(GWEI),
            "eth_estimateGas": hex(100_000),
        } | self.answers
        if method in fixed:
            return fixed[method]
        if method == "eth_getTransactionReceipt":
            return self.mined.get(bytes.fromhex(params[0][2:]))
        if method == "eth_getTransactionCount":
            return hex(self.nonce if params[1] == "latest" else self.pending)
        assert method == "eth_sendRawTransaction"
        return self._take(bytes.fromhex(params[0][2:]))

    def _take(self, raw: bytes) -> str:
        if self.refuses is not None:
            raise self.refuses
        self.taken.append(raw)
        self.pending = 6
        if self.mines:
            self.mine()
        return f"0x{keccak256(raw).hex()}"


class Desk:
    """An operator's desk: the outbox stays, each command is a process of its own."""

    def __init__(self, node: Node, place: Path) -> None:
        self.node = node
        self.place = place

    def send(self, *, at: Block = AT, once: bool = False, done: bool = True) -> Receipt:
        time = iter(range(1000))
        sender = Sender(
            Contracts(self.node, bytes(20)),
            Account(address_of(PRIVATE), SigningKey(PRIVATE)),
            Outbox(self.place),
            timeout=3,
            max_fee=500 * GWEI,
            sleep=lambda _: None,
            clock=lambda: next(time),
        )
        receipt = sender.send(TO, CALLDATA, at, once=once)
        if done:
            sender.done()
        return receipt


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def desk(node: Node, tmp_path: Path) -> Desk:
    return Desk(node, tmp_path / "outbox")


@given(
    st.integers(1, 2**64 - 1),
    st.integers(0, 2**32),
    st.integers(0, 2**64),
    st.integers(21_000, 2**24),
    st.binary(min_size=20, max_size=20) | st.none(),
    st.binary(max_size=200),
    st.binary(min_size=32, max_size=32).filter(lambda key: 0 < int.from_bytes(key) < 2**255),
)
def test_signs_what_eth_account_signs(
    chain_id: int, nonce: int, fee: int, gas: int, to: bytes | None, data: bytes, private: bytes
) -> None:
    ours = Transaction(
        chain_id=chain_id, nonce=nonce, max_priority_fee=fee // 2, max_fee=fee, gas=gas, to=to, data=data
    )
    theirs = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "maxPriorityFeePerGas": fee // 2,
        "maxFeePerGas": fee,
        "gas": gas,
        "value": 0,
        "data": data,
    } | ({} if to is None else {"to": to})
    signed = EthAccount.sign_transaction(theirs, private)
    assert ours.signed(SigningKey(private)) == bytes(signed.raw_transaction)
    assert address_of(private) == bytes.fromhex(EthAccount.from_key(private).address[2:])


def test_says_in_which_block_a_call_is(desk: Desk) -> None:
    receipt = desk.send()
    assert (receipt.block_number, receipt.block_hash) == (11, b"\xbb" * 32)
    assert receipt.hash == keccak256(desk.node.taken[0])


def sender(desk: Desk) -> Sender:
    return Sender(
        Contracts(desk.node, bytes(20)),
        Account(address_of(PRIVATE), SigningKey(PRIVATE)),
        Outbox(desk.place),
        timeout=3,
        max_fee=500 * GWEI,
        sleep=lambda _: None,
    )


def test_nothing_takes_the_nonce_of_what_the_chain_dropped(desk: Desk) -> None:
    one = sender(desk)
    one.send(TO, CALLDATA, AT, once=True)
    desk.node.nonce = desk.node.pending = 5
    with refuses("gov.reorg", ProtocolError):
        one.send(TO, b"\5\6\7\x08", AT, once=True)
    assert len(desk.node.taken) == 1


@pytest.mark.parametrize("told", ["0x" + "66" * 20, None])
def test_where_a_contract_is_follows_from_the_nonce(desk: Desk, told: str | None) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        sender(desk).send(None, CALLDATA, AT, once=True)
    desk.node.mine()
    receipt = desk.node.mined[keccak256(desk.node.taken[0])]
    receipt["contractAddress"] = told
    with refuses("rpc.malformed", ProtocolError):
        sender(desk).send(None, CALLDATA, AT, once=True)
    expected = create_address(address_of(PRIVATE), 5)
    receipt["contractAddress"] = f"0x{expected.hex()}"
    assert sender(desk).send(None, CALLDATA, AT, once=True).contract == expected


def test_an_app_is_one_that_the_contract_which_was_called_made(desk: Desk) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send(once=True)
    desk.node.mine()
    receipt = desk.node.mined[keccak256(desk.node.taken[0])]
    other = f"0x{'66' * 20}"
    topics = [f"0x{topic_of(APP_DEPLOYED_VIA_FACTORY).hex()}", "0x" + "11" * 32, "0x" + "22" * 32]
    receipt |= {"to": other, "logs": [{"address": other, "topics": topics}]}
    assert desk.send(once=True, done=False).app_id is None
    receipt["logs"][0]["address"] = f"0x{TO.hex().upper()}"
    assert desk.send(once=True).app_id == b"\x11" * 20


def test_a_wait_that_ends_says_so_and_exits_with_6(desk: Desk) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError) as caught:
        desk.send()
    assert caught.value.exit_code == ExitCode.TIMED_OUT


def test_repeating_a_command_that_did_not_end_sends_the_same_bytes(desk: Desk) -> None:
    desk.node.mines = False
    for _ in range(3):
        with refuses("gov.not_mined", NotMinedError):
            desk.send()
    assert len(desk.node.taken) == 3
    assert len(set(desk.node.taken)) == 1


def test_repeating_a_command_finds_what_was_mined_meanwhile(desk: Desk) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send(once=True)
    desk.node.mine()
    assert desk.send(once=True).hash == keccak256(desk.node.taken[0])
    assert len(desk.node.taken) == 1


def test_a_crash_before_the_report_sends_nothing_twice(desk: Desk) -> None:
    desk.send(once=True, done=False)
    desk.send(once=True)
    assert len(desk.node.taken) == 1


def test_a_command_that_was_reported_may_be_meant_again(desk: Desk) -> None:
    desk.send(once=True)
    desk.node.taken.clear()
    desk.send(once=True)
    assert len(desk.node.taken) == 1


def test_a_call_that_was_made_and_undone_is_sent_anew(desk: Desk) -> None:
    desk.send(done=False)
    later = Block(chain_id=1, number=12, hash=bytes(32), time=0)
    desk.send(at=later)
    assert len(desk.node.taken) == 2


def test_what_is_too_cheap_by_now_is_signed_again_under_the_same_nonce(desk: Desk) -> None:
    node = desk.node
    node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send()
    node.base_fee = 20 * GWEI
    first = node.batch

    def too_cheap(calls: Sequence[Call]) -> list[object]:
        if calls[0][0] == "eth_sendRawTransaction" and calls[0][1][0] == f"0x{node.taken[0].hex()}":
            raise UnavailableError("rpc.error", "max fee per gas less than block base fee")
        return first(calls)

    node.batch = too_cheap  # type: ignore[method-assign]
    node.mines = True
    desk.send()
    assert len(node.taken) == 2
    forms = [rlp.decode_list(raw[1:]) for raw in node.taken]
    assert {form[1] for form in forms} == {b"\5"}
    fees = [[int.from_bytes(one, "big") for one in form[2:4] if isinstance(one, bytes)] for form in forms]
    assert all(later * 100 >= earlier * 110 for earlier, later in zip(*fees, strict=True))


def test_the_first_of_two_forms_counts_where_it_was_mined(desk: Desk) -> None:
    node = desk.node
    node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send()
    node.mine()
    assert desk.send().hash == keccak256(node.taken[0])


def test_sends_nothing_while_others_of_the_account_are_on_their_way(desk: Desk) -> None:
    desk.node.pending = 7
    with refuses("gov.pending", UnavailableError):
        desk.send()
    assert desk.node.taken == []


def test_does_not_guess_where_another_transaction_took_the_nonce(desk: Desk) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send()
    desk.node.nonce = desk.node.pending = 6
    with refuses("gov.nonce_taken", UnavailableError):
        desk.send()
    assert len(desk.node.taken) == 1


def test_an_endpoint_that_has_it_already_is_waited_for(desk: Desk) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send()
    desk.node.refuses = UnavailableError("rpc.error", "already known")
    with refuses("gov.not_mined", NotMinedError):
        desk.send()


def test_an_answer_that_did_not_come_is_waited_for(desk: Desk) -> None:
    desk.node.refuses = UnavailableError("net.timeout", "no answer")
    with refuses("gov.not_mined", NotMinedError):
        desk.send()
    desk.node.refuses = None
    assert desk.send().block_number == 11


@pytest.mark.parametrize("said", ["insufficient funds", "unknown transaction type"])
def test_a_refusal_leaves_nothing_behind(desk: Desk, said: str) -> None:
    desk.node.refuses = UnavailableError("rpc.error", said)
    with refuses("gov.refused", UnavailableError):
        desk.send()
    assert list(desk.place.glob("*")) == []


UNCLEAR = [
    UnavailableError("rpc.error", "node.example answered with an error: request timed out"),
    UnavailableError("rpc.error", "node.example answered with an error: nonce too low"),
    RevertedError("node.example answered with an error: execution reverted", b""),
]


@pytest.mark.parametrize("mines", [True, False])
@pytest.mark.parametrize("error", UNCLEAR, ids=lambda one: one.message.rpartition(": ")[2])
def test_what_was_taken_and_answered_with_an_error_is_not_sent_twice(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: UnavailableError, *, mines: bool
) -> None:
    node, take = desk.node, desk.node._take
    node.mines = mines

    def takes_and_fails(raw: bytes) -> str:
        take(raw)
        raise error

    monkeypatch.setattr(node, "_take", takes_and_fails)
    with refuses("gov.maybe_sent", UnavailableError) as caught:
        desk.send(once=True)
    assert "repeat the command" in caught.value.message
    monkeypatch.undo()
    node.mines = True
    assert desk.send(once=True).hash == keccak256(node.taken[0])
    assert len(set(node.taken)) == 1


def test_what_no_node_took_is_sent_in_the_same_bytes_by_the_command_repeated(desk: Desk) -> None:
    desk.node.refuses = UNCLEAR[0]
    for _ in range(2):
        with refuses("gov.maybe_sent", UnavailableError):
            desk.send(once=True)
    # what was handed in before may be with another node: that this one has no funds for it proves nothing
    desk.node.refuses = UnavailableError("rpc.error", "insufficient funds")
    with refuses("gov.maybe_sent", UnavailableError):
        desk.send(once=True)
    (kept,) = desk.place.glob("*")
    written = kept.read_text()
    desk.node.refuses = None
    desk.send(once=True)
    assert f"0x{desk.node.taken[0].hex()}" in written


def test_what_may_be_on_its_way_is_kept_where_the_call_would_revert_by_now(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, first = desk.node, desk.node.batch
    node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send(once=True)
    node.refuses = UnavailableError("rpc.error", "transaction underpriced")

    def reverting(calls: Sequence[Call]) -> list[object]:
        if calls[0][0] == "eth_estimateGas":
            raise RevertedError("reverted", b"")
        return first(calls)

    monkeypatch.setattr(node, "batch", reverting)
    with refuses("gov.would_revert", PolicyDenied):
        desk.send(once=True)
    monkeypatch.undo()
    node.mine()
    assert desk.send(once=True).hash == keccak256(node.taken[0])
    assert len(node.taken) == 1


def test_sends_nothing_that_the_contract_would_refuse(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    first = desk.node.batch
    data = bytes.fromhex("118cdaa7") + bytes(12) + b"\xaa" * 20

    def reverting(calls: Sequence[Call]) -> list[object]:
        if calls[0][0] == "eth_estimateGas":
            raise RevertedError("reverted", data)
        return first(calls)

    monkeypatch.setattr(desk.node, "batch", reverting)
    with refuses("gov.would_revert", PolicyDenied) as caught:
        desk.send()
    assert "OwnableUnauthorizedAccount(0xaA" in caught.value.message
    assert desk.node.taken == []


def test_tells_that_a_transaction_failed_and_forgets_it(desk: Desk) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send()
    desk.node.mine(status="0x0")
    with refuses("gov.reverted", PolicyDenied):
        desk.send()
    assert list(desk.place.glob("*")) == []


@pytest.mark.parametrize(
    ("method", "answer", "code", "kind"),
    [
        ("eth_maxPriorityFeePerGas", hex(2**63), "gov.fee", ConfigError),
        ("eth_getBlockByNumber", {"baseFeePerGas": hex(400 * GWEI)}, "gov.fee", ConfigError),
        ("eth_getBlockByNumber", {}, "gov.fee", ConfigError),
        ("eth_estimateGas", hex(2**40), "rpc.malformed", ProtocolError),
        ("eth_sendRawTransaction", "0x" + "00" * 32, "rpc.malformed", ProtocolError),
        ("eth_getTransactionCount", "0x", "rpc.malformed", ProtocolError),
        (
            "eth_getTransactionReceipt",
            {"transactionHash": "0x" + "11" * 32, "blockNumber": "0x1", "status": "0x1"},
            "rpc.malformed",
            ProtocolError,
        ),
    ],
)
def test_takes_no_answer_that_cannot_be(
    desk: Desk, method: str, answer: object, code: str, kind: type[DstackError]
) -> None:
    desk.node.answers[method] = answer
    with refuses(code, kind):
        desk.send()


def test_what_it_may_cost_is_said_before_it_is_sent(desk: Desk) -> None:
    said: list[tuple[str, int]] = []
    one = Sender(
        Contracts(desk.node, bytes(20)),
        Account(address_of(PRIVATE), SigningKey(PRIVATE)),
        Outbox(desk.place),
        timeout=3,
        max_fee=500 * GWEI,
        say=lambda text: said.append((text, len(desk.node.taken))),
    )
    one.send(TO, CALLDATA, AT, once=True)
    text = "pays at most 0.000375 ether: 125000 gas at up to 3 gwei, a tip of 1 in it"
    assert said == [(text, 0)]


def test_the_outbox_is_the_users_own_and_holds_no_key(desk: Desk) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send()
    (kept,) = desk.place.glob("*")
    assert desk.place.stat().st_mode & 0o077 == 0
    assert PRIVATE.hex() not in kept.read_text()


def test_an_outbox_that_cannot_be_read_stops_everything(desk: Desk) -> None:
    desk.node.mines = False
    with refuses("gov.not_mined", NotMinedError):
        desk.send()
    (kept,) = desk.place.glob("*")
    kept.write_text("{")
    with refuses("gov.outbox", DstackError):
        desk.send()

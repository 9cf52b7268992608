"""What is read in an endpoint's words of a transaction: that it has it, that none took it, or neither."""

import pytest

from cli.gov.refusals import is_known, is_refused
from shared.errors import UnavailableError
from shared.net.json_rpc import RevertedError


def answered(text: str) -> UnavailableError:
    return UnavailableError("rpc.error", f"node.example answered with an error: {text}")


@pytest.mark.parametrize(
    ("said", "is_it"),
    [
        ("already known", True),
        ("ALREADY_EXISTS: already known", True),
        ("AlreadyKnown", True),
        ("Known transaction", True),
        ("known transaction: 0xabc", True),
        ("transaction already imported", True),
        ("Transaction with the same hash was already imported.", True),
        ("unknown transaction type", False),
        ("unknown account", False),
        ("unknown transaction", False),
    ],
)
def test_known_is_not_found_in_unknown(said: str, *, is_it: bool) -> None:
    assert is_known(answered(said)) is is_it


REFUSALS = {
    "geth": [
        "insufficient funds for gas * price + value: balance 0, tx cost 375000000000000, overshot 375000000",
        "transaction underpriced: gas tip cap 0, minimum needed 1000000",
        "transaction gas price below minimum: gas tip cap 0, minimum needed 1000000",
        "replacement transaction underpriced",
        "max fee per gas less than block base fee: address 0x22, maxFeePerGas: 1, baseFee: 7",
        "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)",
        "transaction type not supported",
        "invalid sender",
        "invalid chain id for signer: have 1 want 5",
        "intrinsic gas too low: gas 21000, minimum needed 53000",
        "exceeds block gas limit",
    ],
    "anvil": ["Insufficient funds for gas * price + value", "intrinsic gas too high -- tx.gas_limit > cap"],
    "reth": [
        "insufficient funds for gas * price + value: have 0 want 375000000000000",
        "transaction priority fee below minimum required priority fee 1000000",
        "tx fee (1200000 wei) exceeds the configured cap (1000000 wei)",
        "invalid transaction signature",
        "failed to decode signed transaction",
        "invalid chain ID",
        "exceeds max transaction gas limit",
        "gas limit too high",
    ],
    "erigon": [
        "INTERNAL_ERROR: insufficient funds",
        "FEE_TOO_LOW: fee too low",
        "FEE_TOO_LOW: underpriced",
        "INTERNAL_ERROR: could not replace existing tx",
        "INVALID: IntrinsicGas",
        "INTERNAL_ERROR: gas limit is too high",
        "INTERNAL_ERROR: fork supporting this transaction type is not activated yet",
    ],
    "nethermind": [
        "InsufficientFunds, Account balance: 0, cumulative cost: 375000000000000",
        "FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1",
        "unsupported transaction type",
        "failed to recover sender",
        "gas limit reached",
    ],
    "besu": [
        "Upfront cost exceeds account balance",
        "Replacement transaction underpriced",
        "Gas price below current base fee",
        "Gas price below configured minimum gas price",
        "Transaction fee cap exceeded",
        "Invalid transaction type",
        "Invalid signature",
        "Wrong chainId",
        "Intrinsic gas exceeds gas limit",
        "Transaction gas limit exceeds block gas limit",
    ],
}


@pytest.mark.parametrize("said", [one for said in REFUSALS.values() for one in said])
def test_what_a_node_says_before_it_takes_a_transaction_is_a_refusal(said: str) -> None:
    assert is_refused(answered(said))
    assert is_refused(UnavailableError("rpc.error", said))
    assert not is_known(answered(said))


@pytest.mark.parametrize(
    "said",
    [
        "request timed out",
        "Internal error",
        "Timeout expired",
        "upstream request timeout",
        "limit exceeded",
        "Too Many Requests",
        "txpool is full",
        "no upstream took it: node1: request timed out; node2: insufficient funds",
        # a second node's word, once the first one's transaction is in a block, or waits
        "nonce too low: next nonce 6, tx nonce 5",
        "INTERNAL_ERROR: nonce too low",
        "nonce too high",
        "already known",
        "existing txn with same hash",
        "Transaction 0xab was added to the mempool but wasn't confirmed within 30s",
        "unknown transaction",
        "",
    ],
)
def test_what_leaves_open_whether_a_transaction_was_taken_is_none(said: str) -> None:
    assert not is_refused(answered(said))


def test_what_did_not_come_as_an_answer_is_none() -> None:
    assert not is_refused(UnavailableError("net.timeout", "insufficient funds"))
    assert not is_refused(RevertedError("node.example answered with an error: insufficient funds", b""))

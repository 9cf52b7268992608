"""Merkle-Patricia proofs: recorded proofs of a real node, and tries made by another implementation."""

from typing import Any

import pytest
import rlp as other_rlp
from hypothesis import given, settings
from hypothesis import strategies as st
from trie.hexary import HexaryTrie

from shared.chain import rlp, state, trie
from shared.chain.state import State
from shared.errors import InvalidEvidence
from shared.keccak import keccak256
from tests.shared.refusal import refuses

ACCOUNTS = ("kms", "app", "kms_implementation", "app_implementation")


def test_the_hashes_of_nothing_are_what_they_are_called() -> None:
    assert keccak256(rlp.encode(b"")) == trie.EMPTY_ROOT
    assert keccak256() == state.EMPTY_CODE_HASH


def unhex(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def fixture_nodes(getproof: dict[str, Any]) -> list[bytes]:
    nodes: dict[bytes, None] = {}
    for name in ACCOUNTS:
        proof = getproof[name]["proof"]
        for node in (
            *proof["accountProof"],
            *(one for item in proof["storageProof"] for one in item["proof"]),
        ):
            nodes[unhex(node)] = None
    return list(nodes)


def fixture_state(getproof: dict[str, Any]) -> State:
    return State(trie.NodeSet(fixture_nodes(getproof)), unhex(getproof["block"]["stateRoot"]))


@pytest.mark.parametrize("name", ACCOUNTS)
def test_recorded_accounts_verify(getproof: dict[str, Any], name: str) -> None:
    account = fixture_state(getproof).account(unhex(getproof[name]["address"]))
    proof = getproof[name]["proof"]
    assert account is not None
    assert (account.storage_root, account.code_hash) == (
        unhex(proof["storageHash"]),
        unhex(proof["codeHash"]),
    )


@pytest.mark.parametrize("name", ["kms", "app"])
def test_recorded_slots_verify_presence_absence_and_zero_leaf(getproof: dict[str, Any], name: str) -> None:
    """Slot 1 of the app is a leaf that holds the empty string, which anvil keeps; one image is absent."""
    state = fixture_state(getproof)
    account = state.account(unhex(getproof[name]["address"]))
    assert account is not None
    proofs = getproof[name]["proof"]["storageProof"]
    values = {item["key"]: int.from_bytes(state.slot(account, unhex(item["key"])), "big") for item in proofs}
    assert values == {item["key"]: int(item["value"], 16) for item in proofs}


def test_every_recorded_node_is_needed(getproof: dict[str, Any]) -> None:
    """What is left out is noticed: nothing is believed that is not walked from the root."""
    nodes = fixture_nodes(getproof)
    root = unhex(getproof["block"]["stateRoot"])

    def read_all(shown: list[bytes]) -> None:
        state = State(trie.NodeSet(shown), root)
        for name in ACCOUNTS:
            account = state.account(unhex(getproof[name]["address"]))
            assert account is not None
            for item in getproof[name]["proof"]["storageProof"]:
                state.slot(account, unhex(item["key"]))

    read_all(nodes)
    for index in range(len(nodes)):
        with pytest.raises(InvalidEvidence) as caught:
            read_all(nodes[:index] + nodes[index + 1 :])
        assert caught.value.code == "proof.node.missing"


def test_an_empty_trie_needs_no_node() -> None:
    assert trie.lookup(trie.NodeSet([]), trie.EMPTY_ROOT, trie.secure_path(b"any")) is None


def proven(content: dict[bytes, bytes], key: bytes) -> tuple[bytes, list[bytes]]:
    made = HexaryTrie({})
    for one, value in content.items():
        made[keccak256(one)] = value
    return made.root_hash, [other_rlp.encode(node) for node in made.get_proof(keccak256(key))]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.binary(min_size=1, max_size=2), st.binary(min_size=1, max_size=40), max_size=40),
    st.binary(min_size=1, max_size=2),
)
def test_agrees_with_another_implementation_on_presence_and_absence(
    content: dict[bytes, bytes], key: bytes
) -> None:
    root, nodes = proven(content, key)
    found = trie.lookup(trie.NodeSet(dict.fromkeys(nodes)), root, trie.secure_path(key))
    assert found == content.get(key)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_flipped_byte_changes_the_answer(data: st.DataObject) -> None:
    content = {bytes([index]): b"value" * 8 for index in range(20)}
    root, nodes = proven(content, b"\x07")
    which = data.draw(st.integers(0, len(nodes) - 1))
    at = data.draw(st.integers(0, len(nodes[which]) - 1))
    spoilt = bytearray(nodes[which])
    spoilt[at] ^= data.draw(st.integers(1, 255))
    nodes[which] = bytes(spoilt)
    with pytest.raises(InvalidEvidence) as caught:
        trie.lookup(trie.NodeSet(dict.fromkeys(nodes)), root, trie.secure_path(b"\x07"))
    assert caught.value.code == "proof.node.missing"


def path_item(nibbles: str, *, leaf: bool) -> bytes:
    flag = 2 if leaf else 0
    return bytes.fromhex(f"{flag + 1:x}{nibbles}" if len(nibbles) % 2 else f"{flag:x}0{nibbles}")


def test_embedded_nodes_are_walked() -> None:
    """A leaf below 32 bytes lives inside its branch; keys that agree on 63 nibbles make one."""
    path = "a" * 63 + "1"
    branch: list[rlp.Encodable] = [b""] * 17
    branch[1] = [path_item("", leaf=True), b"one"]
    branch[2] = [path_item("", leaf=True), b"two"]
    body = rlp.encode(branch)
    assert len(body) < 32
    root = rlp.encode([path_item("a" * 63, leaf=False), branch])
    nodes = trie.NodeSet([root])
    assert trie.lookup(nodes, keccak256(root), path) == b"one"
    assert trie.lookup(nodes, keccak256(root), "a" * 63 + "3") is None
    assert trie.lookup(nodes, keccak256(root), "b" * 64) is None


def test_refuses_a_branch_below_the_end_of_the_key() -> None:
    inner: list[rlp.Encodable] = [b""] * 17
    outer: list[rlp.Encodable] = [b""] * 17
    outer[1] = inner
    raw = rlp.encode([path_item("a" * 63, leaf=False), keccak256(rlp.encode(outer))])
    nodes = trie.NodeSet([raw, rlp.encode(outer)])
    with pytest.raises(InvalidEvidence) as caught:
        trie.lookup(nodes, keccak256(raw), "a" * 63 + "1")
    assert caught.value.code == "proof.node.malformed"


BIG_LEAF = [path_item("a" * 63, leaf=True), b"v" * 40]


@pytest.mark.parametrize(
    "node",
    [
        [b"\x20" + b"\xaa" * 31, b"short path"],
        [b"\x20" + b"\xaa" * 33, b"long path"],
        [b"\x30", b"odd leaf of one nibble"],
        [path_item("a" * 64, leaf=True), b""],
        [path_item("a" * 64, leaf=True), []],
        [path_item("a" * 64, leaf=False), b"\x11" * 32],
        [path_item("", leaf=False), b"\x11" * 32],
        [path_item("a", leaf=False), b"\x11" * 31],
        [path_item("a", leaf=False), b""],
        [path_item("a", leaf=False), BIG_LEAF],
        [b"\x40" + b"\xaa" * 32, b"no such prefix"],
        [b"\x21" + b"\xaa" * 32, b"padding that is not zero"],
        [b"", b"no path"],
        [[], b"a list for a path"],
        [*[b""] * 16, b"a value"],
        [*[b"\x11" * 31] * 16, b""],
        [*[BIG_LEAF] * 16, b""],
        [b""] * 16,
        [b""] * 3,
        [],
    ],
)
def test_refuses_nodes_that_no_honest_trie_holds(node: rlp.Encodable) -> None:
    raw = rlp.encode(node)
    with pytest.raises(InvalidEvidence) as caught:
        trie.lookup(trie.NodeSet([raw]), keccak256(raw), "a" * 64)
    # sixteen embedded leaves make a node that is too large to be one
    assert caught.value.code in {"proof.node.malformed", "proof.node.size"}


def test_a_turn_off_with_a_wrong_path_length_is_no_absence() -> None:
    raw = rlp.encode([b"\x20" + b"\xbb" * 31, b"v"])
    with pytest.raises(InvalidEvidence) as caught:
        trie.lookup(trie.NodeSet([raw]), keccak256(raw), "a" * 64)
    assert caught.value.code == "proof.node.malformed"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (rlp.encode([b"", b"", b"\x01" * 32]), "proof.rlp.invalid"),
        (rlp.encode([b"", b"", b"\x01" * 31, b"\x01" * 32]), "proof.rlp.invalid"),
        (b"\x01", "proof.rlp.invalid"),
    ],
)
def test_refuses_malformed_accounts(value: bytes, code: str) -> None:
    raw = rlp.encode([path_item(trie.secure_path(b"a" * 20), leaf=True), value])
    with pytest.raises(InvalidEvidence) as caught:
        State(trie.NodeSet([raw]), keccak256(raw)).account(b"a" * 20)
    assert caught.value.code == code


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=16, max_size=16), st.data())
def test_a_full_branch_is_read_as_rlp_alone_reads_it(hashes: list[bytes], data: st.DataObject) -> None:
    raw = bytearray(rlp.encode([*hashes, b""]))
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.sampled_from([0, 1, 2, 3, 4, 36, 498, 530, 531]))] = data.draw(st.integers(0, 255))
    node = bytes(raw)
    nodes = trie.NodeSet([node])
    try:
        expected = rlp.decode_list(node)
    except InvalidEvidence as error:
        with refuses(error.code):
            nodes.read(keccak256(node))
    else:
        assert nodes.read(keccak256(node)) == expected

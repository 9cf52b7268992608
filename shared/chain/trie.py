"""Merkle-Patricia proofs: what a state root says about a key, from a set of untrusted nodes.

A node is only ever found by its hash, starting at a root that is already trusted, so a node set cannot lie,
only be incomplete. The walk reads at most one node per nibble of the key. Both answers are proofs: a
value, or that the key is absent.
"""

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct

from shared.chain import rlp
from shared.errors import InvalidEvidence
from shared.keccak import keccak256

# A branch: sixteen 32-byte references with a prefix each, an empty value, and the list's own prefix. Secure
# tries have no value in a branch, and their leaves are smaller.
MAX_NODE_BYTES = 3 + 16 * 33 + 1
# A node shorter than a hash is embedded in its parent instead of being named by hash.
_EMBEDDED_BELOW = 32
_KEY_NIBBLES = 64

# A branch of sixteen hashes and no value: the prefix of the list, that of each hash, and the end.
_FULL_BRANCH, _SIXTEEN_HASHES, _EMPTY = b"\xf9\x02\x11", b"\xa0" * 16, 0x80
_HASHES = Struct("3x" + "x32s" * 16 + "x")

# Keccak-256 of the encoding of nothing: to compute it here would load a library on import.
EMPTY_ROOT = bytes.fromhex("56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421")


class NodeSet:
    """Untrusted trie nodes, found by hash; it remembers which were read, and what was looked up.

    One node counts once. Raises `InvalidEvidence`: `proof.node.size` for a node that no trie holds,
    `proof.node.duplicate` for one given twice.
    """

    def __init__(self, nodes: Iterable[bytes]) -> None:
        self.answers: dict[tuple[bytes, str], bytes | None] = {}  # of `lookup`, by root and path
        self._raw: dict[bytes, bytes] = {}
        self._read: dict[bytes, list[rlp.Item]] = {}
        for node in nodes:
            if not 0 < len(node) <= MAX_NODE_BYTES:
                raise InvalidEvidence(
                    "proof.node.size", f"a trie node has {len(node)} bytes, expected 1 to {MAX_NODE_BYTES}"
                )
            digest = _digest(node)
            if digest in self._raw:
                raise InvalidEvidence("proof.node.duplicate", f"trie node 0x{digest.hex()} is given twice")
            self._raw[digest] = node

    def read(self, digest: bytes) -> list[rlp.Item]:
        """Return the decoded node with this hash; raises `InvalidEvidence("proof.node.missing")`."""
        node = self._read.get(digest)
        if node is None:
            raw = self._raw.get(digest)
            if raw is None:
                raise InvalidEvidence("proof.node.missing", f"the proof lacks the trie node 0x{digest.hex()}")
            node = self._read[digest] = _decoded(raw)
        return node

    def used(self) -> tuple[bytes, ...]:
        """Return the nodes that were read so far, as bytes."""
        return tuple(self._raw[digest] for digest in self._read)

    def unused_count(self) -> int:
        """Return how many nodes were never read."""
        return len(self._raw) - len(self._read)


@lru_cache(maxsize=512)
def _decoded(raw: bytes) -> list[rlp.Item]:
    """Return what `rlp.decode_list` does, for nobody to change.

    A large trie's nodes are mostly full branches, which look alike. Bundles for the same blocks have most of
    their nodes in common.
    """
    if (
        len(raw) == MAX_NODE_BYTES
        and raw.startswith(_FULL_BRANCH)
        and raw[3:-1:33] == _SIXTEEN_HASHES
        and raw[-1] == _EMPTY
    ):
        return [*_HASHES.unpack(raw), b""]
    return rlp.decode_list(raw)


@lru_cache(maxsize=512)
def _digest(node: bytes) -> bytes:
    """Return a node's hash; bundles for the same blocks have most of their nodes in common."""
    return keccak256(node)


@lru_cache(maxsize=1024)
def secure_path(key: bytes) -> str:
    """Return the 64 nibbles, as hex digits, under which a secure trie files `key` (an address or a slot)."""
    return keccak256(key).hex()


def lookup(nodes: NodeSet, root: bytes, path: str) -> bytes | None:
    """Return the value at `path` (64 hex digits) below `root`, or None where the trie proves it absent.

    Raises `InvalidEvidence`: `proof.node.missing` for an incomplete proof, `proof.node.malformed` for a node
    that no honest trie of 32-byte keys holds.
    """
    if root == EMPTY_ROOT:
        return None
    question = root, path
    try:
        return nodes.answers[question]  # two views of a contract that did not change ask the same
    except KeyError:
        answer = nodes.answers[question] = _walk(nodes, root, path)
        return answer


def _walk(nodes: NodeSet, root: bytes, path: str) -> bytes | None:
    node = nodes.read(root)
    at = 0
    while True:
        child: rlp.Item
        if len(node) == 17:
            child, taken = _branch_child(node, path, at), 1
            if child == b"":
                return None
        elif len(node) == 2:
            is_leaf, part = _path_of(node, at)
            if not path.startswith(part, at):
                return None
            if is_leaf:
                return _leaf_value(node[1])
            child, taken = node[1], len(part)
        else:
            raise _malformed(f"a node has {len(node)} items, expected 2 or 17")
        at += taken
        node = _child(nodes, child)


def _branch_child(node: list[rlp.Item], path: str, at: int) -> rlp.Item:
    if node[16] != b"":
        raise _malformed("a branch holds a value, which a trie of equal-length keys never does")
    if at == _KEY_NIBBLES:
        raise _malformed("a branch lies below the end of the key")
    return node[int(path[at], 16)]


def _path_of(node: list[rlp.Item], at: int) -> tuple[bool, str]:
    """Return whether a two-item node is a leaf, and its part of the path.

    A leaf must end the key and an extension must leave some of it, also where the key turns off.
    """
    is_leaf, part = _compact_path(node[0])
    end = at + len(part)
    if end > _KEY_NIBBLES or is_leaf != (end == _KEY_NIBBLES):
        raise _malformed("a node's path does not fit the length of the key")
    if not part and not is_leaf:
        raise _malformed("an extension has an empty path")
    return is_leaf, part


def _child(nodes: NodeSet, child: rlp.Item) -> list[rlp.Item]:
    if isinstance(child, list):
        if len(rlp.encode(child)) >= _EMBEDDED_BELOW:
            raise _malformed("a node of 32 bytes or more is embedded instead of being named by hash")
        return child
    if len(child) != 32:
        raise _malformed(f"a reference to a node has {len(child)} bytes, expected 32")
    return nodes.read(child)


def _compact_path(item: rlp.Item) -> tuple[bool, str]:
    """Read a hex-prefix encoded path: whether it ends in a leaf, and its nibbles as hex digits."""
    if not isinstance(item, bytes) or not item:
        raise _malformed("a node's path is not a byte string")
    flag, digits = item[0] >> 4, item.hex()
    if flag > 3 or (not flag & 1 and digits[1] != "0"):
        raise _malformed(f"a node's path starts with 0x{digits[:2]}, which is no hex prefix")
    return flag >= 2, digits[1:] if flag & 1 else digits[2:]


def _leaf_value(item: rlp.Item) -> bytes:
    if not isinstance(item, bytes) or not item:
        raise _malformed("a leaf holds no value")
    return item


def _malformed(message: str) -> InvalidEvidence:
    return InvalidEvidence("proof.node.malformed", f"trie: {message}")

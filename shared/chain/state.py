"""Accounts and storage slots as one block's state root proves them."""

import msgspec

from shared.chain import rlp, trie

EMPTY_CODE_HASH = bytes.fromhex("c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470")
"""Keccak-256 of nothing: to compute it here would load a library on import."""


class Account(msgspec.Struct, frozen=True):
    """An account that exists: the root of its storage trie and the hash of its code, 32 bytes each."""

    storage_root: bytes
    code_hash: bytes

    @property
    def has_code(self) -> bool:
        """Whether `extcodesize` of the account is above zero."""
        return self.code_hash != EMPTY_CODE_HASH


class State:
    """The state below one root, read from untrusted nodes. Every method raises as `trie.lookup` does."""

    def __init__(self, nodes: trie.NodeSet, root: bytes) -> None:
        self._nodes = nodes
        self._root = root

    def account(self, address: bytes) -> Account | None:
        """Return the account at a 20-byte address, or None where the state proves that there is none."""
        raw = trie.lookup(self._nodes, self._root, trie.secure_path(address))
        if raw is None:
            return None
        items = rlp.decode_list(raw)
        # nonce, balance, storage root, code hash; some rollups append fields of their own
        if len(items) < 4:
            raise rlp.invalid(f"an account has {len(items)} fields, expected 4")
        return Account(
            storage_root=rlp.to_bytes(items[2], length=32, what="the storage root"),
            code_hash=rlp.to_bytes(items[3], length=32, what="the code hash"),
        )

    def slot(self, account: Account, slot: bytes) -> bytes:
        """Return the 32 bytes in a storage slot (32 bytes); a slot that is proven absent holds zero.

        A leaf that holds the empty string (some nodes keep them for zeroed slots) is zero too.
        """
        raw = trie.lookup(self._nodes, account.storage_root, trie.secure_path(slot))
        if raw is None:
            return bytes(32)
        return rlp.to_int(rlp.decode(raw), max_bytes=32, what="a storage value").to_bytes(32, "big")

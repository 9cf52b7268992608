"""The proof bundle: raw headers, trie nodes and bytecode that an untrusted function hands to the KMS.

Nothing in it says what it proves: everything is found by hash, from blocks that the KMS itself accepted. Each
piece must be needed, so a bundle has no byte that could change without a refusal.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeVar

import msgspec

from shared.chain.code import MAX_CODE_BYTES
from shared.chain.header import Header, parse_header
from shared.chain.trie import NodeSet
from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.keccak import keccak256

_T = TypeVar("_T")

# Two views, one header each.
MAX_HEADERS = 2
# Per view 4 accounts and about 15 slots; a large chain's account trie is 10 deep, a contract's below 8.
MAX_NODES = 512
# Two implementations per view, which an upgrade between the views makes four.
MAX_CODES = 4
# On the largest public chain two views come to about 55 KiB of nodes and 18 to 36 KiB of code.
MAX_BUNDLE_BYTES = 128 * 1024
# The same in MessagePack and base64: at most five bytes beside each piece, four characters for three bytes.
MAX_PACKED = (MAX_BUNDLE_BYTES + 5 * (MAX_HEADERS + MAX_NODES + MAX_CODES) + 64) * 4 // 3 + 4
# The same as hex in JSON, with the rest of an answer.
MAX_ANSWER_BYTES = 2 * MAX_BUNDLE_BYTES + 16 * 1024


class ProofBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Raw bytes: RLP headers, RLP trie nodes, runtime code. The order means nothing."""

    headers: tuple[bytes, ...]
    nodes: tuple[bytes, ...]
    codes: tuple[bytes, ...]

    def to_packed(self) -> str:
        """Return the text of a `proof` key that a key server of ours reads: base64 of MessagePack.

        It is a third shorter than `to_wire` and read in little more than a third of the time.
        """
        return b64encode(msgspec.msgpack.encode(self)).decode()

    def to_wire(self) -> dict[str, list[str]]:
        """Return the JSON object of the `proof` key: lists of 0x strings."""
        return {
            "headers": [f"0x{raw.hex()}" for raw in self.headers],
            "nodes": [f"0x{raw.hex()}" for raw in self.nodes],
            "codes": [f"0x{raw.hex()}" for raw in self.codes],
        }


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    headers: list[str]
    nodes: list[str]
    codes: list[str]


def bundle_from_wire(value: object) -> ProofBundle:
    """Read the decoded JSON of a `proof` key, in either form.

    Raises `InvalidEvidence`: `proof.bundle.malformed`, `proof.bundle.size`.
    """
    if isinstance(value, str):
        return _unpacked(value)
    try:
        wire = msgspec.convert(value, _Wire)
        _check_size(wire.headers, wire.nodes, wire.codes, scale=2)
        return ProofBundle(
            headers=tuple(decode_hex(text, what="a header of the proof") for text in wire.headers),
            nodes=tuple(decode_hex(text, what="a trie node of the proof") for text in wire.nodes),
            codes=tuple(decode_hex(text, what="a code of the proof") for text in wire.codes),
        )
    except msgspec.ValidationError as error:
        raise InvalidEvidence("proof.bundle.malformed", f"the proof is malformed: {error}") from error
    except ProtocolError as error:
        raise InvalidEvidence("proof.bundle.malformed", error.message) from error


def _unpacked(text: str) -> ProofBundle:
    if len(text) > MAX_PACKED:
        raise InvalidEvidence(
            "proof.bundle.size", f"the proof has {len(text)} characters, expected at most {MAX_PACKED}"
        )
    try:
        # msgspec reads base64 five times as fast as the standard library. It takes MessagePack in longer
        # forms too, where `shared.attestation.messagepack` is strict; here each piece has its own hash.
        return msgspec.msgpack.decode(msgspec.convert(text, bytes), type=ProofBundle)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidEvidence("proof.bundle.malformed", f"the proof is malformed: {error}") from error


class Witness:
    """A bundle indexed by hash, which remembers what was needed of it.

    Raises `InvalidEvidence("proof.bundle.size")`, `proof.bundle.duplicate` and what the pieces raise.
    """

    def __init__(self, bundle: ProofBundle) -> None:
        _check_size(bundle.headers, bundle.nodes, bundle.codes, scale=1)
        self.nodes = NodeSet(bundle.nodes)
        self._bundle = bundle
        parsed = [_header(raw) for raw in bundle.headers]
        self._headers = _indexed((header.hash, header) for header in parsed)
        self._codes = _indexed((_code_hash(raw), raw) for raw in bundle.codes)
        self._used: set[bytes] = set()

    def header(self, digest: bytes) -> Header:
        """Return the header with this hash; raises `InvalidEvidence("proof.header.mismatch")`."""
        header = self._headers.get(digest)
        if header is None:
            got = ", ".join(f"0x{other.hex()}" for other in self._headers) or "none"
            raise InvalidEvidence(
                "proof.header.mismatch", f"the proof's headers hash to {got}, expected 0x{digest.hex()}"
            )
        self._used.add(digest)
        return header

    def code(self, digest: bytes) -> bytes:
        """Return the code with this hash; raises `InvalidEvidence("proof.code.missing")`."""
        raw = self._codes.get(digest)
        if raw is None:
            raise InvalidEvidence("proof.code.missing", f"the proof lacks the code 0x{digest.hex()}")
        self._used.add(digest)
        return raw

    def needed(self) -> ProofBundle:
        """Return the bundle without what was not needed so far."""
        return ProofBundle(
            headers=_kept(self._bundle.headers, self._headers, self._used),
            nodes=self.nodes.used(),
            codes=_kept(self._bundle.codes, self._codes, self._used),
        )

    def check_all_used(self) -> None:
        """Refuse a bundle with anything that was not needed: `InvalidEvidence("proof.bundle.unused")`."""
        unused = self.nodes.unused_count() + len((self._headers.keys() | self._codes.keys()) - self._used)
        if unused:
            raise InvalidEvidence("proof.bundle.unused", f"{unused} pieces of the proof are not needed")


@lru_cache(maxsize=2 * MAX_HEADERS)
def _header(raw: bytes) -> Header:
    """Return what `parse_header` does; all bundles for the same blocks bring the same two."""
    return parse_header(raw)


@lru_cache(maxsize=MAX_CODES)
def _code_hash(raw: bytes) -> bytes:
    """Return the hash of a contract's code, which is the same in every bundle until an upgrade."""
    return keccak256(raw)


def _indexed(pieces: Iterable[tuple[bytes, _T]]) -> dict[bytes, _T]:
    index: dict[bytes, _T] = {}
    for digest, piece in pieces:
        if digest in index:
            raise InvalidEvidence("proof.bundle.duplicate", f"0x{digest.hex()} is in the proof twice")
        index[digest] = piece
    return index


def _kept(raws: Sequence[bytes], digests: Iterable[bytes], used: set[bytes]) -> tuple[bytes, ...]:
    return tuple(raw for raw, digest in zip(raws, digests, strict=True) if digest in used)


def _check_size(
    headers: Sequence[str | bytes], nodes: Sequence[str | bytes], codes: Sequence[str | bytes], *, scale: int
) -> None:
    """Refuse too many pieces, or too many bytes in all; `scale` is how many units stand for one byte."""
    for name, pieces, limit in (
        ("headers", headers, MAX_HEADERS),
        ("trie nodes", nodes, MAX_NODES),
        ("codes", codes, MAX_CODES),
    ):
        if len(pieces) > limit:
            raise InvalidEvidence(
                "proof.bundle.size", f"the proof has {len(pieces)} {name}, expected at most {limit}"
            )
    total = sum(sum(map(len, pieces)) for pieces in (headers, nodes, codes)) // scale
    if total > MAX_BUNDLE_BYTES:
        raise InvalidEvidence(
            "proof.bundle.size", f"the proof has {total} bytes, expected at most {MAX_BUNDLE_BYTES}"
        )
    if any(len(code) // scale > MAX_CODE_BYTES + 1 for code in codes):
        raise InvalidEvidence(
            "proof.bundle.size", f"a code of the proof has more than {MAX_CODE_BYTES} bytes"
        )

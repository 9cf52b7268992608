"""Gathers a proof bundle from one RPC provider: two round trips, and two more where a proof does not hold.

The provider is believed nothing: what it answers is walked exactly as the KMS will walk it, and only what was
needed goes into the bundle. So a bundle that leaves here is complete and has nothing to spare.
"""

from collections.abc import Sequence
from itertools import chain

import msgspec

from shared.boot_info import BootInfo
from shared.chain import slots
from shared.chain.bundle import ProofBundle, Witness
from shared.chain.facts import Question, app_slots, dynamic_slots, kms_slots, read_views
from shared.chain.header import encode_header, parse_header
from shared.chain.state import State
from shared.chain.trie import NodeSet
from shared.errors import DstackError, InvalidEvidence, ProtocolError, UnavailableError
from shared.net.json_rpc import Call, Endpoint, data, fields

# The deepest tries are about 10 nodes; an answer with more nodes than this is not an honest proof.
_MAX_PROOF_NODES = 64
# What the proven state itself can be guilty of; everything else is the provider's doing.
_FACTS = ("proof.kms.absent", "proof.slot.malformed", "proof.string.size", "proof.string.encoding")


class ProofRequest(msgspec.Struct, frozen=True):
    """What is to be proven: a question of `kind` about `boot_info`; with neither, the contract's facts.

    The kinds `signer` and `roots` ask for one key in `kmsInfo` or both, and have no `boot_info`.
    """

    kind: Question | None = None
    boot_info: BootInfo | None = None


class _Raw:
    """Headers, nodes and codes as they come in, each once."""

    def __init__(self) -> None:
        self.headers: dict[bytes, None] = {}
        self.nodes: dict[bytes, None] = {}
        self.codes: dict[bytes, None] = {}

    def add_proof(self, value: object) -> None:
        proof = fields(value, what="an answer to eth_getProof")
        self._add_nodes(proof.get("accountProof"))
        storage = proof.get("storageProof")
        if not isinstance(storage, list):
            raise ProtocolError("rpc.malformed", "an answer to eth_getProof has no list of storage proofs")
        for item in storage:
            self._add_nodes(fields(item, what="a storage proof").get("proof"))

    def _add_nodes(self, value: object) -> None:
        if not isinstance(value, list) or len(value) > _MAX_PROOF_NODES:
            raise ProtocolError("rpc.malformed", f"a proof is no list of at most {_MAX_PROOF_NODES} nodes")
        for node in value:
            raw = data(node, what="a trie node")
            if len(raw) > 1:  # an empty trie is sent as nothing or as 0x80, and needs no node
                self.nodes[raw] = None


class ProofSource:
    """Proofs about the KMS contract at `kms_contract` (20 bytes), from `endpoint`."""

    def __init__(self, endpoint: Endpoint, kms_contract: bytes) -> None:
        self._endpoint = endpoint
        self._kms = kms_contract

    def gather(self, request: ProofRequest, finalized: bytes, head: bytes) -> ProofBundle:
        """Return a bundle that answers `request` at two blocks, named by their 32-byte hashes.

        Raises as `gather_with` does.
        """
        return self.gather_with((request,), finalized, head, ())[0]

    def gather_with(
        self, requests: Sequence[ProofRequest], finalized: bytes, head: bytes, calls: Sequence[Call]
    ) -> tuple[ProofBundle, list[object]]:
        """Return one bundle for all `requests`, and the results of `calls`, which go along in the first trip.

        A proof that does not hold is asked for once more: a node that is just taking in a block may mix it
        into the one before, and behind one provider stand many nodes, some of which lag.

        Raises `UnavailableError("proof.provider.cannot_prove")` where the provider does not serve proofs of
        one of the blocks (many keep only the newest); `InvalidEvidence` for what the proven state is guilty
        of itself (`proof.kms.absent`, `proof.string.*`); and what the endpoint raises.
        """
        try:
            return self._gather(requests, finalized, head, calls)
        except UnavailableError as error:
            if error.code != "proof.provider.cannot_prove":
                raise
        return self._gather(requests, finalized, head, calls)

    def _gather(
        self, requests: Sequence[ProofRequest], finalized: bytes, head: bytes, calls: Sequence[Call]
    ) -> tuple[ProofBundle, list[object]]:
        blocks = tuple(dict.fromkeys((finalized, head)))
        raw = _Raw()
        try:
            results = self._first_round(requests, blocks, raw, calls)
            self._second_round(requests, blocks, raw)
            return self._needed(requests, blocks, raw), results
        except InvalidEvidence as error:
            if error.code in _FACTS:
                raise
            raise self._cannot_prove(error) from error
        except ProtocolError as error:
            raise self._cannot_prove(error) from error
        except UnavailableError as error:
            # one of the caller's calls may have reverted, which no proof does
            if error.code not in {"rpc.error", "rpc.reverted"} or (calls and error.code == "rpc.reverted"):
                raise
            raise self._cannot_prove(error) from error

    def _first_round(
        self, requests: Sequence[ProofRequest], blocks: Sequence[bytes], raw: _Raw, others: Sequence[Call]
    ) -> list[object]:
        """Fetch the headers, and all proxies with every slot whose key is known; answer the `others`."""
        keys_of: dict[bytes, dict[bytes, None]] = {self._kms: {}}
        for request in requests:
            keys_of[self._kms] |= dict.fromkeys(kms_slots(request.kind, request.boot_info))
        for app in _apps(requests):
            keys_of.setdefault(app.app_id, {}).update(dict.fromkeys(app_slots(app)))
        targets = [(address, tuple(keys)) for address, keys in keys_of.items()]
        calls: list[Call] = list(others)
        for block in blocks:
            calls.append(("eth_getBlockByHash", [_hex(block), False]))
            calls += [_proof_call(address, keys, block) for address, keys in targets]
        answers = self._endpoint.batch(calls)
        results, answers = answers[: len(others)], answers[len(others) :]
        size = 1 + len(targets)
        for index, block in enumerate(blocks):
            header, *proofs = answers[index * size : (index + 1) * size]
            raw.headers[encode_header(fields(header, what="a block"), block)] = None
            for proof in proofs:
                raw.add_proof(proof)
        return results

    def _second_round(self, requests: Sequence[ProofRequest], blocks: Sequence[bytes], raw: _Raw) -> None:
        """Fetch what the proven slots point at: implementations, their code, the tail of a long string."""
        proxies = dict.fromkeys((self._kms, *(app.app_id for app in _apps(requests))))
        dynamic = tuple(dict.fromkeys(chain.from_iterable(dynamic_slots(one.kind) for one in requests)))
        proofs: dict[tuple[bytes, tuple[bytes, ...], bytes], None] = {}
        codes: dict[bytes, bytes] = {}
        nodes = NodeSet(raw.nodes)
        for block, header in zip(blocks, raw.headers, strict=True):
            state = State(nodes, parse_header(header).state_root)
            for proxy in proxies:
                implementation, more = self._pointers(dynamic, state, proxy)
                if implementation is not None:
                    proofs[implementation, (), block] = None
                    codes[implementation] = block
                if more:
                    proofs[proxy, more, block] = None
        calls = [_proof_call(*proof) for proof in proofs]
        calls += [("eth_getCode", [_hex(address), {"blockHash": _hex(at)}]) for address, at in codes.items()]
        answers = self._endpoint.batch(calls) if calls else []
        for answer in answers[: len(proofs)]:
            raw.add_proof(answer)
        for answer in answers[len(proofs) :]:
            raw.codes[data(answer, what="a contract's code")] = None

    def _pointers(
        self, dynamic: Sequence[bytes], state: State, proxy: bytes
    ) -> tuple[bytes | None, tuple[bytes, ...]]:
        """Return where a proxy delegates to, and for the KMS the further slots of its `dynamic` ones."""
        account = state.account(proxy)
        if account is None:
            return None, ()
        word = state.slot(account, slots.ERC1967_IMPLEMENTATION)
        implementation = word[12:] if any(word) and not any(word[:12]) else None
        if proxy != self._kms:
            return implementation, ()
        more = (slots.string_slots(state.slot(account, slot), slot) for slot in dynamic)
        return implementation, tuple(chain.from_iterable(more))

    def _needed(self, requests: Sequence[ProofRequest], blocks: Sequence[bytes], raw: _Raw) -> ProofBundle:
        """Walk the views as the KMS will, and keep what that needed."""
        witness = Witness(ProofBundle(tuple(raw.headers), tuple(raw.nodes), tuple(raw.codes)))
        questions = tuple((one.kind, one.boot_info) for one in requests)
        for block in blocks:
            root = witness.header(block).state_root
            read_views(witness, root, kms_contract=self._kms, questions=questions)
        return witness.needed()

    def _cannot_prove(self, error: DstackError) -> UnavailableError:
        return UnavailableError(
            "proof.provider.cannot_prove",
            f"{self._endpoint.host} did not prove the state that was asked for: {error.message}",
        )


def _apps(requests: Sequence[ProofRequest]) -> list[BootInfo]:
    return [one.boot_info for one in requests if one.kind == "app" and one.boot_info is not None]


def _proof_call(address: bytes, keys: Sequence[bytes], block: bytes) -> Call:
    return ("eth_getProof", [_hex(address), [_hex(key) for key in keys], {"blockHash": _hex(block)}])


def _hex(raw: bytes) -> str:
    return f"0x{raw.hex()}"

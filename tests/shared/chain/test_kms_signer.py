"""`kmsInfo.k256Pubkey`, proven: which key signs for a KMS, in both views, against providers that lie."""

from collections.abc import Sequence
from typing import Any

import pytest

from shared.chain import slots
from shared.chain.bundle import ProofBundle
from shared.chain.code import CodeList
from shared.chain.decision import KmsSigner, contract_facts, kms_signer
from shared.chain.known_builds import KNOWN_BUILDS
from shared.errors import DstackError, PolicyDenied, UnavailableError
from shared.keccak import keccak256
from shared.net.json_rpc import data, fields
from shared.net.proof_source import ProofRequest, ProofSource
from tests.shared.chain.world import Evidence, Relay, World
from tests.shared.refusal import refuses

KEY, NEXT_KEY = b"\x02" + b"k" * 32, b"\x03" + b"n" * 32


@pytest.fixture(scope="module")
def published(mining_chain: Any) -> World:
    """A world whose contract publishes a key; tests only read it."""
    world = World(mining_chain)
    publish(world, KEY)
    world.finalize()
    return world


def publish(world: World, key: bytes) -> None:
    world.owner.settle(world.owner.set_kms_info(k256_pubkey=key, ca_pubkey=b"c" * 91, quote=b"q" * 64))


def evidence(world: World, source: ProofSource | None = None) -> Evidence:
    if source is None:
        return world.evidence("signer", None)
    finalized, head = world.blocks()
    bundle = source.gather(ProofRequest("signer"), finalized.hash, head.hash)
    return Evidence(bundle, finalized, head, world.evidence("signer", None).now)


def prove(world: World, shown: Evidence, **changes: Any) -> KmsSigner:
    values: dict[str, Any] = {
        "chain": world.policy(),
        "finalized": shown.finalized,
        "head": shown.head,
        "now": shown.now,
    }
    return kms_signer(shown.bundle, **values | changes)


def test_proves_the_key_that_the_contract_publishes(published: World) -> None:
    shown = evidence(published)
    proven = prove(published, shown)
    assert proven == KmsSigner(KEY, shown.finalized.number, proven.expires_at)
    assert shown.now < proven.expires_at <= shown.now + 60
    assert bytes(published.owner.kms.functions.kmsInfo().call()[0]) == KEY


def test_the_slots_are_those_of_the_contract(published: World) -> None:
    address = f"0x{published.kms.hex()}"

    def stored(slot: bytes) -> bytes:
        word = published.rpc.call("eth_getStorageAt", [address, f"0x{slot.hex()}", "latest"])
        return data(word, what="a word", length=32)

    first = int.from_bytes(keccak256(slots.KMS_K256_PUBKEY), "big")
    assert stored(slots.KMS_K256_PUBKEY) == slots.fixed(2 * 33 + 1)
    assert stored(slots.fixed(first)) + stored(slots.fixed(first + 1)) == KEY.ljust(64, b"\0")


def test_takes_two_round_trips(published: World) -> None:
    relay = Relay(published)
    finalized, head = published.blocks()
    ProofSource(relay, published.kms).gather(ProofRequest("signer"), finalized.hash, head.hash)
    assert relay.batches == 2


def test_other_questions_carry_no_node_for_it(published: World) -> None:
    with refuses("proof.node.missing"):
        prove(published, published.evidence(None, None))
    shown = evidence(published)
    with refuses("proof.bundle.unused"):
        contract_facts(
            shown.bundle,
            chain=published.policy(),
            finalized=shown.finalized,
            head=shown.head,
            now=shown.now,
        )


def test_a_new_key_counts_when_it_is_final_and_the_old_one_no_longer_at_once(own_world: World) -> None:
    with refuses("proof.signer.unset", PolicyDenied):
        prove(own_world, evidence(own_world))
    publish(own_world, KEY)
    with refuses("proof.signer.unsettled", PolicyDenied):
        prove(own_world, evidence(own_world))
    own_world.finalize()
    assert prove(own_world, evidence(own_world)).k256_pubkey == KEY
    publish(own_world, NEXT_KEY)
    with refuses("proof.signer.unsettled", PolicyDenied):
        prove(own_world, evidence(own_world))
    own_world.finalize()
    assert prove(own_world, evidence(own_world)).k256_pubkey == NEXT_KEY


@pytest.mark.parametrize(
    "key", [b"\x04" + b"k" * 64, b"k" * 31, b"\x02" + b"k" * 31, b"\x00" + b"k" * 32, b"\x02" + b"k" * 63]
)
def test_refuses_what_is_no_compressed_key(own_world: World, key: bytes) -> None:
    publish(own_world, key)
    own_world.finalize()
    with refuses("proof.signer.malformed", PolicyDenied):
        prove(own_world, evidence(own_world))


def test_n03_refuses_a_key_of_any_length(own_world: World) -> None:
    publish(own_world, b"k" * 257)
    own_world.finalize()
    with refuses("proof.string.size"):
        evidence(own_world)


def test_refuses_another_contract(published: World) -> None:
    """An address that nobody has may be proven absent by the same nodes; these two have contracts."""
    shown = evidence(published)
    for other in (published.app_implementation, published.kms_implementation):
        with refuses("proof.node.missing"):
            prove(published, shown, chain=published.policy(kms_contract=other))


def test_refuses_unknown_code(published: World) -> None:
    without = CodeList(build for build in KNOWN_BUILDS if build.contract != "DstackKms")
    with refuses("proof.code.unknown"):
        prove(published, evidence(published), chain=published.policy(codes=without))


def test_refuses_old_blocks(published: World) -> None:
    shown = evidence(published)
    with refuses("proof.header.stale"):
        prove(published, shown, now=shown.now + 10_000)
    with refuses("proof.header.future"):
        prove(published, shown, now=shown.now - 10_000)


def test_every_piece_of_the_proof_counts(published: World) -> None:
    shown = evidence(published)
    parts = shown.bundle
    for field in ("headers", "nodes", "codes"):
        pieces = getattr(parts, field)
        for index in range(len(pieces)):
            rest = pieces[:index] + pieces[index + 1 :]
            flipped = (*rest, pieces[index][:-1] + bytes([pieces[index][-1] ^ 1]))
            for bad in (rest, flipped):
                values = {"headers": parts.headers, "nodes": parts.nodes, "codes": parts.codes} | {field: bad}
                with pytest.raises(DstackError):
                    prove(published, Evidence(ProofBundle(**values), shown.finalized, shown.head, shown.now))


class OtherKey(Relay):
    """Proves the state of another contract's storage under the right name."""

    def __init__(self, world: World, other: World) -> None:
        super().__init__(world)
        self._pair = (f"0x{world.kms.hex()}", f"0x{other.kms.hex()}")

    def spoil(self, method: str, params: Sequence[object], result: object) -> object:
        ours, other = self._pair
        if method != "eth_getProof" or params[0] != ours:
            return result
        lie = fields(self._rpc.batch([(method, [other, *params[1:]])])[0], what="proof")
        return {**fields(result, what="proof"), "storageProof": lie["storageProof"]}


def test_a_provider_cannot_put_its_own_key_in_the_contracts_place(published: World, own_world: World) -> None:
    publish(own_world, NEXT_KEY)
    own_world.finalize()
    source = ProofSource(OtherKey(published, own_world), published.kms)
    with refuses("proof.provider.cannot_prove", UnavailableError):
        evidence(published, source)

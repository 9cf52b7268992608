"""Gathering proofs: few round trips, nothing to spare, and a provider that cannot prove is named."""

from collections.abc import Sequence

import msgspec
import pytest

from shared.errors import DstackError, InvalidEvidence, UnavailableError
from shared.net.json_rpc import Call
from shared.net.proof_source import ProofRequest, ProofSource
from tests.shared.chain.world import Evidence, Relay, World


def source(world: World, relay: Relay) -> ProofSource:
    return ProofSource(relay, world.kms)


def test_takes_two_round_trips(own_world: World) -> None:
    relay = Relay(own_world)
    finalized, head = own_world.blocks()
    source(own_world, relay).gather(ProofRequest("app", own_world.boot()), finalized.hash, head.hash)
    assert relay.batches == 2


def test_takes_two_round_trips_for_several_requests(own_world: World) -> None:
    relay, boot_info = Relay(own_world), own_world.boot()
    finalized, head = own_world.blocks()
    requests = [ProofRequest("kms", boot_info), ProofRequest("app", boot_info)]
    source(own_world, relay).gather_with(requests, finalized.hash, head.hash, ())
    assert relay.batches == 2


def test_a_bundle_for_several_requests_has_each_piece_once(own_world: World) -> None:
    boot_info, blocks = own_world.boot(), own_world.blocks()
    requests = [ProofRequest("kms", boot_info), ProofRequest("app", boot_info)]
    names = [block.hash for block in blocks]
    both, _ = ProofSource(own_world.rpc, own_world.kms).gather_with(requests, *names, ())
    alone = [own_world.evidence(kind, boot_info, blocks=blocks).bundle for kind in ("kms", "app")]
    for name in ("headers", "nodes", "codes"):
        pieces: tuple[bytes, ...] = getattr(both, name)
        assert sorted(pieces) == sorted({piece for one in alone for piece in getattr(one, name)})


def test_a_gathered_bundle_decides(own_world: World) -> None:
    assert own_world.decide("app", own_world.boot()).is_allowed
    assert own_world.decide("kms", own_world.boot()).is_allowed


class Refusing(Relay):
    """Serves proofs of no block, as a pruned node does for an old one."""

    def batch(self, calls: Sequence[Call]) -> list[object]:
        if any(method == "eth_getProof" for method, _ in calls):
            raise UnavailableError("rpc.error", "distance to target block exceeds maximum proof window")
        return super().batch(calls)


class Lying(Relay):
    """Answers one method with something else."""

    method = ""
    lie: object = None

    def spoil(self, method: str, params: Sequence[object], result: object) -> object:
        del params
        return self.lie if method == self.method else result


class Lagging(Relay):
    """Does not know the newest blocks when it is first asked, as one of the many nodes behind a provider."""

    def batch(self, calls: Sequence[Call]) -> list[object]:
        answers = super().batch(calls)
        return answers if self.batches > 1 else [None] * len(calls)


def test_a_proof_that_does_not_hold_is_asked_for_once_more(own_world: World) -> None:
    relay, boot_info = Lagging(own_world), own_world.boot()
    finalized, head = own_world.blocks()
    bundle = source(own_world, relay).gather(ProofRequest("app", boot_info), finalized.hash, head.hash)
    assert bundle == own_world.evidence("app", boot_info, blocks=(finalized, head)).bundle
    assert relay.batches == 3


def refusal(world: World, relay: Relay) -> DstackError:
    finalized, head = world.blocks()
    with pytest.raises(DstackError) as caught:
        source(world, relay).gather(ProofRequest("app", world.boot()), finalized.hash, head.hash)
    return caught.value


def test_a_provider_that_cannot_prove_has_its_own_code(own_world: World) -> None:
    error = refusal(own_world, Refusing(own_world))
    assert error.code == "proof.provider.cannot_prove"
    assert "maximum proof window" in error.message


@pytest.mark.parametrize(
    ("method", "lie"),
    [
        ("eth_getProof", None),
        ("eth_getProof", {}),
        ("eth_getProof", {"accountProof": [], "storageProof": []}),
        ("eth_getProof", {"accountProof": ["0x00zz"], "storageProof": []}),
        ("eth_getProof", {"accountProof": [], "storageProof": {}}),
        ("eth_getProof", {"accountProof": ["0xc0c0"] * 65, "storageProof": []}),
        ("eth_getProof", {"accountProof": ["0x" + "c0" * 533], "storageProof": []}),
        ("eth_getBlockByHash", None),
        ("eth_getBlockByHash", {}),
        ("eth_getBlockByHash", {"parentHash": 1}),
        ("eth_getCode", None),
        ("eth_getCode", "0x"),
        ("eth_getCode", "0x60"),
    ],
)
def test_a_provider_that_lies_is_noticed_here(own_world: World, method: str, lie: object) -> None:
    relay = Lying(own_world)
    relay.method, relay.lie = method, lie
    assert refusal(own_world, relay).code == "proof.provider.cannot_prove"


class Down(Relay):
    def batch(self, calls: Sequence[Call]) -> list[object]:
        raise UnavailableError("net.timeout", f"{len(calls)} calls, no answer")


def test_n57_a_dead_provider_keeps_its_own_code(own_world: World) -> None:
    assert refusal(own_world, Down(own_world)).code == "net.timeout"


class Padding(Relay):
    """Adds nodes that belong to nothing."""

    def spoil(self, method: str, params: Sequence[object], result: object) -> object:
        del params
        if method != "eth_getProof" or not isinstance(result, dict):
            return result
        return {**result, "accountProof": [*result["accountProof"], "0xc88363617483646f67", "0x80"]}


def test_leaves_out_what_is_not_needed(own_world: World) -> None:
    evidence = own_world.evidence("app", own_world.boot())
    padded = source(own_world, Padding(own_world)).gather(
        ProofRequest("app", own_world.boot()), evidence.finalized.hash, evidence.head.hash
    )
    shown: Evidence = msgspec.structs.replace(evidence, bundle=padded)
    assert own_world.decide("app", own_world.boot(), shown).is_allowed


def test_a_contract_that_is_not_there_is_a_fact_not_a_failure(own_world: World) -> None:
    finalized, head = own_world.blocks()
    with pytest.raises(InvalidEvidence) as caught:
        ProofSource(own_world.rpc, b"\x01" * 20).gather(ProofRequest(), finalized.hash, head.hash)
    assert caught.value.code == "proof.kms.absent"


def test_an_unknown_block_cannot_be_proven(own_world: World) -> None:
    with pytest.raises(UnavailableError) as caught:
        ProofSource(own_world.rpc, own_world.kms).gather(ProofRequest(), b"\x01" * 32, b"\x02" * 32)
    assert caught.value.code == "proof.provider.cannot_prove"

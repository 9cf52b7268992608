"""`kmsInfo`'s two keys, proven together: whose root keys a new KMS must be handed."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.chain import slots
from shared.chain.bundle import ProofBundle
from shared.chain.decision import KmsRoots, contract_facts, kms_roots, kms_signer
from shared.errors import DstackError, PolicyDenied
from shared.keccak import keccak256
from shared.net.json_rpc import data
from shared.net.proof_source import ProofRequest, ProofSource
from tests.shared.chain.world import Evidence, Relay, World
from tests.shared.refusal import refuses

KEY, NEXT_KEY = b"\x02" + b"k" * 32, b"\x03" + b"n" * 32


def spki(curve: ec.EllipticCurve, scalar: int = 5) -> bytes:
    key = ec.derive_private_key(scalar, curve).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


CA, NEXT_CA = spki(ec.SECP256R1()), spki(ec.SECP256R1(), 6)


@pytest.fixture(scope="module")
def published(mining_chain: Any) -> World:
    """A world whose contract publishes both keys; tests only read it."""
    world = World(mining_chain)
    publish(world, KEY, CA)
    world.finalize()
    return world


def publish(world: World, k256: bytes, ca: bytes) -> None:
    world.owner.settle(world.owner.set_kms_info(k256_pubkey=k256, ca_pubkey=ca, quote=b"q" * 64))


def prove(world: World, shown: Evidence | None = None, asked: Any = kms_roots, **changes: Any) -> KmsRoots:
    shown = shown or world.evidence("roots", None)
    values = {"chain": world.policy(), "finalized": shown.finalized, "head": shown.head, "now": shown.now}
    return asked(shown.bundle, **values | changes)


def test_proves_both_keys_that_the_contract_publishes(published: World) -> None:
    shown = published.evidence("roots", None)
    proven = prove(published, shown)
    assert proven == KmsRoots(CA, KEY, shown.finalized.number, proven.expires_at)
    assert shown.now < proven.expires_at <= shown.now + 60
    assert [bytes(one) for one in published.owner.kms.functions.kmsInfo().call()[:2]] == [KEY, CA]


def test_the_slots_are_those_of_the_contract(published: World) -> None:
    address = f"0x{published.kms.hex()}"
    first = int.from_bytes(keccak256(slots.KMS_CA_PUBKEY), "big")

    def stored(slot: bytes) -> bytes:
        word = published.rpc.call("eth_getStorageAt", [address, f"0x{slot.hex()}", "latest"])
        return data(word, what="a word", length=32)

    assert stored(slots.KMS_CA_PUBKEY) == slots.fixed(2 * 91 + 1)
    assert b"".join(stored(slots.fixed(first + part)) for part in range(3)) == CA.ljust(96, b"\0")


def test_takes_two_round_trips(published: World) -> None:
    relay = Relay(published)
    finalized, head = published.blocks()
    ProofSource(relay, published.kms).gather(ProofRequest("roots"), finalized.hash, head.hash)
    assert relay.batches == 2


def test_no_question_takes_anothers_bundle(published: World) -> None:
    with refuses("proof.node.missing"):
        prove(published, published.evidence("signer", None))
    for asked in (kms_signer, contract_facts):
        with refuses("proof.bundle.unused"):
            prove(published, published.evidence("roots", None), asked)


def test_what_the_contract_does_not_publish_is_none(own_world: World) -> None:
    proven = prove(own_world)
    assert (proven.ca_pubkey, proven.k256_pubkey) == (None, None)
    publish(own_world, KEY, b"")
    own_world.finalize()
    assert prove(own_world).ca_pubkey is None
    assert prove(own_world).k256_pubkey == KEY
    publish(own_world, b"", CA)
    own_world.finalize()
    assert prove(own_world).ca_pubkey == CA
    assert prove(own_world).k256_pubkey is None


def test_a_new_key_counts_when_it_is_final_and_the_old_one_no_longer_at_once(own_world: World) -> None:
    publish(own_world, KEY, CA)
    with refuses("proof.root_ca.unsettled", PolicyDenied):
        prove(own_world)
    own_world.finalize()
    publish(own_world, KEY, NEXT_CA)
    with refuses("proof.root_ca.unsettled", PolicyDenied):
        prove(own_world)
    own_world.finalize()
    assert prove(own_world).ca_pubkey == NEXT_CA
    publish(own_world, NEXT_KEY, NEXT_CA)
    with refuses("proof.signer.unsettled", PolicyDenied):
        prove(own_world)


@pytest.mark.parametrize(
    "ca",
    [
        b"c" * 91,
        CA[:-1],
        CA + b"\0",
        CA[:-1] + bytes([CA[-1] ^ 1]),  # no point of the curve
        CA[:27] + b"\xff" * 64,
        CA[:26] + b"\x05" + CA[27:],
        spki(ec.SECP256K1()),
        spki(ec.SECP384R1()),
        CA[-65:],
        bytes(91),
        b"\x01",
    ],
)
def test_refuses_what_is_no_p256_key(own_world: World, ca: bytes) -> None:
    publish(own_world, KEY, ca)
    own_world.finalize()
    with refuses("proof.root_ca.malformed", PolicyDenied):
        prove(own_world)


def test_refuses_a_k256_key_that_is_none(own_world: World) -> None:
    publish(own_world, b"k" * 33, CA)
    own_world.finalize()
    with refuses("proof.signer.malformed", PolicyDenied):
        prove(own_world)


def test_n03_refuses_a_key_of_any_length(own_world: World) -> None:
    publish(own_world, KEY, b"c" * 257)
    own_world.finalize()
    with refuses("proof.string.size"):
        own_world.evidence("roots", None)


def test_the_signer_can_be_proven_whatever_stands_for_the_ca(own_world: World) -> None:
    publish(own_world, KEY, b"c" * 257)
    own_world.finalize()
    assert prove(own_world, own_world.evidence("signer", None), kms_signer).k256_pubkey == KEY


def test_refuses_old_blocks(published: World) -> None:
    shown = published.evidence("roots", None)
    with refuses("proof.header.stale"):
        prove(published, shown, now=shown.now + 10_000)


def test_every_piece_of_the_proof_counts(published: World) -> None:
    shown = published.evidence("roots", None)
    parts = {name: getattr(shown.bundle, name) for name in ("headers", "nodes", "codes")}
    for field, pieces in parts.items():
        for index, piece in enumerate(pieces):
            rest = pieces[:index] + pieces[index + 1 :]
            for bad in (rest, (*rest, piece[:-1] + bytes([piece[-1] ^ 1]))):
                bundle = ProofBundle(**parts | {field: bad})
                with pytest.raises(DstackError):
                    prove(published, Evidence(bundle, shown.finalized, shown.head, shown.now))

"""`kmsInfo`'s keys as the KMS itself proves it, from a real chain, through endpoints that fail."""

from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cli.devchain.launcher import start_chain
from enclave.kms.authorization import DevAuthorizer, ProofAuthorizer
from enclave.kms.config import Proof
from enclave.kms.onboarding import RootPins, proven_pins
from shared.errors import PolicyDenied, UnavailableError
from shared.net.json_rpc import Call, fields, quantity
from shared.net.proof_source import ProofSource
from shared.ratls.certificates import spki_der
from tests.conftest import CHAIN_ENGINE
from tests.shared.chain.world import World
from tests.shared.refusal import refuses

KEY = b"\x02" + b"k" * 32
CA = spki_der(ec.derive_private_key(5, ec.SECP256R1()).public_key())


class Dead:
    """An endpoint that never answers."""

    host = "dead.example"
    secure = True

    def batch(self, _calls: list[Call]) -> list[object]:
        raise UnavailableError("net.timeout", "no answer in time")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with start_chain(CHAIN_ENGINE, block_time=0) as chain:
        yield World(chain)


@pytest.fixture
def authorizer(world: World) -> Callable[..., ProofAuthorizer]:
    settings = Proof(
        url="https://authorize.example",
        chain_id=31337,
        kms_contract=f"0x{world.kms.hex()}",
        rpc_urls=("https://a.example",),
    )

    def now() -> int:
        head = fields(world.rpc.call("eth_getBlockByNumber", ["latest", False]), what="block")
        return quantity(head["timestamp"], what="timestamp")

    def make(*endpoints: object) -> ProofAuthorizer:
        sources = [ProofSource(endpoint, world.kms) for endpoint in endpoints]  # type: ignore[arg-type]
        return ProofAuthorizer(settings, world.policy(), world, None, now, sources=sources)  # type: ignore[arg-type]

    return make


def test_proves_what_the_contract_publishes_and_knows_when_it_publishes_nothing(authorizer, world) -> None:
    prover = authorizer(Dead(), world.rpc)
    assert proven_pins(prover) == RootPins()
    world.owner.settle(world.owner.set_kms_info(k256_pubkey=KEY, ca_pubkey=CA))
    with refuses("proof.root_ca.unsettled", PolicyDenied):
        proven_pins(prover)
    world.finalize()
    assert proven_pins(prover) == RootPins(ca_pubkey=CA, k256_pubkey=KEY)


@pytest.mark.parametrize("endpoints", [(), (Dead(),)])
def test_without_a_proof_nothing_is_taken_for_unset(authorizer, endpoints: tuple[object, ...]) -> None:
    with refuses("auth.proof.sources", UnavailableError):
        proven_pins(authorizer(*endpoints))


def test_a_mode_that_proves_nothing_names_nothing() -> None:
    assert proven_pins(DevAuthorizer("any")) == RootPins()

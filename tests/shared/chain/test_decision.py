"""The whole decision on a real chain: both views, freshness, known code, and what no contract can allow."""

from collections.abc import Sequence
from typing import Any

import pytest

from cli.devchain.launcher import Chain
from shared.boot_info import BootInfo
from shared.chain.decision import Decision, Subject, contract_facts, decide_all
from shared.chain.facts import Kind
from shared.chain.header import BlockRef, parse_header
from shared.chain.rules import treat_nitro_as_up_to_date
from shared.errors import InvalidEvidence, PolicyDenied
from shared.net.proof_source import ProofRequest, ProofSource
from tests.shared.chain.world import COMPOSE, DEVICE, GATEWAY, OS_IMAGE, World
from tests.shared.refusal import refuses


def test_allows_what_both_views_allow(world: World) -> None:
    decision = world.decide("app", world.boot())
    assert (decision.is_allowed, decision.reason) == (True, "")


def test_allows_a_listed_kms(world: World) -> None:
    decision = world.decide("kms", world.boot())
    assert (decision.is_allowed, decision.reason) == (True, "")


def together(world: World, *subjects: Subject, gathered: Sequence[Subject] = ()) -> list[Decision]:
    """Decide about several at once, from a bundle that is for them unless it is for others."""
    finalized, head = world.blocks()
    requests = [ProofRequest(one.kind, one.boot_info) for one in gathered or subjects]
    bundle, _ = ProofSource(world.rpc, world.kms).gather_with(requests, finalized.hash, head.hash, ())
    now = max(parse_header(raw).timestamp for raw in bundle.headers)
    return decide_all(
        bundle, subjects=subjects, chain=world.policy(), finalized=finalized, head=head, now=now
    )


@pytest.mark.parametrize("changes", [{}, {"os_image_hash": b"x" * 32}, {"device_id": b"x" * 32}])
def test_decides_about_several_as_about_each(world: World, changes: dict[str, Any]) -> None:
    own, app = Subject("kms", world.boot()), Subject("app", world.boot(**changes))
    expected = [world.decide(one.kind, one.boot_info) for one in (own, app)]
    assert together(world, own, app) == expected


def test_a_bundle_for_several_supports_no_single_decision(world: World) -> None:
    own, app = Subject("kms", world.boot(mr_aggregated=b"x" * 32)), Subject("app", world.boot())
    with refuses("proof.bundle.unused"):
        together(world, app, gathered=(own, app))


def test_a_bundle_for_one_does_not_decide_about_another(world: World) -> None:
    own, app = Subject("kms", world.boot()), Subject("app", world.boot())
    with refuses("proof.node.missing"):
        together(world, own, app, gathered=(own,))


def test_one_that_no_contract_can_allow_refuses_all(world: World) -> None:
    own, app = Subject("kms", world.boot()), Subject("app", world.boot(compose_hash=bytes(32)))
    with refuses("proof.zero_hash", PolicyDenied):
        together(world, own, app)


def test_proves_the_gateway_and_the_app_implementation(world: World) -> None:
    decision = world.decide("app", world.boot())
    assert (decision.gateway_app_id, decision.app_implementation) == (GATEWAY, world.app_implementation)


def test_names_the_finalised_block(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    assert world.decide("app", world.boot(), evidence).finalized_number == evidence.finalized.number


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("app", {"app_id": b"\x01" * 20}, "App not registered"),
        ("app", {"os_image_hash": b"x" * 32}, "OS image is not allowed"),
        ("app", {"compose_hash": b"x" * 32}, "Compose hash not allowed"),
        ("app", {"device_id": b"x" * 32}, "Device not allowed"),
        ("kms", {"tcb_status": "OutOfDate"}, "TCB status is not up to date"),
        ("kms", {"tcb_status": ""}, "TCB status is not up to date"),
        ("kms", {"os_image_hash": b"x" * 32}, "OS image is not allowed"),
        ("kms", {"mr_aggregated": b"x" * 32}, "Aggregated MR not allowed"),
        ("kms", {"device_id": b"x" * 32}, "KMS is not allowed to boot on this device"),
    ],
)
def test_denies_with_the_contracts_own_words(
    world: World, kind: Kind, changes: dict[str, Any], reason: str
) -> None:
    decision = world.decide(kind, world.boot(**changes))
    assert (decision.is_allowed, decision.reason) == (False, reason)


def test_denies_an_app_that_is_registered_but_has_no_code(own_world: World) -> None:
    nobody = b"\x0e" * 20
    own_world.owner.settle(own_world.owner.send(own_world.owner.kms.functions.registerApp(nobody)))
    own_world.finalize()
    decision = own_world.decide("app", own_world.boot(app_id=nobody))
    assert (decision.is_allowed, decision.reason) == (False, "App not deployed or invalid address")


def test_denies_an_app_that_requires_tcb_on_nitro(own_world: World) -> None:
    app_id = own_world.owner.deploy_app(compose_hash=COMPOSE, device_id=DEVICE, require_tcb_up_to_date=True)
    own_world.finalize()
    decision = own_world.decide("app", own_world.boot(app_id=app_id, tcb_status=""))
    assert decision.reason == "TCB status is not up to date"


def test_denies_a_nitro_kms_unless_it_is_treated_as_up_to_date(world: World) -> None:
    bare = world.boot(tcb_status="")
    assert world.decide("kms", bare).reason == "TCB status is not up to date"
    assert world.decide("kms", treat_nitro_as_up_to_date(bare)).is_allowed


@pytest.mark.parametrize(
    "changes", [{"tee_variant": "dstack-tdx", "tcb_status": ""}, {"tcb_status": "OutOfDate"}]
)
def test_treats_nothing_else_as_up_to_date(world: World, changes: dict[str, Any]) -> None:
    boot_info = world.boot(**changes)
    assert treat_nitro_as_up_to_date(boot_info) == boot_info


def test_n57_a_grant_counts_only_when_final(own_world: World) -> None:
    own_world.owner.settle(own_world.owner.add_compose_hash(own_world.app_id, b"n" * 32))
    boot_info = own_world.boot(compose_hash=b"n" * 32)
    assert own_world.decide("app", boot_info).reason == "Compose hash not allowed"
    own_world.finalize()
    assert own_world.decide("app", boot_info).is_allowed


def test_n58_a_revocation_counts_at_once(own_world: World) -> None:
    assert own_world.decide("app", own_world.boot()).is_allowed
    own_world.owner.settle(own_world.owner.remove_compose_hash(own_world.app_id, COMPOSE))
    decision = own_world.decide("app", own_world.boot())
    assert (decision.is_allowed, decision.reason) == (False, "Compose hash not allowed")


def test_a_gateway_that_is_being_changed_is_left_empty(own_world: World) -> None:
    own_world.owner.settle(own_world.owner.set_gateway_app_id("bb" * 20))
    assert own_world.decide("app", own_world.boot()).gateway_app_id == ""
    own_world.finalize()
    assert own_world.decide("app", own_world.boot()).gateway_app_id == "bb" * 20


@pytest.mark.parametrize("gateway", ["", "gateway", "b" * 31, "b" * 32, "0x" + "cd" * 20, "b" * 256, "grüß"])
def test_proves_gateway_ids_of_every_storage_form(own_world: World, gateway: str) -> None:
    own_world.owner.settle(own_world.owner.set_gateway_app_id(gateway))
    own_world.finalize()
    assert own_world.decide("app", own_world.boot()).gateway_app_id == gateway


def test_n59_refuses_the_gateway_wildcard(own_world: World) -> None:
    own_world.owner.settle(own_world.owner.set_gateway_app_id("any"))
    with pytest.raises(PolicyDenied) as caught:
        own_world.decide("app", own_world.boot())
    assert caught.value.code == "proof.gateway.any"


def test_n59_empty_allow_lists_deny_everything(own_world: World) -> None:
    app_id = own_world.owner.deploy_app()
    own_world.finalize()
    assert own_world.decide("app", own_world.boot(app_id=app_id)).reason == "Compose hash not allowed"


def test_n59_empty_kms_device_list_denies_every_device(own_world: World) -> None:
    own_world.owner.settle(own_world.owner.remove_kms_device(DEVICE))
    decision = own_world.decide("kms", own_world.boot())
    assert decision.reason == "KMS is not allowed to boot on this device"


def test_any_device_will_do_when_the_app_says_so(own_world: World) -> None:
    app = own_world.owner.app(own_world.app_id)
    own_world.owner.settle(own_world.owner.send(app.functions.setAllowAnyDevice(True)))
    own_world.finalize()
    assert own_world.decide("app", own_world.boot(device_id=b"x" * 32)).is_allowed


def test_disabled_upgrades_are_not_mistaken_for_any_device(own_world: World) -> None:
    app = own_world.owner.app(own_world.app_id)
    own_world.owner.settle(own_world.owner.send(app.functions.disableUpgrades()))
    own_world.finalize()
    assert own_world.decide("app", own_world.boot(device_id=b"x" * 32)).reason == "Device not allowed"


@pytest.mark.parametrize("field", ["app_id", "compose_hash", "os_image_hash"])
@pytest.mark.parametrize("kind", ["app", "kms"])
def test_refuses_zero_identities(world: World, kind: Kind, field: str) -> None:
    zero = bytes(len(getattr(world.boot(), field)))
    with pytest.raises(PolicyDenied) as caught:
        world.decide(kind, world.boot(**{field: zero}), world.evidence(kind, world.boot()))
    assert caught.value.code == "proof.zero_hash"


@pytest.mark.parametrize(
    ("kind", "field"),
    [("app", "app_id"), ("app", "compose_hash"), ("app", "os_image_hash"), ("kms", "os_image_hash")],
)
def test_refuses_absent_identities(world: World, kind: Kind, field: str) -> None:
    with pytest.raises(PolicyDenied) as caught:
        world.decide(kind, world.boot(**{field: b""}), world.evidence(kind, world.boot()))
    assert caught.value.code == "proof.zero_hash"


@pytest.mark.parametrize(
    "changes",
    [{"app_id": b"a" * 21}, {"compose_hash": b"c" * 31}, {"device_id": b"d" * 64}, {"device_id": b""}],
)
def test_refuses_identities_of_another_length(world: World, changes: dict[str, bytes]) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", world.boot(**changes), world.evidence("app", world.boot()))
    assert caught.value.code == "proof.boot_info.length"


def test_a_kms_may_lack_app_id_and_compose_hash(world: World) -> None:
    assert world.decide("kms", world.boot(app_id=b"", compose_hash=b"")).is_allowed


@pytest.mark.parametrize("limit", ["max_block_age", "max_head_age"])
def test_n57_refuses_a_stale_block(world: World, limit: str) -> None:
    evidence = world.evidence("app", world.boot())
    stamps = {ref: _timestamp(evidence.bundle.headers, ref) for ref in (evidence.finalized, evidence.head)}
    stamp = stamps[evidence.finalized if limit == "max_block_age" else evidence.head]
    ages: dict[str, Any] = {"max_block_age": 10**6, "max_head_age": 10**6, limit: 60}
    chain = world.policy(**ages)
    assert world.decide("app", world.boot(), evidence, chain=chain, now=stamp + 60).is_allowed
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", world.boot(), evidence, chain=chain, now=stamp + 61)
    assert caught.value.code == "proof.header.stale"


def test_n57_refuses_a_block_from_the_future(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    stamp = _timestamp(evidence.bundle.headers, evidence.head)
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", world.boot(), evidence, now=stamp - 301)
    assert caught.value.code == "proof.header.future"


def test_an_allow_expires_after_a_minute(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    assert world.decide("app", world.boot(), evidence).expires_at == evidence.now + 60


def test_a_decision_tells_the_time_of_its_head(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    stamp = _timestamp(evidence.bundle.headers, evidence.head)
    assert world.decide("app", world.boot(), evidence).head_timestamp == stamp


@pytest.mark.parametrize("limit", ["max_block_age", "max_head_age"])
def test_n58_an_allow_expires_with_its_blocks(world: World, limit: str) -> None:
    evidence = world.evidence("app", world.boot())
    reference = evidence.finalized if limit == "max_block_age" else evidence.head
    chain = world.policy(**{"max_block_age": 10**6, "max_head_age": 10**6, limit: 30})
    stamp = _timestamp(evidence.bundle.headers, reference)
    decision = world.decide("app", world.boot(), evidence, chain=chain, now=stamp)
    assert decision.expires_at == stamp + 30


def test_refuses_a_bundle_of_other_blocks(own_world: World) -> None:
    old = own_world.evidence("app", own_world.boot())
    own_world.finalize()
    finalized, head = own_world.blocks()
    with pytest.raises(InvalidEvidence) as caught:
        own_world.decide("app", own_world.boot(), old, finalized=finalized, head=head)
    assert caught.value.code == "proof.header.mismatch"


def test_refuses_a_bundle_of_another_chain(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    other = BlockRef(evidence.head.number, b"\x11" * 32)
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", world.boot(), evidence, head=other)
    assert caught.value.code == "proof.header.mismatch"


def test_refuses_a_header_of_another_number(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    other = BlockRef(evidence.head.number + 1, evidence.head.hash)
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", world.boot(), evidence, head=other)
    assert caught.value.code == "proof.header.mismatch"


def test_refuses_a_head_below_the_finalised_block(world: World) -> None:
    evidence = world.evidence("app", world.boot())
    with pytest.raises(InvalidEvidence) as caught:
        world.decide("app", world.boot(), evidence, finalized=evidence.head, head=evidence.finalized)
    assert caught.value.code == "proof.header.order"


def test_one_block_may_be_both_views(world: World) -> None:
    finalized, _ = world.blocks()
    evidence = world.evidence("app", world.boot(), blocks=(finalized, finalized))
    assert len(evidence.bundle.headers) == 1
    assert world.decide("app", world.boot(), evidence).is_allowed


def test_proves_the_contracts_facts_without_a_question(world: World) -> None:
    evidence = world.evidence(None, None)
    facts = contract_facts(
        evidence.bundle,
        chain=world.policy(),
        finalized=evidence.finalized,
        head=evidence.head,
        now=evidence.now,
    )
    assert (facts.gateway_app_id, facts.app_implementation) == (GATEWAY, world.app_implementation)


def test_an_os_image_of_one_contract_is_not_one_of_another(mining_chain: Chain, world: World) -> None:
    other = World(mining_chain)
    other.owner.settle(other.owner.remove_os_image(OS_IMAGE))
    other.finalize()
    boot_info: BootInfo = other.boot()
    assert other.decide("app", boot_info).reason == "OS image is not allowed"
    assert world.decide("app", world.boot()).is_allowed


def _timestamp(headers: tuple[bytes, ...], reference: BlockRef) -> int:
    return next(header.timestamp for header in map(parse_header, headers) if header.hash == reference.hash)

"""Three ways, one answer: the contracts by eth_call, our rules on proven facts, and a plain model of both.

Random states of real contracts, upgrades among them; then every reason there is, one by one.
"""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from web3 import Web3

from shared.boot_info import BootInfo
from shared.chain import rules
from shared.chain.facts import Kind
from shared.errors import DstackError
from tests.contracts.test_decisions import REVERTS_ALWAYS
from tests.contracts.test_state import says
from tests.shared.chain.world import COMPOSE, DEVICE, GATEWAY, MR, OS_IMAGE, World

STATES = 40
QUESTIONS_PER_STATE = 6


class AppModel(msgspec.Struct):
    """An app contract as its owner thinks of it."""

    composes: set[bytes]
    devices: set[bytes]
    any_device: bool = False
    requires_tcb: bool = False


class Model(msgspec.Struct):
    """Both contracts, in the words of contracts section 1.7; an app of None is an address without code."""

    images: set[bytes]
    mrs: set[bytes]
    devices: set[bytes]
    apps: dict[bytes, AppModel | None]
    gateway: str = GATEWAY

    def app_reason(self, boot: BootInfo) -> str:
        """Say what `isAppAllowed` says."""
        if boot.app_id not in self.apps:
            return "App not registered"
        app = self.apps[boot.app_id]
        first_that_fails = [
            (boot.os_image_hash in self.images, "OS image is not allowed"),
            (app is not None, "App not deployed or invalid address"),
        ]
        if app is not None:
            first_that_fails += [
                (not app.requires_tcb or boot.tcb_status == "UpToDate", "TCB status is not up to date"),
                (boot.compose_hash in app.composes, "Compose hash not allowed"),
                (app.any_device or boot.device_id in app.devices, "Device not allowed"),
            ]
        return next((reason for holds, reason in first_that_fails if not holds), "")

    def kms_reason(self, boot: BootInfo) -> str:
        """Say what `isKmsAllowed` says."""
        first_that_fails = [
            (boot.tcb_status == "UpToDate", "TCB status is not up to date"),
            (boot.os_image_hash in self.images, "OS image is not allowed"),
            (boot.mr_aggregated in self.mrs, "Aggregated MR not allowed"),
            (boot.device_id in self.devices, "KMS is not allowed to boot on this device"),
        ]
        return next((reason for holds, reason in first_that_fails if not holds), "")


def model_of(world: World) -> Model:
    """Return what a new world allows."""
    return Model({OS_IMAGE}, {MR}, {DEVICE}, {world.app_id: AppModel({COMPOSE}, {DEVICE})})


def three_ways(world: World, model: Model, kind: Kind, boot: BootInfo) -> set[tuple[bool, str, str]]:
    """Return the answers of contract, proof and model at the head, with the gateway: one, if equal."""
    _, head = world.blocks()
    proven = world.decide(kind, boot, world.evidence(kind, boot, blocks=(head, head)))
    ask = world.owner.is_kms_allowed if kind == "kms" else world.owner.is_app_allowed
    reason = model.kms_reason(boot) if kind == "kms" else model.app_reason(boot)
    gateway = world.owner.kms.functions.gatewayAppId().call()
    return {
        (proven.is_allowed, proven.reason, proven.gateway_app_id),
        (*ask(boot), gateway),
        (not reason, reason, model.gateway),
    }


def _words(count: int, tag: bytes) -> list[bytes]:
    return [tag * 31 + bytes([index]) for index in range(count)]


class Drift:
    """Changes one thing at a time, from a small vocabulary so that questions hit what is set."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.model = model_of(world)
        self.random = random.Random(seed)  # noqa: S311 - reproducible states, not secrets
        self.images, self.composes = _words(3, b"o"), _words(3, b"c")
        self.devices, self.mrs = _words(3, b"d"), _words(3, b"m")
        self.registered_only = b"\x0e" * 20
        self.apps = [world.app_id, world.owner.deploy_app(require_tcb_up_to_date=True)]
        self.model.apps[self.apps[1]] = AppModel(set(), set(), requires_tcb=True)
        self.model.apps[self.registered_only] = None
        owner = world.owner
        register = owner.kms.functions.registerApp(Web3.to_checksum_address(self.registered_only))
        owner.settle(owner.send(register), *map(owner.add_os_image, self.images))
        self.model.images.update(self.images)

    def step(self) -> None:
        owner, model, pick = self.world.owner, self.model, self.random.choice
        app_id = pick(self.apps)
        app, told = owner.app(app_id).functions, model.apps[app_id]
        assert told is not None
        image, mr, device, compose = map(pick, (self.images, self.mrs, self.devices, self.composes))
        flag, gateway = pick([True, False]), "g" * pick([0, 1, 31, 32, 64])
        changes: list[tuple[Callable[[], bytes], Callable[[], Any]]] = [
            (lambda: owner.add_os_image(image), lambda: model.images.add(image)),
            (lambda: owner.remove_os_image(image), lambda: model.images.discard(image)),
            (lambda: owner.add_kms_mr(mr), lambda: model.mrs.add(mr)),
            (lambda: owner.remove_kms_mr(mr), lambda: model.mrs.discard(mr)),
            (lambda: owner.add_kms_device(device), lambda: model.devices.add(device)),
            (lambda: owner.remove_kms_device(device), lambda: model.devices.discard(device)),
            (lambda: owner.add_compose_hash(app_id, compose), lambda: told.composes.add(compose)),
            (lambda: owner.add_compose_hash(app_id, compose), lambda: told.composes.add(compose)),
            (lambda: owner.remove_compose_hash(app_id, compose), lambda: told.composes.discard(compose)),
            (lambda: owner.send(app.addDevice(device)), lambda: told.devices.add(device)),
            (lambda: owner.send(app.removeDevice(device)), lambda: told.devices.discard(device)),
            (lambda: owner.send(app.setAllowAnyDevice(flag)), lambda: setattr(told, "any_device", flag)),
            (
                lambda: owner.send(app.setRequireTcbUpToDate(flag)),
                lambda: setattr(told, "requires_tcb", flag),
            ),
            (lambda: owner.set_gateway_app_id(gateway), lambda: setattr(model, "gateway", gateway)),
            (lambda: self.upgrade("DstackKms", owner.kms.functions), lambda: None),
            (lambda: self.upgrade("DstackApp", app), lambda: None),
        ]
        change, tell = pick(changes)
        owner.settle(change())
        tell()

    def upgrade(self, name: str, functions: Any) -> bytes:
        """Move a proxy to code at another address."""
        owner = self.world.owner
        made = owner.settle(owner.send(owner.constructor(name), gas=4_000_000))[0]
        return owner.send(functions.upgradeToAndCall(made["contractAddress"], b""))

    def question(self) -> BootInfo:
        pick = self.random.choice
        return self.world.boot(
            app_id=pick([*self.apps, *self.apps, self.registered_only, b"\x77" * 20]),
            os_image_hash=pick(self.images),
            compose_hash=pick(self.composes),
            device_id=pick(self.devices),
            mr_aggregated=pick(self.mrs),
            tcb_status=pick(["UpToDate", "UpToDate", "", "OutOfDate", "uptodate"]),
        )


@pytest.mark.parametrize("seed", range(2))
def test_decisions_equal_eth_call_in_random_states(own_world: World, seed: int) -> None:
    drift = Drift(own_world, seed)
    differences, reasons = [], set()
    for _ in range(STATES // 2):
        for _ in range(3):
            drift.step()
        for number in range(QUESTIONS_PER_STATE):
            boot_info = drift.question()
            kind: Kind = "kms" if number % 3 == 0 else "app"
            answers = three_ways(own_world, drift.model, kind, boot_info)
            reasons |= {reason for _, reason, _ in answers}
            if len(answers) != 1:
                differences.append((boot_info, answers))
    assert differences == []
    assert len(reasons) >= 5, f"the states were too tame to tell anything: {reasons}"


OTHER = b"\x77" * 32
NOBODY = b"\x0e" * 20
REASONS: list[tuple[Kind, str, dict[str, Any]]] = [
    ("app", rules.ALLOWED, {}),
    ("app", rules.APP_NOT_REGISTERED, {"app_id": b"\x77" * 20, "os_image_hash": OTHER}),
    ("app", rules.OS_IMAGE_NOT_ALLOWED, {"app_id": NOBODY, "os_image_hash": OTHER}),
    ("app", rules.APP_NOT_DEPLOYED, {"app_id": NOBODY}),
    ("app", rules.TCB_NOT_UP_TO_DATE, {"tcb_status": "", "compose_hash": OTHER}),
    ("app", rules.COMPOSE_HASH_NOT_ALLOWED, {"compose_hash": OTHER, "device_id": OTHER}),
    ("app", rules.DEVICE_NOT_ALLOWED, {"device_id": OTHER}),
    ("kms", rules.ALLOWED, {}),
    ("kms", rules.TCB_NOT_UP_TO_DATE, {"tcb_status": "", "os_image_hash": OTHER}),
    ("kms", rules.OS_IMAGE_NOT_ALLOWED, {"os_image_hash": OTHER, "mr_aggregated": OTHER}),
    ("kms", rules.AGGREGATED_MR_NOT_ALLOWED, {"mr_aggregated": OTHER, "device_id": OTHER}),
    ("kms", rules.KMS_DEVICE_NOT_ALLOWED, {"device_id": OTHER}),
]


@pytest.fixture(scope="module")
def strict(mining_chain: Any) -> World:
    """A world whose app asks for an up-to-date TCB, and where an address without code is registered."""
    world = World(mining_chain)
    owner = world.owner
    owner.settle(
        owner.send(owner.app(world.app_id).functions.setRequireTcbUpToDate(True)),
        owner.send(owner.kms.functions.registerApp(Web3.to_checksum_address(NOBODY))),
    )
    return world


@pytest.mark.parametrize(("kind", "reason", "changes"), REASONS)
def test_every_reason_is_the_same_three_ways(
    strict: World, kind: Kind, reason: str, changes: dict[str, Any]
) -> None:
    model = model_of(strict)
    model.apps[NOBODY] = None
    model.apps[strict.app_id].requires_tcb = True  # type: ignore[union-attr]
    assert three_ways(strict, model, kind, strict.boot(**changes)) == {(not reason, reason, GATEWAY)}


def test_no_reason_of_the_rules_is_left_out() -> None:
    texts = {value for name, value in vars(rules).items() if name.isupper() and isinstance(value, str)}
    sentences = {text for text in texts if " " in text or not text}
    assert {reason for _, reason, _ in REASONS} == sentences
    assert len(sentences) == 9


def test_frozen_contracts_go_on_saying_what_they_said(own_world: World) -> None:
    """Upgrades disabled and ownership renounced: the flag shares its slot with one that decisions read."""
    owner, app = own_world.owner, own_world.owner.app(own_world.app_id)
    owner.settle(
        owner.send(app.functions.disableUpgrades()),
        owner.send(app.functions.setAllowAnyDevice(True)),
        owner.send(app.functions.renounceOwnership()),
        owner.send(owner.kms.functions.renounceOwnership()),
    )
    model = model_of(own_world)
    model.apps[own_world.app_id].any_device = True  # type: ignore[union-attr]
    for boot, reason in (
        (own_world.boot(device_id=OTHER), ""),
        (own_world.boot(compose_hash=OTHER), "Compose hash not allowed"),
    ):
        assert three_ways(own_world, model, "app", boot) == {(not reason, reason, GATEWAY)}


@pytest.mark.parametrize("code", [says(0), says(1), REVERTS_ALWAYS], ids=["denies", "allows", "reverts"])
def test_a_custom_app_contract_is_refused_whatever_it_says(own_world: World, code: str) -> None:
    """Its rules are not ours to re-decide; what the KMS contract checks before it asks counts anyway."""
    owner = own_world.owner
    custom = owner.web3.eth.contract(abi=[], bytecode=code).constructor()  # type: ignore[call-overload]
    address = owner.settle(owner.send(custom))[0]["contractAddress"]
    owner.settle(owner.send(owner.kms.functions.registerApp(address)))
    own_world.finalize()
    boot = own_world.boot(app_id=bytes.fromhex(address[2:]))
    with pytest.raises(DstackError) as caught:
        own_world.decide("app", boot)
    assert caught.value.code == "proof.app.custom"
    denied = msgspec.structs.replace(boot, os_image_hash=OTHER)
    assert own_world.decide("app", denied).reason == "OS image is not allowed"

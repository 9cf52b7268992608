"""Solidity and Python give one answer: random states of real contracts, asked both ways."""

import random

import pytest
from web3 import Web3

from shared.boot_info import BootInfo
from shared.chain.facts import Kind
from tests.shared.chain.world import World

STATES = 40
QUESTIONS_PER_STATE = 6


def _words(count: int, tag: bytes) -> list[bytes]:
    return [tag * 31 + bytes([index]) for index in range(count)]


class Drift:
    """Changes one thing at a time, from a small vocabulary so that questions hit what is set."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)  # noqa: S311 - reproducible states, not secrets
        self.images, self.composes = _words(3, b"o"), _words(3, b"c")
        self.devices, self.mrs = _words(3, b"d"), _words(3, b"m")
        self.registered_only = b"\x0e" * 20
        self.apps = [world.app_id, world.owner.deploy_app(require_tcb_up_to_date=True)]
        register = world.owner.kms.functions.registerApp(Web3.to_checksum_address(self.registered_only))
        world.owner.settle(world.owner.send(register))

    def step(self) -> None:
        owner, pick = self.world.owner, self.random.choice
        app_id = pick(self.apps)
        app = owner.app(app_id).functions
        change = pick(
            [
                lambda: owner.add_os_image(pick(self.images)),
                lambda: owner.remove_os_image(pick(self.images)),
                lambda: owner.add_kms_mr(pick(self.mrs)),
                lambda: owner.remove_kms_mr(pick(self.mrs)),
                lambda: owner.add_kms_device(pick(self.devices)),
                lambda: owner.remove_kms_device(pick(self.devices)),
                lambda: owner.add_compose_hash(app_id, pick(self.composes)),
                lambda: owner.add_compose_hash(app_id, pick(self.composes)),
                lambda: owner.remove_compose_hash(app_id, pick(self.composes)),
                lambda: owner.send(app.addDevice(pick(self.devices))),
                lambda: owner.send(app.removeDevice(pick(self.devices))),
                lambda: owner.send(app.setAllowAnyDevice(pick([True, False]))),
                lambda: owner.send(app.setRequireTcbUpToDate(pick([True, False]))),
                lambda: owner.set_gateway_app_id("g" * pick([0, 1, 31, 32, 64])),
            ]
        )
        owner.settle(change())

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
        _, head = own_world.blocks()
        for number in range(QUESTIONS_PER_STATE):
            boot_info = drift.question()
            kind: Kind = "kms" if number % 3 == 0 else "app"
            evidence = own_world.evidence(kind, boot_info, blocks=(head, head))
            ours = own_world.decide(kind, boot_info, evidence)
            ask = own_world.owner.is_kms_allowed if kind == "kms" else own_world.owner.is_app_allowed
            theirs = ask(boot_info)
            gateway = own_world.owner.kms.functions.gatewayAppId().call()
            reasons.add(ours.reason)
            if (ours.is_allowed, ours.reason, ours.gateway_app_id) != (*theirs, gateway):
                differences.append((boot_info, ours, theirs, gateway))
    assert differences == []
    assert len(reasons) >= 5, f"the states were too tame to tell anything: {reasons}"

"""The re-decision on the recorded proofs, and the order of its checks."""

from typing import Any

import msgspec
import pytest

from shared.chain import rules, slots
from shared.chain.facts import AppFacts, Deployed, ViewFacts
from shared.chain.state import State
from shared.chain.trie import NodeSet

NOWHERE = Deployed(b"", None, None, None)
APP = AppFacts(NOWHERE, True, True, False, True)
VIEW = ViewFacts(
    kms=NOWHERE,
    gateway_app_id="",
    app_implementation=bytes(20),
    os_image_allowed=True,
    app_registered=True,
    app=APP,
    aggregated_mr_allowed=True,
    kms_device_allowed=True,
)


def unhex(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def test_recorded_proofs_allow_what_the_recorded_contract_allowed(getproof: dict[str, Any]) -> None:
    """Compose 789, device 456, image 111, status UpToDate: `[true, ""]` by the fixture's own note."""
    nodes: dict[bytes, None] = {}
    for name in ("kms", "app"):
        proof = getproof[name]["proof"]
        for node in (
            *proof["accountProof"],
            *(one for item in proof["storageProof"] for one in item["proof"]),
        ):
            nodes[unhex(node)] = None
    state = State(NodeSet(nodes), unhex(getproof["block"]["stateRoot"]))
    app_id = unhex(getproof["app"]["address"])
    kms, app = state.account(unhex(getproof["kms"]["address"])), state.account(app_id)
    assert kms is not None
    assert app is not None

    def word(number: int) -> bytes:
        return number.to_bytes(32, "big")

    view = msgspec.structs.replace(
        VIEW,
        app_registered=slots.bool_at(state.slot(kms, slots.kms_registered_app(app_id))),
        os_image_allowed=slots.bool_at(state.slot(kms, slots.kms_os_image(word(111)))),
    )
    facts = AppFacts(
        deployed=NOWHERE,
        require_tcb_up_to_date=slots.bool_at(state.slot(app, slots.APP_REQUIRE_TCB)),
        compose_hash_allowed=slots.bool_at(state.slot(app, slots.app_compose_hash(word(789)))),
        allow_any_device=slots.bool_at(state.slot(app, slots.APP_FLAGS), 1),
        device_allowed=slots.bool_at(state.slot(app, slots.app_device(word(456)))),
    )
    assert facts.require_tcb_up_to_date
    assert not facts.allow_any_device
    assert rules.kms_half_of_app(view) == ""
    assert rules.app_half(facts, "UpToDate") == ""


@pytest.mark.parametrize(
    ("failing", "reason"),
    [
        (["app_registered", "os_image_allowed", "app"], "App not registered"),
        (["os_image_allowed", "app"], "OS image is not allowed"),
        (["app"], "App not deployed or invalid address"),
    ],
)
def test_kms_contract_checks_an_app_in_order(failing: list[str], reason: str) -> None:
    view = msgspec.structs.replace(VIEW, **{name: None if name == "app" else False for name in failing})
    assert rules.kms_half_of_app(view) == reason


@pytest.mark.parametrize(
    ("failing", "status", "reason"),
    [
        (["compose_hash_allowed", "device_allowed"], "", "TCB status is not up to date"),
        (["compose_hash_allowed", "device_allowed"], "UpToDate", "Compose hash not allowed"),
        (["device_allowed"], "UpToDate", "Device not allowed"),
        ([], "UpToDate", ""),
        ([], "UpToDate ", "TCB status is not up to date"),
    ],
)
def test_app_contract_checks_in_order(failing: list[str], status: str, reason: str) -> None:
    app = msgspec.structs.replace(APP, **dict.fromkeys(failing, False))
    assert rules.app_half(app, status) == reason


@pytest.mark.parametrize(
    ("failing", "status", "reason"),
    [
        (
            ["os_image_allowed", "aggregated_mr_allowed", "kms_device_allowed"],
            "",
            "TCB status is not up to date",
        ),
        (
            ["os_image_allowed", "aggregated_mr_allowed", "kms_device_allowed"],
            "UpToDate",
            "OS image is not allowed",
        ),
        (["aggregated_mr_allowed", "kms_device_allowed"], "UpToDate", "Aggregated MR not allowed"),
        (["kms_device_allowed"], "UpToDate", "KMS is not allowed to boot on this device"),
        ([], "UpToDate", ""),
    ],
)
def test_kms_contract_checks_a_kms_in_order(failing: list[str], status: str, reason: str) -> None:
    view = msgspec.structs.replace(VIEW, **dict.fromkeys(failing, False))
    assert rules.kms(view, status) == reason

"""Which calls a deployment still needs, from facts alone."""

from typing import Any

import msgspec
import pytest

from shared.chain.approval import (
    Approval,
    AppState,
    ChainState,
    Wanted,
    create_address,
    is_of_a_plan,
    needed_approval,
)
from shared.chain.calldata import decode_call
from shared.errors import ConfigError
from tests.shared.refusal import refuses

KMS, OWNER, APP, APP_OWNER = b"\x01" * 20, b"\x02" * 20, b"\x03" * 20, b"\x04" * 20
COMPOSE, IMAGE, DEVICE = b"c" * 32, b"i" * 32, b"d" * 32
WANTED = Wanted(app_id=APP, compose_hash=COMPOSE, os_image_hash=IMAGE, device_id=DEVICE, tcb_status="")
ALLOWING = AppState(
    owner=APP_OWNER,
    compose_hash_allowed=True,
    allow_any_device=False,
    device_allowed=True,
    require_tcb_up_to_date=False,
)
STATE = ChainState(
    chain_id=1,
    block_number=2,
    block_hash=b"b" * 32,
    block_time=1_700_000_000,
    kms_owner=OWNER,
    kms_nonce=1,
    app_implementation=b"\x05" * 20,
    os_image_allowed=True,
    app_registered=True,
    app_has_code=True,
    app=ALLOWING,
    decision="",
)


def judged(wanted: Wanted = WANTED, *, app: dict[str, Any] | None = None, **state: Any) -> Approval:
    changed = msgspec.structs.replace(STATE, **state)
    if app is not None:
        changed = msgspec.structs.replace(changed, app=msgspec.structs.replace(ALLOWING, **app))
    return needed_approval(wanted, KMS, changed)


def names(approval: Approval) -> list[str]:
    return [call.function.partition("(")[0] for call in approval.calls]


def test_nothing_is_missing_where_all_is_allowed() -> None:
    approval = judged()
    assert approval.is_complete
    assert (approval.calls, approval.notes) == ((), ())


@pytest.mark.parametrize(
    ("app", "state", "name", "to", "sender"),
    [
        ({}, {"os_image_allowed": False}, "addOsImageHash", KMS, OWNER),
        ({}, {"app_registered": False}, "registerApp", KMS, None),
        ({"compose_hash_allowed": False}, {}, "addComposeHash", APP, APP_OWNER),
        ({"device_allowed": False}, {}, "addDevice", APP, APP_OWNER),
        ({"require_tcb_up_to_date": True}, {}, "setRequireTcbUpToDate", APP, APP_OWNER),
    ],
)
def test_lists_what_is_missing_alone(
    app: dict[str, Any], state: dict[str, Any], name: str, to: bytes, sender: bytes | None
) -> None:
    approval = judged(app=app, **state)
    assert not approval.is_complete
    assert names(approval) == [name]
    assert (approval.calls[0].to, approval.calls[0].sender) == (to, sender)


def test_any_device_needs_no_call() -> None:
    assert judged(app={"device_allowed": False, "allow_any_device": True}).is_complete


def test_an_unknown_device_blocks_an_app_that_lists_devices() -> None:
    wanted = msgspec.structs.replace(WANTED, device_id=None)
    assert names(judged(wanted, app={"device_allowed": False})) == []
    assert "not known yet" in judged(wanted, app={"device_allowed": False}).blocked[0]


def test_a_platform_with_a_tcb_status_meets_the_requirement() -> None:
    wanted = msgspec.structs.replace(WANTED, tcb_status="UpToDate")
    assert judged(wanted, app={"require_tcb_up_to_date": True}).is_complete


def test_a_contract_that_says_no_all_the_same_blocks() -> None:
    approval = judged(decision="paused\n")
    assert approval.blocked == ("isAppAllowed says 'paused\\n'",)
    assert judged(decision=None).blocked == ("isAppAllowed reverts",)


def test_a_contract_of_another_kind_is_asked_and_not_told() -> None:
    foreign = msgspec.structs.replace(STATE, app=None)
    allowing = needed_approval(WANTED, KMS, foreign)
    assert allowing.is_complete
    assert "another kind" in allowing.notes[0]
    refusing = needed_approval(WANTED, KMS, msgspec.structs.replace(foreign, decision="no"))
    assert "says 'no'" in refusing.blocked[0]


# ---- a new app ----


def test_a_new_app_is_made_by_the_factory() -> None:
    wanted = msgspec.structs.replace(WANTED, app_owner=APP_OWNER)
    approval = judged(wanted, app_has_code=False, app=None)
    assert names(approval) == ["deployAndRegisterApp"]
    assert [one.value for one in approval.calls[0].arguments][1:] == [
        *("false", "false", "false", "0x" + "64" * 32, "0x" + "63" * 32)
    ]
    assert approval.new_app_id == create_address(KMS, 1)
    assert len(approval.notes) == 1


def test_a_new_app_without_a_known_device_allows_any_and_says_so() -> None:
    wanted = msgspec.structs.replace(WANTED, app_owner=APP_OWNER, device_id=None)
    approval = judged(wanted, app_has_code=False)
    assert [one.value for one in approval.calls[0].arguments][3:5] == ["true", "0x" + "00" * 32]
    assert "any device" in approval.notes[1]


def test_a_new_app_needs_an_owner_and_an_implementation() -> None:
    assert "name its owner" in judged(app_has_code=False).blocked[0]
    approval = judged(app_has_code=False, app_implementation=bytes(20), os_image_allowed=False)
    assert "no app implementation" in approval.blocked[0]
    assert names(approval) == ["addOsImageHash"]


def test_the_new_address_is_upstreams_golden_one() -> None:
    kms = bytes.fromhex("9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0")
    assert create_address(kms, 1).hex() == "75537828f2ce51be7289709686a69cbfdbb714f1"


# ---- no chain ----


def test_without_a_chain_all_that_may_be_needed_is_listed() -> None:
    approval = needed_approval(WANTED, KMS, None)
    assert names(approval) == ["addOsImageHash", "addComposeHash", "addDevice"]
    assert [call.to for call in approval.calls] == [KMS, APP, APP]
    assert not approval.checked
    assert not approval.is_complete


def test_without_addresses_the_calldata_stands_all_the_same() -> None:
    wanted = msgspec.structs.replace(WANTED, app_id=b"", device_id=None)
    approval = needed_approval(wanted, None, None)
    assert [call.to for call in approval.calls] == [None, None]
    assert approval.calls[0].calldata.hex() == "06a3ae96" + "69" * 32


@pytest.mark.parametrize("name", ["compose_hash", "os_image_hash"])
def test_nobody_may_ask_for_a_zero_hash(name: str) -> None:
    with refuses("plan.zero_hash", ConfigError):
        needed_approval(msgspec.structs.replace(WANTED, **{name: bytes(32)}), KMS, STATE)


def test_no_call_is_made_to_an_app_id_that_is_a_hash() -> None:
    wanted = msgspec.structs.replace(WANTED, has_contract=False)
    approval = needed_approval(wanted, KMS, None)
    assert [call.to for call in approval.calls] == [KMS, None, None]
    assert "where no contract can be" in approval.notes[0]


@pytest.mark.parametrize("device", [DEVICE, None])
def test_what_is_written_is_known_as_a_plans(device: bytes | None) -> None:
    wanted = msgspec.structs.replace(WANTED, device_id=device, app_owner=APP_OWNER)
    everything = {"compose_hash_allowed": False, "device_allowed": False, "require_tcb_up_to_date": True}
    written = [
        *judged(wanted, app_has_code=False, app_registered=False, app=None).calls,
        *judged(wanted, app=everything, os_image_allowed=False, app_registered=False).calls,
    ]
    assert len(written) >= 4
    assert all(is_of_a_plan(*decode_call(call.calldata)) for call in written)

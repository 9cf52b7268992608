"""What was set is what is read: after each change, after upgrades, after a reorg, and by the events alone."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from web3.contract import Contract

from cli.devchain.governance import Governance, boot_tuple
from cli.devchain.launcher import find_anvil, start_chain
from shared.boot_info import BootInfo
from shared.errors import PolicyDenied
from shared.keccak import keccak256
from tests.contracts.test_access import FIVE, IMPLEMENTATION_SLOT, SIX, implementation_of

Boot = Callable[..., BootInfo]
ZERO20, HASH = bytes(20), b"h" * 32
AUDIT = keccak256(b"PolicyChanged(address,bytes32,bytes32,bool)")


def change(actor: Governance, contract: Contract, method: str, *arguments: object) -> Any:
    return actor.settle(actor.send(contract.functions[method](*arguments)))[0]


def attempt(actor: Governance, contract: Contract, method: str, *arguments: object) -> Any:
    """Send a transaction that may fail; return its receipt."""
    sent = actor.send(contract.functions[method](*arguments))
    try:
        return actor.settle(sent)[0]
    except PolicyDenied:
        return actor.web3.eth.get_transaction_receipt("0x" + sent.hex())  # type: ignore[arg-type]


def acting(governance: Governance, stranger: Governance) -> dict[str, Governance]:
    return {"owner": governance, "stranger": stranger}


# ---- setters and getters ----


@pytest.mark.parametrize(
    ("add", "remove", "getter"),
    [
        ("addKmsAggregatedMr", "removeKmsAggregatedMr", "kmsAllowedAggregatedMrs"),
        ("addKmsDevice", "removeKmsDevice", "kmsAllowedDeviceIds"),
        ("addOsImageHash", "removeOsImageHash", "allowedOsImages"),
    ],
)
def test_kms_lists_what_was_added_until_it_is_removed(
    governance: Governance, add: str, remove: str, getter: str
) -> None:
    seen = [governance.kms.functions[getter](HASH).call()]
    for method in (add, add, remove, remove, add):
        change(governance, governance.kms, method, HASH)
        seen.append(governance.kms.functions[getter](HASH).call())
    assert seen == [False, True, True, False, False, True]


@pytest.mark.parametrize(
    ("add", "remove", "getter"),
    [
        ("addComposeHash", "removeComposeHash", "allowedComposeHashes"),
        ("addDevice", "removeDevice", "allowedDeviceIds"),
    ],
)
def test_app_lists_what_was_added_until_it_is_removed(
    governance: Governance, add: str, remove: str, getter: str
) -> None:
    app = governance.app(governance.deploy_app())
    seen = []
    for method in (add, remove):
        change(governance, app, method, HASH)
        seen.append(app.functions[getter](HASH).call())
    assert seen == [True, False]


@pytest.mark.parametrize("method", ["setAllowAnyDevice", "setRequireTcbUpToDate"])
def test_a_flag_of_the_app_is_what_was_set_last(governance: Governance, method: str) -> None:
    app = governance.app(governance.deploy_app())
    getter = method[3].lower() + method[4:]
    seen = [app.functions[getter]().call()]
    for value in (True, False):
        change(governance, app, method, value)
        seen.append(app.functions[getter]().call())
    assert seen == [False, True, False]


@pytest.mark.parametrize("text", ["", "g" * 31, "g" * 32, "aa" * 20, "any"])
def test_the_gateway_is_what_was_set_last(governance: Governance, text: str) -> None:
    change(governance, governance.kms, "setGatewayAppId", "before" * 20)
    change(governance, governance.kms, "setGatewayAppId", text)
    assert governance.kms.functions.gatewayAppId().call() == text


def test_apps_are_made_of_the_implementation_that_was_set_last(governance: Governance) -> None:
    before = governance.app(governance.deploy_app())
    code = governance.settle(governance.send(governance.constructor("DstackApp"), gas=4_000_000))[0]
    change(governance, governance.kms, "setAppImplementation", code["contractAddress"])
    after = governance.app(governance.deploy_app())
    assert governance.kms.functions.appImplementation().call() == code["contractAddress"]
    assert implementation_of(governance, after) == code["contractAddress"]
    assert implementation_of(governance, before) != code["contractAddress"]


@pytest.mark.parametrize("signature", [SIX, FIVE])
@pytest.mark.parametrize("given", [True, False])
def test_a_new_app_has_its_owner_and_what_it_was_given(
    governance: Governance, stranger: Governance, signature: str, *, given: bool
) -> None:
    """A zero device or compose hash is none, and is not listed."""
    device, compose = (b"d" * 32, b"c" * 32) if given else (bytes(32), bytes(32))
    flags = [False] * signature.count("bool")
    create = governance.kms.get_function_by_signature(signature)
    made = governance.settle(governance.send(create(stranger.address, *flags, device, compose)))[0]
    app = governance.app(bytes.fromhex(made["logs"][0]["address"][2:]))
    assert app.functions.owner().call() == stranger.address
    assert app.functions.allowedDeviceIds(device).call() is given
    assert app.functions.allowedComposeHashes(compose).call() is given
    assert app.functions.version().call() == 2


# ---- ownership ----


def test_a_new_target_of_the_transfer_replaces_the_one_before(
    governance: Governance, stranger: Governance
) -> None:
    change(governance, governance.kms, "transferOwnership", stranger.address)
    change(governance, governance.kms, "transferOwnership", "0x" + "77" * 20)
    assert attempt(stranger, stranger.kms, "acceptOwnership")["status"] == 0
    change(governance, governance.kms, "transferOwnership", stranger.address)
    assert attempt(stranger, stranger.kms, "acceptOwnership")["status"] == 1


def test_rights_follow_the_ownership(governance: Governance, stranger: Governance) -> None:
    change(governance, governance.kms, "transferOwnership", stranger.address)
    change(stranger, stranger.kms, "acceptOwnership")
    assert governance.kms.functions.pendingOwner().call() == "0x" + "00" * 20
    assert attempt(governance, governance.kms, "addKmsAggregatedMr", HASH)["status"] == 0
    assert attempt(stranger, stranger.kms, "addKmsAggregatedMr", HASH)["status"] == 1


KMS_CALLS: list[tuple[str, tuple[object, ...]]] = [
    ("setGatewayAppId", ("",)),
    ("setAppImplementation", ("0x" + "77" * 20,)),
    ("registerApp", ("0x" + "77" * 20,)),
    *((f"{verb}{what}", (HASH,)) for verb in ("add", "remove") for what in ("KmsAggregatedMr", "KmsDevice")),
    *((f"{verb}OsImageHash", (HASH,)) for verb in ("add", "remove")),
    ("setKmsInfo", ((b"k", b"c", b"q", b"e"),)),
    ("setKmsQuote", (b"q" * 40,)),
    ("setKmsEventlog", (b"e" * 40,)),
    ("initialize", ("0x" + "77" * 20, "0x" + "77" * 20)),
]


@pytest.mark.parametrize("who", ["owner", "stranger"])
def test_no_function_of_the_kms_contract_moves_its_ownership(
    governance: Governance, stranger: Governance, who: str
) -> None:
    actor = acting(governance, stranger)[who]
    for method, arguments in KMS_CALLS:
        attempt(actor, actor.kms, method, *arguments)
        assert governance.kms.functions.owner().call() == governance.address, method
        assert int(governance.kms.functions.pendingOwner().call(), 16) == 0, method


# ---- upgrades ----


def fresh_code(governance: Governance, name: str) -> str:
    made = governance.settle(governance.send(governance.constructor(name), gas=4_000_000))[0]
    return str(made["contractAddress"])


def test_an_upgrade_may_call_the_new_code_in_one_transaction(governance: Governance) -> None:
    code = fresh_code(governance, "DstackKms")
    call = governance.kms.encode_abi("setGatewayAppId", ["after"])
    change(governance, governance.kms, "upgradeToAndCall", code, call)
    assert implementation_of(governance, governance.kms) == code
    assert governance.kms.functions.gatewayAppId().call() == "after"
    assert governance.kms.functions.owner().call() == governance.address


def test_an_upgrade_whose_call_fails_changes_nothing(governance: Governance) -> None:
    before = implementation_of(governance, governance.kms)
    call = governance.kms.encode_abi("registerApp", [ZERO20])
    code = fresh_code(governance, "DstackKms")
    assert attempt(governance, governance.kms, "upgradeToAndCall", code, call)["status"] == 0
    assert implementation_of(governance, governance.kms) == before


def test_an_app_of_the_old_initializer_may_ask_for_tcb_after_its_upgrade(governance: Governance) -> None:
    create = governance.kms.get_function_by_signature(FIVE)
    made = governance.settle(governance.send(create(governance.address, False, False, HASH, HASH)))[0]
    app = governance.app(bytes.fromhex(made["logs"][0]["address"][2:]))
    change(governance, app, "upgradeToAndCall", fresh_code(governance, "DstackApp"), b"")
    assert app.functions.requireTcbUpToDate().call() is False
    change(governance, app, "setRequireTcbUpToDate", True)
    assert app.functions.requireTcbUpToDate().call() is True
    assert app.functions.allowedDeviceIds(HASH).call() is True
    assert app.functions.allowedComposeHashes(HASH).call() is True


def test_both_contracts_keep_everything_over_their_upgrades(governance: Governance, boot: Boot) -> None:
    app_id = governance.deploy_app(device_id=b"d" * 32, compose_hash=b"c" * 32)
    app = governance.app(app_id)
    governance.settle(
        governance.add_os_image(b"o" * 32), governance.add_kms_mr(HASH), governance.set_gateway_app_id("g")
    )
    change(governance, governance.kms, "upgradeToAndCall", fresh_code(governance, "DstackKms"), b"")
    change(governance, app, "upgradeToAndCall", fresh_code(governance, "DstackApp"), b"")
    assert governance.is_app_allowed(boot(app_id=app_id)) == (True, "")
    assert governance.kms.functions.kmsAllowedAggregatedMrs(HASH).call() is True
    assert governance.kms.functions.gatewayAppId().call() == "g"
    assert app.functions.owner().call() == governance.address


APP_CALLS: list[tuple[str, tuple[object, ...]]] = [
    *((f"{verb}{what}", (HASH,)) for verb in ("add", "remove") for what in ("ComposeHash", "Device")),
    *((f"set{what}", (flag,)) for what in ("AllowAnyDevice", "RequireTcbUpToDate") for flag in (True, False)),
    ("disableUpgrades", ()),
    ("upgradeToAndCall", ("CODE", b"")),
    ("acceptOwnership", ()),
    ("transferOwnership", ("0x" + "77" * 20,)),
    ("renounceOwnership", ()),
]


@pytest.mark.parametrize("who", ["owner", "stranger"])
def test_no_call_takes_disabled_upgrades_back(governance: Governance, stranger: Governance, who: str) -> None:
    app = governance.app(governance.deploy_app(disable_upgrades=True))
    actor, code, before = acting(governance, stranger)[who], fresh_code(governance, "DstackApp"), ""
    before = implementation_of(governance, app)
    for method, arguments in APP_CALLS:
        attempt(actor, app, method, *(code if one == "CODE" else one for one in arguments))
        assert governance.web3.eth.get_storage_at(app.address, 1)[-1] == 1, method
        assert implementation_of(governance, app) == before, method


# ---- events ----


def replayed(governance: Governance, address: str) -> dict[tuple[bytes, bytes], bool]:
    """Return what the audit events of a contract say in the end, by policy and value."""
    logs = governance.web3.eth.get_logs(
        {"address": address, "topics": ["0x" + AUDIT.hex()], "fromBlock": 0, "toBlock": "latest"}  # type: ignore[list-item,typeddict-item]
    )
    return {
        (bytes(log["topics"][2]), bytes(log["topics"][3])): any(bytes(log["data"]))
        for log in sorted(logs, key=lambda log: (log["blockNumber"], log["logIndex"]))
    }


@pytest.mark.parametrize("seed", range(2))
def test_the_audit_events_alone_tell_the_state(governance: Governance, seed: int) -> None:
    """Whatever was added and removed, in whatever order."""
    pick = random.Random(seed)  # noqa: S311 - reproducible changes, not secrets
    app = governance.app(governance.deploy_app(compose_hash=b"0" * 32))
    lists = [
        (governance.kms, "KmsAggregatedMr", "kms-aggregated-mr", "kmsAllowedAggregatedMrs"),
        (governance.kms, "KmsDevice", "kms-device", "kmsAllowedDeviceIds"),
        (governance.kms, "OsImageHash", "os-image", "allowedOsImages"),
        (app, "ComposeHash", "compose-hash", "allowedComposeHashes"),
        (app, "Device", "device", "allowedDeviceIds"),
    ]
    values = [bytes([48 + number]) * 32 for number in range(3)]
    for _ in range(25):
        contract, what, _, _ = pick.choice(lists)
        change(governance, contract, f"{pick.choice(['add', 'remove'])}{what}", pick.choice(values))
    told = {**replayed(governance, governance.kms.address), **replayed(governance, app.address)}
    for contract, _, policy, getter in lists:
        for value in values:
            expected = told.get((keccak256(policy.encode()), value), False)
            assert contract.functions[getter](value).call() is expected, (policy, value)


def test_a_refused_change_leaves_no_event_and_no_state(governance: Governance, stranger: Governance) -> None:
    receipt = attempt(stranger, stranger.kms, "addOsImageHash", HASH)
    assert (receipt["status"], receipt["logs"]) == (0, [])
    assert governance.kms.functions.allowedOsImages(HASH).call() is False


def test_a_reorg_drops_the_event_with_the_state() -> None:
    if find_anvil() is None:
        pytest.skip("no anvil on this machine: install node and npm, then run make setup")
    with start_chain("anvil", block_time=0) as chain:
        governance = Governance(chain.url, chain.accounts[0])
        governance.deploy()
        app = governance.app(governance.deploy_app())
        rpc = governance.web3.provider.make_request
        snapshot = rpc("evm_snapshot", [])["result"]  # type: ignore[arg-type]
        change(governance, app, "addComposeHash", b"x" * 32)
        assert app.functions.allowedComposeHashes(b"x" * 32).call() is True
        assert rpc("evm_revert", [snapshot])["result"] is True  # type: ignore[arg-type]
        assert replayed(governance, app.address) == {}
        assert app.functions.allowedComposeHashes(b"x" * 32).call() is False
        again = Governance(chain.url, chain.accounts[0])  # with the nonces of now
        change(again, app, "addComposeHash", b"y" * 32)
        assert replayed(again, app.address) == {(keccak256(b"compose-hash"), b"y" * 32): True}
        assert app.functions.allowedComposeHashes(b"x" * 32).call() is False


# ---- contracts of another kind ----


def says(flag: int) -> str:
    """Return the creation code of a contract that answers (flag, "") whatever it is asked."""
    runtime = f"60{flag:02x}5f5260406020526060" + "5ff3"
    length = len(runtime) // 2
    return f"0x{0x5F + length:02x}{runtime}5f5260{length:02x}60{32 - length:02x}f3"


@pytest.mark.parametrize("flag", [0, 1])
def test_the_kms_contract_repeats_what_any_app_contract_says(
    governance: Governance, boot: Boot, flag: int
) -> None:
    custom = governance.web3.eth.contract(abi=[], bytecode=says(flag)).constructor()  # type: ignore[arg-type]
    address = governance.settle(governance.send(custom))[0]["contractAddress"]
    governance.settle(governance.add_os_image(b"o" * 32))
    change(governance, governance.kms, "registerApp", address)
    asked = boot_tuple(boot(app_id=bytes.fromhex(address[2:])))
    assert governance.kms.functions.isAppAllowed(asked).call() == [bool(flag), ""]


def test_the_implementation_slot_is_the_one_that_proofs_read() -> None:
    assert int.from_bytes(keccak256(b"eip1967.proxy.implementation"), "big") - 1 == IMPLEMENTATION_SLOT

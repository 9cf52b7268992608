"""Who may do what, and the words and selectors of every refusal."""

from collections.abc import Callable

import pytest
from web3.contract import Contract
from web3.contract.contract import ContractFunction

from cli.devchain.governance import Governance
from shared.errors import PolicyDenied

Failure = Callable[[ContractFunction, Governance], str]
ZERO20, SOMEONE, HASH = bytes(20), b"\x77" * 20, b"h" * 32
UNAUTHORIZED = "0x118cdaa7"
INVALID_INITIALIZATION = "0xf92ee8a9"
INVALID_OWNER = "0x1e4fbdf7"
UNAUTHORIZED_CONTEXT = "0xe07c8dba"
INVALID_IMPLEMENTATION = "0x4c9c8ce3"
SIX = "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"
FIVE = "deployAndRegisterApp(address,bool,bool,bytes32,bytes32)"
INITIALIZE_SIX = "initialize(address,bool,bool,bool,bytes32,bytes32)"
INITIALIZE_FIVE = "initialize(address,bool,bool,bytes32,bytes32)"
# ERC-1967: keccak256("eip1967.proxy.implementation") - 1
IMPLEMENTATION_SLOT = 0x360894A13BA1A3210667C828492DB98DCA3E2076CC3735A920A3CA505D382BBC


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("setKmsInfo", (b"", b"", b"", b"")),
        ("setKmsQuote", b""),
        ("setKmsEventlog", b""),
        ("setGatewayAppId", ""),
        ("setAppImplementation", SOMEONE),
        ("addKmsAggregatedMr", HASH),
        ("removeKmsAggregatedMr", HASH),
        ("addKmsDevice", HASH),
        ("removeKmsDevice", HASH),
        ("addOsImageHash", HASH),
        ("removeOsImageHash", HASH),
        ("transferOwnership", SOMEONE),
    ],
)
def test_kms_refuses_a_stranger(
    governance: Governance, stranger: Governance, failure: Failure, method: str, argument: object
) -> None:
    assert failure(governance.kms.functions[method](argument), stranger) == UNAUTHORIZED


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("addComposeHash", (HASH,)),
        ("removeComposeHash", (HASH,)),
        ("addDevice", (HASH,)),
        ("removeDevice", (HASH,)),
        ("setAllowAnyDevice", (True,)),
        ("setRequireTcbUpToDate", (False,)),
        ("disableUpgrades", ()),
        ("renounceOwnership", ()),
    ],
)
def test_app_refuses_a_stranger(
    governance: Governance, stranger: Governance, failure: Failure, method: str, arguments: tuple[object, ...]
) -> None:
    app = governance.app(governance.deploy_app())
    assert failure(app.functions[method](*arguments), stranger) == UNAUTHORIZED


def test_owner_of_the_kms_contract_does_not_own_its_apps(
    governance: Governance, stranger: Governance, failure: Failure
) -> None:
    app = governance.app(governance.deploy_app(owner=bytes.fromhex(stranger.address[2:])))
    assert failure(app.functions.addComposeHash(HASH), governance) == UNAUTHORIZED


@pytest.mark.parametrize("signature", [SIX, FIVE])
def test_anyone_may_make_an_app(governance: Governance, stranger: Governance, signature: str) -> None:
    flags = [False] * signature.count("bool")
    create = stranger.kms.get_function_by_signature(signature)
    receipt = stranger.settle(stranger.send(create(stranger.address, *flags, bytes(32), bytes(32))))[0]
    app_id = receipt["logs"][0]["address"]
    assert governance.kms.functions.registeredApps(app_id).call() is True


def test_five_argument_factory_leaves_the_tcb_requirement_off(governance: Governance) -> None:
    create = governance.kms.get_function_by_signature(FIVE)
    made = governance.settle(governance.send(create(governance.address, False, True, bytes(32), bytes(32))))[
        0
    ]
    app = governance.app(bytes.fromhex(made["logs"][0]["address"][2:]))
    assert (app.functions.requireTcbUpToDate().call(), app.functions.allowAnyDevice().call()) == (False, True)


def test_six_argument_factory_passes_every_flag(governance: Governance) -> None:
    app_id = governance.deploy_app(require_tcb_up_to_date=True, disable_upgrades=True)
    app = governance.app(app_id)
    flags = governance.web3.eth.get_storage_at(app.address, 1)
    assert app.functions.requireTcbUpToDate().call() is True
    assert int.from_bytes(flags, "big") == 1  # byte 0 upgrades disabled, byte 1 allow any device


def test_anyone_may_register_an_app(stranger: Governance) -> None:
    stranger.settle(stranger.send(stranger.kms.functions.registerApp(SOMEONE)))
    assert stranger.kms.functions.registeredApps(SOMEONE).call() is True


def test_zero_app_id_is_refused(governance: Governance, failure: Failure) -> None:
    assert failure(governance.kms.functions.registerApp(ZERO20), governance) == "Invalid app ID"


def test_zero_app_implementation_is_refused(governance: Governance, failure: Failure) -> None:
    call = governance.kms.functions.setAppImplementation(ZERO20)
    assert failure(call, governance) == "Invalid implementation address"


def test_zero_app_owner_is_refused_by_the_factory(governance: Governance, failure: Failure) -> None:
    create = governance.kms.get_function_by_signature(SIX)
    call = create(ZERO20, False, False, False, bytes(32), bytes(32))
    assert failure(call, governance) == "Invalid owner address"


def test_factory_without_an_app_implementation_says_so_first(
    governance: Governance, failure: Failure
) -> None:
    code = governance.settle(governance.send(governance.constructor("DstackKms"), gas=4_000_000))[0]
    start = governance.kms.encode_abi("initialize", [governance.address, ZERO20])
    made = governance.settle(
        governance.send(governance.constructor("ERC1967Proxy", code["contractAddress"], start))
    )
    kms = governance.web3.eth.contract(address=made[0]["contractAddress"], abi=governance.kms.abi)
    create = kms.get_function_by_signature(SIX)
    call = create(ZERO20, False, False, False, bytes(32), bytes(32))
    assert failure(call, governance) == "DstackApp implementation not set"


def bare_proxy(governance: Governance, name: str) -> Contract:
    """Make a proxy of fresh code that nobody initialized."""
    code = governance.settle(governance.send(governance.constructor(name), gas=4_000_000))[0][
        "contractAddress"
    ]
    made = governance.settle(governance.send(governance.constructor("ERC1967Proxy", code, b"")))[0]
    address = bytes.fromhex(made["contractAddress"][2:])
    return governance.app(address) if name == "DstackApp" else kms_at(governance, address)


def kms_at(governance: Governance, address: bytes) -> Contract:
    return governance.web3.eth.contract(
        address=governance.web3.to_checksum_address(address), abi=governance.kms.abi
    )


@pytest.mark.parametrize("signature", [INITIALIZE_SIX, INITIALIZE_FIVE])
def test_zero_app_owner_is_refused_by_the_initializer(
    governance: Governance, failure: Failure, signature: str
) -> None:
    flags = [False] * signature.count("bool")
    initialize = bare_proxy(governance, "DstackApp").get_function_by_signature(signature)
    assert failure(initialize(ZERO20, *flags, bytes(32), bytes(32)), governance) == "invalid owner address"


def test_zero_kms_owner_is_refused_by_the_initializer(governance: Governance, failure: Failure) -> None:
    initialize = bare_proxy(governance, "DstackKms").functions.initialize
    assert failure(initialize(ZERO20, SOMEONE), governance) == INVALID_OWNER


@pytest.mark.parametrize("signature", [INITIALIZE_SIX, INITIALIZE_FIVE])
def test_app_initializes_once_whichever_overload(
    governance: Governance, failure: Failure, signature: str
) -> None:
    flags = [False] * signature.count("bool")
    initialize = governance.app(governance.deploy_app()).get_function_by_signature(signature)
    call = initialize(governance.address, *flags, bytes(32), bytes(32))
    assert failure(call, governance) == INVALID_INITIALIZATION


def test_kms_initializes_once(governance: Governance, failure: Failure) -> None:
    call = governance.kms.functions.initialize(governance.address, ZERO20)
    assert failure(call, governance) == INVALID_INITIALIZATION


def implementation_of(governance: Governance, proxy: Contract) -> str:
    word = governance.web3.eth.get_storage_at(proxy.address, IMPLEMENTATION_SLOT)
    return str(governance.web3.to_checksum_address(word[-20:]))


def test_kms_implementation_cannot_be_initialized(governance: Governance, failure: Failure) -> None:
    code = kms_at(governance, bytes.fromhex(implementation_of(governance, governance.kms)[2:]))
    assert failure(code.functions.initialize(SOMEONE, SOMEONE), governance) == INVALID_INITIALIZATION


def test_app_implementation_cannot_be_initialized(governance: Governance, failure: Failure) -> None:
    app = governance.app(bytes.fromhex(governance.kms.functions.appImplementation().call()[2:]))
    initialize = app.get_function_by_signature(INITIALIZE_SIX)
    call = initialize(SOMEONE, False, False, False, bytes(32), bytes(32))
    assert failure(call, governance) == INVALID_INITIALIZATION


# ---- ownership ----


def test_ownership_moves_only_when_it_is_accepted(governance: Governance, stranger: Governance) -> None:
    governance.settle(governance.send(governance.kms.functions.transferOwnership(stranger.address)))
    assert governance.kms.functions.owner().call() == governance.address
    assert governance.kms.functions.pendingOwner().call() == stranger.address
    stranger.settle(stranger.send(stranger.kms.functions.acceptOwnership()))
    assert governance.kms.functions.owner().call() == stranger.address


def test_only_the_pending_owner_accepts(governance: Governance, failure: Failure) -> None:
    governance.settle(governance.send(governance.kms.functions.transferOwnership(SOMEONE)))
    assert failure(governance.kms.functions.acceptOwnership(), governance) == UNAUTHORIZED


def test_pending_owner_may_not_act_yet(
    governance: Governance, stranger: Governance, failure: Failure
) -> None:
    governance.settle(governance.send(governance.kms.functions.transferOwnership(stranger.address)))
    assert failure(governance.kms.functions.addOsImageHash(HASH), stranger) == UNAUTHORIZED


def test_transfer_to_zero_cancels(governance: Governance, stranger: Governance, failure: Failure) -> None:
    move = governance.kms.functions.transferOwnership
    governance.settle(governance.send(move(stranger.address)), governance.send(move(ZERO20)))
    assert failure(governance.kms.functions.acceptOwnership(), stranger) == UNAUTHORIZED


def test_renounced_ownership_freezes_the_contract(governance: Governance, failure: Failure) -> None:
    governance.settle(governance.send(governance.kms.functions.renounceOwnership()))
    assert failure(governance.kms.functions.addOsImageHash(HASH), governance) == UNAUTHORIZED


# ---- upgrades ----


@pytest.mark.parametrize("name", ["DstackKms", "DstackApp"])
def test_owner_upgrades_and_state_stays(governance: Governance, name: str) -> None:
    app = governance.app(governance.deploy_app(compose_hash=HASH))
    governance.settle(governance.add_os_image(HASH))
    target = governance.kms if name == "DstackKms" else app
    code = governance.settle(governance.send(governance.constructor(name), gas=4_000_000))[0][
        "contractAddress"
    ]
    governance.settle(governance.send(target.functions.upgradeToAndCall(code, b"")))
    assert implementation_of(governance, target) == code
    assert governance.kms.functions.allowedOsImages(HASH).call() is True
    assert app.functions.allowedComposeHashes(HASH).call() is True


@pytest.mark.parametrize("name", ["DstackKms", "DstackApp"])
def test_stranger_may_not_upgrade(
    governance: Governance, stranger: Governance, failure: Failure, name: str
) -> None:
    target = governance.kms if name == "DstackKms" else governance.app(governance.deploy_app())
    call = target.functions.upgradeToAndCall(implementation_of(governance, target), b"")
    assert failure(call, stranger) == UNAUTHORIZED


def test_app_may_disable_upgrades_for_ever(governance: Governance, failure: Failure) -> None:
    app = governance.app(governance.deploy_app())
    code = implementation_of(governance, app)
    governance.settle(governance.send(app.functions.disableUpgrades()))
    call = app.functions.upgradeToAndCall(code, b"")
    assert failure(call, governance) == "Upgrades are permanently disabled"


def test_app_may_be_made_with_upgrades_disabled(governance: Governance, failure: Failure) -> None:
    app = governance.app(governance.deploy_app(disable_upgrades=True))
    call = app.functions.upgradeToAndCall(implementation_of(governance, app), b"")
    assert failure(call, governance) == "Upgrades are permanently disabled"


def test_ownership_is_checked_before_disabled_upgrades(
    governance: Governance, stranger: Governance, failure: Failure
) -> None:
    app = governance.app(governance.deploy_app(disable_upgrades=True))
    assert failure(app.functions.upgradeToAndCall(SOMEONE, b""), stranger) == UNAUTHORIZED


def test_upgrade_to_an_address_without_code_is_refused(governance: Governance, failure: Failure) -> None:
    # the address answers nothing at all, so Solidity's own check of a call's target reverts without data
    call = governance.kms.functions.upgradeToAndCall(SOMEONE, b"")
    assert failure(call, governance) == "0x"


def test_upgrade_to_a_contract_that_is_no_implementation_is_refused(
    governance: Governance, failure: Failure
) -> None:
    call = governance.kms.functions.upgradeToAndCall(governance.kms.address, b"")
    assert failure(call, governance) == INVALID_IMPLEMENTATION


def test_implementation_itself_cannot_be_upgraded(governance: Governance, failure: Failure) -> None:
    code = implementation_of(governance, governance.kms)
    kms = kms_at(governance, bytes.fromhex(code[2:]))
    assert failure(kms.functions.upgradeToAndCall(code, b""), governance) == UNAUTHORIZED_CONTEXT


def test_proxy_does_not_tell_its_uuid(governance: Governance, failure: Failure) -> None:
    assert failure(governance.kms.functions.proxiableUUID(), governance) == UNAUTHORIZED_CONTEXT


def test_implementation_tells_the_erc1967_slot(governance: Governance) -> None:
    kms = kms_at(governance, bytes.fromhex(implementation_of(governance, governance.kms)[2:]))
    assert int.from_bytes(kms.functions.proxiableUUID().call(), "big") == IMPLEMENTATION_SLOT


# ---- introspection ----


@pytest.mark.parametrize(
    ("interface", "kms", "app"),
    [
        ("01ffc9a7", True, True),
        ("1e079198", True, True),
        ("8fd37527", False, True),
        ("ffffffff", False, False),
        ("00000000", False, False),
    ],
)
def test_erc165_names_what_each_contract_is(
    governance: Governance, *, interface: str, kms: bool, app: bool
) -> None:
    made = governance.app(governance.deploy_app())
    asked = bytes.fromhex(interface)
    assert governance.kms.functions.supportsInterface(asked).call() is kms
    assert made.functions.supportsInterface(asked).call() is app


def test_app_is_version_two(governance: Governance) -> None:
    assert governance.app(governance.deploy_app()).functions.version().call() == 2


def test_upgrade_interface_is_openzeppelin_five(governance: Governance) -> None:
    assert governance.kms.functions.UPGRADE_INTERFACE_VERSION().call() == "5.0.0"


def test_failed_transaction_is_an_error_of_ours(governance: Governance) -> None:
    failed = governance.send(governance.kms.functions.registerApp(ZERO20))
    with pytest.raises(PolicyDenied) as caught:
        governance.settle(failed)
    assert caught.value.code == "governance.transaction.reverted"

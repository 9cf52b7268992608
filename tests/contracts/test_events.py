"""Every change leaves the events that listeners know, in the order they know."""

from collections.abc import Callable
from typing import Any

import pytest
from web3.types import TxReceipt

from cli.devchain.artifacts import artifact
from cli.devchain.governance import Governance
from shared.keccak import keccak256

Reference = Callable[[str], dict[str, Any]]
HASH = b"h" * 32
SOMEONE = b"\x77" * 20


def padded(address: str | bytes) -> str:
    raw = bytes.fromhex(address[2:]) if isinstance(address, str) else address
    return raw.rjust(32, b"\0").hex()


def names(receipt: TxReceipt) -> list[tuple[str, str]]:
    """Return each log's address and its event's name; a PolicyChanged with the name of the policy."""
    topics = {}
    for contract in ("DstackKms", "DstackApp"):
        for entry in artifact(contract).abi:
            if entry["type"] == "event":
                signature = f"{entry['name']}({','.join(one['type'] for one in entry['inputs'])})"
                topics[keccak256(signature.encode())] = entry["name"]
    policies = {keccak256(name.encode()): name for name in POLICIES}
    found = []
    for log in receipt["logs"]:
        name = topics[bytes(log["topics"][0])]
        if name == "PolicyChanged":
            name = f"PolicyChanged:{policies[bytes(log['topics'][2])]}"
        found.append((log["address"], name))
    return found


POLICIES = (
    *(
        "kms-aggregated-mr",
        "kms-device",
        "os-image",
        "gateway-app-id",
        "registered-app",
        "app-implementation",
    ),
    *("kms-info", "implementation-upgrade", "compose-hash", "device", "allow-any-device"),
    *("require-tcb-up-to-date", "upgrades-disabled"),
)


def test_policy_topics_equal_the_vectors(reference: Reference) -> None:
    ours = {name: "0x" + keccak256(name.encode()).hex() for name in POLICIES}
    assert ours == reference("vectors")["policyTopics"]


def test_factory_emits_in_upstreams_order(governance: Governance) -> None:
    create = governance.kms.get_function_by_signature(
        "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"
    )
    receipt = governance.settle(
        governance.send(create(governance.address, False, False, False, b"d" * 32, b"c" * 32))
    )[0]
    logs = names(receipt)
    app, kms = logs[0][0], governance.kms.address
    assert logs == [
        (app, "Upgraded"),
        (app, "DeviceAdded"),
        (app, "PolicyChanged:device"),
        (app, "ComposeHashAdded"),
        (app, "PolicyChanged:compose-hash"),
        (app, "OwnershipTransferred"),
        (app, "Initialized"),
        (kms, "AppRegistered"),
        (kms, "PolicyChanged:registered-app"),
        (kms, "AppDeployedViaFactory"),
    ]
    # the app's events name the factory, the registration names the user
    assert [log["topics"][1].hex() for log in receipt["logs"] if len(log["topics"]) == 4] == [
        padded(kms),
        padded(kms),
        padded(governance.address),
    ]
    assert [topic.hex() for topic in receipt["logs"][-1]["topics"][1:]] == [
        padded(app),
        padded(governance.address),
    ]


def test_factory_without_device_and_compose_emits_no_grants(governance: Governance) -> None:
    create = governance.kms.get_function_by_signature(
        "deployAndRegisterApp(address,bool,bool,bytes32,bytes32)"
    )
    receipt = governance.settle(
        governance.send(create(governance.address, True, True, bytes(32), bytes(32)))
    )[0]
    assert [name for _, name in names(receipt)] == [
        "Upgraded",
        "OwnershipTransferred",
        "Initialized",
        "AppRegistered",
        "PolicyChanged:registered-app",
        "AppDeployedViaFactory",
    ]


def test_kms_initializer_emits_in_upstreams_order(governance: Governance) -> None:
    implementation = bytes.fromhex(governance.kms.functions.appImplementation().call()[2:])
    kms_code = governance.send(governance.constructor("DstackKms"), gas=4_000_000)
    code = governance.settle(kms_code)[0]["contractAddress"]
    start = governance.kms.encode_abi("initialize", [governance.address, implementation])
    receipt = governance.settle(governance.send(governance.constructor("ERC1967Proxy", code, start)))[0]
    assert [name for _, name in names(receipt)] == [
        "Upgraded",
        "OwnershipTransferred",
        "AppImplementationSet",
        "PolicyChanged:app-implementation",
        "Initialized",
    ]


def test_kms_initializer_without_an_app_implementation_names_none(governance: Governance) -> None:
    code = governance.settle(governance.send(governance.constructor("DstackKms"), gas=4_000_000))[0]
    start = governance.kms.encode_abi("initialize", [governance.address, bytes(20)])
    receipt = governance.settle(
        governance.send(governance.constructor("ERC1967Proxy", code["contractAddress"], start))
    )[0]
    assert [name for _, name in names(receipt)] == ["Upgraded", "OwnershipTransferred", "Initialized"]


INFO = (b"k256", b"ca", b"quote", b"log")
KMS_CHANGES = [
    ("addKmsAggregatedMr", HASH, "KmsAggregatedMrAdded", "kms-aggregated-mr", HASH.hex(), True),
    ("removeKmsAggregatedMr", HASH, "KmsAggregatedMrRemoved", "kms-aggregated-mr", HASH.hex(), False),
    ("addKmsDevice", HASH, "KmsDeviceAdded", "kms-device", HASH.hex(), True),
    ("removeKmsDevice", HASH, "KmsDeviceRemoved", "kms-device", HASH.hex(), False),
    ("addOsImageHash", HASH, "OsImageHashAdded", "os-image", HASH.hex(), True),
    ("removeOsImageHash", HASH, "OsImageHashRemoved", "os-image", HASH.hex(), False),
    ("setGatewayAppId", "any", "GatewayAppIdSet", "gateway-app-id", keccak256(b"any").hex(), True),
    ("registerApp", SOMEONE, "AppRegistered", "registered-app", padded(SOMEONE), True),
    ("setAppImplementation", SOMEONE, "AppImplementationSet", "app-implementation", padded(SOMEONE), True),
    ("setKmsInfo", INFO, "KmsInfoSet", "kms-info", keccak256(b"k256").hex(), True),
]
APP_CHANGES = [
    ("addComposeHash", (HASH,), "ComposeHashAdded", "compose-hash", HASH.hex(), True),
    ("removeComposeHash", (HASH,), "ComposeHashRemoved", "compose-hash", HASH.hex(), False),
    ("addDevice", (HASH,), "DeviceAdded", "device", HASH.hex(), True),
    ("removeDevice", (HASH,), "DeviceRemoved", "device", HASH.hex(), False),
    ("setAllowAnyDevice", (True,), "AllowAnyDeviceSet", "allow-any-device", "00" * 32, True),
    ("setAllowAnyDevice", (False,), "AllowAnyDeviceSet", "allow-any-device", "00" * 32, False),
    ("setRequireTcbUpToDate", (True,), "RequireTcbUpToDateSet", "require-tcb-up-to-date", "00" * 32, True),
    ("setRequireTcbUpToDate", (False,), "RequireTcbUpToDateSet", "require-tcb-up-to-date", "00" * 32, False),
    ("disableUpgrades", (), "UpgradesDisabled", "upgrades-disabled", "00" * 32, True),
]


def assert_audited(governance: Governance, receipt: TxReceipt, event: str, policy: str, value: str) -> bool:
    """Check the pair of events and return what the audit event says about `enabled`."""
    assert [name for _, name in names(receipt)] == [event, f"PolicyChanged:{policy}"]
    audit = receipt["logs"][1]
    assert [audit["topics"][1].hex(), audit["topics"][3].hex()] == [padded(governance.address), value]
    return bool(int.from_bytes(bytes(audit["data"]), "big"))


@pytest.mark.parametrize(("method", "argument", "event", "policy", "value", "enabled"), KMS_CHANGES)
def test_kms_change_is_audited(
    governance: Governance,
    *,
    method: str,
    argument: object,
    event: str,
    policy: str,
    value: str,
    enabled: bool,
) -> None:
    receipt = governance.settle(governance.send(governance.kms.functions[method](argument)))[0]
    assert assert_audited(governance, receipt, event, policy, value) is enabled


@pytest.mark.parametrize(("method", "arguments", "event", "policy", "value", "enabled"), APP_CHANGES)
def test_app_change_is_audited(
    governance: Governance,
    *,
    method: str,
    arguments: tuple[object, ...],
    event: str,
    policy: str,
    value: str,
    enabled: bool,
) -> None:
    app = governance.app(governance.deploy_app())
    receipt = governance.settle(governance.send(app.functions[method](*arguments)))[0]
    assert assert_audited(governance, receipt, event, policy, value) is enabled


@pytest.mark.parametrize("method", ["setKmsQuote", "setKmsEventlog"])
def test_quote_and_event_log_change_silently(governance: Governance, method: str) -> None:
    receipt = governance.settle(governance.send(governance.kms.functions[method](b"new")))[0]
    assert receipt["logs"] == []


def test_kms_info_keeps_what_was_set(governance: Governance) -> None:
    governance.settle(
        governance.set_kms_info(k256_pubkey=b"k" * 33, ca_pubkey=b"c" * 91, quote=b"q", eventlog=b"e"),
        governance.send(governance.kms.functions.setKmsQuote(b"q" * 64)),
        governance.send(governance.kms.functions.setKmsEventlog(b"e" * 65)),
    )
    assert list(governance.kms.functions.kmsInfo().call()) == [b"k" * 33, b"c" * 91, b"q" * 64, b"e" * 65]


@pytest.mark.parametrize("name", ["DstackKms", "DstackApp"])
def test_upgrade_is_audited_before_it_happens(governance: Governance, name: str) -> None:
    target = governance.kms if name == "DstackKms" else governance.app(governance.deploy_app())
    code = governance.settle(governance.send(governance.constructor(name), gas=4_000_000))[0][
        "contractAddress"
    ]
    receipt = governance.settle(governance.send(target.functions.upgradeToAndCall(code, b"")))[0]
    assert [found for _, found in names(receipt)] == ["PolicyChanged:implementation-upgrade", "Upgraded"]
    assert [topic.hex() for topic in receipt["logs"][0]["topics"][1:]] == [
        padded(governance.address),
        keccak256(b"implementation-upgrade").hex(),
        padded(code),
    ]

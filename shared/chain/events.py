"""Events of DstackKms and DstackApp, from logs (contracts section 1.5).

Decoding is strict: a log has the topics and the data that the contract's own compiler would have written, or
it is none of ours.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from shared.chain.abi_values import Kind, Value, decode_values
from shared.chain.calldata import Target
from shared.errors import ProtocolError
from shared.keccak import keccak256

POLICIES: Final = (
    *("kms-aggregated-mr", "kms-device", "os-image", "gateway-app-id", "registered-app"),
    *("app-implementation", "kms-info", "implementation-upgrade"),
    *("compose-hash", "device", "allow-any-device", "require-tcb-up-to-date", "upgrades-disabled"),
)
"""What `PolicyChanged` names by hash."""


class Event(msgspec.Struct, frozen=True):
    """An event of one of the contracts: `parameters` as (name, type); the first `indexed` are topics."""

    name: str
    target: Target
    parameters: tuple[tuple[str, Kind], ...]
    indexed: int = 0

    @property
    def signature(self) -> str:
        """The canonical signature, whose hash is the first topic."""
        return f"{self.name}({','.join(kind for _, kind in self.parameters)})"


class Decoded(msgspec.Struct, frozen=True):
    """One log's event and arguments, in the order of the event's parameters."""

    event: Event
    arguments: tuple[Value, ...]

    def argument(self, name: str) -> Value:
        """Return one argument by its parameter's name."""
        names = [parameter for parameter, _ in self.event.parameters]
        return self.arguments[names.index(name)]


def _pair(name: str, target: Target, parameter: str) -> tuple[Event, Event]:
    parameters: tuple[tuple[str, Kind], ...] = ((parameter, "bytes32"),)
    return (
        Event(f"{name}Added", target, parameters),
        Event(f"{name}Removed", target, parameters),
    )


KMS_MR_ADDED, KMS_MR_REMOVED = _pair("KmsAggregatedMr", "kms", "mrAggregated")
KMS_DEVICE_ADDED, KMS_DEVICE_REMOVED = _pair("KmsDevice", "kms", "deviceId")
OS_IMAGE_ADDED, OS_IMAGE_REMOVED = _pair("OsImageHash", "kms", "osImageHash")
COMPOSE_HASH_ADDED, COMPOSE_HASH_REMOVED = _pair("ComposeHash", "app", "composeHash")
DEVICE_ADDED, DEVICE_REMOVED = _pair("Device", "app", "deviceId")
APP_REGISTERED: Final = Event("AppRegistered", "kms", (("appId", "address"),))
APP_DEPLOYED_VIA_FACTORY: Final = Event(
    "AppDeployedViaFactory", "kms", (("appId", "address"), ("deployer", "address")), 2
)
KMS_INFO_SET: Final = Event("KmsInfoSet", "kms", (("k256Pubkey", "bytes"),))
GATEWAY_APP_ID_SET: Final = Event("GatewayAppIdSet", "kms", (("gatewayAppId", "string"),))
APP_IMPLEMENTATION_SET: Final = Event("AppImplementationSet", "kms", (("implementation", "address"),))
ALLOW_ANY_DEVICE_SET: Final = Event("AllowAnyDeviceSet", "app", (("allowAny", "bool"),))
REQUIRE_TCB_SET: Final = Event("RequireTcbUpToDateSet", "app", (("requireUpToDate", "bool"),))
UPGRADES_DISABLED: Final = Event("UpgradesDisabled", "app", ())
POLICY_CHANGED: Final = Event(
    "PolicyChanged",
    "both",
    (("actor", "address"), ("policy", "bytes32"), ("value", "bytes32"), ("enabled", "bool")),
    3,
)
INITIALIZED: Final = Event("Initialized", "both", (("version", "uint64"),))
OWNERSHIP_TRANSFER_STARTED: Final = Event(
    "OwnershipTransferStarted",
    "both",
    (("previousOwner", "address"), ("newOwner", "address")),
    2,
)
OWNERSHIP_TRANSFERRED: Final = Event(
    "OwnershipTransferred", "both", (("previousOwner", "address"), ("newOwner", "address")), 2
)
UPGRADED: Final = Event("Upgraded", "both", (("implementation", "address"),), 1)

EVENTS: Final = (
    *(KMS_MR_ADDED, KMS_MR_REMOVED, KMS_DEVICE_ADDED, KMS_DEVICE_REMOVED, OS_IMAGE_ADDED, OS_IMAGE_REMOVED),
    *(APP_REGISTERED, APP_DEPLOYED_VIA_FACTORY, KMS_INFO_SET, GATEWAY_APP_ID_SET, APP_IMPLEMENTATION_SET),
    *(COMPOSE_HASH_ADDED, COMPOSE_HASH_REMOVED, DEVICE_ADDED, DEVICE_REMOVED),
    *(ALLOW_ANY_DEVICE_SET, REQUIRE_TCB_SET, UPGRADES_DISABLED),
    *(POLICY_CHANGED, INITIALIZED, OWNERSHIP_TRANSFER_STARTED, OWNERSHIP_TRANSFERRED, UPGRADED),
)

_BY_TOPIC: Final = {keccak256(event.signature.encode()): event for event in EVENTS}
_TOPICS: Final = {event.name: topic for topic, event in _BY_TOPIC.items()}
_POLICY_NAMES: Final = {keccak256(name.encode()): name for name in POLICIES}


def topic_of(event: Event) -> bytes:
    """Return the first topic of an event's logs, 32 bytes."""
    return _TOPICS[event.name]


def event_of(topic: bytes) -> Event | None:
    """Return the event that a log's first topic names, or None where it is none of ours."""
    return _BY_TOPIC.get(topic)


def policy_name(policy: bytes) -> str:
    """Return which policy `PolicyChanged` means; empty for a hash of another text."""
    return _POLICY_NAMES.get(policy, "")


def decode_event(topics: Sequence[bytes], data: bytes) -> Decoded | None:
    """Return the event of a log, or None where its first topic is none of ours.

    Raises `ProtocolError("event.malformed")` where topics or data are not what the contract writes.
    """
    event = _BY_TOPIC.get(topics[0]) if topics else None
    if event is None:
        return None
    kinds = [kind for _, kind in event.parameters]
    if len(topics) != 1 + event.indexed:
        raise ProtocolError(
            "event.malformed", f"{event.name} has {len(topics)} topics, expected {1 + event.indexed}"
        )
    try:
        return Decoded(
            event,
            decode_values(kinds[: event.indexed], b"".join(topics[1:]))
            + decode_values(kinds[event.indexed :], data),
        )
    except ProtocolError as error:
        raise ProtocolError("event.malformed", f"a log of {event.name}: {error.message}") from error


def topics_of(events: Iterable[Event]) -> list[bytes]:
    """Return the first topics of several events, for a filter that takes any of them."""
    return [topic_of(event) for event in events]

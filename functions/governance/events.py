"""The contracts' events by their first topic, and what each may mean (contracts section 1.5).

Whatever an event says, its values are not used: it says where to look. Its effect decides how loudly
operators are told.
"""

from typing import Final, Literal

import msgspec

from shared.keccak import keccak256

Effect = Literal["revocation", "grant", "either", "control"]


class KnownEvent(msgspec.Struct, frozen=True):
    """One event. `control` is who rules the contract, or what its code is."""

    name: str
    effect: Effect


_SIGNATURES: Final[dict[str, Effect]] = {
    # of the KMS contract
    "AppRegistered(address)": "grant",
    "AppDeployedViaFactory(address,address)": "grant",
    "KmsInfoSet(bytes)": "control",
    "KmsAggregatedMrAdded(bytes32)": "grant",
    "KmsAggregatedMrRemoved(bytes32)": "revocation",
    "KmsDeviceAdded(bytes32)": "grant",
    "KmsDeviceRemoved(bytes32)": "revocation",
    "OsImageHashAdded(bytes32)": "grant",
    "OsImageHashRemoved(bytes32)": "revocation",
    "GatewayAppIdSet(string)": "control",
    "AppImplementationSet(address)": "control",
    # of an app's
    "ComposeHashAdded(bytes32)": "grant",
    "ComposeHashRemoved(bytes32)": "revocation",
    "DeviceAdded(bytes32)": "grant",
    "DeviceRemoved(bytes32)": "revocation",
    "AllowAnyDeviceSet(bool)": "either",
    "RequireTcbUpToDateSet(bool)": "either",
    "UpgradesDisabled()": "control",
    # of both
    "PolicyChanged(address,bytes32,bytes32,bool)": "either",
    "Initialized(uint64)": "control",
    "OwnershipTransferStarted(address,address)": "control",
    "OwnershipTransferred(address,address)": "control",
    "Upgraded(address)": "control",
}

EVENTS: Final = {
    keccak256(signature.encode()): KnownEvent(signature.partition("(")[0], effect)
    for signature, effect in _SIGNATURES.items()
}
"""By topic, 32 bytes."""

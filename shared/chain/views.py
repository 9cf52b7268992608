"""Selectors of the views that tell a contract's settings (contracts section 1.3), beside those in `abi`."""

from typing import Final

OWNER: Final = bytes.fromhex("8da5cb5b")
PENDING_OWNER: Final = bytes.fromhex("e30c3978")

KMS_INFO: Final = bytes.fromhex("09177063")
REGISTERED_APPS: Final = bytes.fromhex("a6c4cce9")
KMS_ALLOWED_AGGREGATED_MRS: Final = bytes.fromhex("f6fe4f40")
KMS_ALLOWED_DEVICE_IDS: Final = bytes.fromhex("13eb9770")
ALLOWED_OS_IMAGES: Final = bytes.fromhex("9a4e1d18")

ALLOWED_COMPOSE_HASHES: Final = bytes.fromhex("2f6622e5")
ALLOWED_DEVICE_IDS: Final = bytes.fromhex("bf8b211b")
ALLOW_ANY_DEVICE: Final = bytes.fromhex("3440a16a")
REQUIRE_TCB_UP_TO_DATE: Final = bytes.fromhex("0aa58c83")

# of a Safe: `getThreshold()` and `getOwners()`
SAFE_THRESHOLD: Final = bytes.fromhex("e75235b8")
SAFE_OWNERS: Final = bytes.fromhex("a0e67e2b")
# and `nonce()`, `domainSeparator()`, `approvedHashes(address,bytes32)`
SAFE_NONCE: Final = bytes.fromhex("affed0e0")
SAFE_DOMAIN_SEPARATOR: Final = bytes.fromhex("f698da25")
SAFE_APPROVED_HASHES: Final = bytes.fromhex("7d832974")

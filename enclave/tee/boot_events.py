"""What a guest records of itself while it boots, in upstream's order (spec attestation section 3.5).

The order is part of the registers' value: who the guest is, the boundary `boot-mr-done`, where its keys came
from, and `system-ready`, after which no event names it any more.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from enclave.devices.runtime_events import RuntimeEventLog
from shared.attestation.envelope import RuntimeEvent

KeyProvider = Literal["none", "tpm", "kms"]

SYSTEM_READY = "system-ready"

STORAGE_FS = "ext4"
"""What a guest makes of its data disk where app-compose does not say."""

_ID_LENGTH = 20


def identity_events(
    *,
    app_id: bytes,
    compose_hash: bytes,
    instance_id: bytes,
    init_script_hashes: Iterable[bytes] = (),
    gpu_policy_hash: bytes = b"",
) -> tuple[RuntimeEvent, ...]:
    """Return the events before any workload runs. `instance_id` has 20 bytes, or none.

    An empty `gpu_policy_hash` is that of a guest of before there was such a policy, which records none.
    """
    return (
        RuntimeEvent("system-preparing", b""),
        RuntimeEvent("app-id", app_id),
        RuntimeEvent("compose-hash", compose_hash),
        *(RuntimeEvent("init-script-hash", digest) for digest in init_script_hashes),
        *([RuntimeEvent("gpu-policy-hash", gpu_policy_hash)] if gpu_policy_hash else []),
        RuntimeEvent("instance-id", instance_id),
        RuntimeEvent("boot-mr-done", b""),
    )


def provider_events(
    provider: KeyProvider,
    *,
    provider_id: bytes = b"",
    os_image_hash: bytes = b"",
    storage_fs: str = STORAGE_FS,
) -> tuple[RuntimeEvent, ...]:
    """Return the events from the arrival of keys to the end of the boot.

    `provider_id` is the KMS's root key (SPKI DER), `os_image_hash` what that KMS found this image to be.
    """
    named = msgspec.json.encode({"name": provider, "id": provider_id.hex()})
    return (
        *([RuntimeEvent("os-image-hash", os_image_hash)] if os_image_hash else []),
        RuntimeEvent("key-provider", named),
        RuntimeEvent("storage-fs", storage_fs.encode()),
        RuntimeEvent(SYSTEM_READY, b""),
    )


def record(log: RuntimeEventLog, events: Iterable[RuntimeEvent]) -> None:
    """Emit events in order, in the version of this boot. Raises what `RuntimeEventLog.emit` does."""
    for event in events:
        log.emit(event.event, event.payload)


def make_instance_id(seed: bytes, app_id: bytes, binding: bytes) -> bytes:
    """Return the 20 bytes that name one instance (spec deploy section 2.5).

    `binding` is the SHA-256 of the vTPM key's TPMT_PUBLIC: a copied disk on another vTPM gets another name.
    """
    return hashlib.sha256(seed + app_id + binding).digest()[:_ID_LENGTH]

"""A seed that the machine's TPM keeps, for guests without a KMS (spec deploy section 4, `tpm`).

The seed is sealed to the registers of this very boot: firmware, OS image and the events up to here. The blob
lies in the TPM itself, in upstream's index; its format is ours, and upstream's guest does not read it.
"""

import secrets

from enclave.devices.tpm_nv import (
    ATTR_AUTH_READ,
    ATTR_NO_DA,
    ATTR_OWNER_READ,
    ATTR_OWNER_WRITE,
    ATTR_WRITTEN,
    CHUNK,
    NvStorage,
)
from enclave.dstack_util.guest import BootingTee
from enclave.tee.tee import Sealer
from shared.errors import ConfigError, StorageError
from shared.keys.kdf import hkdf_sha256
from shared.keys.seed_keys import SEED_BYTES

SEED_INDEX = 0x01801101
BANK = "sha256"
REGISTERS = (0, 2, 14)

_LENGTH_BYTES = 2
_INDEX_BYTES = CHUNK  # what one command writes: a crash leaves the whole blob or none
_ATTRIBUTES = ATTR_OWNER_WRITE | ATTR_OWNER_READ | ATTR_AUTH_READ | ATTR_NO_DA


def tpm_seed(tee: BootingTee) -> bytes:
    """Return the seed of this machine in this state, made and sealed at its first boot.

    Raises `ConfigError("setup.tpm")` without a TPM, `StorageError("setup.tpm_seed")` for an index of another
    make, and what unsealing raises: `UnavailableError("tpm_device.sealed")` once the image or what is
    recorded of the app is another one. The old seed is kept then: nothing destroys it.
    """
    sealer, storage = tee.sealer(), tee.nonvolatile()
    if sealer is None or storage is None:
        raise ConfigError("setup.tpm", "key_provider is tpm, and this guest has no tpm")
    public = storage.find(SEED_INDEX)
    if public is not None and public.size != _INDEX_BYTES:
        raise StorageError(
            "setup.tpm_seed",
            f"tpm index {SEED_INDEX:#x} has {public.size} bytes, expected {_INDEX_BYTES}: not of this guest",
        )
    if public is not None and (blob := _read_blob(storage)):
        return sealer.unseal(blob, BANK, REGISTERS)
    return _make(storage, sealer, tee.random(), is_defined=public is not None)


def _make(storage: NvStorage, sealer: Sealer, random: bytes, *, is_defined: bool) -> bytes:
    seed = hkdf_sha256(random + secrets.token_bytes(SEED_BYTES), (b"dstack-tpm-seed",))
    blob = sealer.seal(seed, BANK, REGISTERS)
    # before it is used: a seed that will not come back would lock the disk for ever
    if sealer.unseal(blob, BANK, REGISTERS) != seed:
        raise StorageError("setup.tpm_seed", "the tpm gave back another seed than was sealed")
    if not is_defined:
        storage.define(SEED_INDEX, _INDEX_BYTES, _ATTRIBUTES)
    storage.write(SEED_INDEX, (len(blob).to_bytes(_LENGTH_BYTES) + blob).ljust(_INDEX_BYTES, b"\0"))
    return seed


def _read_blob(storage: NvStorage) -> bytes:
    """Return the sealed blob; empty where an earlier boot defined the index and wrote nothing."""
    public = storage.find(SEED_INDEX)
    if public is None or not public.attributes & ATTR_WRITTEN:
        return b""
    content = storage.read(SEED_INDEX)
    length = int.from_bytes(content[:_LENGTH_BYTES])
    if length > _INDEX_BYTES - _LENGTH_BYTES:
        raise StorageError("setup.tpm_seed", f"tpm index {SEED_INDEX:#x} claims a blob of {length} bytes")
    return content[_LENGTH_BYTES : _LENGTH_BYTES + length]

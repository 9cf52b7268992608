"""Storage slots of DstackKms and DstackApp, and how Solidity packs their values (contracts section 1.6)."""

from functools import lru_cache

from shared.errors import InvalidEvidence
from shared.keccak import keccak256

# one less than the hash of the text eip1967.proxy.implementation
ERC1967_IMPLEMENTATION = bytes.fromhex("360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc")


def fixed(number: int) -> bytes:
    """Return the 32-byte key of a numbered slot."""
    return number.to_bytes(32, "big")


@lru_cache(maxsize=1024)  # one image, one KMS and one app are asked about again and again
def mapping_element(key: bytes, number: int) -> bytes:
    """Return the slot of `mapping[key]` for the mapping declared at slot `number`; the key is left-padded."""
    return keccak256(key.rjust(32, b"\0"), fixed(number))


KMS_K256_PUBKEY = fixed(0)
KMS_CA_PUBKEY = fixed(1)
KMS_GATEWAY_APP_ID = fixed(4)
KMS_APP_IMPLEMENTATION = fixed(9)
APP_FLAGS = fixed(1)
APP_REQUIRE_TCB = fixed(3)

# The contract bounds nothing; an app id is 40 or 42 characters, a compressed key 33 bytes, an SPKI 91.
MAX_STRING = 256


def kms_registered_app(app_id: bytes) -> bytes:
    """Return the slot of `registeredApps[app_id]`."""
    return mapping_element(app_id, 5)


def kms_aggregated_mr(mr_aggregated: bytes) -> bytes:
    """Return the slot of `kmsAllowedAggregatedMrs[mr_aggregated]`."""
    return mapping_element(mr_aggregated, 6)


def kms_device(device_id: bytes) -> bytes:
    """Return the slot of `kmsAllowedDeviceIds[device_id]`."""
    return mapping_element(device_id, 7)


def kms_os_image(os_image_hash: bytes) -> bytes:
    """Return the slot of `allowedOsImages[os_image_hash]`."""
    return mapping_element(os_image_hash, 8)


def app_compose_hash(compose_hash: bytes) -> bytes:
    """Return the slot of `allowedComposeHashes[compose_hash]`."""
    return mapping_element(compose_hash, 0)


def app_device(device_id: bytes) -> bytes:
    """Return the slot of the app's `allowedDeviceIds[device_id]`."""
    return mapping_element(device_id, 2)


def bool_at(word: bytes, offset: int = 0) -> bool:
    """Read the bool packed `offset` bytes from the low end of a storage word."""
    return word[31 - offset] != 0


def address_in(word: bytes) -> bytes:
    """Read the 20-byte address in a storage word; raises `InvalidEvidence("proof.slot.malformed")`."""
    if any(word[:12]):
        raise InvalidEvidence("proof.slot.malformed", f"slot value 0x{word.hex()} is no address")
    return word[12:]


def string_slots(word: bytes, slot: bytes) -> tuple[bytes, ...]:
    """Return the further slots that hold a string or bytes whose own slot is `slot` and contains `word`.

    None for a short one. Raises `InvalidEvidence`: `proof.slot.malformed` where Solidity itself would
    panic, `proof.string.size` above `MAX_STRING` bytes.
    """
    length = _string_length(word)
    if not word[31] & 1:
        return ()
    first = int.from_bytes(keccak256(slot), "big")
    return tuple(fixed((first + index) % 2**256) for index in range((length + 31) // 32))


def bytes_of(word: bytes, parts: tuple[bytes, ...]) -> bytes:
    """Read `bytes` from their own slot and the contents of their `string_slots`; raises as that does."""
    length = _string_length(word)
    return (b"".join(parts) if word[31] & 1 else word)[:length]


def string_of(word: bytes, parts: tuple[bytes, ...]) -> str:
    """Read a string from its own slot and the contents of its `string_slots`.

    Raises as `string_slots` does, and `proof.string.encoding` for bytes that are not UTF-8.
    """
    raw = bytes_of(word, parts)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvidence(
            "proof.string.encoding", f"the contract's string 0x{raw.hex()} is not utf-8"
        ) from error


def _string_length(word: bytes) -> int:
    length = int.from_bytes(word, "big") // 2 if word[31] & 1 else word[31] // 2
    if (length < 32) == bool(word[31] & 1):
        raise InvalidEvidence("proof.slot.malformed", f"slot value 0x{word.hex()} is no solidity string")
    if length > MAX_STRING:
        raise InvalidEvidence(
            "proof.string.size",
            f"the contract's string has {length} bytes, expected at most {MAX_STRING}",
        )
    return length

"""Sign and Verify: vectors of spec guest-agent 3.2, and the rules of 2.4."""

from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.errors import ProtocolError
from shared.keys.guest_keys import public_key_of
from shared.keys.guest_signature import PREHASHED, key_algorithm, sign, verify
from shared.keys.k256 import ORDER
from tests.shared.refusal import refuses

# GetKey vms/signing of upstream's simulator
KEY = bytes.fromhex("1091a4d6721f6a719ca57320e4975f7e237649131111ee1c5032f661dc1cfef2")
MESSAGE = b"Test message for signing"
DIGEST = bytes.fromhex("088736024c01dfdddb38ce9b739564d4a8acadbeea1b0fcc9e2febaa5a045e3c")
SECP_SIGNATURE = bytes.fromhex(
    "673932366ab5452967919dbb290a20b095e0a65ef35baa7bd47abcc23e37f0dc"
    "3f42c80fc1680af6ba57c9cb5bcf08f5d89aa4b6f69c819ef28045b0e0134992"
)
ED_SIGNATURE = bytes.fromhex(
    "5d1b901403e9a4a03b4f854d0895abd7289f68381cd1044212c0e0c779493fc4"
    "886bfd139e3b8e6bf214d38b2ae15a32708f8f18805061a2079cca1c79288f04"
)
ALGORITHMS = ["ed25519", "secp256k1", "k256", PREHASHED]


def public(algorithm: str) -> bytes:
    return public_key_of(KEY, key_algorithm(algorithm))


def content(algorithm: str) -> bytes:
    return DIGEST if algorithm == PREHASHED else MESSAGE


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_signs_as_upstreams_simulator(algorithm: str) -> None:
    expected = ED_SIGNATURE if algorithm == "ed25519" else SECP_SIGNATURE
    assert sign(KEY, algorithm, content(algorithm)) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_signature_verifies(algorithm: str) -> None:
    data = content(algorithm)
    assert verify(algorithm, data, sign(KEY, algorithm, data), public(algorithm))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_message_is_invalid_and_no_error(algorithm: str) -> None:
    data = content(algorithm)
    assert not verify(algorithm, data[::-1], sign(KEY, algorithm, data), public(algorithm))


def test_an_uncompressed_key_verifies() -> None:
    key = EllipticCurvePublicKey.from_encoded_point(SECP256K1(), public("secp256k1"))
    uncompressed = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert verify("secp256k1", MESSAGE, SECP_SIGNATURE, uncompressed)


def test_a_high_s_is_invalid() -> None:
    high = SECP_SIGNATURE[:32] + (ORDER - int.from_bytes(SECP_SIGNATURE[32:])).to_bytes(32)
    assert not verify("secp256k1", MESSAGE, high, public("secp256k1"))


def test_signatures_have_a_low_s() -> None:
    values = [sign(KEY, "secp256k1", bytes([n])) for n in range(20)]
    assert all(int.from_bytes(value[32:]) <= ORDER // 2 for value in values)


@pytest.mark.parametrize("algorithm", ["", "rsa", "ED25519", "secp256k1 "])
def test_signing_has_no_default(algorithm: str) -> None:
    with refuses("guest_keys.algorithm", ProtocolError):
        sign(KEY, algorithm, MESSAGE)


@pytest.mark.parametrize("algorithm", ["", "rsa"])
def test_verifying_has_no_default(algorithm: str) -> None:
    with refuses("guest_keys.algorithm", ProtocolError):
        verify(algorithm, MESSAGE, bytes(64), bytes(33))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_refuses_to_sign_a_digest_of_another_length(length: int) -> None:
    with refuses("guest_keys.digest", ProtocolError) as caught:
        sign(KEY, PREHASHED, bytes(length))
    assert caught.value.message.endswith(f"requires a 32-byte digest, but received {length} bytes")


@pytest.mark.parametrize("length", [16, 31])
def test_a_short_digest_is_padded_on_the_left(length: int) -> None:
    signature = sign(KEY, PREHASHED, (b"\1" * length).rjust(32, b"\0"))
    assert verify(PREHASHED, b"\1" * length, signature, public(PREHASHED))


def test_a_long_digest_is_cut() -> None:
    assert verify(PREHASHED, DIGEST + b"more", SECP_SIGNATURE, public(PREHASHED))


def test_nothing_signs_a_digest_of_less_than_16_bytes() -> None:
    signature = sign(KEY, PREHASHED, (b"\1" * 15).rjust(32, b"\0"))
    assert not verify(PREHASHED, b"\1" * 15, signature, public(PREHASHED))


# No x has this y: half of all encodings are no point.
NO_ED_POINT = (2).to_bytes(32, "little")


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("ed25519", b""),
        ("ed25519", bytes(31)),
        ("ed25519", NO_ED_POINT),
        ("secp256k1", b""),
        ("secp256k1", b"\2" + b"\xff" * 32),
        ("secp256k1", b"\4" + bytes(64)),
        ("secp256k1", bytes(33)),
        (PREHASHED, bytes(32)),
    ],
)
def test_refuses_a_malformed_key(algorithm: str, key: bytes) -> None:
    with refuses("guest_keys.public_key", ProtocolError) as caught:
        verify(algorithm, content(algorithm), SECP_SIGNATURE, key)
    assert caught.value.message.startswith("invalid public key")


@pytest.mark.parametrize(
    ("algorithm", "signature"),
    [
        ("ed25519", ED_SIGNATURE[:63]),
        ("ed25519", ED_SIGNATURE + b"\0"),
        ("secp256k1", SECP_SIGNATURE[:63]),
        ("secp256k1", SECP_SIGNATURE + b"\0"),
        ("secp256k1", bytes(32) + SECP_SIGNATURE[32:]),
        ("secp256k1", SECP_SIGNATURE[:32] + bytes(32)),
        ("secp256k1", ORDER.to_bytes(32) + SECP_SIGNATURE[32:]),
        (PREHASHED, SECP_SIGNATURE[:32] + ORDER.to_bytes(32)),
    ],
)
def test_refuses_a_malformed_signature(algorithm: str, signature: bytes) -> None:
    with refuses("guest_keys.signature", ProtocolError):
        verify(algorithm, content(algorithm), signature, public(algorithm))


def test_the_digest_is_sha256_of_the_message() -> None:
    assert sha256(MESSAGE).digest() == DIGEST

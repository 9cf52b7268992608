"""Keys of certificate authorities and TPMs, and the signatures that X.509 structures carry under them.

RSA and the two NIST curves, PKCS#1 v1.5 and ECDSA, SHA-256 and up: what Google's and Amazon's authorities and
TPMs use. Keys are read from SubjectPublicKeyInfo to the byte.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from shared.attestation import der

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

# Google's root and intermediate have 4096 bits, attestation keys 2048. Larger ones only cost time.
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
# The one exponent of TPM keys and of these authorities; a huge one makes a verification slow.
_EXPONENT = bytes.fromhex("0203010001")

_RSA = bytes.fromhex("300d06092a864886f70d0101010500")
_CURVES: tuple[tuple[bytes, int, ec.EllipticCurve], ...] = (
    (bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"), 65, ec.SECP256R1()),
    (bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200"), 97, ec.SECP384R1()),
)
_RSA_HASHES: dict[bytes, HashAlgorithm] = {
    bytes.fromhex("300d06092a864886f70d01010b0500"): SHA256(),
    bytes.fromhex("300d06092a864886f70d01010c0500"): SHA384(),
    bytes.fromhex("300d06092a864886f70d01010d0500"): SHA512(),
}
_ECDSA_HASHES: dict[bytes, HashAlgorithm] = {
    bytes.fromhex("300a06082a8648ce3d040302"): SHA256(),
    bytes.fromhex("300a06082a8648ce3d040303"): SHA384(),
    bytes.fromhex("300a06082a8648ce3d040304"): SHA512(),
}
_PKCS1 = padding.PKCS1v15()

ALGORITHMS = frozenset({*_RSA_HASHES, *_ECDSA_HASHES})
"""The AlgorithmIdentifiers (DER) of signatures that `is_signed` verifies."""


def load_key(spki: bytes) -> PublicKey:
    """Load an RSA, P-256 or P-384 key. Raises `ValueError` with a clause for a message."""
    for prefix, length, curve in _CURVES:
        if spki.startswith(prefix):
            if len(spki) != len(prefix) + length:
                raise ValueError("is not an uncompressed point")
            try:
                return ec.EllipticCurvePublicKey.from_encoded_point(curve, spki[len(prefix) :])
            except ValueError as error:
                raise ValueError(f"is not a point of {curve.name}") from error
    start, end = der.element(spki, 0, len(spki), der.SEQUENCE)
    if end != len(spki) or not spki.startswith(_RSA, start):
        raise ValueError("is neither rsa, p-256 nor p-384")
    bits, bits_end = der.element(spki, start + len(_RSA), end, der.BIT_STRING)
    if bits_end != end or spki[bits : bits + 1] != b"\0":
        raise ValueError("is not one bit string")
    numbers, numbers_end = der.element(spki, bits + 1, end, der.SEQUENCE)
    at, modulus_end = der.element(spki, numbers, numbers_end, der.INTEGER)
    if numbers_end != end or spki[modulus_end:end] != _EXPONENT:
        raise ValueError("has another exponent than 65537")
    modulus = int.from_bytes(spki[at:modulus_end], "big")
    if spki[at : at + 1] != b"\0" or modulus % 2 == 0:
        raise ValueError("has no odd modulus of whole bytes")
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
        raise ValueError(f"has {modulus.bit_length()} bits, expected {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    return rsa.RSAPublicNumbers(0x10001, modulus).public_key()


def is_signed(algorithm: bytes, key: PublicKey, signature: bytes, signed: bytes) -> bool:
    """Tell whether `key` made this signature with `algorithm`, one of `ALGORITHMS`."""
    try:
        if isinstance(key, rsa.RSAPublicKey):
            if algorithm not in _RSA_HASHES:
                return False
            key.verify(signature, signed, _PKCS1, _RSA_HASHES[algorithm])
        else:
            if algorithm not in _ECDSA_HASHES:
                return False
            key.verify(signature, signed, ec.ECDSA(_ECDSA_HASHES[algorithm]))
    except InvalidSignature:
        return False
    return True

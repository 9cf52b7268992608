"""A certificate's elliptic curve key, without so much as parsing a key of another kind."""

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.x509.oid import PublicKeyAlgorithmOID


def ec_key(certificate: x509.Certificate) -> EllipticCurvePublicKey | None:
    """Return the key, or None where it is of another kind.

    To parse a Diffie-Hellman key, OpenSSL tests whether its parameters are primes: for one of eight kilobytes
    that takes two seconds, in which no other thread of the process runs. Raises `ValueError` and
    `UnsupportedAlgorithm` for an elliptic curve key that does not parse.
    """
    if certificate.public_key_algorithm_oid != PublicKeyAlgorithmOID.EC_PUBLIC_KEY:
        return None
    key = certificate.public_key()
    return key if isinstance(key, EllipticCurvePublicKey) else None

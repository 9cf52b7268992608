"""report_data: the 64 bytes that tie evidence to a key or a challenge (spec attestation section 2)."""

import hashlib

from shared.errors import ProtocolError

LENGTH = 64

RATLS_CERT = "ratls-cert"
KMS_ROOT_CA = "kms-root-ca"

_FIPS = {
    "sha256": "sha256",
    "sha384": "sha384",
    "sha512": "sha512",
    "sha3-256": "sha3_256",
    "sha3-384": "sha3_384",
    "sha3-512": "sha3_512",
}
_KECCAK = {"keccak256": 256, "keccak384": 384, "keccak512": 512}


def report_data(content_type: str, content: bytes, algorithm: str = "") -> bytes:
    """Return the 64 bytes for `content` under a tag: the hash of `tag:content`, zero-padded on the right.

    `algorithm` is one of upstream's names, empty for sha512; `raw` takes exactly 64 bytes and ignores the
    tag. Raises `ProtocolError`: `report_data.algorithm`, `report_data.length`.
    """
    if algorithm == "raw":
        if len(content) != LENGTH:
            raise ProtocolError("report_data.length", f"raw content has {len(content)} bytes, not {LENGTH}")
        return content
    return _digest(algorithm or "sha512", content_type.encode() + b":" + content).ljust(LENGTH, b"\0")


def deploy_challenge(challenge: bytes, app_id: bytes) -> bytes:
    """Return the 64 bytes that answer a deploy engine's challenge (32 bytes) for an app (20 bytes).

    Raises `ProtocolError("report_data.length")` for other sizes: the two are concatenated without a
    separator.
    """
    if len(challenge) != 32 or len(app_id) != 20:
        raise ProtocolError(
            "report_data.length",
            f"challenge and app_id have {len(challenge)} and {len(app_id)} bytes, expected 32 and 20",
        )
    return hashlib.sha512(b"dstack-deploy-challenge:" + challenge + app_id).digest()


def bootstrap_report_data(ca_spki: bytes, k256_public: bytes) -> bytes:
    """Return the 64 bytes that attest a KMS's new root keys (spec kms section 5.2).

    `ca_spki` is the root CA's SubjectPublicKeyInfo, `k256_public` the compressed key. The misspelt tag is
    part of the protocol.
    """
    text = f"dstack-kms-genereted-keys-v1:{ca_spki.hex()};{k256_public.hex()};"
    return _digest("keccak256", text.encode()).ljust(LENGTH, b"\0")


def _digest(algorithm: str, data: bytes) -> bytes:
    if algorithm in _FIPS:
        return hashlib.new(_FIPS[algorithm], data).digest()
    if algorithm in _KECCAK:
        from Crypto.Hash import keccak  # noqa: PLC0415 - no verifier needs these, or carries the library

        return bytes(keccak.new(digest_bits=_KECCAK[algorithm], data=data).digest())
    known = ", ".join([*_FIPS, *_KECCAK, "raw"])
    raise ProtocolError("report_data.algorithm", f"hash algorithm is {algorithm!r}, expected one of {known}")

"""Whether the key of an environment comes from a KMS that the deployer trusts (spec deploy section 3).

The answer of a KMS authenticates itself by its signature; whose signature counts is pinned beforehand, in a
file or on chain. There is no trust on first use: without a pin nothing is encrypted.
"""

from typing import Annotated, Final, Literal

import msgspec

from shared.errors import ConfigError, PolicyDenied, ProtocolError
from shared.hex import decode_hex
from shared.keys.app_keys import verify_env_public_key
from shared.keys.k256 import SIGNATURE_BYTES
from shared.strict_json import decode_json

SIGNER_BYTES: Final = 33
_MAX_ANSWER: Final = 16 * 1024  # three hex fields and a number; errors are short too
_MAX_FILE: Final = 1024 * 1024
_COMPRESSED: Final = (b"\x02", b"\x03")


class EnvKeyAnswer(msgspec.Struct, frozen=True):
    """An answer to GetAppEnvEncryptPubKey. Old servers send no v1 signature, which is empty then."""

    public_key: bytes
    signature: bytes
    timestamp: int
    signature_v1: bytes


class TrustedSigners(msgspec.Struct, frozen=True):
    """The k256 root keys (33 bytes each) of the KMS to trust, and in words who pinned them."""

    keys: frozenset[bytes]
    source: str


class VerifiedEnvKey(msgspec.Struct, frozen=True):
    """An X25519 key (32 bytes) that a pinned signer vouches for, and by which signature.

    A `legacy` signature has no time in it: it proves who once had this key, not who has it now.
    """

    public_key: bytes
    signer: bytes
    signature: Literal["v1", "legacy"]
    timestamp: int
    pinned_by: str


class _Answer(msgspec.Struct, frozen=True):
    public_key: str
    signature: str = ""
    timestamp: Annotated[int, msgspec.Meta(ge=0)] = 0
    signature_v1: str = ""


class _File(msgspec.Struct, frozen=True):
    trusted_signers: tuple[str, ...] = ()


def parse_env_key(raw: bytes) -> EnvKeyAnswer:
    """Read the JSON of an answer; unknown fields are ignored.

    Raises `ProtocolError`: `env.key.size`, `.syntax`, `.duplicate_key`, `.depth`, `env.key.malformed`.
    """
    document = decode_json(raw, what="the env key", code="env.key", max_bytes=_MAX_ANSWER)
    try:
        answer = msgspec.convert(document, _Answer)
        return EnvKeyAnswer(
            public_key=decode_hex(answer.public_key, what="public_key", length=32),
            signature=_signature(answer.signature, "signature"),
            timestamp=answer.timestamp,
            signature_v1=_signature(answer.signature_v1, "signature_v1"),
        )
    except (msgspec.ValidationError, ProtocolError) as error:
        raise ProtocolError("env.key.malformed", f"the kms answered no env key: {error}"[:300]) from error


def parse_trusted_signers(raw: bytes, *, source: str) -> TrustedSigners:
    """Read a kms-whitelist.json: `{"trusted_signers": [hex of 33 bytes, ...]}`, each with or without 0x.

    Raises `ConfigError`: `env.signer.file.size`, `.syntax`, `.duplicate_key`, `.depth`, `env.signer.file`.
    """
    try:
        document = decode_json(raw, what=source, code="env.signer.file", max_bytes=_MAX_FILE)
        listed = msgspec.convert(document, _File).trusted_signers
        keys = [
            decode_hex(text.strip(), what=f"trusted signer {number}", length=SIGNER_BYTES)
            for number, text in enumerate(listed, 1)
        ]
    except ProtocolError as error:
        code = error.code if error.code.startswith("env.") else "env.signer.file"
        raise ConfigError(code, error.message) from error
    except msgspec.ValidationError as error:
        raise ConfigError("env.signer.file", f"{source} lists no trusted_signers: {error}"[:300]) from error
    for number, key in enumerate(keys, 1):
        if not key.startswith(_COMPRESSED):
            raise ConfigError("env.signer.file", f"trusted signer {number} is no compressed secp256k1 key")
    return TrustedSigners(frozenset(keys), source)


def verify_env_key(
    answer: EnvKeyAnswer,
    *,
    app_id: bytes,
    now: int,
    signers: TrustedSigners,
    allow_legacy: bool = False,
    epoch: int = 0,
) -> VerifiedEnvKey:
    """Check that a pinned signer vouches for the key of this app (id of 20 bytes), within the last 300 s.

    The key is that of the app's key epoch, and of no other.

    Without a v1 signature the answer is refused, unless `allow_legacy`; the result says which it was. Raises
    `PolicyDenied`: `env.signer.unpinned`, `env.key.legacy`; `InvalidEvidence`: `keys.env.stale` unless the
    signature is -60 to 300 s old, `keys.env.epoch`, `keys.env.signer`, `keys.signature.*`.
    """
    if not signers.keys:
        raise PolicyDenied(
            "env.signer.unpinned",
            f"no kms signer is pinned by {signers.source}: nothing is encrypted to whoever answers first",
        )
    is_v1 = bool(answer.signature_v1)
    if not is_v1 and not allow_legacy:
        raise PolicyDenied(
            "env.key.legacy", "the kms sent no signature_v1, and the legacy one could be of any age"
        )
    signer = verify_env_public_key(
        app_id,
        answer.public_key,
        answer.signature_v1 if is_v1 else answer.signature,
        timestamp=answer.timestamp if is_v1 else None,
        now=now,
        trusted=signers.keys,
        epoch=epoch,
    )
    return VerifiedEnvKey(
        public_key=answer.public_key,
        signer=signer,
        signature="v1" if is_v1 else "legacy",
        timestamp=answer.timestamp if is_v1 else 0,
        pinned_by=signers.source,
    )


def _signature(text: str, what: str) -> bytes:
    return decode_hex(text, what=what, length=SIGNATURE_BYTES) if text else b""

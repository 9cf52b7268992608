"""HMAC sessions whose key only we and the TPM know (spec attestation section 5.5; TPM 2.0 part 1, 19.6).

A salted session proves knowledge of an object's password without sending it. The salt travels encrypted to a
key that is loaded in the TPM.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm import Primary, Tpm
from enclave.devices.tpm_wire import Auth, Reader
from shared.errors import ProtocolError

_HMAC_SESSION = 0
_CONTINUE = 1  # the session outlives its command: we flush it ourselves, after errors too
_NONCE_LENGTH = 64
_SALT_LENGTH = 32
_KEY_BITS = 512
_DEFAULT_EXPONENT = 65537


class SaltedSession:
    """One session of SHA-512, good for one command: the TPM's nonce is new after it."""

    def __init__(self, handle: int, key: bytes, nonce_tpm: bytes) -> None:
        self._handle = handle
        self._key = key
        self._nonce_tpm = nonce_tpm

    def authorise(self, code: int, names: Sequence[bytes], parameters: bytes, secret: bytes) -> Auth:
        """Return the authorisation of one command.

        `names` are those of its handles, `secret` is the password of the object that is used; it must not end
        in a zero byte, which a TPM cuts off.
        """
        command_hash = hashlib.sha512(wire.u32(code) + b"".join(names) + parameters).digest()
        nonce = secrets.token_bytes(_NONCE_LENGTH)
        text = command_hash + nonce + self._nonce_tpm + bytes([_CONTINUE])
        mac = hmac.digest(self._key + secret, text, "sha512")
        return Auth(session=self._handle, password=mac, attributes=_CONTINUE, nonce=nonce)


@contextmanager
def salted_session(tpm: Tpm, key: Primary) -> Iterator[SaltedSession]:
    """Start a session salted to a loaded RSA decryption key, and flush it at the end.

    Raises what `Tpm` does, and `ProtocolError("tpm_device.key")` for another kind of key.
    """
    salt, nonce = secrets.token_bytes(_SALT_LENGTH), secrets.token_bytes(_NONCE_LENGTH)
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=b"SECRET\0")
    encrypted = _decryption_key(key.public).encrypt(salt, oaep)
    response = tpm.run(
        "StartAuthSession",
        wire.CC_START_AUTH_SESSION,
        handles=[key.handle, wire.RH_NULL],
        parameters=wire.sized(nonce)
        + wire.sized(encrypted)
        + bytes([_HMAC_SESSION])
        + wire.u16(wire.ALG_NULL)
        + wire.u16(wire.ALG_SHA512),
        with_handle=True,
    )
    with tpm.flushed(response.handle) as handle:
        nonce_tpm = response.parameters.sized()
        response.parameters.finish()
        yield SaltedSession(handle, session_key(salt, nonce_tpm, nonce), nonce_tpm)


def session_key(salt: bytes, nonce_tpm: bytes, nonce_caller: bytes) -> bytes:
    """Return KDFa(sha512, salt, "ATH", nonce_tpm, nonce_caller, 512): one block of the counter mode."""
    text = wire.u32(1) + b"ATH\0" + nonce_tpm + nonce_caller + wire.u32(_KEY_BITS)
    return hmac.digest(salt, text, "sha512")


def _decryption_key(public: bytes) -> rsa.RSAPublicKey:
    """Return the key of an RSA storage key's TPMT_PUBLIC."""
    reader = Reader(public, "tpm's public area")
    kind, name_algorithm = reader.u16(), reader.u16()
    reader.u32()  # attributes
    reader.sized()  # policy
    symmetric = reader.u16()
    if (kind, name_algorithm) != (wire.ALG_RSA, wire.ALG_SHA256) or symmetric == wire.ALG_NULL:
        raise ProtocolError("tpm_device.key", f"key has type {kind:#x}, expected an rsa storage key, sha256")
    reader.take(4)  # bits and mode of the cipher
    if (scheme := reader.u16()) != wire.ALG_NULL:
        raise ProtocolError("tpm_device.key", f"key has scheme {scheme:#x}, expected none")
    reader.u16()  # bits
    exponent, modulus = reader.u32() or _DEFAULT_EXPONENT, reader.sized()
    reader.finish()
    try:
        return rsa.RSAPublicNumbers(exponent, int.from_bytes(modulus, "big")).public_key()
    except ValueError as error:
        raise ProtocolError("tpm_device.key", "key's numbers are no public key") from error

"""TPM 2.0 commands and responses as bytes, big endian (spec attestation sections 5.1 and 5.2).

Both sides of the wire use this module: the client in `tpm`, and the simulator's TPM.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec

from enclave.devices.tpm_device import MAX_COMMAND, MAX_RESPONSE
from shared.errors import ProtocolError, UnavailableError

TAG_NO_SESSIONS = 0x8001
TAG_SESSIONS = 0x8002

CC_NV_UNDEFINE_SPACE = 0x122
CC_NV_DEFINE_SPACE = 0x12A
CC_CREATE_PRIMARY = 0x131
CC_NV_WRITE = 0x137
CC_CERTIFY_CREATION = 0x14A
CC_NV_READ = 0x14E
CC_CREATE = 0x153
CC_LOAD = 0x157
CC_QUOTE = 0x158
CC_UNSEAL = 0x15E
CC_FLUSH_CONTEXT = 0x165
CC_NV_READ_PUBLIC = 0x169
CC_START_AUTH_SESSION = 0x176
CC_GET_RANDOM = 0x17B
CC_PCR_READ = 0x17E
CC_POLICY_PCR = 0x17F
CC_PCR_EXTEND = 0x182

RH_OWNER = 0x40000001
RH_NULL = 0x40000007
RS_PASSWORD = 0x40000009
RH_ENDORSEMENT = 0x4000000B

ST_CREATION = 0x8021

ALG_RSA = 0x0001
ALG_KEYEDHASH = 0x0008
ALG_NULL = 0x0010
ALG_RSASSA = 0x0014
ALG_ECDSA = 0x0018
ALG_ECC = 0x0023
ALG_SHA1 = 0x0004
ALG_SHA256 = 0x000B
ALG_SHA384 = 0x000C
ALG_SHA512 = 0x000D
HASHES = {"sha1": ALG_SHA1, "sha256": ALG_SHA256, "sha384": ALG_SHA384}
DIGEST_LENGTHS = {"sha1": 20, "sha256": 32, "sha384": 48}

PCR_COUNT = 24
_BITMAP_LENGTH = 3  # of a selection: 24 registers, one bit each

# Return codes for which the same command may succeed later: the TPM or its resource manager is busy.
_BUSY = {
    0x902: "no memory for another object",
    0x903: "no memory for another session",
    0x908: "command yielded",
    0x909: "command cancelled",
    0x90A: "testing itself",
    0x921: "locked out after wrong passwords",
    0x922: "busy, retry",
}

_HEADER = struct.Struct(">HII")


class TpmRefused(ProtocolError):  # noqa: N818 - names what happened, as the error tree does
    """The TPM answered a command with an error; `rc` is its 32-bit return code."""

    def __init__(self, command: str, rc: int) -> None:
        super().__init__("tpm_device.refused", f"tpm refused {command} with code {rc:#x}")
        self.rc = rc


class Auth(msgspec.Struct, frozen=True):
    """One authorisation of a command: a password, or a session with its nonce and HMAC.

    The password, or the HMAC in its place, never shows in a repr.
    """

    session: int = RS_PASSWORD
    password: bytes = b""
    attributes: int = 0
    nonce: bytes = b""

    def __repr__(self) -> str:
        return f"Auth(session={self.session:#x})"

    def encode(self) -> bytes:
        """Return the TPMS_AUTH_COMMAND."""
        return u32(self.session) + sized(self.nonce) + bytes([self.attributes]) + sized(self.password)


EMPTY_AUTH = Auth()


class Reader:
    """Reads one TPM structure to its last byte. Raises `ProtocolError("tpm_device.response.layout")`."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes."""
        if length > len(self._data) - self._at:
            raise ProtocolError(
                "tpm_device.response.layout",
                f"{self._what} ends after {len(self._data)} bytes, expected {self._at + length}",
            )
        self._at += length
        return self._data[self._at - length : self._at]

    def u8(self) -> int:
        """Return one byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Return two bytes as a number."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Return four bytes as a number."""
        return int.from_bytes(self.take(4), "big")

    def sized(self) -> bytes:
        """Return the content of a TPM2B."""
        return self.take(self.u16())

    def rest(self) -> bytes:
        """Return what is left."""
        return self.take(len(self._data) - self._at)

    def finish(self) -> None:
        """Refuse bytes that nothing accounts for."""
        if left := len(self._data) - self._at:
            raise ProtocolError("tpm_device.response.layout", f"{self._what} has {left} bytes too many")


class Response(msgspec.Struct, frozen=True):
    """A successful response: the handle that it returns (0 if it returns none), and its parameters."""

    handle: int
    parameters: Reader


def u16(value: int) -> bytes:
    """Encode two bytes."""
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    """Encode four bytes."""
    return value.to_bytes(4, "big")


def sized(data: bytes) -> bytes:
    """Encode a TPM2B: length and content."""
    return u16(len(data)) + data


def selection(algorithm: str, indices: Sequence[int]) -> bytes:
    """Encode a TPML_PCR_SELECTION of one bank; `algorithm` is `sha1`, `sha256` or `sha384`."""
    bitmap = bytearray(_BITMAP_LENGTH)
    for index in indices:
        bitmap[index // 8] |= 1 << index % 8
    return u32(1) + u16(HASHES[algorithm]) + bytes([_BITMAP_LENGTH]) + bytes(bitmap)


def read_selection(reader: Reader) -> tuple[int, tuple[int, ...]]:
    """Decode a TPML_PCR_SELECTION of at most one bank: the hash algorithm's number (0 for none), indices."""
    if (count := reader.u32()) > 1:
        raise ProtocolError(
            "tpm_device.response.layout", f"pcr selection names {count} banks, expected at most 1"
        )
    if count == 0:
        return 0, ()
    algorithm, bitmap = reader.u16(), reader.take(reader.u8())
    return algorithm, tuple(i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1)


def encode_digests(digests: Mapping[str, bytes]) -> bytes:
    """Encode a TPML_DIGEST_VALUES: one digest per bank."""
    return u32(len(digests)) + b"".join(u16(HASHES[name]) + digest for name, digest in digests.items())


def encode_command(
    code: int, *, handles: Sequence[int] = (), auths: Sequence[Auth] = (), parameters: bytes = b""
) -> bytes:
    """Encode a command. Raises `ProtocolError("tpm_device.command.size")`."""
    body = b"".join(map(u32, handles))
    if auths:
        area = b"".join(auth.encode() for auth in auths)
        body += u32(len(area)) + area
    body += parameters
    size = _HEADER.size + len(body)
    if size > MAX_COMMAND:
        raise ProtocolError(
            "tpm_device.command.size", f"tpm command has {size} bytes, at most {MAX_COMMAND} are taken"
        )
    return _HEADER.pack(TAG_SESSIONS if auths else TAG_NO_SESSIONS, size, code) + body


def decode_response(data: bytes, command: str, *, auths: int, with_handle: bool) -> Response:
    """Check a response and split it.

    `command` is its name in messages, `auths` the number of authorisations that were sent.

    Raises what `check_response` does, and `ProtocolError`: `tpm_device.response.tag`,
    `tpm_device.response.layout`.
    """
    tag = check_response(data, command)
    if tag != (expected := TAG_SESSIONS if auths else TAG_NO_SESSIONS):
        raise ProtocolError(
            "tpm_device.response.tag", f"tpm answered {command} with tag {tag:#x}, expected {expected:#x}"
        )
    what = f"tpm's answer to {command}"
    reader = Reader(data[_HEADER.size :], what)
    handle = reader.u32() if with_handle else 0
    parameters = reader.take(reader.u32()) if auths else reader.rest()
    for _ in range(auths):
        reader.sized()  # nonce
        reader.u8()  # attributes
        reader.sized()  # hmac, empty for passwords and for unbound policy sessions
    reader.finish()
    return Response(handle, Reader(parameters, what))


def check_response(data: bytes, command: str) -> int:
    """Check that a response is complete and a success, and return its tag.

    Raises `TpmRefused`, `UnavailableError("tpm_device.busy")` when the TPM may take the command later, and
    `ProtocolError("tpm_device.response.size")`.
    """
    if not _HEADER.size <= len(data) <= MAX_RESPONSE:
        raise ProtocolError(
            "tpm_device.response.size",
            f"tpm answered {command} with {len(data)} bytes, expected {_HEADER.size} to {MAX_RESPONSE}",
        )
    tag, size, rc = _HEADER.unpack_from(data)
    if size != len(data):
        raise ProtocolError(
            "tpm_device.response.size", f"tpm answered {command} with {len(data)} bytes and says {size}"
        )
    if rc:
        _refused(command, rc)
    return int(tag)


def _refused(command: str, rc: int) -> NoReturn:
    if reason := _BUSY.get(rc):
        raise UnavailableError("tpm_device.busy", f"tpm did not run {command}: {reason} ({rc:#x})")
    raise TpmRefused(command, rc)

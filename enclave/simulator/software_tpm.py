"""A TPM 2.0 in process, for machines without swtpm: real commands and signatures, no protection at all.

It has what the collectors of evidence use: GetRandom, PCR_Read and PCR_Extend (SHA-1, SHA-256, SHA-384), NV
indexes with passwords, restricted signing keys as primaries, Quote, FlushContext. Every other command is
answered TPM_RC_COMMAND_CODE. Return codes are those of libtpms for the same mistake.
"""

import hashlib
import secrets
from collections.abc import Callable
from threading import Lock

import msgspec

from enclave.devices import tpm_nv as nv
from enclave.devices import tpm_wire as wire
from enclave.devices.tpm_device import MAX_COMMAND
from enclave.devices.tpm_wire import Reader, sized, u16, u32
from enclave.simulator.tpm_signing import Refusal, SigningKey, read_template, sign, unique
from shared.errors import ProtocolError

_RC_COMMAND_SIZE = 0x142
_RC_COMMAND_CODE = 0x143
_RC_AUTH_MISSING = 0x125
_RC_BAD_TAG = 0x01E
_RC_NV_RANGE = 0x146
_RC_NV_AUTHORIZATION = 0x149
_RC_NV_UNINITIALIZED = 0x14A
_RC_NV_DEFINED = 0x14C
_RC_BAD_AUTH_1 = 0x9A2
_RC_HANDLE_1 = 0x18B
_RC_HANDLE_2 = 0x28B
_RC_VALUE_1 = 0x184
_RC_VALUE_P1 = 0x1C4
_RC_HASH_P1 = 0x1C3
_RC_AUTH_UNAVAILABLE = 0x12F
_RC_SIZE = 0x095
_RC_SIZE_P1 = 0x1D5
_RC_SIZE_P2 = 0x2D5
_RC_ATTRIBUTES_P2 = 0x2C2
_RC_SCHEME_P2 = 0x2D2

_TRANSIENT = 0x80000000
_MAX_OBJECTS = 3  # as libtpms
_MAX_QUALIFYING = 66  # a TPMT_HA of SHA-512
_MAX_RANDOM = 48  # as libtpms
_READS = 8  # values in one TPML_DIGEST
_BANKS = {wire.HASHES[name]: name for name in wire.DIGEST_LENGTHS}
_NAME_HASHES = {
    wire.ALG_SHA256: hashlib.sha256,
    wire.ALG_SHA384: hashlib.sha384,
    wire.ALG_SHA512: hashlib.sha512,
}
_RESET_ONES = range(17, 23)  # registers of a dynamic launch start with all bits set

_GENERATED = 0xFF544347
_ST_ATTEST_QUOTE = 0x8018
_ST_CREATION = 0x8021


class _Object(msgspec.Struct, frozen=True):
    key: SigningKey
    name: bytes
    qualified_name: bytes


class _Index(msgspec.Struct):
    index: int
    name_algorithm: int
    attributes: int
    auth: bytes
    content: bytearray

    @property
    def name(self) -> bytes:
        new = _NAME_HASHES[self.name_algorithm]
        return u16(self.name_algorithm) + new(self.public()).digest()

    def public(self) -> bytes:
        return (
            u32(self.index)
            + u16(wire.ALG_SHA256)
            + u32(self.attributes)
            + sized(b"")
            + u16(len(self.content))
        )


class Command(msgspec.Struct, frozen=True):
    """A command's handles and passwords, and its parameters."""

    handles: tuple[int, ...]
    passwords: tuple[bytes, ...]
    parameters: Reader

    def finish(self) -> None:
        """Refuse bytes after the last parameter, before anything is done."""
        if self.parameters.rest():
            raise Refusal(_RC_SIZE)


class Handler(msgspec.Struct, frozen=True):
    """What runs a command, and how many handles and passwords it has."""

    run: Callable[[Command], tuple[bytes, bytes]]  # gives the handle area and the parameters
    handles: int = 0
    auths: int = 0


class SoftwareTpm:
    """One TPM, a `TpmDevice`. A template gives the same key for this object's life."""

    _max_nv = 2048  # bytes of an index, as libtpms

    def __init__(self) -> None:
        self._pcrs = {
            name: [b"\xff" * length if i in _RESET_ONES else bytes(length) for i in range(wire.PCR_COUNT)]
            for name, length in wire.DIGEST_LENGTHS.items()
        }
        self._updates = 0
        self._clock = 0
        self._indexes: dict[int, _Index] = {}
        self._objects: dict[int, _Object] = {}
        self._keys: dict[tuple[int, bytes], SigningKey] = {}
        self._lock = Lock()
        self._handlers = {
            wire.CC_GET_RANDOM: Handler(self._get_random),
            wire.CC_PCR_READ: Handler(self._pcr_read),
            wire.CC_PCR_EXTEND: Handler(self._pcr_extend, handles=1, auths=1),
            wire.CC_CREATE_PRIMARY: Handler(self._create_primary, handles=1, auths=1),
            wire.CC_QUOTE: Handler(self._quote, handles=1, auths=1),
            wire.CC_FLUSH_CONTEXT: Handler(self._flush),
            wire.CC_NV_DEFINE_SPACE: Handler(self._nv_define, handles=1, auths=1),
            wire.CC_NV_UNDEFINE_SPACE: Handler(self._nv_undefine, handles=2, auths=1),
            wire.CC_NV_READ_PUBLIC: Handler(self._nv_read_public, handles=1),
            wire.CC_NV_READ: Handler(self._nv_read, handles=2, auths=1),
            wire.CC_NV_WRITE: Handler(self._nv_write, handles=2, auths=1),
        }

    def transact(self, command: bytes) -> bytes:
        """Answer one command; every mistake in it is a return code."""
        with self._lock:
            self._clock += 1
            try:
                return self._answer(command)
            except Refusal as refusal:
                rc = refusal.rc
            except ProtocolError:  # a field ends early
                rc = _RC_SIZE_P1
        return u16(wire.TAG_NO_SESSIONS) + u32(10) + u32(rc)

    def _answer(self, command: bytes) -> bytes:
        reader = Reader(command, "command")
        tag, size, code = reader.u16(), reader.u32(), reader.u32()
        if tag not in {wire.TAG_SESSIONS, wire.TAG_NO_SESSIONS}:
            raise Refusal(_RC_BAD_TAG)
        if size != len(command) or size > MAX_COMMAND:
            raise Refusal(_RC_COMMAND_SIZE)
        if (handler := self._handlers.get(code)) is None:
            raise Refusal(_RC_COMMAND_CODE)
        handles = tuple(reader.u32() for _ in range(handler.handles))
        passwords = _passwords(Reader(reader.take(reader.u32()), "auth")) if tag == wire.TAG_SESSIONS else ()
        if len(passwords) != handler.auths:
            raise Refusal(_RC_AUTH_MISSING)
        handle, body = handler.run(Command(handles, passwords, Reader(reader.rest(), "parameters")))
        if handler.auths:
            acknowledged = sized(b"") + b"\x01" + sized(b"")
            body = u32(len(body)) + body + acknowledged * handler.auths
        return u16(tag) + u32(10 + len(handle) + len(body)) + u32(0) + handle + body

    # --- randomness and registers ---

    def _get_random(self, command: Command) -> tuple[bytes, bytes]:
        count = min(command.parameters.u16(), _MAX_RANDOM)
        command.finish()
        return b"", sized(secrets.token_bytes(count))

    def _pcr_read(self, command: Command) -> tuple[bytes, bytes]:
        algorithm, indices = wire.read_selection(command.parameters)
        command.finish()
        if (bank := _BANKS.get(algorithm)) is None:
            return b"", u32(self._updates) + u32(0) + u32(0)
        read = [index for index in indices if index < wire.PCR_COUNT][:_READS]
        values = b"".join(sized(self._pcrs[bank][index]) for index in read)
        return b"", u32(self._updates) + wire.selection(bank, read) + u32(len(read)) + values

    def _pcr_extend(self, command: Command) -> tuple[bytes, bytes]:
        (index,) = command.handles
        if index >= wire.PCR_COUNT:
            raise Refusal(_RC_VALUE_1)
        _check_password(command, b"")
        digests = {}
        for _ in range(min(command.parameters.u32(), len(_BANKS) + 1)):
            if (bank := _BANKS.get(command.parameters.u16())) is None:
                raise Refusal(_RC_HASH_P1)
            digests[bank] = command.parameters.take(wire.DIGEST_LENGTHS[bank])
        command.finish()
        for bank, digest in digests.items():
            value = self._pcrs[bank][index]
            self._pcrs[bank][index] = hashlib.new(bank, value + digest).digest()
        self._updates += 1
        return b"", b""

    # --- keys and quotes ---

    def _create_primary(self, command: Command) -> tuple[bytes, bytes]:
        (hierarchy,) = command.handles
        if hierarchy not in {wire.RH_ENDORSEMENT, wire.RH_OWNER}:
            raise Refusal(_RC_VALUE_1)
        _check_password(command, b"")
        sensitive, template = Reader(command.parameters.sized(), "sensitive"), command.parameters.sized()
        sensitive.sized()
        sensitive.sized()
        outside_info = command.parameters.sized()
        wire.read_selection(command.parameters)
        command.finish()
        if len(self._objects) >= _MAX_OBJECTS:
            raise Refusal(0x902)  # TPM_RC_OBJECT_MEMORY
        try:
            key, public = self._primary(hierarchy, template)
        except ProtocolError as error:
            raise Refusal(_RC_SIZE_P2) from error
        name = u16(wire.ALG_SHA256) + hashlib.sha256(public).digest()
        qualified = u16(wire.ALG_SHA256) + hashlib.sha256(u32(hierarchy) + name).digest()
        handle = next(
            handle for handle in range(_TRANSIENT, _TRANSIENT + _MAX_OBJECTS) if handle not in self._objects
        )
        self._objects[handle] = _Object(key, name, qualified)
        creation = u32(0) + sized(hashlib.sha256().digest()) + b"\x01" + u16(wire.ALG_NULL)
        creation += sized(u32(hierarchy)) * 2 + sized(outside_info)
        digest = hashlib.sha256(creation).digest()
        ticket = u16(_ST_CREATION) + u32(hierarchy) + sized(secrets.token_bytes(32))
        return u32(handle), sized(public) + sized(creation) + sized(digest) + ticket + sized(name)

    def _primary(self, hierarchy: int, template: bytes) -> tuple[SigningKey, bytes]:
        """Return the key of a template, made at its first use, and the template with the key filled in."""
        parsed = read_template(template)
        if (key := self._keys.get((hierarchy, template))) is None:
            key = self._keys[hierarchy, template] = parsed.new_key()
        return key, parsed.head + unique(key)

    def _quote(self, command: Command) -> tuple[bytes, bytes]:
        (handle,) = command.handles
        if (quoting := self._objects.get(handle)) is None:
            raise Refusal(_RC_VALUE_1)
        _check_password(command, b"")
        qualifying = command.parameters.sized()
        if len(qualifying) > _MAX_QUALIFYING:
            raise Refusal(_RC_SIZE_P1)
        if command.parameters.u16() != wire.ALG_NULL:
            raise Refusal(_RC_SCHEME_P2)
        algorithm, indices = wire.read_selection(command.parameters)
        command.finish()
        if (bank := _BANKS.get(algorithm)) is None:
            raise Refusal(0x3C3)  # TPM_RC_HASH
        values = b"".join(self._pcrs[bank][index] for index in indices)
        message = (
            (u32(_GENERATED) + u16(_ST_ATTEST_QUOTE))
            + (sized(quoting.qualified_name) + sized(qualifying))
            + (self._clock.to_bytes(8, "big") + u32(0) + u32(0) + b"\x01" + bytes(8))
            + (wire.selection(bank, indices) + sized(hashlib.sha256(values).digest()))
        )
        return b"", sized(message) + sign(quoting.key, message)

    def _flush(self, command: Command) -> tuple[bytes, bytes]:
        handle = command.parameters.u32()
        command.finish()
        if self._objects.pop(handle, None) is None:
            raise Refusal(_RC_VALUE_P1)
        return b"", b""

    # --- non-volatile indexes ---

    def _nv_define(self, command: Command) -> tuple[bytes, bytes]:
        _check_owner(command)
        auth, area = command.parameters.sized(), Reader(command.parameters.sized(), "nv area")
        index, name_algorithm, attributes, _policy, size = (
            *(area.u32(), area.u16(), area.u32()),
            *(area.sized(), area.u16()),
        )
        area.finish()
        command.finish()
        readable = attributes & (nv.ATTR_OWNER_READ | nv.ATTR_AUTH_READ)
        writable = attributes & (nv.ATTR_OWNER_WRITE | nv.ATTR_AUTH_WRITE)
        if not readable or not writable or attributes & nv.ATTR_WRITTEN:
            raise Refusal(_RC_ATTRIBUTES_P2)
        if index >> 24 != 1:
            raise Refusal(0x2C4)  # TPM_RC_VALUE
        if name_algorithm not in _NAME_HASHES:
            raise Refusal(0x2C3)  # TPM_RC_HASH
        if len(auth) > _NAME_HASHES[name_algorithm]().digest_size:
            raise Refusal(_RC_SIZE_P1)
        if size > self._max_nv:
            raise Refusal(_RC_SIZE_P2)
        if index in self._indexes:
            raise Refusal(_RC_NV_DEFINED)
        self._indexes[index] = _Index(index, name_algorithm, attributes, auth, bytearray(b"\xff" * size))
        return b"", b""

    def _nv_undefine(self, command: Command) -> tuple[bytes, bytes]:
        _check_owner(command)
        command.finish()
        if self._indexes.pop(command.handles[1], None) is None:
            raise Refusal(_RC_HANDLE_2)
        return b"", b""

    def _nv_read_public(self, command: Command) -> tuple[bytes, bytes]:
        command.finish()
        if (found := self._indexes.get(command.handles[0])) is None:
            raise Refusal(_RC_HANDLE_1)
        return b"", sized(found.public()) + sized(found.name)

    def _nv_read(self, command: Command) -> tuple[bytes, bytes]:
        found = self._authorised(command, nv.ATTR_OWNER_READ, nv.ATTR_AUTH_READ)
        size, offset = command.parameters.u16(), command.parameters.u16()
        command.finish()
        if not found.attributes & nv.ATTR_WRITTEN:
            raise Refusal(_RC_NV_UNINITIALIZED)
        if size > nv.CHUNK:
            raise Refusal(_RC_VALUE_P1)
        if offset + size > len(found.content):
            raise Refusal(_RC_NV_RANGE)
        return b"", sized(bytes(found.content[offset : offset + size]))

    def _nv_write(self, command: Command) -> tuple[bytes, bytes]:
        found = self._authorised(command, nv.ATTR_OWNER_WRITE, nv.ATTR_AUTH_WRITE)
        data, offset = command.parameters.sized(), command.parameters.u16()
        command.finish()
        if len(data) > nv.CHUNK:
            raise Refusal(_RC_SIZE_P1)
        if offset + len(data) > len(found.content):
            raise Refusal(_RC_NV_RANGE)
        found.content[offset : offset + len(data)] = data
        found.attributes |= nv.ATTR_WRITTEN
        return b"", b""

    def _authorised(self, command: Command, by_owner: int, by_index: int) -> _Index:
        authority, index = command.handles
        if (found := self._indexes.get(index)) is None:
            raise Refusal(_RC_HANDLE_2)
        _check_password(command, found.auth if authority == index else b"")
        needed = {wire.RH_OWNER: by_owner, index: by_index}.get(authority, 0)
        if not found.attributes & needed:
            raise Refusal(_RC_AUTH_UNAVAILABLE if authority == index else _RC_NV_AUTHORIZATION)
        return found


def _passwords(area: Reader) -> tuple[bytes, ...]:
    if area.u32() != wire.RS_PASSWORD:
        raise Refusal(0x984)  # TPM_RC_VALUE: no session of that handle
    area.sized()
    area.u8()
    password = area.sized()
    area.finish()
    return (password,)


def _check_password(command: Command, expected: bytes) -> None:
    if command.passwords[0] != expected:
        raise Refusal(_RC_BAD_AUTH_1)


def _check_owner(command: Command) -> None:
    if command.handles[0] != wire.RH_OWNER:
        raise Refusal(_RC_VALUE_1)
    _check_password(command, b"")

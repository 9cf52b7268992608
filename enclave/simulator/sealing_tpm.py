"""The TPM in process with what sealing takes besides: a storage key, sealed objects, policy sessions.

What it seals is encrypted under its seed, which is as safe as this process's memory. Return codes are those
of libtpms for the same mistake.
"""

import hashlib
import hmac
import secrets

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm_seal import MAX_SECRET, STORAGE_TEMPLATE
from enclave.devices.tpm_wire import Reader, sized, u16, u32
from enclave.simulator.software_tpm import Command, Handler, SoftwareTpm
from enclave.simulator.tpm_signing import Refusal, SigningKey, unique
from shared.keys.kdf import P256_ORDER

SEED_BYTES = 32

_RC_VALUE_1 = 0x184
_RC_VALUE_2 = 0x284
_RC_VALUE_P1 = 0x1C4
_RC_SIZE_P1 = 0x1D5
_RC_VALUE_P2 = 0x2C4
_RC_TYPE_P2 = 0x2CA
_RC_INTEGRITY_P1 = 0x1DF
_RC_TICKET_P4 = 0x4E0
_RC_AUTH_UNAVAILABLE = 0x12F
_RC_POLICY_FAIL_1 = 0x99D
_RC_OBJECT_MEMORY = 0x902
_RC_SESSION_MEMORY = 0x903

_FIRST_SEALED = 0x80010000
_FIRST_SESSION = 0x03000000
_MAX_LOADED = 3
_NONCE = 12


class _Sealed(msgspec.Struct, frozen=True):
    secret: bytes
    policy: bytes
    name: bytes


class SealingTpm(SoftwareTpm):
    """One TPM, a `TpmDevice`. The same `seed` of 32 bytes is the same TPM after a reboot, where it seals."""

    def __init__(self, seed: bytes | None = None) -> None:
        super().__init__()
        self._seed = seed or secrets.token_bytes(SEED_BYTES)
        self._sealed: dict[int, _Sealed] = {}
        self._sessions: dict[int, bytes] = {}
        self._handlers |= {
            wire.CC_CREATE: Handler(self._create, handles=1, auths=1),
            wire.CC_LOAD: Handler(self._load, handles=1, auths=1),
            wire.CC_START_AUTH_SESSION: Handler(self._start_session, handles=2),
            wire.CC_POLICY_PCR: Handler(self._policy_pcr, handles=1),
            wire.CC_CERTIFY_CREATION: Handler(self._certify_creation, handles=2, auths=1),
        }

    def _answer(self, command: bytes) -> bytes:
        if command[6:10] == u32(wire.CC_UNSEAL):
            return self._unseal(Reader(command[10:], "command"))
        return super()._answer(command)

    def _primary(self, hierarchy: int, template: bytes) -> tuple[SigningKey, bytes]:
        if template != STORAGE_TEMPLATE:
            return super()._primary(hierarchy, template)
        number = int.from_bytes(self._keyed(b"storage" + u32(hierarchy)), "big") % (P256_ORDER - 1) + 1
        key = ec.derive_private_key(number, ec.SECP256R1())
        return key, template[:-4] + unique(key)

    def _keyed(self, text: bytes) -> bytes:
        return hmac.digest(self._seed, text, "sha256")

    def _flush(self, command: Command) -> tuple[bytes, bytes]:
        handle = command.parameters.u32()
        command.finish()
        if all(kept.pop(handle, None) is None for kept in (self._sessions, self._sealed, self._objects)):
            raise Refusal(_RC_VALUE_P1)
        return b"", b""

    def _create(self, command: Command) -> tuple[bytes, bytes]:
        parent = self._objects.get(command.handles[0])
        if parent is None:
            raise Refusal(_RC_VALUE_1)
        sensitive, public = Reader(command.parameters.sized(), "sensitive"), command.parameters.sized()
        sensitive.sized()  # a password, which the attributes then do not admit
        secret = sensitive.sized()
        outside_info = command.parameters.sized()
        algorithm, indices = wire.read_selection(command.parameters)
        command.finish()
        if not 0 < len(secret) <= MAX_SECRET:
            raise Refusal(_RC_SIZE_P1)
        _policy(public)
        public = public[:-2] + sized(self._keyed(b"unique" + secret))
        nonce = secrets.token_bytes(_NONCE)
        private = nonce + AESGCM(self._keyed(b"private")).encrypt(nonce, secret, public)
        banks = {wire.HASHES[name]: values for name, values in self._pcrs.items()}
        values = b"".join(banks[algorithm][index] for index in indices)
        creation = wire.selection(_BANK_NAMES[algorithm], indices) + sized(hashlib.sha256(values).digest())
        creation += b"\x01" + u16(wire.ALG_SHA256) + sized(parent.name) + sized(parent.qualified_name)
        creation += sized(outside_info)
        digest = hashlib.sha256(creation).digest()
        ticket = u16(wire.ST_CREATION) + u32(wire.RH_OWNER) + sized(self._ticket(_name(public), digest))
        return b"", sized(private) + sized(public) + sized(creation) + sized(digest) + ticket

    def _ticket(self, name: bytes, creation_hash: bytes) -> bytes:
        return self._keyed(b"creation" + name + creation_hash)

    def _load(self, command: Command) -> tuple[bytes, bytes]:
        if command.handles[0] not in self._objects:
            raise Refusal(_RC_VALUE_1)
        private, public = command.parameters.sized(), command.parameters.sized()
        command.finish()
        try:
            secret = AESGCM(self._keyed(b"private")).decrypt(private[:_NONCE], private[_NONCE:], public)
        except (InvalidTag, ValueError) as error:
            raise Refusal(_RC_INTEGRITY_P1) from error
        handle = _free(_FIRST_SEALED, self._sealed, _RC_OBJECT_MEMORY)
        self._sealed[handle] = _Sealed(secret, _policy(public), _name(public))
        return u32(handle), sized(_name(public))

    def _start_session(self, command: Command) -> tuple[bytes, bytes]:
        parameters = command.parameters
        parameters.sized()  # nonce
        unsalted, kind = not parameters.sized(), (parameters.u8(), parameters.u16(), parameters.u16())
        command.finish()
        if command.handles != (wire.RH_NULL, wire.RH_NULL) or not unsalted:
            raise Refusal(_RC_VALUE_1)
        if kind != (1, wire.ALG_NULL, wire.ALG_SHA256):
            raise Refusal(_RC_VALUE_P2)
        handle = _free(_FIRST_SESSION, self._sessions, _RC_SESSION_MEMORY)
        self._sessions[handle] = bytes(32)
        return u32(handle), sized(secrets.token_bytes(32))

    def _policy_pcr(self, command: Command) -> tuple[bytes, bytes]:
        (session,) = command.handles
        if session not in self._sessions:
            raise Refusal(_RC_VALUE_1)
        expected, (algorithm, indices) = command.parameters.sized(), wire.read_selection(command.parameters)
        command.finish()
        bank = _BANK_NAMES[algorithm]
        digest = hashlib.sha256(b"".join(self._pcrs[bank][index] for index in indices)).digest()
        if expected not in {b"", digest}:
            raise Refusal(_RC_VALUE_P1)
        text = self._sessions[session] + u32(wire.CC_POLICY_PCR) + wire.selection(bank, indices) + digest
        self._sessions[session] = hashlib.sha256(text).digest()
        return b"", b""

    def _unseal(self, reader: Reader) -> bytes:
        sealed = self._sealed.get(reader.u32())
        area = Reader(reader.take(reader.u32()), "auth")
        reader.finish()
        if sealed is None:
            raise Refusal(_RC_VALUE_1)
        session = area.u32()
        if session == wire.RS_PASSWORD:
            raise Refusal(_RC_AUTH_UNAVAILABLE)
        if self._sessions.get(session) != sealed.policy:
            raise Refusal(_RC_POLICY_FAIL_1)
        secret = sized(sealed.secret)
        body = u32(len(secret)) + secret + sized(b"") + b"\x01" + sized(b"")
        return u16(wire.TAG_SESSIONS) + u32(10 + len(body)) + u32(0) + body

    def _certify_creation(self, command: Command) -> tuple[bytes, bytes]:
        signer, certified = command.handles
        sealed, parameters = self._sealed.get(certified), command.parameters
        if signer != wire.RH_NULL:
            raise Refusal(_RC_VALUE_1)  # a key would have to sign
        if sealed is None:
            raise Refusal(_RC_VALUE_2)
        parameters.sized()  # qualifying data
        digest = parameters.sized()
        parameters.u16()  # no scheme
        ticket = (parameters.u16(), parameters.u32(), parameters.sized())
        command.finish()
        if ticket != (wire.ST_CREATION, wire.RH_OWNER, self._ticket(sealed.name, digest)):
            raise Refusal(_RC_TICKET_P4)
        return b"", sized(sealed.name + digest) + u16(wire.ALG_NULL)


_BANK_NAMES = {number: name for name, number in wire.HASHES.items()}


def _free(first: int, kept: dict[int, _Sealed] | dict[int, bytes], full: int) -> int:
    for handle in range(first, first + _MAX_LOADED):
        if handle not in kept:
            return handle
    raise Refusal(full)


def _policy(public: bytes) -> bytes:
    """Return the policy of a sealed object's TPMT_PUBLIC, which admits nothing else."""
    reader = Reader(public, "public")
    kind, _hash, _attributes, policy = reader.u16(), reader.u16(), reader.u32(), reader.sized()
    if kind != wire.ALG_KEYEDHASH:
        raise Refusal(_RC_TYPE_P2)
    return policy


def _name(public: bytes) -> bytes:
    return u16(wire.ALG_SHA256) + hashlib.sha256(public).digest()

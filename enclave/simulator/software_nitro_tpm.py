"""A NitroTPM in process: the TPM commands that lead to a document, and the vendor command that gives it.

It follows spec attestation section 5.5 and checks the session's HMAC as a TPM does.
"""

import hashlib
import hmac
import io
import secrets
import struct

import cbor2
import msgspec
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from enclave.devices import tpm_wire as wire
from enclave.devices.nitro_tpm import BUFFER_SIZE, CC_NSM_REQUEST, EK_TEMPLATE
from enclave.devices.tpm_nv import ATTR_WRITTEN
from enclave.devices.tpm_wire import Reader, sized, u16, u32
from enclave.simulator.nitro_tpm import SimulatedNitroTpm
from enclave.simulator.software_tpm import Command, Handler, SoftwareTpm
from enclave.simulator.tpm_signing import Refusal, SigningKey

_RC_AUTH_FAIL_1 = 0x98E
_RC_HANDLE_1 = 0x18B
_RC_VALUE_1 = 0x184
_RC_VALUE_P2 = 0x2C4
_FIRST_SESSION = 0x02000000
_SESSION_KIND = struct.pack(">BHH", 0, wire.ALG_NULL, wire.ALG_SHA512)


class _Session(msgspec.Struct, frozen=True):
    key: bytes
    nonce: bytes


class SoftwareNitroTpm(SoftwareTpm):
    """The TPM of `instance`, a `TpmDevice`; its SHA-384 registers are the document's."""

    _max_nv = BUFFER_SIZE

    def __init__(self, instance: SimulatedNitroTpm) -> None:
        super().__init__()
        self._instance = instance
        self._sessions: dict[int, _Session] = {}
        self._endorsement: rsa.RSAPrivateKey | None = None
        self._pcrs["sha384"] = [instance.pcrs[index] for index in range(wire.PCR_COUNT)]
        self._handlers[wire.CC_START_AUTH_SESSION] = Handler(self._start_session, handles=2)

    def _answer(self, command: bytes) -> bytes:
        if command[6:10] == u32(CC_NSM_REQUEST):
            return self._nsm_request(command)
        return super()._answer(command)

    def _primary(self, hierarchy: int, template: bytes) -> tuple[SigningKey, bytes]:
        if template != EK_TEMPLATE:
            return super()._primary(hierarchy, template)
        if self._endorsement is None:
            self._endorsement = rsa.generate_private_key(65537, 2048)
        modulus = self._endorsement.public_key().public_numbers().n.to_bytes(256, "big")
        return self._endorsement, template[:-256] + modulus

    def _flush(self, command: Command) -> tuple[bytes, bytes]:
        handle = command.parameters.u32()
        command.finish()
        if self._sessions.pop(handle, None) is None and self._objects.pop(handle, None) is None:
            raise Refusal(0x1C4)
        return b"", b""

    def _start_session(self, command: Command) -> tuple[bytes, bytes]:
        salter, bound = command.handles
        key = self._objects[salter].key if salter in self._objects else None
        if not isinstance(key, rsa.RSAPrivateKey) or bound != wire.RH_NULL:
            raise Refusal(_RC_VALUE_1)
        nonce_caller, encrypted = command.parameters.sized(), command.parameters.sized()
        kind = command.parameters.rest()
        try:
            salt = key.decrypt(encrypted, padding.OAEP(padding.MGF1(SHA256()), SHA256(), label=b"SECRET\0"))
        except ValueError as error:
            raise Refusal(_RC_VALUE_P2) from error
        if kind != _SESSION_KIND:
            raise Refusal(_RC_VALUE_P2)
        nonce = secrets.token_bytes(64)
        derivation = KBKDFHMAC(
            algorithm=SHA512(),
            mode=Mode.CounterMode,
            length=64,
            rlen=4,
            llen=4,
            location=CounterLocation.BeforeFixed,
            label=b"ATH",
            context=nonce + nonce_caller,
            fixed=None,
        )
        handle = next(h for h in range(_FIRST_SESSION, _FIRST_SESSION + 64) if h not in self._sessions)
        self._sessions[handle] = _Session(derivation.derive(salt), nonce)
        return u32(handle), sized(nonce)

    def _nsm_request(self, command: bytes) -> bytes:
        """Check the session's HMAC, and replace the request in the index by its response."""
        reader = Reader(command, "command")
        tag, size, code, authority, index = (reader.u16(), *(reader.u32() for _ in range(4)))
        found = self._indexes.get(index)
        if found is None or authority != index:
            raise Refusal(_RC_HANDLE_1)
        area = Reader(reader.take(reader.u32()), "auth")
        reader.finish()
        session = self._sessions.get(area.u32())
        nonce, attributes, mac = area.sized(), area.take(1), area.sized()
        area.finish()
        if session is None or (tag, size) != (wire.TAG_SESSIONS, len(command)):
            raise Refusal(_RC_VALUE_1)
        command_hash = hashlib.sha512(u32(code) + found.name * 2).digest()
        text = command_hash + nonce + session.nonce + attributes
        if mac != hmac.digest(session.key + found.auth, text, "sha512"):
            raise Refusal(_RC_AUTH_FAIL_1)
        response = self._respond(bytes(found.content))
        found.content[: len(response)] = response
        found.attributes |= ATTR_WRITTEN
        body = u32(0) + sized(secrets.token_bytes(64)) + attributes + sized(bytes(64))
        return u16(wire.TAG_SESSIONS) + u32(10 + len(body)) + u32(0) + body

    def _respond(self, buffer: bytes) -> bytes:
        self._instance.pcrs.update(enumerate(self._pcrs["sha384"]))
        match cbor2.load(io.BytesIO(buffer)):
            case {"Attestation": {"user_data": user_data, "nonce": nonce, "public_key": public_key}}:
                document = self._instance.attestation(user_data, nonce, public_key)
                return cbor2.dumps({"Attestation": {"document": document}})
            case _:
                return cbor2.dumps({"Error": "InvalidOperation"})

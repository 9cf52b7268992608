"""Secrets that only the same machine in the same state can read: sealed under a TPM's storage key.

A sealed blob is, big endian:

    4 bytes  `DSB2`
    u8       bank: 0 sha256, 1 sha384
    u8 n     number of registers, then n bytes: their indexes, ascending
    u16, ... TPM2B_PRIVATE, as TPM2_Create returned it
    u16, ... TPM2B_PUBLIC, as TPM2_Create returned it
    u16, ... TPM2B_CREATION_DATA, as TPM2_Create returned it
    u16, ... the digest of the creation ticket, as TPM2_Create returned it

The blob is no secret. Only the TPM that made it can open it, and only while the registers hold the values of
the moment of sealing: the object has no password, its one authorisation is the policy over those registers.
The secret itself crosses between the TPM and us in the clear, as it does from every vTPM.

Whoever boots something else on the same machine could seal a secret of their own to our registers' values,
and leave it in our secret's place. So the TPM is asked to confirm the creation ticket too: the object was
made while the registers held the values that they hold now, that is, by us.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_wire import EMPTY_AUTH, Auth, Reader
from shared.errors import ConfigError, ProtocolError, UnavailableError

# What TPM2_Create takes as data for one sealed object (MAX_SYM_DATA).
MAX_SECRET = 128
# The areas of such an object have about 500 bytes.
MAX_BLOB = 1024

_MAGIC = b"DSB2"
_BANKS = ("sha256", "sha384")
_POLICY_SESSION = 1
_NONCE_LENGTH = 32
_FIXED = 0x12  # fixedTPM, fixedParent: the object never leaves this TPM
# TPM_RC_POLICY_FAIL for the first session.
_RC_POLICY_FAIL = 0x99D

# The storage key: ECC P-256, restricted decryption, AES-128-CFB. The same template always gives the same key.
STORAGE_TEMPLATE = bytes.fromhex(
    "0023 000b 00030472 0000"  # ecc, sha256, fixed+sensitiveDataOrigin+userWithAuth+noDA+restricted+decrypt
    "0006 0080 0043"  # aes 128 cfb
    "0010 0003 0010"  # no scheme, P-256, no kdf
    "0000 0000"  # unique: derived from the hierarchy's seed
)


class SealedBlob(msgspec.Struct, frozen=True):
    """A sealed secret: the registers it depends on, the object's two areas, and the proof of its making."""

    algorithm: str
    indices: tuple[int, ...]
    private: bytes
    public: bytes
    creation: bytes
    ticket: bytes

    def encode(self) -> bytes:
        """Return the bytes of this module's format."""
        header = _MAGIC + bytes([_BANKS.index(self.algorithm), len(self.indices), *self.indices])
        return header + b"".join(map(wire.sized, (self.private, self.public, self.creation, self.ticket)))


def decode_blob(data: bytes) -> SealedBlob:
    """Decode a blob to its last byte.

    Raises `ProtocolError`: `tpm_device.blob.size`, `tpm_device.blob.format`, or
    `tpm_device.response.layout` for a truncated one.
    """
    if len(data) > MAX_BLOB:
        raise ProtocolError(
            "tpm_device.blob.size", f"sealed blob has {len(data)} bytes, at most {MAX_BLOB} are read"
        )
    reader = Reader(data, "sealed blob")
    magic, bank = reader.take(len(_MAGIC)), reader.u8()
    indices = tuple(reader.take(reader.u8()))
    ascending = indices == tuple(sorted(set(indices)))
    if magic != _MAGIC or bank >= len(_BANKS) or not ascending or not _registers(indices):
        raise ProtocolError(
            "tpm_device.blob.format", "sealed blob has another format than DSB2, sha256 or sha384"
        )
    areas = (reader.sized(), reader.sized(), reader.sized(), reader.sized())
    blob = SealedBlob(_BANKS[bank], indices, *areas)
    reader.finish()
    return blob


def seal(tpm: Tpm, secret: bytes, algorithm: str, indices: Sequence[int]) -> bytes:
    """Seal `secret` (1 to 128 bytes) to the present values of registers, and return the blob.

    Raises `ProtocolError`: `tpm_device.secret.size`, `tpm_device.pcr`; and what `Tpm` raises.
    """
    if not 0 < len(secret) <= MAX_SECRET:
        raise ProtocolError(
            "tpm_device.secret.size", f"secret has {len(secret)} bytes, expected 1 to {MAX_SECRET}"
        )
    registers = tuple(sorted(set(indices)))
    if algorithm not in _BANKS:
        raise ProtocolError("tpm_device.pcr", f"got bank {algorithm!r}, expected sha256 or sha384")
    values = tpm.pcr_read(algorithm, registers)
    policy = _pcr_policy(algorithm, registers, [values[index] for index in registers])
    public = wire.u16(wire.ALG_KEYEDHASH) + wire.u16(wire.ALG_SHA256) + wire.u32(_FIXED)
    public += wire.sized(policy) + wire.u16(wire.ALG_NULL) + wire.sized(b"")
    with tpm.primary(wire.RH_OWNER, STORAGE_TEMPLATE) as storage:
        answer = tpm.run(
            "Create",
            wire.CC_CREATE,
            handles=[storage.handle],
            auths=[EMPTY_AUTH],
            parameters=wire.sized(wire.sized(b"") + wire.sized(secret))
            + wire.sized(public)
            + wire.sized(b"")
            + wire.selection(algorithm, registers),
        ).parameters
        private, public, creation = answer.sized(), answer.sized(), answer.sized()
        answer.sized()  # creation hash
        answer.take(6)  # ticket: tag and hierarchy
        ticket = answer.sized()
        answer.finish()
        return SealedBlob(algorithm, registers, private, public, creation, ticket).encode()


def unseal(tpm: Tpm, blob: bytes) -> bytes:
    """Return the secret of a blob.

    Raises what `decode_blob` does, `UnavailableError("tpm_device.sealed")` when the registers hold other
    values than at sealing, `ProtocolError("tpm_device.blob.creation")` when they held other ones than now
    while it was made, and what `Tpm` raises: a blob of another TPM is `TpmRefused`.
    """
    sealed = decode_blob(blob)
    with tpm.primary(wire.RH_OWNER, STORAGE_TEMPLATE) as storage:
        loaded = tpm.run(
            "Load",
            wire.CC_LOAD,
            handles=[storage.handle],
            auths=[EMPTY_AUTH],
            parameters=wire.sized(sealed.private) + wire.sized(sealed.public),
            with_handle=True,
        )
        with tpm.flushed(loaded.handle) as handle:
            secret = _unseal_loaded(tpm, handle, sealed)
            _check_creation(tpm, handle, sealed)
            return secret


def _unseal_loaded(tpm: Tpm, handle: int, sealed: SealedBlob) -> bytes:
    started = tpm.run(
        "StartAuthSession",
        wire.CC_START_AUTH_SESSION,
        handles=[wire.RH_NULL, wire.RH_NULL],
        parameters=wire.sized(tpm.get_random(_NONCE_LENGTH))
        + wire.sized(b"")
        + bytes([_POLICY_SESSION])
        + wire.u16(wire.ALG_NULL)
        + wire.u16(wire.ALG_SHA256),
        with_handle=True,
    )
    with tpm.flushed(started.handle) as session:
        tpm.run(
            "PolicyPCR",
            wire.CC_POLICY_PCR,
            handles=[session],
            parameters=wire.sized(b"") + wire.selection(sealed.algorithm, sealed.indices),
        ).parameters.finish()
        try:
            answer = tpm.run(
                "Unseal",
                wire.CC_UNSEAL,
                handles=[handle],
                auths=[Auth(session=session, attributes=1)],  # continueSession: we flush it ourselves
            ).parameters
        except wire.TpmRefused as error:
            if error.rc == _RC_POLICY_FAIL:
                raise UnavailableError(
                    "tpm_device.sealed",
                    f"{sealed.algorithm} registers {list(sealed.indices)} are not what they were at sealing",
                ) from error
            raise
        secret = answer.sized()
        answer.finish()
        return secret


def _check_creation(tpm: Tpm, handle: int, sealed: SealedBlob) -> None:
    """Check that this TPM made the object, and what the registers held then."""
    ticket = wire.u16(wire.ST_CREATION) + wire.u32(wire.RH_OWNER) + wire.sized(sealed.ticket)
    tpm.run(
        "CertifyCreation",
        wire.CC_CERTIFY_CREATION,
        handles=[wire.RH_NULL, handle],
        auths=[EMPTY_AUTH],
        parameters=wire.sized(b"")
        + wire.sized(hashlib.sha256(sealed.creation).digest())
        + wire.u16(wire.ALG_NULL)
        + ticket,
    )
    reader = Reader(sealed.creation, "creation data")
    selected = wire.read_selection(reader)
    digest = reader.sized()
    values = tpm.pcr_read(sealed.algorithm, sealed.indices)
    expected = hashlib.sha256(b"".join(values[index] for index in sealed.indices)).digest()
    if selected != (wire.HASHES[sealed.algorithm], sealed.indices) or digest != expected:
        raise ProtocolError(
            "tpm_device.blob.creation",
            f"sealed blob was made while {sealed.algorithm} registers {list(sealed.indices)} held other "
            "values",
        )


def _pcr_policy(algorithm: str, indices: Sequence[int], values: Sequence[bytes]) -> bytes:
    """Return the digest of a policy session after one PolicyPCR."""
    pcr_digest = hashlib.sha256(b"".join(values)).digest()
    command = wire.u32(wire.CC_POLICY_PCR) + wire.selection(algorithm, indices)
    return hashlib.sha256(bytes(32) + command + pcr_digest).digest()


class TpmSealer:
    """Sealing as `enclave.tee.tee.Sealer` has it."""

    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    def seal(self, secret: bytes, bank: str, registers: Sequence[int]) -> bytes:
        """See `Sealer.seal`, and `seal` for what else is raised."""
        if bank in _BANKS:
            values = self._tpm.pcr_read(bank, registers)
            if unused := [index for index, value in values.items() if not any(value)]:
                raise ConfigError(
                    "tpm_device.pcr.unused",
                    f"{bank} registers {unused} are empty: what is sealed to them is sealed to nothing",
                )
        return seal(self._tpm, secret, bank, registers)

    def unseal(self, blob: bytes, bank: str, registers: Sequence[int]) -> bytes:
        """See `Sealer.unseal`: `ProtocolError("tpm_device.blob.registers")` for other registers."""
        sealed = decode_blob(blob)
        expected = tuple(sorted(set(registers)))
        if (sealed.algorithm, sealed.indices) != (bank, expected):
            raise ProtocolError(
                "tpm_device.blob.registers",
                f"secret is sealed to {sealed.algorithm} registers {list(sealed.indices)}, expected {bank} "
                f"{list(expected)}",
            )
        return unseal(self._tpm, blob)


def _registers(indices: Sequence[int]) -> bool:
    return bool(indices) and max(indices) < wire.PCR_COUNT

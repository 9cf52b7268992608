"""TPM quotes: what a TPM signed about its registers (spec attestation 5.2, TPM 2.0 part 2 section 10.12).

Everything here is cheap and needs no endorsement. A caller checks counts, registers and logs first and the
signature last: made-up evidence must not buy more than a hash.
"""

import hashlib
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from shared.attestation.envelope import PcrValue, TpmEvent
from shared.attestation.issuer_key import PublicKey
from shared.errors import InvalidEvidence

SHA256_BANK = 0x000B
PCR_COUNT = 24  # registers of a PC client TPM, 0 to 23
PCR_LENGTH = 32
BANK_NAME = "sha256"

# A quote with every optional part at its largest has under 400 bytes.
MAX_MESSAGE = 1024
# RSA-4096 and its header: no TPM signs with more.
MAX_SIGNATURE = 6 + 512
# Implementations have at most 16 hash banks (HASH_COUNT); each is selected once.
MAX_BANKS = 16
# A Linux boot log has 40 to 120 entries.
MAX_LOG_EVENTS = 4096

_MAGIC = 0xFF544347
_ATTEST_QUOTE = 0x8018
_MAX_NAME = 2 + 64  # TPM2B_NAME: algorithm and the longest digest
_MAX_DATA = 64  # TPM2B_DATA and TPM2B_DIGEST
_SELECT_SIZE = PCR_COUNT // 8
_RSASSA, _ECDSA = 0x0014, 0x0018
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P256_LENGTH = 32
_PKCS1, _SHA256 = padding.PKCS1v15(), SHA256()
_ECDSA_SHA256 = ec.ECDSA(_SHA256)


class PcrSelection(msgspec.Struct, frozen=True):
    """One bank: the TPM's algorithm id, and the selected registers in ascending order."""

    algorithm: int
    indexes: tuple[int, ...]


class TpmAttest(msgspec.Struct, frozen=True, kw_only=True):
    """TPMS_ATTEST of a quote. `clock` is the TPM's own, in milliseconds; `extra_data` the qualifying data."""

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


class TpmSignature(msgspec.Struct, frozen=True):
    """TPMT_SIGNATURE over SHA-256: RSASSA's bytes, or ECDSA's r and s; the other form is empty or zero."""

    rsa: bytes = b""
    r: int = 0
    s: int = 0


class _Reader:
    """Big-endian fields, each refused when the data ends inside it."""

    def __init__(self, data: bytes, code: str) -> None:
        self._data = data
        self._at = 0
        self._code = code

    def take(self, length: int, what: str) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise InvalidEvidence(f"{self._code}.truncated", f"data ends at {len(self._data)} inside {what}")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def uint(self, width: int, what: str) -> int:
        return int.from_bytes(self.take(width, what), "big")

    def sized(self, limit: int, what: str) -> bytes:
        length = self.uint(2, what)
        if length > limit:
            raise InvalidEvidence(
                f"{self._code}.size", f"{what} has {length} bytes, at most {limit} are allowed"
            )
        return self.take(length, what)

    def finish(self) -> None:
        if self._at != len(self._data):
            raise InvalidEvidence(
                f"{self._code}.trailing", f"{len(self._data) - self._at} bytes follow the structure"
            )


def parse_attest(message: bytes) -> TpmAttest:
    """Parse a TPMS_ATTEST of a quote to its last byte.

    Raises `InvalidEvidence`: `tpm.attest.size`, `tpm.attest.truncated`, `tpm.attest.trailing`,
    `tpm.attest.magic`, `tpm.attest.type` (not a quote), `tpm.attest.safe`, `tpm.attest.selection` (too many
    banks, one twice, or a bitmap of another length than 3).
    """
    if len(message) > MAX_MESSAGE:
        raise InvalidEvidence(
            "tpm.attest.size", f"quote has {len(message)} bytes, at most {MAX_MESSAGE} are read"
        )
    reader = _Reader(message, "tpm.attest")
    if (magic := reader.uint(4, "magic")) != _MAGIC:
        raise InvalidEvidence("tpm.attest.magic", f"magic is {magic:#010x}, expected {_MAGIC:#010x}")
    if (kind := reader.uint(2, "type")) != _ATTEST_QUOTE:
        raise InvalidEvidence(
            "tpm.attest.type", f"type is {kind:#06x}, expected {_ATTEST_QUOTE:#06x} (quote)"
        )
    qualified_signer = reader.sized(_MAX_NAME, "qualifiedSigner")
    extra_data = reader.sized(_MAX_DATA, "extraData")
    clock = reader.uint(8, "clock")
    reset_count, restart_count = reader.uint(4, "resetCount"), reader.uint(4, "restartCount")
    if (safe := reader.uint(1, "safe")) > 1:
        raise InvalidEvidence("tpm.attest.safe", f"safe is {safe}, expected 0 or 1")
    attest = TpmAttest(
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        safe=bool(safe),
        firmware_version=reader.uint(8, "firmwareVersion"),
        selections=_selections(reader),
        pcr_digest=reader.sized(_MAX_DATA, "pcrDigest"),
    )
    reader.finish()
    return attest


def _selections(reader: _Reader) -> tuple[PcrSelection, ...]:
    count = reader.uint(4, "count of pcr selections")
    if count > MAX_BANKS:
        raise InvalidEvidence(
            "tpm.attest.selection", f"quote selects {count} banks, at most {MAX_BANKS} are read"
        )
    banks: dict[int, PcrSelection] = {}
    for _ in range(count):
        algorithm = reader.uint(2, "algorithm of a pcr selection")
        size = reader.uint(1, "size of a pcr bitmap")
        if size != _SELECT_SIZE or algorithm in banks:
            raise InvalidEvidence(
                "tpm.attest.selection",
                f"bank {algorithm:#06x} has a bitmap of {size} bytes or comes twice, expected one of 3 bytes",
            )
        bitmap = int.from_bytes(reader.take(size, "pcr bitmap"), "little")
        indexes = tuple(index for index in range(PCR_COUNT) if bitmap >> index & 1)
        banks[algorithm] = PcrSelection(algorithm, indexes)
    return tuple(banks.values())


def parse_signature(data: bytes) -> TpmSignature:
    """Parse a TPMT_SIGNATURE to its last byte: RSASSA or ECDSA on P-256, over SHA-256.

    TPMs write r and s either in 32 bytes or without their leading zeros; both are read, a third form is not.
    Raises `InvalidEvidence`: `tpm.signature.size`, `tpm.signature.truncated`, `tpm.signature.trailing`,
    `tpm.signature.algorithm`, `tpm.signature.hash`, `tpm.signature.encoding`, `tpm.signature.range`.
    """
    if len(data) > MAX_SIGNATURE:
        raise InvalidEvidence(
            "tpm.signature.size", f"signature has {len(data)} bytes, at most {MAX_SIGNATURE} are read"
        )
    reader = _Reader(data, "tpm.signature")
    algorithm = reader.uint(2, "signature algorithm")
    if algorithm not in {_RSASSA, _ECDSA}:
        raise InvalidEvidence(
            "tpm.signature.algorithm",
            f"signature algorithm is {algorithm:#06x}, expected rsassa (0x0014) or ecdsa (0x0018)",
        )
    if (hash_id := reader.uint(2, "signature hash")) != SHA256_BANK:
        raise InvalidEvidence(
            "tpm.signature.hash", f"signature hash is {hash_id:#06x}, expected sha256 ({SHA256_BANK:#06x})"
        )
    if algorithm == _RSASSA:
        signature = TpmSignature(rsa=reader.sized(MAX_SIGNATURE, "rsa signature"))
    else:
        signature = TpmSignature(r=_scalar(reader, "r"), s=_scalar(reader, "s"))
    reader.finish()
    return signature


def _scalar(reader: _Reader, name: str) -> int:
    raw = reader.sized(_P256_LENGTH, name)
    if len(raw) < _P256_LENGTH and raw[:1] in {b"", b"\0"}:
        raise InvalidEvidence(
            "tpm.signature.encoding",
            f"{name} has {len(raw)} bytes with a leading zero, expected 32 bytes or the shortest form",
        )
    value = int.from_bytes(raw, "big")
    if not 0 < value < _P256_ORDER:
        raise InvalidEvidence("tpm.signature.range", f"{name} is outside 1..n-1 of p-256")
    return value


def verify_quote(message: bytes, signature: TpmSignature, key: PublicKey) -> None:
    """Verify a quote's signature under an RSA or P-256 key.

    Raises `InvalidEvidence`: `tpm.signature.key` when the key is of another kind than the signature,
    `tpm.signature.invalid`.
    """
    try:
        if isinstance(key, rsa.RSAPublicKey) and signature.rsa:
            key.verify(signature.rsa, message, _PKCS1, _SHA256)
        elif isinstance(key, ec.EllipticCurvePublicKey) and signature.r and key.key_size == 256:
            key.verify(encode_dss_signature(signature.r, signature.s), message, _ECDSA_SHA256)
        else:
            raise InvalidEvidence(
                "tpm.signature.key", "attestation key is of another kind than the quote's signature"
            )
    except InvalidSignature as error:
        raise InvalidEvidence(
            "tpm.signature.invalid", "quote is not signed by the attestation key"
        ) from error


def check_registers(attest: TpmAttest, values: Sequence[PcrValue]) -> dict[int, bytes]:
    """Return the quoted SHA-256 registers, once `values` are exactly those that the quote covers.

    Raises `InvalidEvidence`: `tpm.pcr.count`, `tpm.attest.bank` (another or more than the SHA-256 bank),
    `tpm.pcr.algorithm`, `tpm.pcr.length`, `tpm.pcr.index` (other registers, another order), `tpm.pcr.digest`.
    """
    if len(values) > PCR_COUNT:
        raise InvalidEvidence(
            "tpm.pcr.count", f"evidence lists {len(values)} registers, at most {PCR_COUNT} exist"
        )
    if [bank.algorithm for bank in attest.selections] != [SHA256_BANK]:
        banks = ", ".join(f"{bank.algorithm:#06x}" for bank in attest.selections)
        raise InvalidEvidence("tpm.attest.bank", f"quote covers the banks {banks or 'none'}, expected sha256")
    for value in values:
        if value.algorithm != BANK_NAME:
            raise InvalidEvidence(
                "tpm.pcr.algorithm",
                f"PCR{value.index} is of bank {value.algorithm[:16]!r}, expected {BANK_NAME!r}",
            )
        if len(value.value) != PCR_LENGTH:
            raise InvalidEvidence(
                "tpm.pcr.length", f"PCR{value.index} has {len(value.value)} bytes, expected {PCR_LENGTH}"
            )
    (bank,) = attest.selections
    listed = tuple(value.index for value in values)
    if listed != bank.indexes:
        raise InvalidEvidence(
            "tpm.pcr.index", f"evidence lists the registers {listed}, the quote covers {bank.indexes}"
        )
    digest = hashlib.sha256(b"".join(value.value for value in values)).digest()
    if digest != attest.pcr_digest:
        raise InvalidEvidence(
            "tpm.pcr.digest",
            f"registers hash to {digest.hex()}, the quote's pcrDigest is {attest.pcr_digest.hex()}",
        )
    return {value.index: value.value for value in values}


def check_log(registers: dict[int, bytes], log: Sequence[TpmEvent]) -> dict[int, tuple[bytes, ...]]:
    """Replay a boot log in one pass, and return the digests that were extended into each quoted register.

    A register without an entry is left to the caller; entries of registers that were not quoted prove nothing
    and are dropped. Raises `InvalidEvidence`: `tpm.log.count`, `tpm.log.index`, `tpm.log.digest`,
    `tpm.log.mismatch`.
    """
    if len(log) > MAX_LOG_EVENTS:
        raise InvalidEvidence(
            "tpm.log.count", f"tpm log has {len(log)} events, at most {MAX_LOG_EVENTS} are read"
        )
    replayed: dict[int, bytes] = {}
    digests: dict[int, list[bytes]] = {}
    for event in log:
        if event.pcr_index >= PCR_COUNT:
            raise InvalidEvidence(
                "tpm.log.index", f"tpm log names PCR{event.pcr_index}, the last is PCR{PCR_COUNT - 1}"
            )
        if len(event.digest) != PCR_LENGTH:
            raise InvalidEvidence(
                "tpm.log.digest",
                f"an event of PCR{event.pcr_index} has a digest of {len(event.digest)} bytes, expected 32",
            )
        if event.pcr_index in registers:
            before = replayed.get(event.pcr_index, bytes(PCR_LENGTH))
            replayed[event.pcr_index] = hashlib.sha256(before + event.digest).digest()
            digests.setdefault(event.pcr_index, []).append(event.digest)
    for index, value in replayed.items():
        if value != registers[index]:
            raise InvalidEvidence(
                "tpm.log.mismatch",
                f"tpm log of PCR{index} replays to {value.hex()}, the quote has {registers[index].hex()}",
            )
    return {index: tuple(entries) for index, entries in digests.items()}

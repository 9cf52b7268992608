"""A Nitro Security Module in process: the real requests, rules and document bytes, under a throw-away root.

It follows spec attestation sections 4.2 and 4.3, down to the payload's indefinite-length outer map and its
order of keys, which the documents of real enclaves have.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from threading import Lock

import cbor2
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.devices.nsm import MAX_REQUEST
from enclave.simulator.authority import Issuer, SimulatedAuthority
from shared.attestation.cbor import Value, decode_strict
from shared.attestation.cose import CoseSign1
from shared.attestation.nitro import PCR_COUNT
from shared.attestation.nitro_document import MAX_NONCE, MAX_PUBLIC_KEY, MAX_USER_DATA, PCR_LENGTH
from shared.errors import InvalidEvidence

# The registers that AWS locks before an enclave starts; 16 to 31 are the enclave's own.
BOOT_PCRS = 16
MAX_EXTEND = 1024
LEAF_LIFETIME = timedelta(hours=3)

Fields = Mapping[int | str, Value]

_PROTECTED = bytes.fromhex("a1013822")  # {1: -35}, ES384
_VERSION = (1, 0, 0)
# A new leaf well before the old one ends: a document must verify for its whole hour.
_LEAF_RENEWAL = timedelta(hours=1, minutes=30)


class _Refusal(Exception):  # noqa: N818 - carries one of the module's error names
    """The request is answered with this error."""


class _Credentials(msgspec.Struct, frozen=True):
    instance: Issuer
    leaf: Issuer
    renew_at: datetime


class InstanceCredentials:
    """The certificates of one instance and of what signs on it; new ones in the middle of the leaf's life."""

    def __init__(self, authority: SimulatedAuthority, instance_id: str, module_id: str) -> None:
        self._authority = authority
        self._instance_id = instance_id
        self._module_id = module_id
        self._current: _Credentials | None = None

    def document(self, payload: Mapping[str, object], now: float) -> bytes:
        """Return a document signed at `now`, with `certificate` and `cabundle` filled into the payload."""
        credentials = self._at(datetime.fromtimestamp(now, UTC))
        chain = (*self._authority.chain, credentials.instance.certificate)
        certificates = {
            "certificate": credentials.leaf.certificate.public_bytes(Encoding.DER),
            "cabundle": [certificate.public_bytes(Encoding.DER) for certificate in chain],
        }
        fields = {name: certificates.get(name, value) for name, value in payload.items()}
        return sign_document(fields, credentials.leaf.key)

    def _at(self, now: datetime) -> _Credentials:
        credentials = self._current
        if credentials is None or not credentials.renew_at - _LEAF_RENEWAL <= now < credentials.renew_at:
            instance = self._authority.issue_instance(self._instance_id, now)
            leaf = instance.issue(
                f"{self._module_id}.us-east-1.aws",
                # A certificate's times have whole seconds, and a real leaf is three seconds older than it
                # says.
                not_before=now - timedelta(seconds=3),
                not_after=now + LEAF_LIFETIME,
                path_length=None,
            )
            credentials = self._current = _Credentials(instance, leaf, now + _LEAF_RENEWAL)
        return credentials


class SimulatedNsm:
    """One enclave's module.

    `pcrs` are the registers that booting sets (PCR0 to PCR2, 48 bytes each); PCR4 is derived from the
    instance id in `module_id`, as AWS does, and the others are zero. `clock` returns unix seconds.
    """

    def __init__(
        self,
        pcrs: Mapping[int, bytes],
        authority: SimulatedAuthority,
        clock: Callable[[], float] = time.time,
        *,
        module_id: str | None = None,
    ) -> None:
        self._clock = clock
        self.module_id = module_id or f"i-{secrets.token_hex(9)[:17]}-enc{secrets.token_hex(8)[:16]}"
        instance_id = self.module_id.rpartition("-")[0]
        self._pcrs = {index: bytes(PCR_LENGTH) for index in range(PCR_COUNT)}
        self._pcrs[4] = hashlib.sha384(bytes(PCR_LENGTH) + instance_id.encode()).digest()
        self._pcrs.update(pcrs)
        self._locked = set(range(BOOT_PCRS))
        self._credentials = InstanceCredentials(authority, instance_id, self.module_id)
        self._lock = Lock()

    def transact(self, request: bytes) -> bytes:
        """Answer one CBOR request with one CBOR response; a bad request is answered with an error."""
        with self._lock:
            try:
                return cbor2.dumps(self._answer(request))
            except _Refusal as refusal:
                return cbor2.dumps({"Error": str(refusal)})

    def _answer(self, request: bytes) -> object:
        if len(request) > MAX_REQUEST:
            raise _Refusal("InputTooLarge")
        try:
            message = decode_strict(request)
        except InvalidEvidence as error:
            raise _Refusal("InvalidArgument") from error
        name, fields = _named(message)
        handlers: dict[str, Callable[[Fields], dict[str, object] | None]] = {
            "Attestation": self._attest,
            "DescribePCR": self._describe_pcr,
            "ExtendPCR": self._extend,
            "LockPCR": self._lock_pcr,
            "LockPCRs": self._lock_pcrs,
            "DescribeNSM": self._describe_nsm,
            "GetRandom": lambda _: {"random": secrets.token_bytes(256)},
        }
        if name not in handlers:
            raise _Refusal("InvalidOperation")
        answer = handlers[name](fields)
        return name if answer is None else {name: answer}

    def _describe_pcr(self, fields: Fields) -> dict[str, object]:
        index = _index(fields)
        return {"lock": index in self._locked, "data": self._pcrs[index]}

    def _lock_pcr(self, fields: Fields) -> None:
        self._locked.add(_index(fields))

    def _lock_pcrs(self, fields: Fields) -> None:
        self._locked.update(range(_index(fields, "range", PCR_COUNT)))

    def _describe_nsm(self, _: Fields) -> dict[str, object]:
        major, minor, patch = _VERSION
        return {
            "version_major": major,
            "version_minor": minor,
            "version_patch": patch,
            "module_id": self.module_id,
            "max_pcrs": PCR_COUNT,
            "locked_pcrs": sorted(self._locked),
            "digest": "SHA384",
        }

    def _extend(self, fields: Fields) -> dict[str, object]:
        index, data = _index(fields), fields.get("data")
        if not isinstance(data, bytes) or not data:
            raise _Refusal("InvalidArgument")
        if len(data) > MAX_EXTEND:
            raise _Refusal("InputTooLarge")
        if index in self._locked:
            raise _Refusal("ReadOnlyIndex")
        self._pcrs[index] = hashlib.sha384(self._pcrs[index] + data).digest()
        return {"data": self._pcrs[index]}

    def _attest(self, fields: Fields) -> dict[str, object]:
        limits = {"user_data": MAX_USER_DATA, "nonce": MAX_NONCE, "public_key": MAX_PUBLIC_KEY}
        if fields.keys() - limits:
            raise _Refusal("InvalidArgument")
        for name, limit in limits.items():
            value = fields.get(name)
            if value is not None and not isinstance(value, bytes):
                raise _Refusal("InvalidArgument")
            if value is not None and len(value) > limit:
                raise _Refusal("InputTooLarge")
        now = self._clock()
        payload = {
            "module_id": self.module_id,
            "digest": "SHA384",
            "timestamp": int(now * 1000),
            "pcrs": {index: self._pcrs[index] for index in sorted(self._locked)},
            "certificate": None,
            "cabundle": None,
            "public_key": fields.get("public_key"),
            "user_data": fields.get("user_data"),
            "nonce": fields.get("nonce"),
        }
        return {"document": self._credentials.document(payload, now)}


def sign_document(payload: Mapping[str, object], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the untagged COSE_Sign1 over `payload`, in the byte format of a real module."""
    fields = b"".join(cbor2.dumps(name) + cbor2.dumps(value) for name, value in payload.items())
    return sign_payload(b"\xbf" + fields + b"\xff", key)


def sign_payload(payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the untagged COSE_Sign1 over exactly these bytes."""
    message = CoseSign1(protected=_PROTECTED, payload=payload, signature=b"")
    r, s = decode_dss_signature(key.sign(message.signed_text, ec.ECDSA(SHA384())))
    signature = r.to_bytes(48, "big") + s.to_bytes(48, "big")
    return cbor2.dumps([message.protected, {}, message.payload, signature])


def _named(message: Value) -> tuple[str, Fields]:
    """Split a request into its name and its fields; a bare name has none."""
    if isinstance(message, str):
        return message, {}
    if isinstance(message, dict) and len(message) == 1:
        ((name, fields),) = message.items()
        if isinstance(name, str) and isinstance(fields, dict):
            return name, fields
    raise _Refusal("InvalidArgument")


def _index(fields: Fields, name: str = "index", limit: int = PCR_COUNT - 1) -> int:
    index = fields.get(name)
    if not isinstance(index, int) or isinstance(index, bool):
        raise _Refusal("InvalidArgument")
    if not 0 <= index <= limit:
        raise _Refusal("InvalidIndex")
    return index

"""What a KMS tells of itself: the answer to GetMeta, and the record of its bootstrap (spec kms 2.1, 5.2).

Plain JSON within limits: the command that reads it is installed without protobuf.
"""

from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cli.kms_strictness import KmsPolicy, LaxSetting, lax_settings
from shared.chain.rules import ANY_GATEWAY
from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.strict_json import decode_json

MAX_META: Final = 1 << 20
"""The largest part is evidence in hex; a guest's on Google Cloud, with its logs, has 120 KiB."""

MAX_RECORD: Final = 1 << 20
_K256_BYTES: Final = 33


class BootstrapRecord(msgspec.Struct, frozen=True):
    """The public root keys as they were made (SPKI DER, compressed k256 key), and evidence over both."""

    ca_pubkey: bytes
    k256_pubkey: bytes
    attestation: bytes


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to GetMeta. `ca_pubkey` is the SPKI DER of `ca_pem`.

    `bootstrap_info` is as it came, and `policy` None where the KMS reports none. `policy_told` has every key
    of it, `other` each key of the answer that is unknown here.
    """

    ca_pem: bytes
    ca_pubkey: bytes
    k256_pubkey: bytes
    bootstrap_info: dict[str, Any] | None
    kms_contract: bytes | None
    chain_id: int | None
    app_implementation: str | None
    gateway_app_id: str | None
    lax: tuple[LaxSetting, ...]
    policy: KmsPolicy | None
    policy_told: dict[str, Any] | None
    other: dict[str, Any]


class _Answer(msgspec.Struct, frozen=True):
    ca_cert: str
    k256_pubkey: str
    allow_any_upgrade: bool = False
    is_dev: bool = False
    bootstrap_info: dict[str, Any] | None = None
    gateway_app_id: str | None = None
    kms_contract_address: str | None = None
    chain_id: int | None = None
    app_auth_implementation: str | None = None
    policy: dict[str, Any] | None = None


class _Record(msgspec.Struct, frozen=True):
    ca_pubkey: str
    k256_pubkey: str
    attestation: str = ""


def parse_meta(raw: bytes) -> Meta:
    """Read the answer to GetMeta. Raises `InvalidEvidence("kms_audit.meta.*")`."""
    code = "kms_audit.meta"
    document = _json(raw, code, "the answer to GetMeta", MAX_META)
    try:
        answer = msgspec.convert(document, _Answer)
        policy = None if answer.policy is None else msgspec.convert(answer.policy, KmsPolicy)
        contract = decode_hex(answer.kms_contract_address or "", what="kms_contract_address")
        k256_pubkey = decode_hex(answer.k256_pubkey, what="k256_pubkey", length=_K256_BYTES)
        ca_pubkey = _public_key(answer.ca_cert.encode())
    except (
        msgspec.ValidationError,
        ProtocolError,
        ValueError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
    ) as error:
        raise InvalidEvidence(
            f"{code}.invalid", f"the answer to GetMeta is not a KMS's: {_clause(error)}"
        ) from error
    lax = () if policy is None else lax_settings(policy)
    return Meta(
        ca_pem=answer.ca_cert.encode(),
        ca_pubkey=ca_pubkey,
        k256_pubkey=k256_pubkey,
        bootstrap_info=answer.bootstrap_info,
        kms_contract=contract or None,
        chain_id=answer.chain_id,
        app_implementation=answer.app_auth_implementation,
        gateway_app_id=answer.gateway_app_id,
        lax=(*lax, *_lax_fields(answer)),
        policy=policy,
        policy_told=answer.policy,
        other={name: value for name, value in document.items() if name not in _Answer.__struct_fields__},
    )


def parse_record(raw: bytes) -> BootstrapRecord:
    """Read a bootstrap-info.json. Raises `InvalidEvidence("kms_audit.bootstrap.*")`."""
    return record_of(_json(raw, "kms_audit.bootstrap", "the record of the bootstrap", MAX_RECORD))


def record_of(document: dict[str, Any]) -> BootstrapRecord:
    """Read the same from a parsed object. Raises `InvalidEvidence("kms_audit.bootstrap.invalid")`."""
    try:
        record = msgspec.convert(document, _Record)
        return BootstrapRecord(
            decode_hex(record.ca_pubkey, what="ca_pubkey"),
            decode_hex(record.k256_pubkey, what="k256_pubkey", length=_K256_BYTES),
            decode_hex(record.attestation, what="attestation"),
        )
    except (msgspec.ValidationError, ProtocolError) as error:
        raise InvalidEvidence(
            "kms_audit.bootstrap.invalid", f"the record of the bootstrap cannot be read: {_clause(error)}"
        ) from error


def _lax_fields(answer: _Answer) -> list[LaxSetting]:
    """Return what upstream's own fields tell: its KMS has no policy to report."""
    found = []
    if answer.is_dev:
        found.append(LaxSetting("is_dev", value=True, meaning="a development KMS, which allows everything"))
    if answer.allow_any_upgrade:
        found.append(
            LaxSetting("allow_any_upgrade", value=True, meaning="any image of any app gets its keys")
        )
    if answer.gateway_app_id == ANY_GATEWAY:
        found.append(LaxSetting("gateway_app_id", ANY_GATEWAY, "apps take whoever answers for their gateway"))
    return found


def _json(raw: bytes, code: str, what: str, limit: int) -> dict[str, Any]:
    try:
        document = decode_json(raw, what=what, code=code, max_bytes=limit)
        msgspec.json.encode(document)
    except ProtocolError as error:
        raise InvalidEvidence(error.code, error.message) from error
    except (OverflowError, ValueError) as error:  # what could not be shown as json again
        raise InvalidEvidence(f"{code}.invalid", f"{what} has text or numbers that are no json") from error
    if not isinstance(document, dict):
        raise InvalidEvidence(f"{code}.invalid", f"{what} is no object")
    return document


def _public_key(pem: bytes) -> bytes:
    public = x509.load_pem_x509_certificate(pem).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _clause(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError | ProtocolError):
        return str(error)
    return "ca_cert is no certificate"

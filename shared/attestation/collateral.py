"""Intel's collateral as text, and what can be read from it before anything is verified.

The JSON is upstream's: ten fields, binary ones in hex (spec attestation section 3.6). A bundle carries what a
verifier needs offline: collateral for several platform models, issuers' certificates, revocation lists.
"""

import base64
import binascii
import json
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from shared.attestation.crl import RevocationList
from shared.attestation.endorsements import Endorsements, TdxCollateral
from shared.attestation.pck import UNREADABLE, PckCa, ca_of, load_certificate, split_pem
from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.strict_json import decode_json

T = TypeVar("T")

# Intel's TCB info has 3 to 40 KB, a chain 2 KB, the largest PCK revocation list is far below 100 KB.
MAX_COLLATERAL: Final = 1024 * 1024
MAX_TEXT: Final = 256 * 1024
MAX_CHAIN: Final = 16 * 1024
MAX_CRL: Final = 256 * 1024
SIGNATURE_LENGTH: Final = 64
# A bundle is for one deployment's machines: a few platform models, Google's and AWS's few lists.
MAX_BUNDLE: Final = 8 * 1024 * 1024
MAX_BUNDLE_ITEMS: Final = 64
MAX_BUNDLE_CERTIFICATE: Final = 8 * 1024

_CRL_CHAIN = "pck_crl_issuer_chain"
_SIGNER_CHAINS = ("tcb_info_issuer_chain", "qe_identity_issuer_chain")
_BUNDLE_FIELDS = frozenset({"tdx", "certificates", "crls"})


class Period(msgspec.Struct, frozen=True):
    """When a statement was made and when the next one is due, unix seconds."""

    issued: int
    next_update: int


class CollateralFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What collateral claims of itself, not verified. `fmspc` is 6 bytes.

    `not_after` (unix seconds) is when the first certificate of its chains ends. `revoked` holds serial
    numbers, of PCK leaves and of CAs. `signers_issuers` names (DER) who issued the certificates that sign the
    TCB info and the QE identity.
    """

    fmspc: bytes
    ca: PckCa
    tcb_info: Period
    qe_identity: Period
    pck_crl: Period
    root_crl: Period
    tcb_evaluation_number: int
    not_after: int
    revoked: frozenset[int]
    signers_issuers: frozenset[bytes]

    @property
    def issued(self) -> int:
        """When the oldest of the statements that change with a TCB recovery was made."""
        return min(self.tcb_info.issued, self.qe_identity.issued, self.pck_crl.issued)

    @property
    def latest_issued(self) -> int:
        """When the youngest statement was made."""
        return max(period.issued for period in self._periods)

    @property
    def next_update(self) -> int:
        """When the first of the statements is overdue."""
        return min(period.next_update for period in self._periods)

    @property
    def _periods(self) -> tuple[Period, ...]:
        return self.tcb_info, self.qe_identity, self.pck_crl, self.root_crl


class _TcbInfo(msgspec.Struct, rename="camel"):
    """The members of Intel's TCB info that are read here; unknown ones are Intel's to add."""

    issue_date: str
    next_update: str
    fmspc: str
    tcb_evaluation_data_number: int


class _QeIdentity(msgspec.Struct, rename="camel"):
    issue_date: str
    next_update: str


def parse_collateral(data: bytes | str) -> TdxCollateral:
    """Read upstream's collateral JSON; every field is looked at for its form, none for its truth.

    Raises `ProtocolError`: `collateral.size`, `collateral.syntax`, `collateral.duplicate_key`,
    `collateral.depth`, `collateral.field`.
    """
    raw = data.encode() if isinstance(data, str) else data
    return _collateral(decode_json(raw, what="collateral", code="collateral", max_bytes=MAX_COLLATERAL))


def collateral_json(collateral: TdxCollateral) -> str:
    """Return upstream's JSON, the inverse of `parse_collateral`."""
    fields: dict[str, str] = {}
    for name, value in msgspec.structs.asdict(collateral).items():
        if value is not None:
            fields[name] = value.hex() if isinstance(value, bytes) else value
    return json.dumps(fields, separators=(",", ":"))


def parse_bundle(data: bytes) -> Endorsements:
    """Read a file of endorsements: one collateral object, or a bundle of several things.

    The bundle is `{"tdx": [collateral...], "certificates": [base64 DER...], "crls": [base64 DER...]}`, each
    member optional. Raises `ProtocolError`: those of `parse_collateral`, `collateral.bundle`.
    """
    found = decode_json(data, what="bundle", code="collateral", max_bytes=MAX_BUNDLE)
    if isinstance(found, dict) and not found.keys() <= _BUNDLE_FIELDS:
        return Endorsements(tdx=(_collateral(found),))
    if not isinstance(found, dict):
        raise ProtocolError("collateral.bundle", "bundle is not an object")
    return Endorsements(
        tdx=tuple(_collateral(item) for item in _items(found, "tdx")),
        certificates=tuple(_der(item, MAX_BUNDLE_CERTIFICATE) for item in _items(found, "certificates")),
        crls=tuple(_der(item, MAX_CRL) for item in _items(found, "crls")),
    )


def bundle_json(endorsements: Endorsements) -> str:
    """Return the bundle of these endorsements, the inverse of `parse_bundle`."""
    bundle = {
        "tdx": [json.loads(collateral_json(collateral)) for collateral in endorsements.tdx],
        "certificates": [base64.b64encode(der).decode() for der in endorsements.certificates],
        "crls": [base64.b64encode(der).decode() for der in endorsements.crls],
    }
    return json.dumps(bundle, separators=(",", ":"))


def describe(collateral: TdxCollateral) -> CollateralFacts:
    """Read which platforms a collateral is for, and its dates.

    Raises `InvalidEvidence`: `collateral.tcb_info`, `collateral.qe_identity`, `collateral.date`,
    `collateral.crl`, `collateral.chain`.
    """
    tcb_info = _json_text(collateral.tcb_info, _TcbInfo, "tcb_info")
    qe_identity = _json_text(collateral.qe_identity, _QeIdentity, "qe_identity")
    try:
        fmspc = decode_hex(tcb_info.fmspc, what="fmspc", length=6, prefix=False)
    except ProtocolError as error:
        raise InvalidEvidence("collateral.tcb_info", f"tcb info names no platform: {error}") from error
    pck_crl, pck_revoked, issuer = _crl(collateral.pck_crl, "pck_crl")
    root_crl, root_revoked, _ = _crl(collateral.root_ca_crl, "root_ca_crl")
    chains = {name: _chain(getattr(collateral, name), name) for name in (_CRL_CHAIN, *_SIGNER_CHAINS)}
    return CollateralFacts(
        fmspc=fmspc,
        ca=ca_of(issuer),
        tcb_info=Period(utc_seconds(tcb_info.issue_date), utc_seconds(tcb_info.next_update)),
        qe_identity=Period(utc_seconds(qe_identity.issue_date), utc_seconds(qe_identity.next_update)),
        pck_crl=pck_crl,
        root_crl=root_crl,
        tcb_evaluation_number=tcb_info.tcb_evaluation_data_number,
        not_after=min(end for _, end in chains.values()),
        revoked=pck_revoked | root_revoked,
        signers_issuers=frozenset(chains[name][0] for name in _SIGNER_CHAINS),
    )


def _collateral(found: Any) -> TdxCollateral:  # noqa: ANN401 - JSON is untyped
    if not isinstance(found, dict):
        raise ProtocolError("collateral.field", "collateral is not an object")
    if unknown := found.keys() - set(TdxCollateral.__struct_fields__):
        raise ProtocolError("collateral.field", f"collateral has the unknown field {min(unknown)[:64]!r}")
    chain = found.get("pck_certificate_chain")
    return TdxCollateral(
        pck_crl_issuer_chain=_text(found, "pck_crl_issuer_chain", MAX_CHAIN),
        root_ca_crl=_hex(found, "root_ca_crl", MAX_CRL),
        pck_crl=_hex(found, "pck_crl", MAX_CRL),
        tcb_info_issuer_chain=_text(found, "tcb_info_issuer_chain", MAX_CHAIN),
        tcb_info=_text(found, "tcb_info", MAX_TEXT),
        tcb_info_signature=_hex(found, "tcb_info_signature", SIGNATURE_LENGTH, exact=True),
        qe_identity_issuer_chain=_text(found, "qe_identity_issuer_chain", MAX_CHAIN),
        qe_identity=_text(found, "qe_identity", MAX_TEXT),
        qe_identity_signature=_hex(found, "qe_identity_signature", SIGNATURE_LENGTH, exact=True),
        pck_certificate_chain=None if chain is None else _text(found, "pck_certificate_chain", MAX_CHAIN),
    )


def _text(found: dict[str, Any], name: str, limit: int) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise ProtocolError("collateral.field", f"{name} is {type(value).__name__}, expected text")
    # A lone surrogate is text to JSON and none to anybody else.
    if not 0 < len(value) <= limit or not value.isascii():
        raise ProtocolError(
            "collateral.field", f"{name} has {len(value)} characters, expected 1 to {limit} of ascii"
        )
    return value


def _hex(found: dict[str, Any], name: str, limit: int, *, exact: bool = False) -> bytes:
    try:
        return decode_hex(
            _text(found, name, 2 * limit), what=name, length=limit if exact else None, prefix=False
        )
    except ProtocolError as error:
        raise ProtocolError("collateral.field", error.message) from error


def _items(bundle: dict[str, Any], name: str) -> list[Any]:
    items = bundle.get(name, [])
    if not isinstance(items, list) or len(items) > MAX_BUNDLE_ITEMS:
        raise ProtocolError(
            "collateral.bundle", f"{name} is not a list of at most {MAX_BUNDLE_ITEMS} endorsements"
        )
    return items


def _der(item: Any, limit: int) -> bytes:  # noqa: ANN401 - JSON is untyped
    try:
        der = base64.b64decode(item, validate=True) if isinstance(item, str) else b""
    except (binascii.Error, ValueError) as error:
        raise ProtocolError("collateral.bundle", "an endorsement is not base64") from error
    if not 0 < len(der) <= limit:
        raise ProtocolError(
            "collateral.bundle", f"an endorsement has {len(der)} bytes, expected 1 to {limit}"
        )
    return der


def _json_text(text: str, kind: type[T], name: str) -> T:
    # Keys that occur twice: dcap-qvl refuses them where it reads them, and Intel signed the text.
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidEvidence(f"collateral.{name}", f"{name} is not intel's json: {error}") from error


def utc_seconds(text: str) -> int:
    """Return a date of Intel's (`2026-01-01T00:00:00Z`) in unix seconds; raises `collateral.date`."""
    try:
        if len(text) == len("2026-01-01T00:00:00Z") and text.endswith("Z"):
            return int(datetime.fromisoformat(text).timestamp())
    except ValueError as error:
        raise InvalidEvidence("collateral.date", f"{text!r} is not a date") from error
    raise InvalidEvidence("collateral.date", f"{text[:64]!r} is not a date in utc and whole seconds")


def _crl(der: bytes, name: str) -> tuple[Period, frozenset[int], bytes]:
    try:
        crl = RevocationList.parse(der)
    except InvalidEvidence as error:
        raise InvalidEvidence("collateral.crl", f"{name}: {error}") from error
    revoked = frozenset(entry.serial_number for entry in crl.parsed)
    return Period(crl.this_update, crl.next_update), revoked, crl.issuer


def _chain(pem: str, name: str) -> tuple[bytes, int]:
    """Return the name of who issued a chain's first certificate, and when the first of them ends."""
    try:
        # Some caches drop the last newline.
        chain = [load_certificate(der) for der in split_pem(pem.rstrip("\n").encode() + b"\n")]
        issuer = chain[0].issuer.public_bytes()
        ends = [certificate.not_valid_after_utc.timestamp() for certificate in chain]
    except (InvalidEvidence, *UNREADABLE) as error:
        raise InvalidEvidence("collateral.chain", f"{name} is not a pem chain of certificates") from error
    return issuer, int(min(ends))

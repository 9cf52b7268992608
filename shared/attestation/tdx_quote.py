"""The layout of a TDX quote, version 4 and 5, to the last byte (spec attestation section 3.1).

Parsing says nothing about truth: a `ParsedQuote` is a claim until `tdx.verify_tdx` accepted it.
"""

import struct
from typing import Final, NoReturn

import msgspec

from shared.attestation.pck import PckChain, parse_pck_chain
from shared.errors import InvalidEvidence

# The kernel refuses to hand out a quote of 1,020 bytes or less; the quoting service's largest answer is
# 16,384 bytes (section 3.2). Real quotes have 5,006.
MIN_QUOTE: Final = 1021
MAX_QUOTE: Final = 16_384

HEADER_LENGTH: Final = 48
REPORT_DATA_LENGTH: Final = 64

ECDSA_P256: Final = 2
TEE_TDX: Final = 0x81
INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
TD_10_LENGTH: Final = 584
TD_15_LENGTH: Final = 648
BODY_TD_10: Final = 2
BODY_TD_15: Final = 3
QE_REPORT_CERTIFICATION: Final = 6  # the only outer type of a TDX quote
PCK_CHAIN: Final = 5
ENCRYPTED_PPID: Final = (2, 3)  # RSA-2048 and RSA-3072: the chain must come with the collateral
QE_AUTH_DATA_LENGTH: Final = 32

_HEADER = struct.Struct("<HHIHH16s20s")
_BODY_DESCRIPTOR = struct.Struct("<HI")
_TD_10 = struct.Struct("<16s48s48s8sQQ48s48s48s48s48s48s48s48s64s")
_TD_15 = struct.Struct("<16s48s")
_QE_REPORT = struct.Struct("<16sI28s16s32s32s32s96sHH60s64s")
_AUTH = struct.Struct("<64s64sHI")
_QE_AUTH = struct.Struct("<384s64sH")
_CERTIFICATION = struct.Struct("<HI")
_U32 = struct.Struct("<I")


class TdReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the TDX module says of a domain. Registers are 48 bytes, `report_data` 64, both words LE.

    `tee_tcb_svn2` and `mr_service_td` are None in a report of TD 1.0.
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: int
    xfam: int
    mrtd: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None


class QeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What SGX says of the quoting enclave."""

    cpu_svn: bytes
    misc_select: int
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


class ParsedQuote(msgspec.Struct, frozen=True, kw_only=True):
    """A quote, split. `raw` is the quote as it came, padding included.

    `signed` (header, body descriptor, body) is what `signature` (r || s) covers under `attestation_key`
    (x || y). `qe_report_raw` is covered by `qe_report_signature` under the PCK leaf's key. `pck_chain` is
    None where the certification data is not a chain (`certification_type` 2 or 3).
    """

    raw: bytes
    version: int
    header: bytes
    body: bytes
    signed: bytes
    report: TdReport
    signature: bytes
    attestation_key: bytes
    qe_report: QeReport
    qe_report_raw: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification_data: bytes
    pck_chain: PckChain | None

    @property
    def fmspc(self) -> bytes | None:
        """The platform model, 6 bytes, where the quote names it."""
        return None if self.pck_chain is None else self.pck_chain.fmspc

    @property
    def ca(self) -> str | None:
        """`processor` or `platform`, where the quote names it."""
        return None if self.pck_chain is None else self.pck_chain.ca


def parse_quote(quote: bytes) -> ParsedQuote:
    """Split a quote; every byte must be accounted for, and only zeros may follow the authentication data.

    Raises `InvalidEvidence`: `tdx.quote.size`, `tdx.quote.version`, `tdx.quote.key_type`,
    `tdx.quote.tee_type`, `tdx.quote.vendor`, `tdx.quote.body`, `tdx.quote.truncated`, `tdx.quote.trailing`,
    `tdx.quote.auth`, `tdx.quote.certification`, and those of `pck.parse_pck_chain`.
    """
    if not MIN_QUOTE <= len(quote) <= MAX_QUOTE:
        _refuse("size", f"quote has {len(quote)} bytes, expected {MIN_QUOTE} to {MAX_QUOTE}")
    version = _check_header(quote)
    at, length = _find_body(quote, version)
    end = at + length  # the smallest quote is larger than the largest body
    report = _td_report(quote[at:end])
    auth_at = end + _U32.size
    auth_end = auth_at + _U32.unpack_from(quote, end)[0]
    if auth_end > len(quote):
        _refuse("truncated", f"authentication data ends at byte {auth_end}, the quote at {len(quote)}")
    if quote.count(0, auth_end) != len(quote) - auth_end:
        _refuse("trailing", f"bytes other than zero follow the quote's end at {auth_end}")
    auth = quote[auth_at:auth_end]
    if len(auth) < _AUTH.size + _QE_AUTH.size:
        _refuse("truncated", f"authentication data has {len(auth)} bytes, too few for its fixed part")
    signature, key, outer_type, outer_length = _AUTH.unpack_from(auth)
    if outer_type != QE_REPORT_CERTIFICATION or outer_length != len(auth) - _AUTH.size:
        _refuse(
            "auth",
            f"certification data is of type {outer_type} and {outer_length} bytes, "
            f"expected type {QE_REPORT_CERTIFICATION} and the {len(auth) - _AUTH.size} that are left",
        )
    qe_report_raw, qe_signature, qe_auth_length = _QE_AUTH.unpack_from(auth, _AUTH.size)
    if qe_auth_length != QE_AUTH_DATA_LENGTH:
        _refuse("auth", f"qe authentication data has {qe_auth_length} bytes, expected {QE_AUTH_DATA_LENGTH}")
    qe_auth_at = _AUTH.size + _QE_AUTH.size
    inner_at = qe_auth_at + QE_AUTH_DATA_LENGTH
    kind, data = _certification(auth, inner_at)
    return ParsedQuote(
        raw=quote,
        version=version,
        header=quote[:HEADER_LENGTH],
        body=quote[at:end],
        signed=quote[:end],
        report=report,
        signature=signature,
        attestation_key=key,
        qe_report=_qe_report(qe_report_raw),
        qe_report_raw=qe_report_raw,
        qe_report_signature=qe_signature,
        qe_auth_data=auth[qe_auth_at:inner_at],
        certification_type=kind,
        certification_data=data,
        # Real chains end in one NUL, a C string's.
        pck_chain=parse_pck_chain(data.removesuffix(b"\0")) if kind == PCK_CHAIN else None,
    )


def _check_header(quote: bytes) -> int:
    version: int
    version, key_type, tee_type, _qe_svn, _pce_svn, vendor, _user_data = _HEADER.unpack_from(quote)
    if version not in {4, 5}:
        _refuse("version", f"quote is of version {version}, expected 4 or 5")
    if key_type != ECDSA_P256:
        _refuse("key_type", f"attestation key is of type {key_type}, expected {ECDSA_P256} (ecdsa p-256)")
    if tee_type != TEE_TDX:
        _refuse("tee_type", f"tee type is {tee_type:#x}, expected {TEE_TDX:#x} (tdx)")
    if vendor != INTEL_QE_VENDOR:
        _refuse("vendor", f"quoting enclave's vendor is {vendor.hex()}, expected {INTEL_QE_VENDOR.hex()}")
    return version


def _find_body(quote: bytes, version: int) -> tuple[int, int]:
    """Return offset and length of the TD report."""
    if version == 4:
        return HEADER_LENGTH, TD_10_LENGTH
    kind, length = _BODY_DESCRIPTOR.unpack_from(quote, HEADER_LENGTH)
    if (kind, length) not in {(BODY_TD_10, TD_10_LENGTH), (BODY_TD_15, TD_15_LENGTH)}:
        _refuse(
            "body",
            f"body is of type {kind} and {length} bytes, expected type {BODY_TD_10} of {TD_10_LENGTH} "
            f"or {BODY_TD_15} of {TD_15_LENGTH}",
        )
    return HEADER_LENGTH + _BODY_DESCRIPTOR.size, length


def _td_report(body: bytes) -> TdReport:
    svn, seam, signer, seam_attributes, attributes, xfam, mrtd, config, owner, owner_config, *rest = (
        _TD_10.unpack_from(body)
    )
    rtmr0, rtmr1, rtmr2, rtmr3, report_data = rest
    svn2, service = _TD_15.unpack_from(body, TD_10_LENGTH) if len(body) == TD_15_LENGTH else (None, None)
    return TdReport(
        tee_tcb_svn=svn,
        mr_seam=seam,
        mr_signer_seam=signer,
        seam_attributes=seam_attributes,
        td_attributes=attributes,
        xfam=xfam,
        mrtd=mrtd,
        mr_config_id=config,
        mr_owner=owner,
        mr_owner_config=owner_config,
        rtmrs=(rtmr0, rtmr1, rtmr2, rtmr3),
        report_data=report_data,
        tee_tcb_svn2=svn2,
        mr_service_td=service,
    )


def _qe_report(raw: bytes) -> QeReport:
    cpu_svn, misc, _, attributes, enclave, _, signer, _, product, svn, _, report_data = _QE_REPORT.unpack(raw)
    return QeReport(
        cpu_svn=cpu_svn,
        misc_select=misc,
        attributes=attributes,
        mr_enclave=enclave,
        mr_signer=signer,
        isv_prod_id=product,
        isv_svn=svn,
        report_data=report_data,
    )


def _certification(auth: bytes, at: int) -> tuple[int, bytes]:
    start = at + _CERTIFICATION.size
    if start > len(auth):
        _refuse("truncated", "authentication data ends before its certification data")
    kind, length = _CERTIFICATION.unpack_from(auth, at)
    if length != len(auth) - start:
        _refuse("auth", f"certification data has {length} bytes, expected the {len(auth) - start} left")
    if kind != PCK_CHAIN and kind not in ENCRYPTED_PPID:
        _refuse("certification", f"certification data is of type {kind}, expected 5 (chain), 2 or 3")
    return kind, auth[start:]


def _refuse(what: str, message: str) -> NoReturn:
    raise InvalidEvidence(f"tdx.quote.{what}", message)

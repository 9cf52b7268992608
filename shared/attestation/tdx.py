"""TDX quotes: whether to believe one (spec attestation section 3.6).

The cryptography and Intel's own rules are dcap-qvl's. Around it stand the checks that it leaves to its
callers or does not make: exact layout, the domain's attributes, which root, how old the collateral may be,
which platform state is good enough.
"""

import hmac
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from shared.attestation.anchor import TrustAnchor
from shared.attestation.collateral import CollateralFacts, collateral_json, describe, utc_seconds
from shared.attestation.endorsements import Endorsements, TdxCollateral
from shared.attestation.pck import PckChain, load_certificate, parse_pck_chain
from shared.attestation.policy import TcbStatus, TdAttribute, TdxPolicy
from shared.attestation.recent import Recent
from shared.attestation.tdx_quote import ParsedQuote, TdReport, parse_quote
from shared.ec_key import ec_key
from shared.errors import InvalidEvidence, PolicyDenied

if TYPE_CHECKING:
    from dcap_qvl import QuoteCollateralV3

# TD attributes (Intel TDX module, section "ATTRIBUTES"). Every bit that is not named here is refused.
_DEBUG: Final = 1 << 0
_SEPT_VE_DISABLE: Final = 1 << 28
_POLICY_ATTRIBUTES: Final = {TdAttribute.PKS: 1 << 30, TdAttribute.KL: 1 << 31, TdAttribute.PERFMON: 1 << 63}
_KNOWN_ATTRIBUTES: Final = _SEPT_VE_DISABLE | sum(_POLICY_ATTRIBUTES.values())
# x87 and SSE: the processor has no domain without them.
_MANDATORY_XFAM: Final = 0b11

# How many collaterals a cache keeps: one per platform model and per day is far below this.
_CACHE_SIZE: Final = 64

# What dcap-qvl 0.7 says, by how its sentence starts, and the code that stands for it here.
_REFUSALS: Final = (
    ("Failed to verify certificate chain", "chain"),
    ("ISV enclave report signature is invalid", "quote_signature"),
    ("Signature is invalid for qe_report", "qe_report_signature"),
    ("Signature is invalid for tcb_info", "tcb_info_signature"),
    ("Signature is invalid for qe_identity", "qe_identity_signature"),
    ("QE report hash mismatch", "attestation_key"),
    ("QE MRSIGNER mismatch", "qe_mrsigner"),
    ("QE ISVPRODID mismatch", "qe_isvprodid"),
    ("QE MISCSELECT mismatch", "qe_miscselect"),
    ("QE ATTRIBUTES mismatch", "qe_attributes"),
    ("QE report validation failed", "qe_debug"),
    ("QE ISVSVN", "qe_isvsvn"),
    ("Unsupported QE Identity", "qe_identity_kind"),
    ("TDX quote with non-TDX TCB info", "tcb_info_kind"),
    ("TDX module", "module"),
    ("No matching TCB level", "tcb_level"),
)


class VerifiedTdx(msgspec.Struct, frozen=True, kw_only=True):
    """A quote that was verified, and what Intel says of its platform.

    `tcb_reason` tells why the policy accepted `status`. `ppid` (16 bytes) names the machine, `fmspc` (6) its
    model. `collateral_issued` is when the oldest of Intel's statements was made; `valid_until` the second
    from which the same evidence would no longer be accepted with the same collateral.
    """

    quote: ParsedQuote
    status: TcbStatus
    advisory_ids: tuple[str, ...]
    tcb_reason: str
    tcb_evaluation_number: int
    ppid: bytes
    fmspc: bytes
    trust_anchor: TrustAnchor
    collateral_issued: int
    valid_until: int

    @property
    def anchor(self) -> str:
        """The name of the trust anchor."""
        return self.trust_anchor.name

    @property
    def simulated(self) -> bool:
        """Whether the anchor is another one than Intel's own root."""
        return not self.trust_anchor.production


class _Prepared(msgspec.Struct, frozen=True):
    """Collateral as dcap-qvl wants it, and what it claims.

    dcap-qvl prefers a PCK chain in the collateral to the quote's own. So there are two: `parsed` has none,
    and `chained` has one, for quotes that carry none.
    """

    facts: CollateralFacts
    parsed: "QuoteCollateralV3"
    chained: "tuple[QuoteCollateralV3, PckChain] | None" = None


class CollateralCache:
    """Remembers parsed collateral, by its exact content, a bounded number of them.

    Parsing is all that it saves: dcap-qvl checks every signature each time.
    """

    def __init__(self, size: int = _CACHE_SIZE) -> None:
        self._entries = Recent[TdxCollateral, _Prepared](size)

    def __len__(self) -> int:
        return len(self._entries)

    def prepare(self, collateral: TdxCollateral) -> _Prepared:
        """Return the parsed form; raises what `collateral.describe` raises."""
        return self._entries.find(collateral, lambda: _prepare(collateral))


class _Level(msgspec.Struct):
    tcbDate: str  # noqa: N815 - the wire's name


class _Tcb(msgspec.Struct):
    status: TcbStatus
    advisory_ids: tuple[str, ...]
    eval_data_number: int


class _Pck(msgspec.Struct):
    ppid: list[int]
    fmspc: list[int]


class _Platform(msgspec.Struct):
    tcb_date_tag: int
    pck: _Pck


class _Qe(msgspec.Struct):
    tcb_level: _Level


class _Claims(msgspec.Struct):
    """The members of dcap-qvl's claims that are used."""

    tcb: _Tcb
    platform: _Platform
    qe: _Qe
    report: dict[str, dict[str, Any]]


def verify_tdx(
    quote: bytes,
    *,
    now: int,
    anchors: tuple[TrustAnchor, ...],
    policy: TdxPolicy,
    endorsements: Endorsements,
    report_data: bytes | None = None,
    cache: CollateralCache | None = None,
) -> VerifiedTdx:
    """Verify a TDX quote at `now` (unix seconds).

    1. `precheck_tdx`: layout, domain, `report_data`, root. All before any signature.
    2. Pick the collateral of this platform model and CA: the youngest of several.
    3. The anchor: the root of the chain that the quote, or else the collateral, carries, valid at `now`.
    4. The collateral's dates: none in the future, none overdue, none older than the policy allows. Its
       signers' certificates: issued by the root itself. The chain's: not on its revocation lists.
    5. dcap-qvl: collateral's signatures, revocation, PCK chain, quoting enclave and its identity, the quote's
       signature, TCB levels of platform, module and quoting enclave.
    6. What dcap-qvl read must be what was parsed here.
    7. The policy on TCB status, advisories, evaluation number.

    The caller still owes: an expectation for `report_data` (nothing else in a quote is fresh), a decision on
    the measurements, and, when `simulated` is set, saying so. A quote's bytes are no identity: whoever has
    one can write its ECDSA signatures in their other form.

    Raises `InvalidEvidence`: those of `precheck_tdx` and `collateral.describe`,
    `tdx.collateral.{missing,future,expired,age,signer}`, `tdx.anchor.validity`, `tdx.pck.revoked`,
    `tdx.dcap.*` (one for each known refusal; `disagrees`, `panic`, `refused`). Raises `PolicyDenied`:
    `tdx.attributes.policy`, `tdx.tcb.*`, `tdx.advisory`.
    """
    parsed = precheck_tdx(quote, anchors=anchors, policy=policy, report_data=report_data)
    facts, collateral, chain = _pick_collateral(parsed, endorsements, cache, now)
    anchor = _pick_anchor(chain, anchors)
    if not anchor.is_valid(now):
        _refuse("anchor.validity", f"{anchor.name} is a root whose validity does not include {now}")
    _check_dates(facts, policy, now)
    # To dcap-qvl any certificate under the root is a signer: the key of one platform could vouch for all.
    if facts.signers_issuers != {anchor.subject}:
        _refuse(
            "collateral.signer", "signer of the tcb info or qe identity is not certified by the root itself"
        )
    if facts.revoked.intersection(chain.serials):
        raise InvalidEvidence("tdx.pck.revoked", "a certificate of the pck chain is revoked")
    claims = _verify(quote, collateral, anchor, now)
    _check_agreement(parsed, chain, claims)
    if claims.tcb.eval_data_number < policy.min_tcb_evaluation_number:
        raise PolicyDenied(
            "tdx.tcb.evaluation",
            f"collateral is of tcb evaluation {claims.tcb.eval_data_number}, "
            f"the policy wants {policy.min_tcb_evaluation_number} or later",
        )
    status = claims.tcb.status
    # dcap-qvl's date is already the earlier one of the platform's level and the module's.
    tcb_date = min(claims.platform.tcb_date_tag, utc_seconds(claims.qe.tcb_level.tcbDate))
    reason = policy.check_tcb(status, claims.tcb.advisory_ids, tcb_date, now)
    ends = [
        facts.next_update,
        facts.not_after,
        chain.not_after,
        facts.issued + policy.max_collateral_age,
    ]
    if status not in policy.accept:
        ends.append(tcb_date + policy.grace[status])
    return VerifiedTdx(
        quote=parsed,
        status=status,
        advisory_ids=claims.tcb.advisory_ids,
        tcb_reason=reason,
        tcb_evaluation_number=claims.tcb.eval_data_number,
        ppid=bytes(claims.platform.pck.ppid),
        fmspc=chain.fmspc,
        trust_anchor=anchor,
        collateral_issued=facts.issued,
        valid_until=min(ends) + 1,
    )


def precheck_tdx(
    quote: bytes,
    *,
    anchors: tuple[TrustAnchor, ...],
    policy: TdxPolicy,
    report_data: bytes | None = None,
) -> ParsedQuote:
    """Refuse what can be refused without collateral and without a signature: run it before fetching any.

    The layout to the last byte; the domain: not in debug mode, no attribute or state component that the
    policy does not know, a module signed by Intel, no service domain; `report_data`, where the caller expects
    one; and that the chain in the quote, if it has one, ends in a root of `anchors`.

    Raises `InvalidEvidence`: those of `tdx_quote.parse_quote`, `tdx.attributes.{debug,reserved,sept_ve}`,
    `tdx.xfam`, `tdx.mr_signer_seam`, `tdx.seam_attributes`, `tdx.mr_service_td`, `tdx.report_data`,
    `tdx.anchor`. Raises `PolicyDenied("tdx.attributes.policy")`.
    """
    parsed = parse_quote(quote)
    _check_domain(parsed.report, policy)
    if report_data is not None and not hmac.compare_digest(parsed.report.report_data, report_data):
        raise InvalidEvidence(
            "tdx.report_data",
            f"report_data begins {parsed.report.report_data[:16].hex()}, expected {report_data[:16].hex()}",
        )
    if parsed.pck_chain is not None:
        _pick_anchor(parsed.pck_chain, anchors)
    return parsed


def _check_domain(report: TdReport, policy: TdxPolicy) -> None:
    """Judge what the module says of the domain; nothing here needs a signature to be refused."""
    attributes = report.td_attributes
    if attributes & _DEBUG:
        _refuse("attributes.debug", "domain is in debug mode: the host can read and change it")
    if unknown := attributes & ~_KNOWN_ATTRIBUTES:
        _refuse("attributes.reserved", f"domain has the unknown attributes {unknown:#x}")
    if not attributes & _SEPT_VE_DISABLE:
        _refuse("attributes.sept_ve", "domain does not set SEPT_VE_DISABLE: the host can inject exceptions")
    for attribute, bit in _POLICY_ATTRIBUTES.items():
        if attributes & bit and attribute not in policy.allow_attributes:
            raise PolicyDenied(
                "tdx.attributes.policy",
                f"domain has the attribute {attribute.value}, the policy does not allow it",
            )
    if report.xfam & ~policy.xfam or report.xfam & _MANDATORY_XFAM != _MANDATORY_XFAM:
        _refuse(
            "xfam",
            f"xfam is {report.xfam:#x}, expected bits within {policy.xfam:#x} and {_MANDATORY_XFAM:#x} set",
        )
    for field in ("mr_signer_seam", "seam_attributes", "mr_service_td"):
        if any(getattr(report, field) or b""):
            _refuse(field, f"{field} is not zero: not a module of intel's, or a service domain is bound")


def _pick_collateral(
    quote: ParsedQuote, endorsements: Endorsements, cache: CollateralCache | None, now: int
) -> tuple[CollateralFacts, "QuoteCollateralV3", PckChain]:
    """Return the youngest collateral of `now` for this platform, and the PCK chain to use with it."""
    candidates = []
    for collateral in endorsements.tdx:
        prepared = _prepare(collateral) if cache is None else cache.prepare(collateral)
        facts, parsed, chain = prepared.facts, prepared.parsed, quote.pck_chain
        if chain is None:
            if prepared.chained is None or not _made_qe_report(prepared.chained[1], quote):
                continue
            parsed, chain = prepared.chained
        if (facts.fmspc, facts.ca) == (chain.fmspc, chain.ca):
            candidates.append((facts, parsed, chain))
    if candidates:
        return max(candidates, key=lambda found: (found[0].latest_issued <= now, found[0].issued))
    if quote.pck_chain is None:
        raise InvalidEvidence(
            "tdx.quote.certification",
            f"quote has no pck chain (type {quote.certification_type}), and no collateral brings it",
        )
    raise InvalidEvidence(
        "tdx.collateral.missing",
        f"no collateral for fmspc {quote.pck_chain.fmspc.hex()} of the {quote.pck_chain.ca} ca, "
        f"{len(endorsements.tdx)} for others",
    )


def _made_qe_report(chain: PckChain, quote: ParsedQuote) -> bool:
    """Tell whether this chain's leaf is the platform's: the quote itself does not name it."""
    r, s = quote.qe_report_signature[:32], quote.qe_report_signature[32:]
    signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    try:
        key = ec_key(load_certificate(chain.certificates[0]))
        if key is None:
            return False
        key.verify(signature, quote.qe_report_raw, ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _pick_anchor(chain: PckChain, anchors: tuple[TrustAnchor, ...]) -> TrustAnchor:
    """Return the anchor that is the chain's root, byte for byte."""
    for anchor in anchors:
        if anchor.der == chain.root:
            return anchor
    raise InvalidEvidence(
        "tdx.anchor",
        f"pck chain ends in none of the roots {', '.join(anchor.name for anchor in anchors)}",
    )


def _check_dates(facts: CollateralFacts, policy: TdxPolicy, now: int) -> None:
    if facts.latest_issued > now:
        _refuse("collateral.future", f"collateral was issued at {facts.latest_issued}, the time is {now}")
    if facts.next_update < now:
        _refuse("collateral.expired", f"collateral was due for renewal at {facts.next_update}, it is {now}")
    if now - facts.issued > policy.max_collateral_age:
        _refuse(
            "collateral.age",
            f"collateral is {now - facts.issued} seconds old, at most {policy.max_collateral_age} may be",
        )


def _prepare(collateral: TdxCollateral) -> _Prepared:
    from dcap_qvl import QuoteCollateralV3  # noqa: PLC0415 - 30 ms, and only TDX needs it

    facts = describe(collateral)
    plain = msgspec.structs.replace(collateral, pck_certificate_chain=None)
    parsed = QuoteCollateralV3.from_json(collateral_json(plain))
    pem = collateral.pck_certificate_chain
    if pem is None:
        return _Prepared(facts, parsed)
    chain = parse_pck_chain(pem.encode(errors="replace"))
    return _Prepared(facts, parsed, (QuoteCollateralV3.from_json(collateral_json(collateral)), chain))


def _verify(quote: bytes, collateral: "QuoteCollateralV3", anchor: TrustAnchor, now: int) -> _Claims:
    from dcap_qvl import QuotePolicy, QuoteVerifier  # noqa: PLC0415 - 30 ms, and only TDX needs it

    try:
        # `claims_only`: no judgement of the TCB status. Attributes, module and quoting enclave are judged.
        claims = QuoteVerifier(anchor.der).verify_with_policy(
            quote, collateral, now, QuotePolicy.claims_only(now)
        )
        return msgspec.json.decode(claims.to_json(), type=_Claims)
    except ValueError as error:
        text = str(error).removeprefix("Verification failed: ")
        if text == "TCB status is invalid: Revoked":
            raise PolicyDenied(
                "tdx.tcb.revoked", "platform's tcb is revoked, no policy accepts that"
            ) from error
        kind = next((kind for start, kind in _REFUSALS if text.startswith(start)), "refused")
        raise InvalidEvidence(f"tdx.dcap.{kind}", f"dcap-qvl refuses the quote: {text[:200]}") from error
    except BaseException as error:
        # A Rust panic is no Exception, so that it ends programs; here it is one more way to refuse.
        if type(error).__name__ != "PanicException":
            raise
        raise InvalidEvidence("tdx.dcap.panic", "dcap-qvl gave up on the quote") from error


def _check_agreement(quote: ParsedQuote, chain: PckChain, claims: _Claims) -> None:
    """Two parsers read one quote: what decides must be the same to both."""
    (report,) = claims.report.values()
    theirs = report.get("base", report)
    ours = {"mr_td": quote.report.mrtd, "report_data": quote.report.report_data}
    ours |= {f"rt_mr{index}": rtmr for index, rtmr in enumerate(quote.report.rtmrs)}
    if bytes(claims.platform.pck.fmspc) != chain.fmspc or any(
        theirs.get(name) != value.hex() for name, value in ours.items()
    ):
        _refuse("dcap.disagrees", "dcap-qvl reads the quote differently")


def _refuse(what: str, message: str) -> NoReturn:
    raise InvalidEvidence(f"tdx.{what}", message)

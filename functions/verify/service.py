"""`POST /verify` without a cloud: request and response of upstream's dstack-verifier (spec attestation 7.1).

The answer is for people and dashboards: whoever acts on evidence verifies it inside a TEE. Refused evidence
is a normal answer (HTTP 200, `is_valid` false); only a body that is no request is an HTTP error.
"""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import msgspec

from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.envelope import Attestation, decode_envelope
from shared.attestation.identity import boot_info, info_of
from shared.attestation.image import check_image, claimed_config
from shared.attestation.policy import DEFAULT_POLICY, Policy
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status, Verdict
from shared.attestation.verify import VerifiedAttestation, VerifierCache, verify_attestation
from shared.boot_info import TDX
from shared.errors import DstackError, InvalidEvidence, ProtocolError
from shared.hex import decode_hex

# What upstream's web framework reads of a JSON body.
MAX_BODY = 1024 * 1024
CONTENT_TYPE = "application/json"
HEALTH = b'{"status":"ok","service":"dstack-verifier"}'
HTTP_STATUS = {
    "verify.body.size": 413,
    "verify.body.syntax": 400,
    "verify.body.field": 422,
    "verify.body.override": 422,
}

MAX_TIME = 253_402_300_799
"""The last second of the year 9999: what dates can be compared with."""

Gather = Callable[[Attestation, int], Endorsements]
"""Fetches what an attestation's verification needs, at a time in unix seconds."""


class OsImage(Protocol):
    """A downloaded image whose checksums hash to its name."""

    @property
    def is_dev(self) -> bool | None:
        """Whether it is a development image, where its metadata say so."""
        ...

    @property
    def version(self) -> str | None:
        """Its version."""
        ...


class VerifyRequest(msgspec.Struct, frozen=True):
    """The body. With `attestation` present the next three are ignored, and unknown fields always are.

    Ours: `expected_report_data` (64 bytes in hex, compared), and `now` (unix seconds) with `collateral` (an
    object of endorsements) for audits, where the settings allow them.
    """

    attestation: str | None = None
    quote: str | None = None
    event_log: str | None = None
    vm_config: str | None = None
    debug: bool | None = None
    expected_report_data: str | None = None
    now: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME)] | None = None
    collateral: msgspec.Raw = msgspec.Raw(b"null")


class Details(msgspec.Struct):
    """Upstream's `details`; what was not reached keeps its default."""

    quote_verified: bool = False
    event_log_verified: bool = False
    os_image_hash_verified: bool = False
    acpi_tables_verified: bool = False
    os_image_is_dev: bool | None = None
    os_image_version: str | None = None
    tee_variant: str | None = None
    report_data: str | None = None
    tcb_status: str | None = None
    advisory_ids: tuple[str, ...] = ()
    key_provider: dict[str, str] | None = None
    app_info: dict[str, Any] | None = None
    boot_info: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class VerifyResponse(msgspec.Struct, kw_only=True):
    """The answer: upstream's three fields, then ours (`code` of the refusal, `verdict` on what held)."""

    is_valid: bool
    details: Details = msgspec.field(default_factory=Details)
    reason: str | None = None
    code: str | None = None
    verdict: Verdict | None = None


class Answer(msgspec.Struct, frozen=True):
    """What goes back: an HTTP status and JSON text."""

    status: int
    body: bytes


class VerifyService:
    """Verifies requests under fixed anchors and policy; remembers chains and collateral between requests.

    `gather` fetches endorsements, None verifies with none. `os_image` downloads and checks an image by its
    hash, None downloads nothing. `overrides` lets a request bring its own time and collateral.
    """

    def __init__(
        self,
        anchors: TrustAnchors,
        policy: Policy = DEFAULT_POLICY,
        *,
        gather: Gather | None = None,
        os_image: Callable[[bytes], OsImage] | None = None,
        overrides: bool = False,
    ) -> None:
        self._anchors = anchors
        self._policy = policy
        self._gather = gather
        self._os_image = os_image
        self._overrides = overrides
        self._cache = VerifierCache()

    def handle(self, method: str, path: str, body: bytes, now: int) -> Answer:
        """Answer one request at `now` (unix seconds): `GET /health` or `POST /verify`."""
        match method, path:
            case "GET", "/health":
                return Answer(200, HEALTH)
            case "POST", "/verify":
                try:
                    return Answer(200, self.answer(body, now))
                except ProtocolError as error:
                    refusal = msgspec.json.encode({"error": error.message, "code": error.code})
                    return Answer(HTTP_STATUS.get(error.code, 400), refusal)
            case _:
                return Answer(404, b'{"error":"no such path"}')

    def answer(self, body: bytes, now: int) -> bytes:
        """Return the JSON response to a request body at `now` (unix seconds).

        Raises `ProtocolError` with one of the codes of `HTTP_STATUS` when the body is no request.
        """
        return msgspec.json.encode(self.verify(parse_request(body), now))

    def verify(self, request: VerifyRequest, now: int) -> VerifyResponse:
        """Verify in upstream's order: decode, evidence, image, app info. Flags set before a failure stay.

        Raises `ProtocolError("verify.body.override")` for a `now` or `collateral` that is not allowed.
        """
        if (request.now is not None or _own_collateral(request)) and not self._overrides:
            raise ProtocolError(
                "verify.body.override", "this verifier takes neither now nor collateral from a request"
            )
        now = now if request.now is None else request.now
        response = VerifyResponse(is_valid=False)
        stage = "Internal error: {0}"
        try:
            attestation = _attestation(request)
            endorsements = _own_endorsements(request)
            stage = "Quote verification failed: {0}"
            expected = request.expected_report_data
            verified = self.verify_evidence(
                attestation,
                now,
                report_data=None if expected is None else bytes.fromhex(expected),
                endorsements=endorsements,
            )
            _tell_evidence(response, verified)
            stage = "OS image hash verification failed: {0}"
            checked = check_image(verified)
            self._tell_image(response.details, checked)
            response.verdict = checked.verdict
            response.details.os_image_hash_verified = checked.verdict.lanes.os_image.status is Status.VERIFIED
            stage = "Event log verification failed: {0}"
            _tell_identity(response.details, checked)
        except DstackError as error:
            response.code = error.code
            response.reason = stage.format(_upstream_text(error))
        else:
            response.is_valid = True
        return response

    def verify_evidence(
        self,
        attestation: Attestation,
        now: int,
        *,
        report_data: bytes | None = None,
        endorsements: Endorsements | None = None,
    ) -> VerifiedAttestation:
        """Verify an attestation as a request's is, its endorsements gathered where none are given."""
        if endorsements is None:
            endorsements = NO_ENDORSEMENTS if self._gather is None else self._gather(attestation, now)
        return verify_attestation(
            attestation,
            now=now,
            anchors=self._anchors,
            policy=self._policy,
            endorsements=endorsements,
            report_data=report_data,
            cache=self._cache,
        )

    def _tell_image(self, details: Details, checked: VerifiedAttestation) -> None:
        """Download a legacy TDX image, for what its metadata say; its registers cannot be recomputed here.

        The policy has let such an image pass by then: nothing is downloaded for evidence that is refused.
        """
        if self._os_image is None or checked.attestation.tee_variant != TDX:
            return
        config = claimed_config(checked.attestation)
        if config.tdx_attestation_variant == "legacy" and config.os_image_hash:
            image = self._os_image(config.os_image_hash)
            details.os_image_is_dev, details.os_image_version = image.is_dev, image.version


def parse_request(body: bytes) -> VerifyRequest:
    """Parse a request body; `attestation`, `quote` and `expected_report_data` must be bare hex.

    Raises `ProtocolError`: `verify.body.size`, `verify.body.syntax` (not JSON), `verify.body.field` (JSON of
    another type, or a field that is not hex).
    """
    if len(body) > MAX_BODY:
        raise ProtocolError("verify.body.size", f"body has {len(body)} bytes, at most {MAX_BODY} are read")
    try:
        request = msgspec.json.decode(body, type=VerifyRequest)
    except msgspec.ValidationError as error:
        raise ProtocolError("verify.body.field", f"body is not a verify request: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("verify.body.syntax", "body is not json") from error
    for name, length in (("attestation", None), ("quote", None), ("expected_report_data", 64)):
        text = getattr(request, name)
        if text is not None:
            try:
                decode_hex(text, what=name, length=length, prefix=False)
            except ProtocolError as error:
                raise ProtocolError("verify.body.field", error.message) from error
    return request


def _attestation(request: VerifyRequest) -> Attestation:
    if request.attestation is not None:
        return decode_envelope(bytes.fromhex(request.attestation))
    if request.quote is None:
        raise InvalidEvidence("verify.quote.missing", "Quote is required")
    if request.event_log is None:
        raise InvalidEvidence("verify.event_log.missing", "Event log is required")
    from shared.attestation.legacy_request import attestation_of_quote  # noqa: PLC0415 - for old clients alone

    return attestation_of_quote(bytes.fromhex(request.quote), request.event_log, request.vm_config or "")


def _own_collateral(request: VerifyRequest) -> bytes:
    """Return the text of the request's collateral, b"" where it has none."""
    text = bytes(request.collateral)
    return b"" if text == b"null" else text


def _own_endorsements(request: VerifyRequest) -> Endorsements | None:
    text = _own_collateral(request)
    if not text:
        return None
    from shared.attestation.collateral import parse_bundle  # noqa: PLC0415 - for audits alone

    return parse_bundle(text)


def _tell_evidence(response: VerifyResponse, verified: VerifiedAttestation) -> None:
    verdict = verified.verdict
    response.verdict = verdict
    response.details.quote_verified = True
    response.details.tee_variant = verdict.platform
    response.details.report_data = verified.attestation.report_data.hex()
    response.details.tcb_status = verdict.tcb_status or None
    response.details.advisory_ids = verdict.advisory_ids


def _tell_identity(details: Details, checked: VerifiedAttestation) -> None:
    info = info_of(checked)
    details.app_info = info.to_json()
    details.event_log_verified = True
    details.key_provider = _key_provider(info.key_provider_info)
    if details.os_image_hash_verified:
        details.boot_info = boot_info(checked).to_wire()


class _KeyProvider(msgspec.Struct, frozen=True):
    name: str
    id: str


def _key_provider(payload: bytes) -> dict[str, str] | None:
    """Return the recorded key provider; a payload of another shape is the guest's own matter."""
    try:
        return msgspec.structs.asdict(msgspec.json.decode(payload, type=_KeyProvider)) if payload else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _upstream_text(error: DstackError) -> str:
    """Return upstream's text, spelt as there, for an undecodable envelope (`code` says why), else our own."""
    undecodable = error.code.startswith(("envelope.", "scale.", "msgpack."))
    return "Failed to decode attestaion" if undecodable else error.message

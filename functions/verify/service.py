"""`POST /verify` without a cloud: request and response of upstream's dstack-verifier (spec attestation 7.1).

The answer is for people and dashboards: whoever acts on evidence verifies it inside a TEE. Refused evidence
is a normal answer (HTTP 200, `is_valid` false); only a body that is no request is an HTTP error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shared.attestation.chain import ChainCache
from shared.attestation.envelope import decode_envelope
from shared.attestation.identity import app_info, boot_info, check_image
from shared.attestation.nitro import NitroPolicy
from shared.attestation.trust import NitroAnchors
from shared.attestation.verdict import Verdict
from shared.attestation.verify import verify_attestation
from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError
from shared.hex import decode_hex

# What upstream's web framework reads of a JSON body.
MAX_BODY = 1024 * 1024
CONTENT_TYPE = "application/json"
HEALTH = b'{"status":"ok","service":"dstack-verifier"}'
HTTP_STATUS = {"verify.body.size": 413, "verify.body.syntax": 400, "verify.body.field": 422}

_ENV_ALLOW_EXTERNAL = "DSTACK_VERIFIER_ATTESTATION__INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS"
_ENV_NITRO_ROOT = "DSTACK_VERIFIER_ATTESTATION__ROOT_CA__AWS_NITRO_ENCLAVE"


class VerifyRequest(msgspec.Struct, frozen=True):
    """The body. With `attestation` present the next three are ignored, and unknown fields always are."""

    attestation: str | None = None
    quote: str | None = None
    event_log: str | None = None
    vm_config: str | None = None
    debug: bool | None = None


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


class VerifyResponse(msgspec.Struct):
    """The answer: upstream's three fields, then ours (`code` of the refusal, `verdict` on what held)."""

    is_valid: bool
    details: Details
    reason: str | None = None
    code: str | None = None
    verdict: Verdict | None = None


class Answer(msgspec.Struct, frozen=True):
    """What goes back: an HTTP status and JSON text."""

    status: int
    body: bytes


class VerifyService:
    """Verifies requests under fixed anchors; intermediates are remembered between requests."""

    def __init__(self, anchors: NitroAnchors, policy: NitroPolicy | None = None) -> None:
        self._anchors = anchors
        self._policy = policy or NitroPolicy()
        self._chains = ChainCache()

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
        """Verify in upstream's order: decode, evidence, image, app info. Flags set before a failure stay."""
        details = Details()
        response = VerifyResponse(is_valid=False, details=details)
        stage = "Internal error: {0}"
        try:
            attestation = decode_envelope(_envelope(request))
            stage = "Quote verification failed: {0}"
            verified = verify_attestation(
                attestation, now=now, anchors=self._anchors, policy=self._policy, chain_cache=self._chains
            )
            response.verdict = verified.verdict
            details.quote_verified = True
            details.tee_variant = attestation.tee_variant
            details.report_data = attestation.report_data.hex()
            stage = "OS image hash verification failed: {0}"
            verified = check_image(verified)
            response.verdict = verified.verdict
            details.os_image_hash_verified = True
            stage = "Event log verification failed: {0}"
            details.app_info = app_info(verified).to_json()
            details.event_log_verified = True
            details.boot_info = boot_info(verified).to_wire()
        except DstackError as error:
            response.code = error.code
            response.reason = stage.format(_upstream_text(error))
        else:
            response.is_valid = True
        return response


def parse_request(body: bytes) -> VerifyRequest:
    """Parse a request body; `attestation` and `quote` must be bare hex.

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
    for name, text in (("attestation", request.attestation), ("quote", request.quote)):
        if text is not None:
            try:
                decode_hex(text, what=name, prefix=False)
            except ProtocolError as error:
                raise ProtocolError("verify.body.field", error.message) from error
    return request


def anchors_from(environment: Mapping[str, str]) -> NitroAnchors:
    """Return the production anchors, and the PEM file that upstream's two settings name together.

    Raises `ConfigError`: `verify.anchors.flag` for a root without the flag that admits it,
    `verify.anchors.file`, `trust.anchor.*`.
    """
    path = environment.get(_ENV_NITRO_ROOT)
    if not path:
        return NitroAnchors.production()
    if environment.get(_ENV_ALLOW_EXTERNAL, "").lower() != "true":
        raise ConfigError(
            "verify.anchors.flag", f"{_ENV_NITRO_ROOT} is set, {_ENV_ALLOW_EXTERNAL} is not true"
        )
    try:
        pem = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            "verify.anchors.file", f"cannot read trust anchor {path}: {error.strerror}"
        ) from error
    return NitroAnchors.production().with_extra(pem)


def _envelope(request: VerifyRequest) -> bytes:
    if request.attestation is not None:
        return bytes.fromhex(request.attestation)
    if request.quote is None:
        raise InvalidEvidence("verify.quote.missing", "Quote is required")
    if request.event_log is None:
        raise InvalidEvidence("verify.event_log.missing", "Event log is required")
    raise InvalidEvidence(
        "attestation.platform.unsupported", "evidence is a bare tdx quote, expected an envelope"
    )


def _upstream_text(error: DstackError) -> str:
    """Return upstream's text, spelt as there, for an undecodable envelope (`code` says why), else our own."""
    return "Failed to decode attestaion" if error.code.startswith(("envelope.", "scale.")) else error.message

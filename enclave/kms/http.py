"""The KMS's two HTTP faces: the main listener behind attested TLS, and the plain onboarding one."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from google.protobuf.empty_pb2 import Empty
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from enclave.kms.audit import AUDIT, AuditLog
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import RateLimits
from enclave.kms.limits import CallLimits
from enclave.kms.metrics import Calls, Counted, metrics_text
from enclave.kms.onboarding_page import page_route
from enclave.kms.reception import Audited, Caller, KmsReception
from enclave.kms.service import KmsService, context
from enclave.kms.token_auth import TokenAuth, TokenGuard
from enclave.serving.prpc import Procedure, PrpcService
from shared.attestation.verify import VerifiedAttestation
from shared.rpc import kms_pb2 as pb

PUBLIC_ONBOARDING = frozenset(
    {"/", "/health", "/prpc/GetAttestationInfo", "/prpc/Onboard.GetAttestationInfo"}
)

DEFAULT_LIMITS = RateLimits()

SIGN_CERT_BODY_BYTES = 384 * 1024
"""The largest request, as hex, and a vm_config of 64 KiB, quoted as JSON."""


def main_app(
    service: KmsService,
    callers: CallerVerifier,
    *,
    version: str,
    metrics: bool,
    lifespan: Callable[[object], AbstractAsyncContextManager[None]] | None = None,
    limits: RateLimits = DEFAULT_LIMITS,
    audit: AuditLog = AUDIT,
) -> ASGIApp:
    """Return the ASGI application of the main listener. `lifespan` runs beside it."""
    call_limits, calls = CallLimits(limits), Calls()

    def identify(chain: list[bytes]) -> Caller:
        with context("invalid quote"):
            return callers.verify(chain)

    def recognise(chain: list[bytes]) -> Caller:
        with context("invalid quote"):
            return callers.verify_promptly(chain, reception.before_identification)

    def sign_cert(request: pb.SignCertRequest, caller: Caller) -> pb.SignCertResponse:
        def verify(envelope: bytes, report_data: bytes) -> VerifiedAttestation:
            reception.before_verification(caller)
            return callers.verify_evidence(envelope, report_data)

        return service.sign_cert(request, verify, reception.judged)

    procedures: dict[str, Procedure[Caller]] = {
        "GetAppKey": Procedure(
            pb.GetAppKeyRequest,
            service.get_app_key,
            service.get_app_key_promptly if service.remembers_allows else None,
        ),
        "GetKmsKey": Procedure(pb.GetKmsKeyRequest, service.get_kms_key_without_token),
        "GetAppEnvEncryptPubKey": Procedure(
            pb.AppId, lambda request, _caller: service.get_app_env_encrypt_pub_key(request)
        ),
        "SignCert": Procedure(
            pb.SignCertRequest,
            sign_cert,
            max_body=SIGN_CERT_BODY_BYTES,
            judges_evidence=True,
        ),
        "GetMeta": Procedure(Empty, lambda _request, _caller: service.get_meta()),
        "GetTempCaCert": Procedure(Empty, lambda _request, _caller: service.get_temp_ca_cert()),
    }

    reception = KmsReception(
        audit, service.auth_mode, methods=frozenset(procedures), limits=call_limits, calls=calls
    )

    async def metrics_page(request: Request) -> Response:
        open_ones = len(request.scope.get("state", {}).get("connections", ()))
        text = metrics_text(
            counted, calls, call_limits.refused, connections=open_ones, audit_lines=audit.lines
        )
        return PlainTextResponse(text)

    kms = PrpcService("KMS", procedures, identify, recognise, reception)
    routes = [kms.route(), Route("/health", _health)]
    if metrics:
        routes.append(Route("/metrics", metrics_page))
    counted = Counted(Router(routes=routes, lifespan=lifespan, redirect_slashes=False), version)
    return counted


def onboard_app(
    *,
    bootstrap: Callable[[str], pb.BootstrapResponse],
    onboard: Callable[[str, str, str], pb.OnboardResponse],
    finish: Callable[[], None],
    describe: Callable[[], pb.AttestationInfoResponse],
    token_digest: bytes | None = None,
    audit: AuditLog = AUDIT,
) -> ASGIApp:
    """Return the ASGI application that runs while no root keys exist.

    `bootstrap` takes the domain, `onboard` the source's URL, the domain and the source's token, empty for
    none; `finish` asks the listener to stop so that the KMS goes on; `describe` tells what an operator has to
    allow, and anybody may ask. With `token_digest`, its SHA-256, everything else needs a token, in a header
    that no page of another origin can have a browser add.
    """

    def finish_call(_request: object, _caller: Caller) -> Empty:
        finish()
        return Empty()

    async def finish_page(_request: Request) -> Response:
        finish()
        return PlainTextResponse("OK")

    procedures: dict[str, Procedure[Caller]] = {
        "Bootstrap": Procedure(pb.BootstrapRequest, lambda request, _caller: bootstrap(request.domain)),
        "Onboard": Procedure(
            pb.OnboardRequest,
            lambda request, _caller: onboard(request.source_url, request.domain, request.source_token),
        ),
        "GetAttestationInfo": Procedure(Empty, lambda _request, _caller: describe()),
        "Finish": Procedure(Empty, finish_call),
    }
    service = PrpcService("Onboard", procedures, lambda _chain: None, reception=Audited(audit))
    app = Starlette(
        routes=[page_route(), service.route(), Route("/health", _health), Route("/finish", finish_page)]
    )
    if token_digest is None:
        return app
    return TokenGuard(app, TokenAuth(token_digest, basic=False), PUBLIC_ONBOARDING, audit=audit)


async def _health(_request: Request) -> Response:
    return PlainTextResponse("OK")

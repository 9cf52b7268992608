"""The KMS process: onboarding while there are no keys, then the main listener."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from enclave.kms.admin import Handover, admin_app, serving_beside
from enclave.kms.assembly import Parts, assemble
from enclave.kms.attestation_info import attestation_info
from enclave.kms.audit import AUDIT, Case, Value, case_of
from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.custody import Custody
from enclave.kms.custody_peer import HeldKeys
from enclave.kms.custody_tpm import SealedKeys
from enclave.kms.http import main_app, onboard_app
from enclave.kms.image_cache import ImageCache
from enclave.kms.key_store import KeyMaterial, KeyStore
from enclave.kms.onboarding import Onboarder, RootPins, approve_source, proven_pins
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService, check_self, context, kms_boot_info
from enclave.kms.source_kms import SourceKms
from enclave.kms.token_auth import TokenAuth
from enclave.log import log_event, write_error
from enclave.platform import Platform
from enclave.serving.attested_tls import build_plain_server, build_server, run_server
from shared.errors import ConfigError, DstackError, ExitCode
from shared.rpc import kms_pb2 as pb
from shared.version import __version__


def main(argv: list[str] | None = None, platform: Platform | None = None) -> int:
    """Run until stopped. Takes no arguments: what it does is fixed by the measured image."""
    del argv
    try:
        platform = platform or Platform.detect()
        parts = assemble(platform)
        log_event(
            "kms.assembled",
            auth_mode=parts.policy.auth_mode,
            clock_source=parts.policy.clock_source,
            evidence_anchor=parts.policy.evidence_anchor,
            simulated=parts.policy.simulated,
            disabled_checks=", ".join(parts.own.verdict.disabled_checks),
            evidence_policy=", ".join(parts.policy.evidence_policy),
        )
        if parts.config.core.admin.enabled:
            parts.config.core.admin.token_digest(os.environ)  # without one, not even keys are made
        custody = _custody(platform, parts)
        keys = custody.load() or _onboard(platform, parts, custody)
        _serve(platform, parts, keys)
        log_event("kms.stopped")
    except DstackError as error:
        case = case_of(error)
        told: dict[str, Value] = {"code": error.code, "message": error.message}
        AUDIT.record("kms.failed", told | (case.fields() if case else {}))
        write_error(f"kms: {error} [{error.code}]")
        return error.exit_code
    return ExitCode.OK


def _custody(platform: Platform, parts: Parts) -> Custody:
    """Return what `[core.custody]` names. Raises `ConfigError`: `config.custody.*`."""
    core = parts.config.core
    settings = core.custody
    if settings.type == "peer" and settings.peer is not None:
        return HeldKeys(settings.peer, lambda held: _onboarder(platform, parts, held).onboard)
    directory = platform.writable_path(core.cert_dir)
    if settings.type != "tpm":
        return KeyStore(directory)
    sealer = platform.tee.sealer()
    if sealer is None:
        raise ConfigError(
            "config.custody.tpm", "custody.type is tpm, and this kind of guest has no tpm: set it to peer"
        )
    return KeyStore(directory, SealedKeys(sealer, settings.tpm.bank, settings.tpm.pcrs))


def _onboard(platform: Platform, parts: Parts, store: Custody) -> KeyMaterial:
    """Make the first keys, from configuration or through the onboard listener."""
    core = parts.config.core
    if not core.onboard.enabled:
        raise ConfigError("kms.onboard.disabled", "Failed to onboard: no keys, and onboarding is disabled")
    case = Case(parts.authorizer.mode, parts.own)
    bootstrapper = Bootstrapper(
        store=store, random=platform.tee.random, attestor=parts.attestor, now=parts.verifier.now, case=case
    )

    def check() -> None:
        if core.enforce_self_authorization:
            with case, context("KMS is not allowed to bootstrap"):
                case.subject = kms_boot_info(parts.own, core)
                check_self(case.noting(parts.authorizer.authorize), case.subject)

    if core.onboard.auto_bootstrap_domain:
        bootstrapper.bootstrap(core.onboard.auto_bootstrap_domain, check_self=check, attest=False)
    else:
        _serve_onboarding(platform, parts, store, bootstrapper, check)
    keys = store.load()
    if keys is None:
        raise ConfigError("kms.onboard.unfinished", "Failed to onboard: finish came before bootstrap")
    return keys


def _serve_onboarding(
    platform: Platform,
    parts: Parts,
    store: Custody,
    bootstrapper: Bootstrapper,
    check: Callable[[], None],
) -> None:
    def bootstrap(domain: str) -> pb.BootstrapResponse:
        return bootstrapper.bootstrap(domain, check_self=check, attest=True)

    def finish() -> None:
        server.should_exit = True

    def describe() -> pb.AttestationInfoResponse:
        return attestation_info(parts.own, parts.config.core, parts.authorizer.info)

    settings = parts.config.core.onboard
    digest = settings.token_digest()
    if digest is None and not parts.own.verdict.simulated:
        raise ConfigError(
            "config.onboard.token",
            "whoever comes first could make this KMS's keys: set core.onboard.token_hash, "
            "or auto_bootstrap_domain",
        )
    app = onboard_app(
        bootstrap=bootstrap,
        onboard=_onboarder(platform, parts, store).onboard,
        finish=finish,
        describe=describe,
        token_digest=digest,
    )
    server = build_plain_server(app)
    listener = platform.tee.listen(settings.address, settings.port)
    log_event("kms.onboarding", port=settings.port, needs_token=digest is not None)
    if run_server(server, [listener]):
        log_event("kms.stopped")
        raise SystemExit(ExitCode.OK)  # told to end: nobody waits for keys any more


def _onboarder(platform: Platform, parts: Parts, store: Custody) -> Onboarder:
    core, authorizer = parts.config.core, parts.authorizer
    return Onboarder(
        store=store,
        source=SourceKms(dialer=platform.dialer(), verifier=parts.verifier, attestor=parts.attestor),
        approve=partial(approve_source, authorizer, core),
        pins=RootPins(ca_pubkey=core.onboard.pinned_ca(), k256_pubkey=core.onboard.pinned_k256()),
        proven=partial(proven_pins, authorizer),
        now=parts.verifier.now,
    )


def _serve(platform: Platform, parts: Parts, keys: KeyMaterial) -> None:
    core = parts.config.core
    service = KmsService(
        core=core,
        keys=keys,
        authorizer=parts.authorizer,
        own=parts.own,
        policy=parts.policy,
        now=parts.verifier.now,
    )
    callers = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=parts.verifier)
    identity = RpcIdentity(keys, parts.attestor if core.attest_rpc_cert else None, parts.verifier.now)
    app = main_app(
        service,
        callers,
        version=__version__,
        metrics=core.metrics.enabled,
        lifespan=identity.renewing,
        limits=core.limits,
    )
    rpc = parts.config.rpc
    listener = platform.tee.listen(rpc.address, rpc.port)
    log_event("kms.ready", port=rpc.port, domain=keys.domain, simulated=parts.policy.simulated)
    with _admin_listener(platform, core, Handover(service, callers), identity):
        run_server(build_server(app, context_factory=identity.context, draining=_draining), [listener])


def _draining(connections: int) -> None:
    log_event("kms.draining", connections=connections)


def _admin_listener(
    platform: Platform, core: Core, handover: Handover, identity: RpcIdentity
) -> AbstractContextManager[None]:
    admin = core.admin
    if not admin.enabled:
        return nullcontext()
    has_tls = admin.has_tls()
    cache = ImageCache(platform.writable_path(core.image.cache_dir))
    app = admin_app(cache, TokenAuth(admin.token_digest(os.environ)), handover if has_tls else None)
    listener = platform.tee.listen(admin.address, admin.port)
    log_event("kms.admin.ready", port=admin.port, tls=has_tls)
    return serving_beside(app, listener, identity.context if has_tls else None)

"""The services of v0 as upstream froze it: DstackGuest, Tappd and Worker (spec guest-agent section 2)."""

import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from enclave.agent.guest import Guest, padded
from enclave.agent.procedures import PUBLIC_BODY_BYTES, Methods, methods
from shared.attestation.report_data import report_data
from shared.errors import ConfigError, ProtocolError
from shared.keys.guest_keys import ED25519, SIGN_PATH, SIGN_PURPOSE, GuestKey
from shared.keys.guest_signature import key_algorithm, sign, verify
from shared.ratls.csr import CsrConfig
from shared.rpc import agent_pb2 as pb
from shared.version import __version__

GPU_EVIDENCE: Final = Path("/run/nvidia-gpu-attestation/attestation.out")
_MAX_GPU_EVIDENCE: Final = 1 << 20

APP_DATA: Final = "app-data"
_RAW: Final = "raw"

REVISION: Final = "unknown"
"""The distribution does not know the commit that it was built from."""

_EMIT_EVENT: Final = (
    "EmitEvent was removed in dstack 0.6.0; "
    "runtime RTMR3 events are system-owned and cannot be extended by apps"
)


def dstack_guest(guest: Guest, limits: Mapping[str, int]) -> Methods:
    """Return DstackGuest, which whoever reaches the socket may call."""
    return methods(
        limits,
        prompt={
            "GetKey": (pb.GetKeyArgs, lambda request: _get_key(guest, request)),
            "Info": (Empty, lambda _: _asked(guest, app_info(guest))),
            "Sign": (pb.SignRequest, lambda request: _sign(guest, request)),
            "Verify": (pb.VerifyRequest, _verify),
            "Version": (Empty, lambda _: version()),
            "EmitEvent": (pb.EmitEventArgs, _emit_event),
        },
        certifying={"GetTlsKey": (pb.GetTlsKeyArgs, lambda request: _get_tls_key(guest, request))},
        blocking={
            "GetQuote": (pb.RawQuoteArgs, lambda request: get_quote(guest, request.report_data)),
            "Attest": (
                pb.RawQuoteArgs,
                lambda request: pb.AttestResponse(attestation=guest.attest(request.report_data)),
            ),
            "GpuInfo": (Empty, lambda _: pb.GpuInfoResponse(attestation=gpu_evidence())),
        },
    )


def tappd(guest: Guest, limits: Mapping[str, int]) -> Methods:
    """Return Tappd, which clients of before 0.5 call."""
    return methods(
        limits,
        prompt={
            "DeriveK256Key": (pb.GetKeyArgs, lambda request: _derive_k256_key(guest, request)),
            "Info": (Empty, lambda _: _asked(guest, app_info(guest))),
            "Version": (Empty, lambda _: version()),
        },
        certifying={"DeriveKey": (pb.DeriveKeyArgs, lambda request: _derive_key(guest, request))},
        blocking={
            "TdxQuote": (
                pb.TdxQuoteArgs,
                lambda request: _tdx_quote(
                    guest, request.report_data, request.hash_algorithm, request.prefix
                ),
            ),
            "RawQuote": (pb.RawQuoteArgs, lambda request: _tdx_quote(guest, request.report_data, _RAW, "")),
        },
    )


def worker(guest: Guest, limits: Mapping[str, int]) -> Methods:
    """Return Worker, which everybody may call."""
    return methods(
        limits,
        largest=PUBLIC_BODY_BYTES,
        prompt={
            "Info": (Empty, lambda _: _asked(guest, public_app_info(guest))),
            "Version": (Empty, lambda _: version()),
        },
        blocking={
            "GetAttestationForAppKey": (
                pb.GetAttestationForAppKeyRequest,
                lambda request: _app_key_evidence(guest, request.algorithm),
            ),
        },
    )


def version() -> pb.WorkerVersion:
    """Return what this agent is."""
    return pb.WorkerVersion(version=__version__, rev=REVISION)


def app_info(guest: Guest) -> pb.AppInfo:
    """Return everything about the guest."""
    identity = guest.identity
    return pb.AppInfo(
        app_id=identity.app_id,
        instance_id=identity.instance_id,
        app_cert=guest.app_cert,
        tcb_info=guest.tcb_info,
        app_name=guest.app_name,
        device_id=identity.device_id,
        mr_aggregated=identity.mr_aggregated,
        os_image_hash=identity.os_image_hash,
        key_provider_info=identity.key_provider_info,
        compose_hash=identity.compose_hash,
        vm_config=guest.vm_config,
        cloud_vendor=guest.machine.vendor,
        cloud_product=guest.machine.product,
        tee_variant=identity.tee_variant,
    )


def public_app_info(guest: Guest) -> pb.AppInfo:
    """Return what everybody may know of it, by its app-compose."""
    info = app_info(guest)
    if not guest.public_tcbinfo:
        info.tcb_info = info.vm_config = ""
    return info


def get_quote(guest: Guest, data: bytes, *, outside: bool = False) -> pb.GetQuoteResponse:
    """Return a quote over up to 64 bytes of report data."""
    quoted = guest.quote(data, outside=outside)
    return pb.GetQuoteResponse(
        quote=quoted.quote,
        event_log=quoted.event_log,
        report_data=padded(data),
        vm_config=guest.vm_config,
        attestation=quoted.attestation,
    )


def tls_config(request: Any) -> CsrConfig:  # noqa: ANN401 - three messages with the same fields
    """Return the certificate that GetTlsKey, IssueCert or DeriveKey asks for."""
    timed = "not_before" in request.DESCRIPTOR.fields_by_name
    return CsrConfig(
        subject=request.subject,
        subject_alt_names=tuple(request.alt_names),
        usage_server_auth=request.usage_server_auth,
        usage_client_auth=request.usage_client_auth,
        ext_quote=request.usage_ra_tls,
        ext_app_info=timed and request.with_app_info,
        not_before=request.not_before if timed and request.HasField("not_before") else None,
        not_after=request.not_after if timed and request.HasField("not_after") else None,
    )


def _asked(guest: Guest, info: pb.AppInfo) -> pb.AppInfo:
    guest.want_app_cert(time.monotonic())
    return info


def _get_key(guest: Guest, request: pb.GetKeyArgs) -> pb.GetKeyResponse:
    key = guest.key.derive(request.path, request.purpose, request.algorithm)
    return pb.GetKeyResponse(key=key.key, signature_chain=key.signature_chain)


def _derive_k256_key(guest: Guest, request: pb.GetKeyArgs) -> pb.DeriveK256KeyResponse:
    key = guest.key.derive(request.path, request.purpose, request.algorithm)
    return pb.DeriveK256KeyResponse(k256_key=key.key, k256_signature_chain=key.signature_chain)


def _get_tls_key(guest: Guest, request: pb.GetTlsKeyArgs) -> pb.GetTlsKeyResponse:
    made = guest.tls_key(tls_config(request))
    return pb.GetTlsKeyResponse(key=made.key, certificate_chain=made.chain)


def _derive_key(guest: Guest, request: pb.DeriveKeyArgs) -> pb.GetTlsKeyResponse:
    config = tls_config(request)
    if request.random_seed:
        made = guest.seeded_tls_key(config, request.path)
    else:
        made = guest.tls_key(config, path=request.path)
    return pb.GetTlsKeyResponse(key=made.key, certificate_chain=made.chain)


def _sign(guest: Guest, request: pb.SignRequest) -> pb.SignResponse:
    key = _signing_key(guest, request.algorithm)
    signature = sign(key.key, request.algorithm, request.data)
    return pb.SignResponse(
        signature=signature, signature_chain=(signature, *key.signature_chain), public_key=key.public_key
    )


def _verify(request: pb.VerifyRequest) -> pb.VerifyResponse:
    valid = verify(request.algorithm, request.data, request.signature, request.public_key)
    return pb.VerifyResponse(valid=valid)


def _emit_event(_request: pb.EmitEventArgs) -> Message:
    raise ProtocolError("agent.emit_event", _EMIT_EVENT)


def _signing_key(guest: Guest, algorithm: str) -> GuestKey:
    return guest.key.derive(SIGN_PATH, SIGN_PURPOSE, key_algorithm(algorithm))


def _app_key_evidence(guest: Guest, algorithm: str) -> pb.GetQuoteResponse:
    """Return evidence over the key that signs. This mount has no Attest, so that any guest answers."""
    public = _signing_key(guest, algorithm).public_key
    tag = b"dip1::ed25519-pk:" if key_algorithm(algorithm) == ED25519 else b"dip1::secp256k1c-pk:"
    return get_quote(guest, tag + urlsafe_b64encode(public).rstrip(b"="), outside=True)


def _tdx_quote(guest: Guest, content: bytes, algorithm: str, prefix: str) -> pb.TdxQuoteResponse:
    tag = "" if algorithm == _RAW else prefix or APP_DATA
    try:
        data = report_data(tag, content, algorithm)
    except ProtocolError as error:
        what = "content length" if error.code == "report_data.length" else "hash algorithm"
        raise ProtocolError(error.code, f"invalid {what}: {error.message}") from error
    quoted = guest.quote(data)
    return pb.TdxQuoteResponse(
        quote=quoted.quote, event_log=quoted.event_log, hash_algorithm=algorithm or "sha512", prefix=tag
    )


def gpu_evidence(path: Path = GPU_EVIDENCE) -> str:
    """Return the text that the guest's boot left of its GPUs, empty where there are none.

    Raises `ConfigError`: `agent.gpu.unreadable`, `agent.gpu.size`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_GPU_EVIDENCE + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError("agent.gpu.unreadable", f"cannot read {path}: {error.strerror}") from error
    if len(raw) > _MAX_GPU_EVIDENCE:
        raise ConfigError("agent.gpu.size", f"{path} is larger than {_MAX_GPU_EVIDENCE} bytes")
    return raw.decode(errors="replace")

"""The services of v1 (spec guest-agent section 2.13)."""

from collections.abc import Callable, Mapping
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from enclave.agent.guest import Guest
from enclave.agent.methods_v0 import REVISION, tls_config
from enclave.agent.procedures import PUBLIC_BODY_BYTES, Methods, methods
from shared.attestation.envelope import decode_envelope
from shared.attestation.envelope_v1 import encode_v1
from shared.errors import ConfigError, ProtocolError
from shared.rpc import agent_v1_pb2 as pb
from shared.version import __version__

NONCE_BYTES: Final = 32

HealthCheck = Callable[[], pb.HealthResponse]
"""Tells the state of the guest's containers."""


def dstack_guest_v1(guest: Guest, limits: Mapping[str, int]) -> Methods:
    """Return DstackGuest, which whoever reaches the socket may call."""
    return methods(
        limits,
        prompt={
            "GetKey": (pb.GetKeyRequest, lambda request: _get_key(guest, request)),
            "Info": (Empty, lambda _: info(guest)),
            "Version": (Empty, lambda _: version()),
            "AttestGpu": (pb.AttestGpuRequest, _attest_gpu),
        },
        certifying={"IssueCert": (pb.IssueCertRequest, lambda request: _issue_cert(guest, request))},
        blocking={"Attest": (pb.AttestRequest, lambda request: _attest(guest, request))},
    )


def worker_v1(guest: Guest, limits: Mapping[str, int], health: HealthCheck) -> Methods:
    """Return Worker, which everybody may call."""
    return methods(
        limits,
        largest=PUBLIC_BODY_BYTES,
        prompt={"Info": (Empty, lambda _: public_info(guest)), "Version": (Empty, lambda _: version())},
        blocking={"Health": (Empty, lambda _: health())},
    )


def unwatched() -> pb.HealthResponse:
    """Tell that nobody looks after containers here."""
    return pb.HealthResponse(healthy=False, error="no container runtime is watched in this guest")


def version() -> pb.VersionResponse:
    """Return what this agent is."""
    return pb.VersionResponse(version=__version__, rev=REVISION)


def info(guest: Guest) -> pb.InfoResponse:
    """Return everything about the guest."""
    identity = guest.identity
    return pb.InfoResponse(
        app_id=identity.app_id,
        app_name=guest.app_name,
        compose_hash=identity.compose_hash,
        app_compose=guest.app_compose,
        instance_id=identity.instance_id,
        device_id=identity.device_id,
        os_image_hash=identity.os_image_hash,
        mr_aggregated=identity.mr_aggregated,
        vm_config=guest.vm_config,
        key_provider_info=identity.key_provider_info,
        cloud_vendor=guest.machine.vendor,
        cloud_product=guest.machine.product,
    )


def public_info(guest: Guest) -> pb.InfoResponse:
    """Return what everybody may know of it, by its app-compose."""
    found = info(guest)
    if not guest.public_tcbinfo:
        found.app_compose = found.vm_config = found.key_provider_info = ""
    return found


def _get_key(guest: Guest, request: pb.GetKeyRequest) -> pb.GetKeyResponse:
    key = guest.key.derive_v1(request.domain, request.algorithm)
    return pb.GetKeyResponse(key=key.key, public_key=key.public_key, signature_chain=key.signature_chain)


def _issue_cert(guest: Guest, request: pb.IssueCertRequest) -> pb.IssueCertResponse:
    made = guest.tls_key(tls_config(request))
    return pb.IssueCertResponse(key=made.key, certificate_chain=made.chain)


def _attest(guest: Guest, request: pb.AttestRequest) -> pb.AttestResponse:
    """Return the newer form of envelope, whichever events there are; no GPU was attested at boot."""
    evidence = decode_envelope(guest.attest(request.report_data))
    return pb.AttestResponse(attestation=encode_v1(evidence))


def _attest_gpu(request: pb.AttestGpuRequest) -> Message:
    if len(request.nonce) != NONCE_BYTES:
        raise ProtocolError("agent.nonce", f"nonce has {len(request.nonce)} bytes, expected {NONCE_BYTES}")
    raise ConfigError("agent.gpu.missing", "this guest has no gpu whose evidence the agent can collect")

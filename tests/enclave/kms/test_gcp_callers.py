"""A KMS and callers on Google Cloud: the same methods, judged by fresh collateral under a measured policy."""

import threading
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.kms.authorization import Decision
from enclave.kms.callers import MAX_REMEMBERED_LEAF, MAX_REMEMBERED_TIME, CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.serving.attested_tls import build_server
from enclave.serving.prpc import WouldBlockError
from enclave.simulator.intel_documents import level, platform_tcb
from enclave.tee.evidence import certificate_evidence
from shared.attestation.envelope import decode_envelope, encode_envelope
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.boot_info import GCP_TDX, BootInfo
from shared.errors import DstackError, PolicyDenied
from shared.keys.app_keys import derive_app_keys
from shared.net.attested_client import AttestedConnection
from shared.net.endorsement_source import COLLATERAL_REFRESH
from shared.ratls.certificates import client_certificate, spki_der
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json
from tests.enclave.gcp import GUEST_APP_ID, NOW, Guest, Machines, with_vtpm_of
from tests.shared.refusal import refuses

REQUEST = pb.GetAppKeyRequest(api_version=1)


@pytest.fixture
def keys(bootstrap):
    return bootstrap()


@pytest.fixture
def kms(gcp: Machines) -> Guest:
    return gcp.start(key_provider="tpm", no_instance_id=True, app_id=bytes([9]) * 20)


@pytest.fixture
def callers(gcp: Machines, kms: Guest, keys) -> CallerVerifier:
    return CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=gcp.verifier(kms))


@pytest.fixture
def service(gcp: Machines, kms: Guest, keys, policy) -> KmsService:
    own = gcp.verifier(kms).verify(kms.attestor.attest(bytes(64)), bytes(64))
    return KmsService(
        core=Core(), keys=keys, authorizer=policy, own=own, policy=pb.KmsPolicy(), now=lambda: NOW
    )


def _refusal(callers: CallerVerifier, leaf: bytes) -> str:
    with pytest.raises(DstackError) as refusal:
        callers.verify([leaf])
    return refusal.value.code


def _callers_at(gcp: Machines, kms: Guest, keys, clock: list[int]) -> CallerVerifier:
    verifier = gcp.verifier(kms)
    verifier.now = lambda: clock[0]
    return CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=verifier)


def _lasting_certificate(gcp: Machines, keys) -> bytes:
    """Return a new guest's certificate, valid for a month."""
    key = ec.generate_private_key(ec.SECP256R1())
    attestation = certificate_evidence(gcp.start().attestor, key.public_key())
    issuer = (keys.temp_ca_cert, keys.temp_ca_key)
    certificate = client_certificate(
        key, attestation=attestation, issuer=issuer, now=NOW, lifetime=30 * 86_400
    )
    return certificate.public_bytes(Encoding.DER)


def test_a_guest_gets_keys_of_its_app_and_instance(gcp, callers, keys, service, policy) -> None:
    guest = gcp.start()
    caller = callers.verify([guest.certificate(keys)[0]])
    answer = service.get_app_key(REQUEST, caller)
    subject: BootInfo = policy.asked[-1][1]
    assert (subject.tee_variant, subject.tcb_status) == (GCP_TDX, "UpToDate")
    assert (subject.app_id, len(subject.instance_id)) == (GUEST_APP_ID, 20)
    assert subject.device_id == gcp.vendors.authority.device_id
    assert answer.os_image_hash == subject.os_image_hash
    expected = derive_app_keys(keys.root_keys(), GUEST_APP_ID, subject.instance_id)
    assert answer.disk_crypt_key == expected.disk_crypt_key


def test_the_policy_is_asked_about_the_kms_too(gcp, callers, keys, service, policy) -> None:
    """The KMS's own TCB status is Intel's: nothing has to be treated as up to date."""
    service.get_app_key(REQUEST, callers.verify([gcp.start().certificate(keys)[0]]))
    kind, own = policy.asked[0]
    assert (kind, own.tee_variant, own.tcb_status) == ("kms", GCP_TDX, "UpToDate")


def test_refuses_an_app_whose_compose_hash_is_not_allowed(gcp, callers, keys, service, policy) -> None:
    allowed, other = gcp.start(), gcp.start(name="another")
    first, second = (callers.verify([guest.certificate(keys)[0]]) for guest in (allowed, other))
    known = first.events.compose_hash

    def decide(kind: str, subject: BootInfo) -> Decision:
        listed = kind == "kms" or subject.compose_hash == known
        reason = "" if listed else "Compose hash not allowed"
        return Decision(is_allowed=listed, reason=reason, gateway_app_id="gateway")

    policy.authorize = decide
    assert service.get_app_key(REQUEST, first).k256_key
    with pytest.raises(PolicyDenied) as refusal:
        service.get_app_key(REQUEST, second)
    assert refusal.value.code == "kms.app.denied"


def test_a_verified_guest_is_remembered(gcp, callers, keys) -> None:
    leaf, _ = gcp.start().certificate(keys)
    assert len(leaf) < MAX_REMEMBERED_LEAF
    with pytest.raises(WouldBlockError):
        callers.recall([leaf])
    verified = callers.verify([leaf])
    asked = len(gcp.vendors.server.requests)
    assert callers.recall([leaf]) is verified
    assert len(gcp.vendors.server.requests) == asked


def test_a_guest_is_forgotten_with_its_collateral(gcp, kms, keys) -> None:
    """Collateral of the eighth day is too old, though certificate and lists would still do."""
    clock = [NOW]
    callers = _callers_at(gcp, kms, keys, clock)
    leaf = _lasting_certificate(gcp, keys)
    verified = callers.verify([leaf])
    assert verified is not None
    clock[0] = verified.valid_until - 1
    again = callers.verify([leaf])
    assert again is not None
    assert again.valid_until == verified.valid_until
    assert callers.recall([leaf]) is again
    clock[0] += 1
    with pytest.raises(WouldBlockError):
        callers.recall([leaf])


def test_a_guest_is_judged_anew_when_intel_knows_more(gcp, kms, keys) -> None:
    """Collateral that was good for a week at first is replaced on the same day, and so is the judgement."""
    clock = [NOW]
    callers = _callers_at(gcp, kms, keys, clock)
    leaf = _lasting_certificate(gcp, keys)
    verified = callers.verify([leaf])
    clock[0] = NOW + MAX_REMEMBERED_TIME - 1
    assert callers.verify([leaf]) is verified
    clock[0] = NOW + COLLATERAL_REFRESH + 1
    gcp.vendors.published_at = clock[0]
    gcp.vendors.changes = {"tcb_info": {"tcbLevels": [level(platform_tcb(), "OutOfDate")]}}
    assert _refusal(callers, leaf) == "tdx.tcb.status"


def test_refuses_a_guest_on_stale_collateral(gcp, callers, keys) -> None:
    gcp.vendors.published_at = NOW - 8 * 86_400
    assert _refusal(callers, gcp.start().certificate(keys)[0]) == "pccs.unavailable"


def test_refuses_a_guest_without_collateral(gcp, callers, keys) -> None:
    gcp.vendors.withheld = True
    assert _refusal(callers, gcp.start().certificate(keys)[0]) == "pccs.unavailable"


def test_refuses_a_guest_that_is_out_of_date(gcp, callers, keys) -> None:
    gcp.vendors.changes = {"tcb_info": {"tcbLevels": [level(platform_tcb(), "OutOfDate")]}}
    assert _refusal(callers, gcp.start().certificate(keys)[0]) == "tdx.tcb.status"


def test_refuses_the_vtpm_of_another_machine(gcp, callers, keys) -> None:
    guest, other = gcp.start(), gcp.start()
    key = ec.generate_private_key(ec.SECP256R1())
    data = report_data(RATLS_CERT, spki_der(key.public_key()))
    evidence = guest.evidence(data)
    mixed = msgspec.structs.replace(evidence, quote=with_vtpm_of(evidence, other.evidence(data)))
    leaf = client_certificate(
        key,
        attestation=encode_envelope(mixed),
        issuer=(keys.temp_ca_cert, keys.temp_ca_key),
        now=NOW,
    ).public_bytes(Encoding.DER)
    assert _refusal(callers, leaf) == "gcp.binding"


def test_the_certificate_carries_what_shows_that_nothing_else_was_loaded(gcp) -> None:
    """Of the boot log only RTMR1's digests, and of its texts only the partition table's."""
    guest = gcp.start()
    stripped = decode_envelope(
        certificate_evidence(guest.attestor, ec.generate_private_key(ec.SECP256R1()).public_key())
    )
    log = stripped.quote.tdx.event_log
    assert {event.imr for event in log} == {1, 3}
    texts = [event.event_payload for event in log if event.imr == 1 and event.event_payload]
    assert [text[:8] for text in texts] == [b"EFI PART"]
    assert {event.imr for event in guest.evidence().quote.tdx.event_log} == {0, 1, 2, 3}


def test_collateral_that_is_slow_holds_up_nobody_else(gcp, callers, kms, keys, service, serve) -> None:
    """Fetching happens in a worker thread: the event loop answers others meanwhile."""
    identity = RpcIdentity(keys, kms.attestor, lambda: NOW)
    app = main_app(service, callers, version="1", metrics=False)
    dialer = serve(build_server(app, context_factory=identity.context))
    leaf, key = gcp.start().certificate(keys)
    gcp.vendors.gate.clear()
    answers: list[Any] = []

    def connect(**client: Any) -> AttestedConnection:
        return AttestedConnection.connect(
            dialer, "kms.test", 8000, check_peer=lambda _leaf: None, timeout=30, **client
        )

    def ask() -> None:
        chain = (x509.load_der_x509_certificate(leaf),)
        with connect(client_key=key, client_chain=chain) as connection:
            answers.append(connection.request("POST", "/prpc/GetAppKey?json", b'{"api_version":1}'))

    waiting = threading.Thread(target=ask)
    waiting.start()
    try:
        with connect() as connection:
            assert connection.request("GET", "/health").status == 200
        assert not answers
    finally:
        gcp.vendors.gate.set()
        waiting.join(30)
    assert from_json(pb.AppKeyResponse, answers[0].body).k256_key


def test_n54_what_a_policy_was_asked_about_must_be_the_image_that_booted(service, policy, gcp, kms) -> None:
    """The hash of an image that governance allows does not help a guest that booted another one."""
    allowed = b"an image that governance allows"
    guest = gcp.start()
    caller = gcp.verifier(kms).verify(guest.attestor.attest(bytes(64)), bytes(64))
    claimed = msgspec.json.decode(caller.attestation.config)
    claimed["os_image_hash"] = sha256(allowed).hexdigest()
    request = pb.GetAppKeyRequest(api_version=1, vm_config=msgspec.json.encode(claimed).decode())
    with refuses("measurement.os_image_hash"):
        service.get_app_key(request, caller)
    assert policy.asked[-1][1].os_image_hash == sha256(allowed).digest()

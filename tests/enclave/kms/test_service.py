"""What the KMS releases, to whom, and in which words it refuses (spec kms section 2)."""

from collections.abc import Callable

import msgspec
import pytest

from enclave.kms.authorization import Decision
from enclave.kms.config import Core
from enclave.kms.key_store import KeyMaterial
from enclave.kms.service import KmsService
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.identity import app_info, boot_info
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.errors import DstackError, InvalidEvidence, PolicyDenied, ProtocolError
from shared.keys.app_keys import derive_app_keys, verify_issued_key
from shared.keys.k256 import public_key
from shared.rpc import kms_pb2 as pb

NOW = 1_900_000_000
APP_ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")
OPEN = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
POLICY = pb.KmsPolicy(auth_mode="proof", self_authorization=True, simulated=True)


@pytest.fixture
def service(bootstrap, policy, kms_enclave, anchors) -> Callable[[Core], KmsService]:
    keys = bootstrap()

    def make(core: Core = OPEN) -> KmsService:
        return KmsService(
            core=core,
            keys=keys,
            authorizer=policy,
            own=kms_enclave.evidence(anchors),
            policy=POLICY,
            now=lambda: NOW,
        )

    make.keys = keys  # type: ignore[attr-defined]
    return make


@pytest.fixture
def caller(app_enclave, anchors: TrustAnchors) -> VerifiedAttestation:
    return app_enclave.evidence(anchors)


def _refusal(call: Callable[[], object], kind: type[DstackError]) -> DstackError:
    with pytest.raises(kind) as refusal:
        call()
    return refusal.value


def test_releases_the_keys_that_the_roots_derive(service, caller) -> None:
    response = service().get_app_key(pb.GetAppKeyRequest(api_version=1), caller)
    keys: KeyMaterial = service.keys
    expected = derive_app_keys(keys.root_keys(), APP_ID)
    assert response.disk_crypt_key == expected.disk_crypt_key
    assert response.env_crypt_key == expected.env_crypt_key
    assert response.k256_key == expected.k256_key
    verify_issued_key(APP_ID, public_key(response.k256_key), response.k256_signature, public_key(keys.k256))
    assert (response.gateway_app_id, response.tproxy_app_id) == ("gateway", "gateway")
    assert response.os_image_hash == app_info(caller).os_image_hash


def test_releases_the_keys_of_the_epoch_that_was_asked_for(service, caller) -> None:
    response = service().get_app_key(pb.GetAppKeyRequest(api_version=1, key_epoch=3), caller)
    expected = derive_app_keys(service.keys.root_keys(), APP_ID, epoch=3)
    assert (response.disk_crypt_key, response.k256_key) == (expected.disk_crypt_key, expected.k256_key)
    assert response.k256_key != derive_app_keys(service.keys.root_keys(), APP_ID).k256_key


@pytest.mark.parametrize("version", [0, 1])
def test_accepts_api_versions_zero_and_one(service, caller, version: int) -> None:
    assert service().get_app_key(pb.GetAppKeyRequest(api_version=version), caller).k256_key


def test_refuses_an_unknown_api_version_before_anything_else(service, policy) -> None:
    error = _refusal(lambda: service().get_app_key(pb.GetAppKeyRequest(api_version=2), None), ProtocolError)
    assert (error.code, error.message) == ("kms.api_version", "Unsupported API version: 2")
    assert policy.asked == []


def test_n50_refuses_a_caller_without_evidence(service) -> None:
    error = _refusal(lambda: service().get_app_key(pb.GetAppKeyRequest(), None), InvalidEvidence)
    assert (error.code, error.message) == ("kms.no_attestation", "App not allowed: No attestation provided")


def test_refuses_with_the_contracts_reason(service, caller, policy) -> None:
    policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    error = _refusal(lambda: service().get_app_key(pb.GetAppKeyRequest(), caller), PolicyDenied)
    assert error.code == "kms.app.denied"
    assert error.message == "App not allowed: Boot denied: Compose hash not allowed"


def test_n59_refuses_the_gateway_wildcard_outside_dev(service, caller, policy) -> None:
    policy.app = msgspec.structs.replace(policy.app, gateway_app_id="any")
    error = _refusal(lambda: service().get_app_key(pb.GetAppKeyRequest(), caller), PolicyDenied)
    assert error.code == "kms.gateway.any"


def test_dev_mode_may_answer_the_gateway_wildcard(service, caller, policy) -> None:
    policy.mode = "dev"
    policy.app = msgspec.structs.replace(policy.app, gateway_app_id="any")
    assert service().get_app_key(pb.GetAppKeyRequest(), caller).gateway_app_id == "any"


@pytest.mark.parametrize("method", ["get_app_key", "get_temp_ca_cert"])
def test_a_kms_that_is_no_longer_allowed_serves_nobody(service, caller, policy, method: str) -> None:
    policy.kms = Decision(is_allowed=False, reason="Aggregated MR not allowed", gateway_app_id="")
    calls = {
        "get_app_key": lambda: service().get_app_key(pb.GetAppKeyRequest(), caller),
        "get_temp_ca_cert": lambda: service().get_temp_ca_cert(),
    }
    error = _refusal(calls[method], PolicyDenied)
    assert error.code == "kms.self.denied"
    assert error.message == ("KMS self authorization failed: KMS is not allowed: Aggregated MR not allowed")


def test_n37_releases_nothing_to_a_nitro_enclave_unless_opted_in(service, caller) -> None:
    closed = msgspec.structs.replace(OPEN, aws_nitro_enclave_key_release=False)
    error = _refusal(lambda: service(closed).get_app_key(pb.GetAppKeyRequest(), caller), PolicyDenied)
    assert error.code == "kms.release.gate"


def test_n37_the_opt_in_is_off_by_default() -> None:
    assert not Core().aws_nitro_enclave_key_release
    assert not Core().aws_nitro_tpm_key_release
    assert not Core().sev_snp_key_release


def test_the_gate_applies_to_the_kms_itself(service) -> None:
    closed = msgspec.structs.replace(OPEN, aws_nitro_enclave_key_release=False)
    assert _refusal(service(closed).get_temp_ca_cert, PolicyDenied).code == "kms.release.gate"


def test_n36_a_claimed_app_id_is_judged_by_the_measured_image(service, policy, app_enclave, anchors) -> None:
    """The app id of a Nitro enclave is its own claim: what the policy is asked about is what was measured."""
    verified = app_enclave.evidence(anchors)
    victim = bytes([9]) * 20
    forged = msgspec.structs.replace(
        verified.attestation, runtime_events=(RuntimeEvent(event="app-id", payload=victim),)
    )
    claiming = verify_attestation(forged, now=NOW, anchors=anchors)
    service().get_app_key(pb.GetAppKeyRequest(), claiming)
    kind, asked = policy.asked[-1]
    assert (kind, asked.app_id) == ("app", victim)
    assert asked.compose_hash == asked.os_image_hash == app_info(verified).os_image_hash
    assert claiming.verdict.lanes.app_id.status == "self_asserted"


def test_refuses_evidence_without_an_app_id(service, kms_enclave, anchors) -> None:
    nameless = kms_enclave.evidence(anchors)
    error = _refusal(lambda: service().get_app_key(pb.GetAppKeyRequest(), nameless), InvalidEvidence)
    assert (error.code, error.message) == ("kms.app_id", "App not allowed: app_id must be 20 bytes")


def test_refuses_a_vm_config_that_names_another_image(service, caller) -> None:
    request = pb.GetAppKeyRequest(vm_config='{"os_image_hash":"' + "ab" * 32 + '"}')
    error = _refusal(lambda: service().get_app_key(request, caller), InvalidEvidence)
    assert error.code == "identity.os_image.mismatch"


def test_policy_is_asked_before_the_image_is_checked(service, caller, policy) -> None:
    """Upstream's order: an app that is not allowed is told so, whatever image it claims."""
    policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    request = pb.GetAppKeyRequest(vm_config='{"os_image_hash":"' + "ab" * 32 + '"}')
    error = _refusal(lambda: service().get_app_key(request, caller), PolicyDenied)
    assert error.code == "kms.app.denied"
    assert policy.asked[-1][1].os_image_hash == boot_info(caller).os_image_hash  # as the registers name it


def test_up_to_date_is_filled_in_for_the_kms_alone(service, caller, policy) -> None:
    service().get_app_key(pb.GetAppKeyRequest(), caller)
    assert {kind: asked.tcb_status for kind, asked in policy.asked} == {"kms": "UpToDate", "app": ""}


def test_without_the_key_a_nitro_kms_has_no_tcb_status(service, caller, policy) -> None:
    plain = msgspec.structs.replace(OPEN, treat_nitro_as_up_to_date=False)
    service(plain).get_app_key(pb.GetAppKeyRequest(), caller)
    assert [asked.tcb_status for kind, asked in policy.asked if kind == "kms"] == [""]


def test_meta_tells_how_strict_the_kms_is(service) -> None:
    meta = service().get_meta()
    assert meta.policy == pb.KmsPolicy(
        auth_mode="proof", self_authorization=True, simulated=True, finalized_block=7
    )
    assert (meta.is_dev, meta.allow_any_upgrade) == (False, False)
    assert (meta.chain_id, meta.gateway_app_id) == (31337, "gateway")
    assert meta.bootstrap_info.k256_pubkey == meta.k256_pubkey


def test_refuses_a_zero_app_id_in_every_mode(service, app_enclave, anchors) -> None:
    verified = app_enclave.evidence(anchors)
    zero = (RuntimeEvent(event="app-id", payload=bytes(20)),)
    claiming = verify_attestation(
        msgspec.structs.replace(verified.attestation, runtime_events=zero), now=NOW, anchors=anchors
    )
    error = _refusal(lambda: service().get_app_key(pb.GetAppKeyRequest(), claiming), InvalidEvidence)
    assert error.code == "kms.app_id.zero"


def test_the_temporary_ca_is_no_root(service) -> None:
    response = service().get_temp_ca_cert()
    assert response.temp_ca_cert != response.ca_cert
    assert "PRIVATE KEY" in response.temp_ca_key


def test_released_keys_are_not_logged(service, caller, capsys) -> None:
    response = service().get_app_key(pb.GetAppKeyRequest(), caller)
    logged = capsys.readouterr().out
    assert "kms.app_key.released" in logged
    for secret in (response.disk_crypt_key, response.env_crypt_key, response.k256_key):
        assert secret.hex() not in logged

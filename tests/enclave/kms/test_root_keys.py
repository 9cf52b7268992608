"""GetKmsKey: the root keys go to a KMS that the policy lists, and to nobody else (N-55)."""

from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from enclave.kms.authorization import Decision
from enclave.kms.config import Core
from enclave.kms.key_store import KeyMaterial
from enclave.kms.service import KmsService
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.identity import app_info, boot_info
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.boot_info import GCP_TDX, BootInfo
from shared.errors import DstackError, PolicyDenied
from shared.rpc import kms_pb2 as pb
from tests.enclave.conftest import Enclave, Policy
from tests.enclave.gcp import Machines
from tests.shared.attestation.guest_forgery import COMPOSE, TpmGuest
from tests.shared.refusal import refuses

NOW = 1_900_000_000
OPEN = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
REQUEST = pb.GetKmsKeyRequest()


class Listed(Policy):
    """A policy that lists KMS by their measurement."""

    def __init__(self, *measurements: bytes) -> None:
        super().__init__()
        self._measurements = measurements

    def authorize(self, kind: str, boot_info: BootInfo) -> Decision:
        given = super().authorize(kind, boot_info)
        if kind == "app" or boot_info.mr_aggregated in self._measurements:
            return given
        return Decision(is_allowed=False, reason="Aggregated MR not allowed", gateway_app_id="")


@pytest.fixture
def keys(bootstrap: Callable[[], KeyMaterial]) -> KeyMaterial:
    return bootstrap()


@pytest.fixture
def own(kms_enclave: Enclave, anchors) -> VerifiedAttestation:
    return kms_enclave.evidence(anchors)


@pytest.fixture
def other(authority, anchors) -> VerifiedAttestation:
    """Return the evidence of a KMS of another version: another image, and no app id."""
    return Enclave(authority, seed=7, app_id=None).evidence(anchors)


@pytest.fixture
def service(keys, own, policy) -> Callable[..., KmsService]:
    def make(core: Core = OPEN, authorizer: Policy = policy) -> KmsService:
        return KmsService(
            core=core,
            keys=keys,
            authorizer=authorizer,
            own=own,
            policy=pb.KmsPolicy(auth_mode="proof"),
            now=lambda: NOW,
        )

    return make


def test_a_kms_gets_the_root_keys_and_the_temporary_ca(service, keys, other) -> None:
    answer = service().get_kms_key(REQUEST, other)
    assert len(answer.keys) == 1
    root = load_pem_private_key(answer.keys[0].ca_key.encode(), None)
    assert root.private_numbers() == keys.root_ca_key.private_numbers()
    assert answer.keys[0].k256_key == keys.k256
    temporary = load_pem_private_key(answer.temp_ca_key.encode(), None)
    assert temporary.private_numbers() == keys.temp_ca_key.private_numbers()


def test_this_kms_is_asked_about_first_then_the_caller_both_as_kms(service, policy, own, other) -> None:
    service().get_kms_key(REQUEST, other)
    expected = [msgspec.structs.replace(boot_info(one), tcb_status="UpToDate") for one in (own, other)]
    assert policy.asked == [("kms", info) for info in expected]


def test_without_the_key_a_nitro_caller_has_no_tcb_status(service, policy, other) -> None:
    service(Core(aws_nitro_enclave_key_release=True)).get_kms_key(REQUEST, other)
    assert [info.tcb_status for _, info in policy.asked] == ["", ""]


def test_n50_refuses_a_caller_without_evidence(service) -> None:
    with refuses("kms.no_attestation") as caught:
        service().get_kms_key(REQUEST, None)
    assert caught.value.message == "No attestation provided"


def test_a_kms_that_is_no_longer_allowed_hands_nothing_on(service, policy, other) -> None:
    policy.kms = Decision(is_allowed=False, reason="Aggregated MR not allowed", gateway_app_id="")
    with refuses("kms.self.denied", PolicyDenied) as caught:
        service().get_kms_key(REQUEST, other)
    assert caught.value.message == (
        "KMS self authorization failed: KMS is not allowed: Aggregated MR not allowed"
    )
    assert len(policy.asked) == 1


def test_the_caller_is_judged_where_the_kms_does_not_judge_itself(service, other) -> None:
    core = msgspec.structs.replace(OPEN, enforce_self_authorization=False)
    with refuses("kms.kms.denied", PolicyDenied):
        service(core, Listed()).get_kms_key(REQUEST, other)


def test_n55_refuses_a_kms_whose_measurement_is_not_listed(service, own, other) -> None:
    listed = Listed(boot_info(own).mr_aggregated)
    with refuses("kms.kms.denied", PolicyDenied) as caught:
        service(authorizer=listed).get_kms_key(REQUEST, other)
    assert caught.value.message == "Boot denied: Aggregated MR not allowed"
    assert service(authorizer=listed).get_kms_key(REQUEST, own).keys


def test_n55_an_app_that_may_have_its_own_keys_gets_no_root_keys(service, own, app_enclave, anchors) -> None:
    caller = app_enclave.evidence(anchors)
    guarded = service(authorizer=Listed(boot_info(own).mr_aggregated))
    assert guarded.get_app_key(pb.GetAppKeyRequest(), caller).k256_key
    with refuses("kms.kms.denied", PolicyDenied):
        guarded.get_kms_key(REQUEST, caller)


def test_n55_a_claimed_app_id_does_not_make_a_kms(service, own, other, anchors) -> None:
    """What a Nitro enclave says of itself changes nothing: its measured image is what is listed."""
    named = (RuntimeEvent(event="app-id", payload=bytes([9]) * 20),)
    claiming = verify_attestation(
        msgspec.structs.replace(other.attestation, runtime_events=named), now=NOW, anchors=anchors
    )
    with refuses("kms.kms.denied", PolicyDenied):
        service(authorizer=Listed(boot_info(own).mr_aggregated)).get_kms_key(REQUEST, claiming)


def test_n54_refuses_a_vm_config_that_names_another_image(service, other) -> None:
    request = pb.GetKmsKeyRequest(vm_config='{"os_image_hash":"' + "ab" * 32 + '"}')
    with refuses("identity.os_image.mismatch"):
        service().get_kms_key(request, other)


def test_policy_is_asked_before_the_image_is_checked(service, other) -> None:
    request = pb.GetKmsKeyRequest(vm_config='{"os_image_hash":"' + "ab" * 32 + '"}')
    core = msgspec.structs.replace(OPEN, enforce_self_authorization=False)
    with refuses("kms.kms.denied", PolicyDenied):
        service(core, Listed()).get_kms_key(request, other)


def test_n37_no_root_keys_for_a_platform_that_did_not_opt_in(service, other) -> None:
    closed = msgspec.structs.replace(OPEN, aws_nitro_enclave_key_release=False)
    with refuses("kms.release.gate", PolicyDenied):
        service(closed).get_kms_key(REQUEST, other)


def test_n37_nor_for_an_instance_with_a_nitrotpm(service, policy) -> None:
    """Its gate is one of its own, and policy was asked before it: upstream's order."""
    other = TpmGuest().verify()
    with refuses("kms.release.gate", PolicyDenied) as caught:
        service().get_kms_key(REQUEST, other)
    assert "core.aws_nitro_tpm_key_release" in caught.value.message
    kind, asked = policy.asked[-1]
    assert (kind, asked.compose_hash, asked.tee_variant) == ("kms", COMPOSE, "dstack-aws-nitro-tpm")
    opened = Core(aws_nitro_tpm_key_release=True)
    assert service(opened).get_kms_key(REQUEST, other).keys


def test_a_kms_on_google_cloud_is_judged_by_all_that_it_measured(service, policy, gcp: Machines) -> None:
    """What it recorded after its boot counts too: the policy lists what GetAttestationInfo tells."""
    guest = gcp.start(key_provider="tpm", no_instance_id=True, app_id=bytes([9]) * 20)
    evidence = gcp.verifier(guest).verify(guest.attestor.attest(bytes(64)), bytes(64))
    assert service(Core()).get_kms_key(REQUEST, evidence).keys
    kind, asked = policy.asked[-1]
    assert (kind, asked.tee_variant, asked.tcb_status) == ("kms", GCP_TDX, "UpToDate")
    assert asked.mr_aggregated == app_info(evidence).mr_aggregated
    assert asked.mr_aggregated != app_info(evidence, boot_time=True).mr_aggregated


def test_n57_a_policy_that_cannot_be_asked_is_a_refusal(service, other) -> None:
    class Silent(Listed):
        def authorize(self, kind: str, boot_info: BootInfo) -> Decision:
            del kind, boot_info
            raise DstackError("auth.api.status", "auth api returned 500")

    core = msgspec.structs.replace(OPEN, enforce_self_authorization=False)
    with refuses("auth.api.status", DstackError):
        service(core, Silent()).get_kms_key(REQUEST, other)


def test_released_root_keys_are_in_no_log_and_no_repr(service, keys, other, capsys) -> None:
    kms = service()
    answer = kms.get_kms_key(REQUEST, other)
    shown = f"{capsys.readouterr().out}{kms!r}{vars(kms)!r}{keys!r}"
    assert "kms.root_keys.released" in shown
    assert boot_info(other).mr_aggregated.hex() in shown
    secrets = [answer.keys[0].k256_key.hex(), repr(answer.keys[0].k256_key)[2:-1]]
    secrets += answer.keys[0].ca_key.splitlines()[1:-1]
    assert not [secret for secret in secrets if secret in shown]

"""N-36: with `core.nitro_app_id_pcr` an enclave's own claim of its app id is not enough."""

from collections.abc import Callable

import msgspec
import pytest

from enclave.kms.config import Core
from enclave.kms.service import KmsService
from shared.attestation.app_id_register import APP_ID_PCR, app_id_message
from shared.errors import PolicyDenied
from shared.rpc import kms_pb2 as pb
from tests.enclave.conftest import APP_ID, NOW, Enclave
from tests.shared.refusal import refuses

CORE = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
STRICT = msgspec.structs.replace(CORE, nitro_app_id_pcr=True)


@pytest.fixture
def service(bootstrap, policy, kms_enclave, anchors) -> Callable[[Core], KmsService]:
    keys = bootstrap()

    def make(core: Core) -> KmsService:
        return KmsService(
            core=core,
            keys=keys,
            authorizer=policy,
            own=kms_enclave.evidence(anchors),
            policy=pb.KmsPolicy(auth_mode="proof"),
            now=lambda: NOW,
        )

    return make


def _enclave(authority, bound_to: bytes | None) -> Enclave:
    enclave = Enclave(authority, seed=5, app_id=APP_ID)
    if bound_to is not None:
        enclave.nsm.extend_pcr(APP_ID_PCR, app_id_message(bound_to))
        enclave.nsm.lock_pcr(APP_ID_PCR)
    return enclave


def test_the_option_is_off_by_default_and_then_a_claim_is_enough(service, authority, anchors) -> None:
    claiming = _enclave(authority, None).evidence(anchors)
    assert not Core().nitro_app_id_pcr
    assert service(CORE).get_app_key(pb.GetAppKeyRequest(), claiming).k256_key


@pytest.mark.parametrize("bound_to", [None, bytes([9]) * 20])
def test_n36_refuses_keys_for_an_app_id_that_is_not_in_the_register(
    service, authority, anchors, bound_to: bytes | None
) -> None:
    claiming = _enclave(authority, bound_to).evidence(anchors)
    with refuses("kms.app_id.unbound", PolicyDenied):
        service(STRICT).get_app_key(pb.GetAppKeyRequest(), claiming)


def test_n36_releases_keys_for_an_app_id_that_is_in_the_register(service, authority, anchors) -> None:
    bound = _enclave(authority, APP_ID).evidence(anchors)
    assert service(STRICT).get_app_key(pb.GetAppKeyRequest(), bound).k256_key

"""A release from remembered allows is the same release: same keys, same gates, and no waiting."""

from collections.abc import Callable

import pytest

from enclave.kms.authorization import Decision
from enclave.kms.config import Core
from enclave.kms.service import KmsService
from enclave.serving.prpc import WouldBlockError
from shared.errors import InvalidEvidence, PolicyDenied
from shared.rpc import kms_pb2 as pb

OPEN = Core(aws_nitro_enclave_key_release=True)
REQUEST = pb.GetAppKeyRequest(api_version=1)
POLICY = pb.KmsPolicy(auth_mode="proof", clock_source="nsm (simulated)", simulated=True)


class Remembering:
    """An authorizer with a memory for some kinds."""

    mode = "proof"
    remembers = True

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def recall(self, kind: str, boot_info: object) -> Decision | None:
        del boot_info
        return self.authorize(kind, None) if kind in self.kinds else None

    def for_one_request(self, following: object = None) -> Callable[[str, object], Decision]:
        del following
        return self.authorize

    def authorize(self, kind: str, boot_info: object) -> Decision:
        del kind, boot_info
        return Decision(is_allowed=True, reason="", gateway_app_id="gateway", finalized_block=7)


@pytest.fixture
def make(bootstrap, kms_enclave, anchors):
    keys = bootstrap()

    def make_service(authorizer: Remembering, core: Core = OPEN) -> KmsService:
        own = kms_enclave.evidence(anchors)
        return KmsService(core=core, keys=keys, authorizer=authorizer, own=own, policy=POLICY, now=lambda: 0)

    return make_service


@pytest.fixture
def caller(app_enclave, anchors):
    return app_enclave.evidence(anchors)


def test_a_remembered_allow_releases_the_same_keys(make, caller) -> None:
    service = make(Remembering("app", "kms"))
    assert service.get_app_key_promptly(REQUEST, caller) == service.get_app_key(REQUEST, caller)


@pytest.mark.parametrize("remembered", [(), ("app",), ("kms",)])
def test_without_both_allows_the_policy_has_to_be_asked(make, caller, remembered) -> None:
    with pytest.raises(WouldBlockError):
        make(Remembering(*remembered)).get_app_key_promptly(REQUEST, caller)


def test_the_release_gate_holds_for_a_remembered_allow(make, caller) -> None:
    service = make(Remembering("app", "kms"), Core())
    with pytest.raises(PolicyDenied) as refusal:
        service.get_app_key_promptly(REQUEST, caller)
    assert refusal.value.code == "kms.release.gate"


def test_n50_a_remembered_allow_is_nobody_s_without_evidence(make) -> None:
    with pytest.raises(InvalidEvidence) as refusal:
        make(Remembering("app", "kms")).get_app_key_promptly(REQUEST, None)
    assert refusal.value.code == "kms.no_attestation"

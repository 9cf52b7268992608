"""Who shares a bucket with whom: by what evidence measured, and never by what a caller claims of itself."""

from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest

from enclave.kms.config import RateLimits
from enclave.kms.limits import CallLimits
from enclave.serving.rate_limit import RateLimited
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from tests.enclave.conftest import NOW, Enclave
from tests.shared.refusal import refuses

FEW = RateLimits(
    caller_per_minute=1,
    caller_burst=2,
    app_per_minute=1,
    app_burst=5,
    method_per_minute=1,
    method_burst=2,
    evidence_per_minute=1,
    evidence_burst=2,
)


def _spend(call: Callable[[], None], times: int = 100) -> int:
    """Return how often a call was let through."""
    passed = 0
    for _ in range(times):
        with suppress(RateLimited):
            call()
            passed += 1
    return passed


def _claiming(verified: VerifiedAttestation, app_id: bytes, anchors) -> VerifiedAttestation:
    event = RuntimeEvent(event="app-id", payload=app_id)
    forged = msgspec.structs.replace(verified.attestation, runtime_events=(event,))
    return verify_attestation(forged, now=NOW, anchors=anchors)


@pytest.fixture
def limits() -> CallLimits:
    return CallLimits(FEW)


@pytest.fixture
def caller(app_enclave, anchors) -> VerifiedAttestation:
    return app_enclave.evidence(anchors)


@pytest.fixture
def instance(authority, anchors) -> Callable[[int], VerifiedAttestation]:
    """Return a function that verifies evidence of one more instance of an image."""
    return lambda image: Enclave(authority, seed=image, app_id=bytes([9]) * 20).evidence(anchors)


def test_an_instance_over_its_limit_is_refused_and_told_when_to_come_back(limits, caller) -> None:
    assert _spend(lambda: limits.take_caller(caller, 100.0)) == 2
    with refuses("prpc.rate", RateLimited) as refusal:
        limits.take_caller(caller, 100.5)
    assert refusal.value.retry_after == 60
    assert limits.refused == {"caller": 99, "app": 0, "method": 0, "evidence": 0}


def test_fresh_evidence_of_the_same_instance_is_no_new_bucket(limits, app_enclave, anchors) -> None:
    assert _spend(lambda: limits.take_caller(app_enclave.evidence(anchors), 0.0), 10) == 2


def test_a_claimed_app_id_makes_no_new_bucket(limits, caller, anchors) -> None:
    calls = [_claiming(caller, bytes([number]) * 20, anchors) for number in range(1, 9)]
    assert sum(_spend(lambda one=one: limits.take_caller(one, 0.0), 1) for one in calls) == 2


def test_one_instance_leaves_the_others_of_its_app_their_calls(limits, instance) -> None:
    abusive, other = instance(5), instance(5)
    _spend(lambda: limits.take_caller(abusive, 0.0))
    assert _spend(lambda: limits.take_caller(other, 0.0)) == 2


def test_all_instances_of_an_app_together_are_bounded(limits, instance) -> None:
    fleet = [instance(5) for _ in range(8)]
    assert sum(_spend(lambda one=one: limits.take_caller(one, 0.0), 1) for one in fleet) == 5
    assert limits.refused["app"] == 3


def test_who_runs_other_code_cannot_drain_an_apps_bucket(limits, instance) -> None:
    """On Nitro anybody can claim the app id."""
    ours = instance(5)
    for stranger in [instance(6) for _ in range(8)]:
        _spend(lambda one=stranger: limits.take_caller(one, 0.0), 1)
    assert _spend(lambda: limits.take_caller(ours, 0.0)) == 2


def test_guests_on_google_cloud_are_told_apart(limits, gcp) -> None:
    guests = [gcp.start() for _ in range(2)]
    first, second = (
        gcp.verifier(guest).verify(guest.attestor.attest(bytes(64)), bytes(64)) for guest in guests
    )
    _spend(lambda: limits.take_caller(first, 0.0))
    assert _spend(lambda: limits.take_caller(second, 0.0)) == 2


def test_each_method_has_its_own_bucket_for_anonymous_callers(limits) -> None:
    assert _spend(lambda: limits.take_method("GetMeta", 0.0)) == 2
    assert _spend(lambda: limits.take_method("GetTempCaCert", 0.0)) == 2


def test_verifying_new_evidence_has_one_bucket_for_each_place_that_it_comes_from(limits) -> None:
    assert _spend(lambda: limits.take_evidence("request", 0.0)) == 2
    assert _spend(lambda: limits.take_evidence("certificate", 0.0)) == 2

"""A caller is who its evidence says, bound to the key of its TLS connection (N-50)."""

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.kms.callers import MAX_PROMPT_LEAF, CallerVerifier
from enclave.serving.prpc import WouldBlockError
from enclave.tee.peers import PeerVerifier
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.errors import InvalidEvidence, UnavailableError
from shared.net.endorsement_source import EndorsementSource
from shared.ratls.certificates import client_certificate, spki_der
from tests.shared.refusal import refuses

NOW = 1_900_000_000


@pytest.fixture
def keys(bootstrap):
    return bootstrap()


@pytest.fixture
def clock() -> list[int]:
    return [NOW]


@pytest.fixture
def callers(keys, anchors, clock: list[int]) -> CallerVerifier:
    verifier = PeerVerifier(anchors=anchors, now=lambda: clock[0])
    return CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=verifier, monotonic=lambda: 0.0)


@pytest.fixture
def ticking(keys, anchors) -> CallerVerifier:
    """Callers whose clock goes on by a second whenever it is read."""
    verifier = PeerVerifier(anchors=anchors, now=lambda: NOW)
    clock = itertools.count()
    return CallerVerifier(
        temp_ca_der=keys.temp_ca_der(), verifier=verifier, monotonic=lambda: float(next(clock))
    )


def test_a_certificate_under_the_temporary_ca_is_verified(callers, keys, app_enclave) -> None:
    leaf, _ = app_enclave.certificate(keys)
    assert callers.verify([leaf]).verdict.simulated


def test_a_self_issued_certificate_is_verified(callers, app_enclave) -> None:
    leaf, _ = app_enclave.certificate(None)
    assert callers.verify([leaf]) is not None


def test_n50_no_certificate_is_no_caller(callers) -> None:
    assert callers.verify([]) is None


def test_n50_the_temporary_ca_alone_is_no_caller(callers, keys) -> None:
    bare = client_certificate(
        ec.generate_private_key(ec.SECP256R1()),
        attestation=None,
        issuer=(keys.temp_ca_cert, keys.temp_ca_key),
        now=NOW,
    )
    assert callers.verify([bare.public_bytes(Encoding.DER)]) is None


def test_n50_refuses_evidence_for_another_key(callers, keys, app_enclave) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    leaf, _ = app_enclave.certificate(keys, over=other)
    with pytest.raises(InvalidEvidence) as refusal:
        callers.verify([leaf])
    assert refusal.value.code == "attestation.report_data"


def test_n50_refuses_another_kms_temporary_ca(callers) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    stranger = ec.generate_private_key(ec.SECP256R1())
    issuer = client_certificate(stranger, attestation=None, issuer=None, now=NOW)
    leaf = client_certificate(key, attestation=None, issuer=(issuer, stranger), now=NOW)
    with pytest.raises(InvalidEvidence) as refusal:
        callers.verify([leaf.public_bytes(Encoding.DER)])
    assert refusal.value.code == "ratls.signature"


def test_a_certificate_that_shows_nobody_is_looked_at_again_after_a_while(
    callers, keys, app_enclave, clock: list[int]
) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    leaf, _ = app_enclave.certificate(keys, over=other)
    for _ in range(2):
        with refuses("attestation.report_data", InvalidEvidence):
            callers.verify([leaf])
        for later in (0, 29):
            clock[0] += later
            with refuses("attestation.report_data", InvalidEvidence):
                callers.recall([leaf])
        clock[0] += 1
        with pytest.raises(WouldBlockError):
            callers.recall([leaf])


def test_certificates_that_show_nobody_are_remembered_up_to_a_number(callers, monkeypatch) -> None:
    monkeypatch.setattr("enclave.kms.callers.MAX_REMEMBERED_NOBODIES", 2)
    leaves = []
    for _ in range(3):
        key = ec.generate_private_key(ec.SECP256R1())
        bare = client_certificate(key, attestation=None, issuer=None, now=NOW)
        leaves.append(bare.public_bytes(Encoding.DER))
        assert callers.verify(leaves[-1:]) is None
    with pytest.raises(WouldBlockError):
        callers.recall(leaves[:1])
    assert [callers.recall([leaf]) for leaf in leaves[1:]] == [None, None]


def test_a_certificate_that_could_not_be_judged_is_judged_again(
    callers, keys, app_enclave, monkeypatch
) -> None:
    def fail(*_: object) -> None:
        raise UnavailableError("net.timeout", "no collateral")

    leaf, _ = app_enclave.certificate(keys)
    monkeypatch.setattr(PeerVerifier, "verify", fail)
    with refuses("net.timeout", UnavailableError):
        callers.verify([leaf])
    with pytest.raises(WouldBlockError):
        callers.recall([leaf])


def test_a_verified_caller_goes_stale(callers, keys, app_enclave, clock: list[int]) -> None:
    leaf, _ = app_enclave.certificate(keys)
    callers.verify([leaf])
    clock[0] = NOW + 3601
    with pytest.raises(InvalidEvidence) as refusal:
        callers.verify([leaf])
    assert refusal.value.code == "nitro.stale"


def test_a_remembered_certificate_expires(callers, keys, app_enclave, clock: list[int]) -> None:
    """The certificate's own validity counts as well, which ends here before that of the evidence."""
    key = ec.generate_private_key(ec.SECP256R1())
    envelope = app_enclave.attestor.attest(report_data(RATLS_CERT, spki_der(key.public_key())))
    issuer = (keys.temp_ca_cert, keys.temp_ca_key)
    certificate = client_certificate(key, attestation=envelope, issuer=issuer, now=NOW, lifetime=60)
    leaf = certificate.public_bytes(Encoding.DER)
    callers.verify([leaf])
    clock[0] = int(certificate.not_valid_after_utc.timestamp())
    assert callers.recall([leaf]) is not None
    clock[0] += 1
    with pytest.raises(WouldBlockError):
        callers.recall([leaf])
    with pytest.raises(InvalidEvidence) as refusal:
        callers.verify([leaf])
    assert refusal.value.code == "ratls.certificate.expired"


def test_a_remembered_certificate_is_not_valid_early(callers, keys, app_enclave, clock: list[int]) -> None:
    leaf, _ = app_enclave.certificate(keys)
    callers.verify([leaf])
    clock[0] = NOW - 7 * 24 * 3600
    with pytest.raises(InvalidEvidence) as refusal:
        callers.verify([leaf])
    assert refusal.value.code == "ratls.certificate.not_yet_valid"


def test_only_a_verified_caller_is_recalled(callers, keys, app_enclave) -> None:
    leaf, _ = app_enclave.certificate(keys)
    with pytest.raises(WouldBlockError):
        callers.recall([leaf])
    assert callers.recall([]) is None
    verified = callers.verify([leaf])
    assert callers.recall([leaf]) is verified


def test_a_large_certificate_is_verified_each_time(callers, keys, app_enclave, monkeypatch) -> None:
    leaf, _ = app_enclave.certificate(keys)
    monkeypatch.setattr("enclave.kms.callers.MAX_REMEMBERED_LEAF", len(leaf) - 1)
    assert callers.verify([leaf]) is not None
    with pytest.raises(WouldBlockError):
        callers.recall([leaf])


def test_the_oldest_caller_makes_room(callers, keys, app_enclave, monkeypatch) -> None:
    monkeypatch.setattr("enclave.kms.callers.MAX_REMEMBERED", 2)
    leaves = [app_enclave.certificate(keys)[0] for _ in range(3)]
    for leaf in leaves:
        callers.verify([leaf])
    with pytest.raises(WouldBlockError):
        callers.recall([leaves[0]])
    assert all(callers.recall([leaf]) for leaf in leaves[1:])


def test_what_is_small_and_needs_nothing_fetched_is_verified_promptly(
    callers, keys, anchors, app_enclave
) -> None:
    leaf, _ = app_enclave.certificate(keys)
    gathering = PeerVerifier(anchors=anchors, now=lambda: NOW, endorsements=EndorsementSource(None, None))
    waiting = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=gathering)
    for verifier, shown in ((waiting, leaf), (callers, bytes(MAX_PROMPT_LEAF + 1))):
        with pytest.raises(WouldBlockError):
            verifier.verify_promptly([shown], lambda: pytest.fail("nothing is verified"))
    assert callers.verify_promptly([leaf], lambda: None) is callers.recall([leaf])
    with pytest.raises(InvalidEvidence) as refusal:
        callers.verify_promptly([bytes(MAX_PROMPT_LEAF)], lambda: None)
    assert refusal.value.code == "ratls.certificate.malformed"


def test_strangers_take_a_fifth_of_the_event_loops_time(ticking, keys, app_enclave) -> None:
    """One is verified from a second of its clock to the next; those of the next four take a thread."""

    def is_prompt() -> bool:
        try:
            ticking.verify_promptly([app_enclave.certificate(keys)[0]], lambda: None)
        except WouldBlockError:
            return False
        return True

    assert [is_prompt() for _ in range(9)] == [True, False, False, False] * 2 + [True]


def test_evidence_that_does_not_hold_takes_its_time_too(ticking, keys, app_enclave) -> None:
    leaf, _ = app_enclave.certificate(keys, over=ec.generate_private_key(ec.SECP256R1()))
    with refuses("attestation.report_data"):
        ticking.verify_promptly([leaf], lambda: None)
    with pytest.raises(WouldBlockError):
        ticking.verify_promptly([app_enclave.certificate(keys)[0]], lambda: None)


def test_who_is_known_is_recalled_however_many_strangers_come(ticking, keys, app_enclave) -> None:
    known, stranger = (app_enclave.certificate(keys)[0] for _ in range(2))
    verified = ticking.verify_promptly([known], lambda: None)
    with pytest.raises(WouldBlockError):
        ticking.verify_promptly([stranger], lambda: None)
    assert ticking.verify_promptly([known], lambda: pytest.fail("is known")) is verified

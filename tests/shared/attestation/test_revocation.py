"""Chains against lists: who covers what, and what each mode makes of gaps."""

from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enclave.simulator.ak_authority import SimulatedAkAuthority
from enclave.simulator.revocation_lists import LIFETIME, sign_list
from shared.attestation.ak_chain import verify_ak_chain
from shared.attestation.policy import Revocation
from shared.attestation.revocation import (
    MAX_LISTS,
    ChainLink,
    RevocationCache,
    RevocationResult,
    check_revocation,
    unconsulted,
)
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status
from tests.shared.attestation.forgery import NOW, refuses
from tests.shared.attestation.test_crl import certificate, partition

WEEK = int(LIFETIME.total_seconds())
LENIENT, STRICT, OFF = Revocation.IF_AVAILABLE, Revocation.REQUIRED, Revocation.OFF


class World:
    """An authority, a verified chain of two certificates, and its lists."""

    def __init__(self) -> None:
        self.google = SimulatedAkAuthority.create()
        ak = self.google.issue_ak(ec.generate_private_key(ec.SECP256R1()).public_key())
        anchors = TrustAnchors.production().with_extra(self.google.root_pem)
        issuers = (self.google.intermediate.der,)
        self.chain = verify_ak_chain(ak, issuers, now=NOW, anchors=anchors.gcp_tpm).links
        self.ak, self.intermediate = (link.certificate.serial_number for link in self.chain)

    def lists(self, now: int = NOW, revoked: tuple[int, ...] = ()) -> tuple[bytes, ...]:
        return self.google.endorsements(now, revoked).crls

    def list_of(self, name: str, **changes: Any) -> bytes:
        authority = getattr(self.google, name)
        arguments = {"now": NOW, "key": authority.key, **changes}
        return sign_list(authority.certificate.subject, **arguments)

    def check(self, lists: tuple[bytes, ...], mode: Revocation = STRICT, **changes: Any) -> RevocationResult:
        return check_revocation(
            changes.pop("chain", self.chain), lists, **{"now": NOW, "mode": mode, **changes}
        )


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_covered_chain_is_verified_until_the_first_list_ends(world: World) -> None:
    later = (world.list_of("root", now=NOW), world.list_of("intermediate", now=NOW - 100))
    result = world.check(later)
    assert result.lane.status is Status.VERIFIED
    until = NOW - 100 + WEEK
    assert result.lane.reason == f"2 of 2 certificates are covered by current lists until {until}"
    assert result.valid_until == NOW - 100 + WEEK + 1


def test_of_two_lists_of_one_issuer_the_later_end_counts(world: World) -> None:
    lists = (*world.lists(NOW - 100), *world.lists(NOW - 50), *world.lists(NOW - 75))
    assert world.check(lists).valid_until == NOW - 50 + WEEK + 1


def test_a_list_holds_until_the_second_that_is_told(world: World) -> None:
    until = world.check(world.lists()).valid_until
    assert until is not None
    assert world.check(world.lists(), now=until - 1).valid_until == until
    with refuses("crl.expired"):
        world.check(world.lists(), now=until)


@pytest.mark.parametrize("mode", [LENIENT, STRICT])
@pytest.mark.parametrize("which", ["ak", "intermediate"])
def test_n35_refuses_a_revoked_certificate(world: World, mode: Revocation, which: str) -> None:
    with refuses("crl.revoked"):
        world.check(world.lists(revoked=(getattr(world, which),)), mode)


@pytest.mark.parametrize("mode", [LENIENT, STRICT])
@pytest.mark.parametrize("now", [NOW - 1, NOW + WEEK + 1])
def test_refuses_a_certificate_that_a_list_of_another_time_names(
    world: World, mode: Revocation, now: int
) -> None:
    lists = (*world.lists(now), *world.lists(revoked=(world.ak,)))
    with refuses("crl.revoked"):
        world.check(lists, mode, now=now)


def test_off_looks_at_nothing(world: World) -> None:
    result = world.check((b"garbage", *world.lists(revoked=(world.ak,))), OFF)
    assert result == RevocationResult(result.lane, None)
    assert result.lane.status is Status.SKIPPED
    assert result.lane.reason == "turned off by the policy"


def test_n23_refuses_an_empty_set_of_lists(world: World) -> None:
    with refuses("crl.missing"):
        world.check(())


def test_n35_tells_that_no_list_was_given(world: World) -> None:
    result = world.check((), LENIENT)
    assert (result.lane.status, result.lane.reason) == (Status.SKIPPED, "no revocation list was given")
    assert result.valid_until is None


@pytest.mark.parametrize("missing", ["root", "intermediate"])
def test_n35_one_issuer_without_a_list_is_refused_or_told(world: World, missing: str) -> None:
    given = world.list_of("intermediate" if missing == "root" else "root")
    with refuses("crl.missing"):
        world.check((given,))
    lane = world.check((given,), LENIENT).lane
    assert lane.status is Status.SKIPPED
    assert "no list of it was given" in lane.reason


FAULTS = {
    "crl.signature": {"key": ec.generate_private_key(ec.SECP256R1())},
    "crl.expired": {"now": NOW - WEEK - 1},
    "crl.not_yet_valid": {"now": NOW + 1},
    "crl.scope": {"extensions": ((partition("http://elsewhere.invalid"), True),)},
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_list_that_does_not_count_is_refused_or_told(world: World, code: str) -> None:
    lists = (world.list_of("root"), world.list_of("intermediate", **FAULTS[code]))
    with refuses(code):
        world.check(lists)
    lane = world.check(lists, LENIENT).lane
    assert lane.status is Status.SKIPPED
    assert lane.reason.startswith("no current revocation list of Simulated EK/AK CA Intermediate: ")


def test_a_forged_list_cannot_hide_the_real_one(world: World) -> None:
    forged = world.list_of("intermediate", key=ec.generate_private_key(ec.SECP256R1()))
    assert world.check((forged, *world.lists())).lane.status is Status.VERIFIED
    with refuses("crl.revoked"):
        world.check((forged, *world.lists(revoked=(world.ak,)), forged))


def test_a_forged_list_cannot_revoke(world: World) -> None:
    forged = world.list_of("intermediate", key=ec.generate_private_key(ec.SECP256R1()), revoked=(world.ak,))
    assert world.check((forged, *world.lists())).lane.status is Status.VERIFIED


def test_an_issuer_that_may_not_sign_lists_has_none(world: World) -> None:
    chain = [msgspec.structs.replace(link, signs_lists=False) for link in world.chain]
    with refuses("crl.signature"):
        world.check(world.lists(), chain=chain)


def test_a_partition_counts_for_the_certificates_in_it(world: World) -> None:
    address = "http://ak-authority.invalid/tpm/crl/intermediate.crl"
    part = world.list_of("intermediate", extensions=((partition(address, users=True), True),))
    assert world.check((world.list_of("root"), part)).lane.status is Status.VERIFIED


def test_lists_of_other_issuers_are_not_parsed(world: World) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")])
    unread = ((partition(indirect=True), True),)
    foreign = sign_list(name, world.google.root.key, now=NOW, extensions=unread)
    assert world.check((foreign, *world.lists())).lane.status is Status.VERIFIED


@pytest.mark.parametrize("mode", [LENIENT, STRICT])
def test_refuses_garbage_among_the_lists(world: World, mode: Revocation) -> None:
    with refuses("crl.malformed"):
        world.check((*world.lists(), b"garbage"), mode)


def test_n10_refuses_too_many_lists(world: World) -> None:
    with refuses("crl.count"):
        world.check(world.lists() * (MAX_LISTS // 2 + 1))


def _without_addresses(link: ChainLink) -> ChainLink:
    return msgspec.structs.replace(link, certificate=certificate())


def test_a_chain_that_names_no_list_needs_none(world: World) -> None:
    chain = [_without_addresses(link) for link in world.chain]
    result = world.check((), chain=chain)
    assert result.lane.status is Status.NOT_APPLICABLE
    assert result.valid_until is None


def test_a_chain_as_googles_needs_the_roots_list_alone(world: World) -> None:
    chain = [_without_addresses(world.chain[0]), world.chain[1]]
    lane = world.check((world.list_of("root"),), chain=chain).lane
    assert lane.status is Status.VERIFIED
    assert lane.reason.startswith("1 of 2 certificates are covered")
    assert lane.reason.endswith(", the others name none")


def test_a_list_counts_for_a_certificate_that_names_none(world: World) -> None:
    chain = [_without_addresses(link) for link in world.chain]
    assert world.check(world.lists(), chain=chain).lane.status is Status.VERIFIED
    with refuses("crl.revoked"):
        world.check(world.lists(revoked=(7,)), chain=chain)


def test_what_is_remembered_does_not_change_a_verdict(world: World) -> None:
    cache = RevocationCache()
    check = partial(world.check, cache=cache)
    assert check(world.lists()).lane.status is Status.VERIFIED
    lists = world.lists()
    assert check(lists) == check(lists)
    assert len(cache.lists) == 4
    with refuses("crl.expired"):
        check(lists, now=NOW + WEEK + 1)
    with refuses("crl.revoked"):
        check(world.lists(revoked=(world.ak,)))
    stranger = msgspec.structs.replace(
        world.chain[0], issuer_spki=world.chain[1].issuer_spki, issuer_key=world.chain[1].issuer_key
    )
    with refuses("crl.signature"):
        check(lists, chain=[stranger])


def test_what_is_remembered_is_bounded(world: World) -> None:
    cache = RevocationCache(size=2)
    for age in range(5):
        world.check(world.lists(NOW - age), cache=cache)
    assert len(cache.lists) == 2
    assert len(cache.signatures) == 8


def test_only_no_lists_or_off_need_no_check() -> None:
    assert unconsulted((), STRICT) is None
    assert unconsulted((b"x",), LENIENT) is None
    assert unconsulted((b"x",), OFF) is not None


def test_a_list_of_a_day_is_enough(world: World) -> None:
    day = timedelta(days=1)
    lists = (world.list_of("root", lifetime=day), world.list_of("intermediate", lifetime=day))
    assert world.check(lists).valid_until == NOW + 86_401

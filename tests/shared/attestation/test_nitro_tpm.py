"""NitroTPM documents: boot registers, runtime events, and what tells them from an enclave's document."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography import x509

from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nitro_tpm import SimulatedNitroTpm
from shared.attestation.chain import ChainCache
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import RuntimeEvent
from shared.attestation.event_log import event_digest, replay
from shared.attestation.nitro import parse_document, verify_document
from shared.attestation.nitro_tpm import VerifiedNitroTpm, parse_tpm_document, verify_nitro_tpm
from shared.attestation.policy import NitroPolicy, Revocation
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status
from tests.shared.attestation.forgery import DROP, NOW, REPORT_DATA, Forge, refuses
from tests.shared.attestation.gcp_forgery import EVENTS

Verify = Callable[..., VerifiedNitroTpm]
PCRS = {index: bytes(48) for index in range(24)} | {
    4: bytes([0xB4]) * 48,
    7: bytes([0xB7]) * 48,
    12: bytes([0xBC]) * 48,
    14: replay(EVENTS, "sha384"),
}


def document(forge: Forge, pcrs: dict[int, bytes] = PCRS, **changes: Any) -> bytes:
    fields = {"pcrs": DROP, "nitrotpm_pcrs": pcrs, "module_id": "i-0123456789abcdef0", **changes}
    return forge.document(**fields)


@pytest.fixture
def verify(forge: Forge) -> Verify:
    def run(cose: bytes, events: Any = EVENTS, **changes: Any) -> VerifiedNitroTpm:
        return verify_nitro_tpm(cose, events, **{"now": NOW, "anchors": forge.anchors, **changes})

    return run


def test_a_document_verifies_and_names_its_simulated_anchor(forge: Forge, verify: Verify) -> None:
    verified = verify(document(forge), report_data=REPORT_DATA)
    assert verified.document.pcrs == PCRS
    assert verified.document.module_id == "i-0123456789abcdef0"
    assert verified.simulated
    assert verified.anchor == verified.trust_anchor.name == forge.anchors.nitro[-1].name
    assert verified.valid_until == NOW + 3600 + 1


def test_the_simulator_makes_documents_that_verify() -> None:
    authority = SimulatedAuthority.create()
    tpm = SimulatedNitroTpm(authority, clock=lambda: NOW)
    for event in EVENTS:
        tpm.extend(14, event_digest(event, "sha384"))
    anchors = TrustAnchors.production().with_extra(authority.root_pem)
    cose = tpm.attestation(user_data=REPORT_DATA, nonce=b"nonce")
    verified = verify_nitro_tpm(
        cose, EVENTS, now=NOW, anchors=anchors, report_data=REPORT_DATA, nonce=b"nonce"
    )
    assert verified.document.pcrs == tpm.pcrs
    assert sorted(verified.document.pcrs) == list(range(24))
    assert verified.document.module_id == tpm.instance_id


# --- N-30, and what tells the kinds apart ---


def test_refuses_an_enclaves_document(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.field"):
        verify(forge.document())


def test_an_enclave_is_not_a_tpm(forge: Forge) -> None:
    with refuses("nitro.field"):
        verify_document(document(forge), now=NOW, anchors=forge.anchors)
    with refuses("nitro.field"):
        parse_document(document(forge))
    assert parse_tpm_document(document(forge)).pcrs == PCRS


def test_refuses_a_document_with_both_names(forge: Forge, verify: Verify) -> None:
    both = document(forge, pcrs=PCRS) and forge.document(nitrotpm_pcrs=PCRS)
    with refuses("nitro.field"):
        verify(both)
    with refuses("nitro.field"):
        verify_document(both, now=NOW, anchors=forge.anchors)


@pytest.mark.parametrize("index", [4, 7, 12, 14])
def test_n30_refuses_a_document_without_a_register(forge: Forge, verify: Verify, index: int) -> None:
    pcrs = {number: value for number, value in PCRS.items() if number != index}
    with refuses("nitro.pcr.missing"):
        verify(document(forge, pcrs))


def test_registers_that_nothing_needs_may_be_absent(forge: Forge, verify: Verify) -> None:
    pcrs = {number: PCRS[number] for number in (4, 7, 12, 14)}
    assert verify(document(forge, pcrs)).document.pcrs == pcrs


@pytest.mark.parametrize("index", [4, 7])
def test_n30_refuses_a_boot_that_was_not_measured(forge: Forge, verify: Verify, index: int) -> None:
    with refuses("nitro_tpm.unmeasured"):
        verify(document(forge, {**PCRS, index: bytes(48)}))


def test_nothing_need_be_added_to_the_command_line(forge: Forge, verify: Verify) -> None:
    assert verify(document(forge, {**PCRS, 12: bytes(48)}))


@pytest.mark.parametrize("index", [24, 31, -1])
def test_refuses_a_register_that_no_tpm_has(forge: Forge, verify: Verify, index: int) -> None:
    with refuses("nitro.pcr.index"):
        verify(document(forge, {**PCRS, index: bytes(48)}))


def test_n33_refuses_a_register_of_another_bank(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.pcr.length"):
        verify(document(forge, {**PCRS, 8: bytes(32)}))
    with refuses("nitro.digest"):
        verify(document(forge, digest="SHA256"))


# --- events ---


def test_n22_refuses_runtime_events_that_pcr14_does_not_hold(forge: Forge, verify: Verify) -> None:
    for events in (EVENTS[:-1], (*EVENTS, RuntimeEvent("late", b"")), EVENTS[::-1], ()):
        with refuses("nitro_tpm.pcr14"):
            verify(document(forge), events)


def test_pcr14_is_the_replay_that_upstream_defines() -> None:
    register = bytes(48)
    for event in EVENTS:
        text = bytes.fromhex("01000008") + b":" + event.event.encode() + b":" + event.payload
        register = hashlib.sha384(register + hashlib.sha384(text).digest()).digest()
    assert register == PCRS[14]


def test_an_instance_without_events_has_a_zero_pcr14(forge: Forge, verify: Verify) -> None:
    assert verify(document(forge, {**PCRS, 14: bytes(48)}), ())


def test_n10_refuses_a_flood_of_events(forge: Forge, verify: Verify) -> None:
    with refuses("event_log.count"):
        verify(document(forge), EVENTS * 20_000)


# --- the rules that it shares with enclaves ---


def test_n33_refuses_an_old_and_a_future_document(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.stale"):
        verify(document(forge, timestamp=(NOW - 3601) * 1000))
    with refuses("nitro.future"):
        verify(document(forge, timestamp=(NOW + 301) * 1000))


def test_n34_refuses_another_report_data_and_another_nonce(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.user_data"):
        verify(document(forge, user_data=bytes(64)), report_data=REPORT_DATA)
    with refuses("nitro.user_data"):
        verify(document(forge, user_data=None), report_data=REPORT_DATA)
    with refuses("nitro.nonce"):
        verify(document(forge), nonce=b"challenge")
    with refuses("nitro.nonce"):
        verify(document(forge, nonce=b"another"), nonce=b"challenge")


def test_n31_refuses_a_chain_under_no_anchor(forge: Forge, verify: Verify) -> None:
    with refuses("nitro.chain.anchor"):
        verify(document(forge), anchors=TrustAnchors.production())
    with refuses("nitro.chain.leaf_is_ca"):
        leaf = Forge(leaf={"ca": True, "path_length": None, "usage": ("digital_signature", "key_cert_sign")})
        verify(document(leaf), anchors=leaf.anchors)


def test_n32_refuses_a_signature_by_another_key(forge: Forge, verify: Verify) -> None:
    with refuses("cose.signature.invalid"):
        verify(document(forge)[:-1] + bytes([document(forge)[-1] ^ 1]))


def test_n32_every_flip_of_a_document_is_refused(forge: Forge, verify: Verify) -> None:
    from shared.errors import InvalidEvidence  # noqa: PLC0415 - one test's

    whole, cache = document(forge), ChainCache()
    assert verify(whole, chain_cache=cache)
    for at in range(len(whole)):
        altered = bytearray(whole)
        altered[at] ^= 1 << at % 8
        with pytest.raises(InvalidEvidence):
            verify(bytes(altered), chain_cache=cache)


# --- revocation ---


class Instance:
    """An instance under an authority with lists."""

    def __init__(self) -> None:
        self.authority = SimulatedAuthority.create()
        self.anchors = TrustAnchors.production().with_extra(self.authority.root_pem)
        self.cose = SimulatedNitroTpm(self.authority, clock=lambda: NOW).attestation()

    def verify(self, mode: Revocation, crls: tuple[bytes, ...], **changes: Any) -> VerifiedNitroTpm:
        policy = NitroPolicy(revocation=mode)
        arguments = {"anchors": self.anchors, "policy": policy, "endorsements": Endorsements(crls=crls)}
        return verify_nitro_tpm(self.cose, (), now=NOW, **arguments, **changes)


@pytest.fixture(scope="module")
def instance() -> Instance:
    return Instance()


def test_n35_lists_that_are_given_are_looked_at(instance: Instance) -> None:
    lists = instance.authority.crls(NOW)
    for mode in (Revocation.REQUIRED, Revocation.IF_AVAILABLE):
        assert instance.verify(mode, lists).revocation.lane.status is Status.VERIFIED


def _serial(certificate: x509.Certificate) -> int:
    return certificate.serial_number


@pytest.mark.parametrize("level", [1, 2], ids=["region", "zone"])
def test_n35_refuses_a_revoked_authority(instance: Instance, level: int) -> None:
    lists = instance.authority.crls(NOW, (_serial(instance.authority.chain[level]),))
    for mode in (Revocation.REQUIRED, Revocation.IF_AVAILABLE):
        with refuses("crl.revoked"):
            instance.verify(mode, lists)
    assert instance.verify(Revocation.OFF, lists).revocation.lane.status is Status.SKIPPED


def test_n35_missing_lists_are_for_the_policy(instance: Instance) -> None:
    with refuses("crl.missing"):
        instance.verify(Revocation.REQUIRED, ())
    with refuses("crl.missing"):
        instance.verify(Revocation.REQUIRED, instance.authority.crls(NOW)[:1])
    assert instance.verify(Revocation.IF_AVAILABLE, ()).revocation.lane.status is Status.SKIPPED


def test_a_list_that_ends_first_ends_the_verdict(instance: Instance) -> None:
    lists = instance.authority.crls(NOW - 7 * 86_400 + 60)
    assert instance.verify(Revocation.REQUIRED, lists).valid_until == NOW + 60 + 1


def test_a_document_says_nothing_of_patches(forge: Forge, verify: Verify) -> None:
    fields = {*msgspec.structs.asdict(verify(document(forge)).document)}
    assert not {name for name in fields if "tcb" in name or "svn" in name}

"""GCP evidence: both halves, what binds them, and every single fault, refused by code."""

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from shared.attestation.ak_chain import verify_ak_chain
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.envelope import GcpTdxQuote, PcrValue, RuntimeEvent, TpmEvent, decode_envelope
from shared.attestation.event_log import replay, replay_digests
from shared.attestation.gcp import PrecheckedGcp, VerifiedGcp, precheck_gcp, verify_gcp
from shared.attestation.policy import DEFAULT_POLICY, Firmware, GcpPolicy, Policy, Revocation
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifierCache
from shared.errors import InvalidEvidence, PolicyDenied
from tests.shared.attestation.forgery import NOW, REPORT_DATA, refuses
from tests.shared.attestation.gcp_forgery import (
    EVENTS,
    FIRMWARE,
    IMAGE,
    LOG,
    PCRS,
    RTMR2,
    GcpForge,
    selection,
    sign_attest,
)
from tests.shared.refusal import Unread

Verify = Callable[..., VerifiedGcp]
SAMPLES = Path(__file__).parents[2] / "data" / "attestation" / "synthetic"


@pytest.fixture(scope="session")
def gcp() -> GcpForge:
    """A guest without a fault."""
    return GcpForge()


@pytest.fixture
def verify(gcp: GcpForge) -> Verify:
    """`verify_gcp` at the time, under the anchors and with the endorsements of the forged evidence."""

    def run(evidence: Any = None, events: Any = EVENTS, **changes: Any) -> VerifiedGcp:
        arguments = {"now": NOW, "anchors": gcp.anchors, "endorsements": gcp.endorsements, **changes}
        return verify_gcp(evidence or gcp.evidence(), events, **arguments)

    return run


def with_gcp(**fields: Any) -> Policy:
    return msgspec.structs.replace(DEFAULT_POLICY, gcp=GcpPolicy(**fields))


# --- what verifies ---


def test_evidence_verifies_and_tells_both_halves(gcp: GcpForge, verify: Verify) -> None:
    verified = verify(report_data=REPORT_DATA)
    assert verified.pcrs == PCRS
    assert verified.pcr2_events == IMAGE
    assert verified.firmware == DEFAULT_POLICY.gcp.firmware[0]
    assert verified.ak_anchor == gcp.anchors.gcp_tpm[-1]
    assert verified.tdx.trust_anchor == gcp.anchors.tdx[-1]
    assert verified.tdx.quote.report.report_data == REPORT_DATA
    assert verified.revocation.lane.status is Status.VERIFIED
    assert not verified.rtmr2_listed
    assert verified.simulated


def test_evidence_under_rsa_keys_verifies() -> None:
    rsa = GcpForge(rsa_keys=True)
    verified = verify_gcp(rsa.evidence(), EVENTS, now=NOW, anchors=rsa.anchors, endorsements=rsa.endorsements)
    assert len(verified.ak_chain.certificates) == 2


def test_the_earliest_end_of_all_parts_counts(gcp: GcpForge, verify: Verify) -> None:
    verified = verify()
    assert verified.valid_until == verified.tdx.valid_until
    older = gcp.google.endorsements(NOW - 6 * 86_400)
    verified = verify(endorsements=msgspec.structs.replace(gcp.endorsements, crls=older.crls))
    assert verified.valid_until == verified.revocation.valid_until == NOW + 86_400 + 1
    short = gcp.google.issue_ak(gcp.key.public_key(), not_after=datetime.fromtimestamp(NOW + 9, UTC))
    assert verify(gcp.evidence(ak_cert=short)).valid_until == NOW + 10


def test_a_policy_without_revocation_says_so(gcp: GcpForge, verify: Verify) -> None:
    endorsements = msgspec.structs.replace(gcp.endorsements, crls=())
    verified = verify(endorsements=endorsements, policy=with_gcp(revocation=Revocation.OFF))
    assert verified.revocation.lane.status is Status.SKIPPED
    assert verified.valid_until == verified.tdx.valid_until


def test_everything_that_needs_no_endorsement_is_checked_without_one(gcp: GcpForge) -> None:
    checked = precheck_gcp(gcp.evidence(), EVENTS)
    assert (checked.pcrs, checked.pcr2_events) == (PCRS, IMAGE)


class Sample:
    """The vTPM half of the synthetic envelope; its TDX half is under a root that nobody kept."""

    def __init__(self) -> None:
        self.envelope = (SAMPLES / "envelopes" / "v0_gcp_tdx.bin").read_bytes()
        pem = (SAMPLES / "gcp" / "intermediate-ca.pem").read_bytes()
        self._issuers = (x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER),)
        root = (SAMPLES / "gcp" / "root-ca.pem").read_bytes()
        self._anchors = TrustAnchors.production().with_extra(root, signer="gcp_tpm").gcp_tpm

    def verify(self, envelope: bytes) -> PrecheckedGcp:
        attestation = decode_envelope(envelope)
        assert isinstance(attestation.quote, GcpTdxQuote)
        checked = precheck_gcp(attestation.quote, attestation.runtime_events)
        verify_ak_chain(attestation.quote.tpm.ak_cert, self._issuers, now=NOW, anchors=self._anchors)
        return checked


@pytest.fixture(scope="module")
def sample() -> Sample:
    """Evidence that was made by other code than ours."""
    return Sample()


def test_the_synthetic_evidence_verifies(sample: Sample) -> None:
    expected = json.loads((SAMPLES / "expected.json").read_bytes())["gcp"]
    verified = sample.verify(sample.envelope)
    assert {f"pcr{index}": value.hex() for index, value in verified.pcrs.items()} == {
        name: expected[name] for name in ("pcr0", "pcr2", "pcr14")
    }
    assert len(verified.pcr2_events) == 4


@pytest.mark.parametrize("part", range(4))
def test_every_flip_of_the_synthetic_vtpm_part_is_refused_or_in_an_unquoted_event(
    sample: Sample, part: int
) -> None:
    attestation = decode_envelope(sample.envelope)
    assert isinstance(attestation.quote, GcpTdxQuote)
    tpm = attestation.quote.tpm
    start = sample.envelope.index(tpm.message)
    last = tpm.event_log[-1].digest
    end = sample.envelope.rindex(last) + len(last)
    log = sample.envelope.index(tpm.ak_cert) + len(tpm.ak_cert) + 1
    accepted = []
    for at in range(start + part, end, 4):
        altered = bytearray(sample.envelope)
        altered[at] ^= 1 << at // 4 % 8
        try:
            sample.verify(bytes(altered))
        except (InvalidEvidence, PolicyDenied):
            continue
        accepted.append(at)
    # entries of registers that are not quoted prove nothing: 36 bytes of one behind their length
    unquoted: set[int] = set()
    at = log + 1
    for event in tpm.event_log:
        if event.pcr_index not in PCRS:
            unquoted |= set(range(at, at + 4 + 1 + 32))
        at += 4 + 1 + 32
    assert at == end
    assert set(accepted) <= unquoted


# --- N-21: two machines ---


def test_n21_refuses_a_vtpm_quote_over_another_domains_quote(gcp: GcpForge, verify: Verify) -> None:
    evidence = gcp.evidence(quote=gcp.tdx_quote())
    mixed = msgspec.structs.replace(evidence, tdx=msgspec.structs.replace(evidence.tdx, quote=gcp.quote))
    with refuses("gcp.binding"):
        verify(mixed)


def test_n21_padding_of_the_tdx_quote_is_bound(gcp: GcpForge, verify: Verify) -> None:
    assert gcp.quote.endswith(bytes(8))
    shorter = gcp.evidence(quote=gcp.quote, extra=hashlib.sha256(gcp.quote.rstrip(b"\0")).digest())
    with refuses("gcp.binding"):
        verify(shorter)


@pytest.mark.parametrize("extra", [b"", bytes(32), REPORT_DATA])
def test_n25_refuses_qualifying_data_that_is_not_ours(gcp: GcpForge, verify: Verify, extra: bytes) -> None:
    with refuses("gcp.binding"):
        verify(gcp.evidence(extra=extra))


def test_refuses_another_report_data(gcp: GcpForge, verify: Verify) -> None:
    with refuses("tdx.report_data"):
        verify(gcp.evidence(quote=gcp.tdx_quote(report_data=bytes(64))), report_data=REPORT_DATA)


def test_refuses_runtime_events_of_another_domain(gcp: GcpForge, verify: Verify) -> None:
    with refuses("tdx.rtmr3"):
        verify(gcp.evidence(quote=gcp.tdx_quote(events=EVENTS[:3])))


# --- N-22: registers and logs ---


@pytest.mark.parametrize("pcrs", [(0, 2), (2, 14), (0, 2, 4, 14), (0, 2, 15), ()])
def test_n22_refuses_another_selection(gcp: GcpForge, verify: Verify, pcrs: tuple[int, ...]) -> None:
    values = {index: PCRS.get(index, bytes(32)) for index in pcrs}
    with refuses("gcp.pcr.selection"):
        verify(gcp.evidence(pcrs=values))


def test_n22_refuses_firmware_that_the_policy_does_not_list(gcp: GcpForge, verify: Verify) -> None:
    log = [event for event in LOG if event.pcr_index != 0]
    evidence = gcp.evidence(pcrs={**PCRS, 0: bytes(32)}, log=log)
    with refuses("gcp.firmware", PolicyDenied):
        verify(evidence)
    with pytest.raises(PolicyDenied, match=f"PCR0 is {'00' * 32}, the policy lists 0cca9ec1"):
        verify(evidence)


def test_n22_firmware_without_memory_encryption_is_not_listed(gcp: GcpForge, verify: Verify) -> None:
    plain = (FIRMWARE[0], hashlib.sha256(b"GCE NonHostInfo\0" + bytes(16)).digest(), FIRMWARE[2])
    log = [*(TpmEvent(0, digest) for digest in plain), *LOG[3:]]
    pcr0 = replay_digests(plain, "sha256")
    evidence = gcp.evidence(pcrs={**PCRS, 0: pcr0}, log=log)
    with refuses("gcp.firmware", PolicyDenied):
        verify(evidence)
    listed = Firmware(pcr0, "a test")
    assert verify(evidence, policy=with_gcp(firmware=(listed,))).firmware == listed


def test_a_policy_that_lists_no_firmware_accepts_none(verify: Verify) -> None:
    with pytest.raises(PolicyDenied, match="the policy lists none"):
        verify(policy=with_gcp(firmware=()))


def test_n22_refuses_a_log_that_is_not_the_quoted_one(gcp: GcpForge, verify: Verify) -> None:
    swapped = tuple(TpmEvent(2, digest) for digest in (IMAGE[2], *IMAGE[:2], IMAGE[3]))
    with refuses("tpm.log.mismatch"):
        verify(gcp.evidence(log=swapped))


def test_n22_a_log_that_leaves_the_image_out_gives_no_image(gcp: GcpForge, verify: Verify) -> None:
    unquoted = tuple(TpmEvent(4, digest) for digest in IMAGE)
    assert verify(gcp.evidence(log=unquoted)).pcr2_events == ()


def test_refuses_runtime_events_that_pcr14_does_not_hold(gcp: GcpForge, verify: Verify) -> None:
    for events in (EVENTS[:-1], (*EVENTS, RuntimeEvent("late", b"")), EVENTS[::-1]):
        with refuses("gcp.pcr14"):
            verify(gcp.evidence(), events)


def test_refuses_another_writer_of_pcr14(gcp: GcpForge, verify: Verify) -> None:
    with refuses("tpm.log.mismatch"):
        verify(gcp.evidence(log=(*LOG, TpmEvent(14, bytes(32)))))


def test_evidence_without_runtime_events_has_a_zero_pcr14(gcp: GcpForge, verify: Verify) -> None:
    evidence = gcp.evidence(quote=gcp.tdx_quote(events=()), pcrs={**PCRS, 14: bytes(32)})
    assert verify(evidence, ()).pcrs[14] == bytes(32)


# --- N-23: the attestation key ---


def test_n23_refuses_a_key_under_no_anchor(gcp: GcpForge, verify: Verify) -> None:
    stranger = GcpForge()
    ak = stranger.google.issue_ak(gcp.key.public_key())
    with refuses("gcp.chain.signature"):
        verify(gcp.evidence(ak_cert=ak))


def test_n23_refuses_a_quote_by_another_key(gcp: GcpForge, verify: Verify) -> None:
    with refuses("tpm.signature.invalid"):
        verify(gcp.evidence(key=ec.generate_private_key(ec.SECP256R1())))


def test_n23_refuses_a_chain_that_is_over(verify: Verify) -> None:
    with refuses("gcp.chain.expired"):
        verify(now=4_102_444_801)


@pytest.mark.parametrize("certificates", [(), (b"garbage",)])
def test_n23_refuses_without_the_issuer(
    gcp: GcpForge, verify: Verify, certificates: tuple[bytes, ...]
) -> None:
    with refuses("gcp.chain.anchor"):
        verify(endorsements=msgspec.structs.replace(gcp.endorsements, certificates=certificates))


def test_n23_refuses_an_empty_set_of_lists(gcp: GcpForge, verify: Verify) -> None:
    with refuses("crl.missing"):
        verify(endorsements=msgspec.structs.replace(gcp.endorsements, crls=()))


def test_n23_refuses_a_revoked_key(gcp: GcpForge, verify: Verify) -> None:
    serial = verify().ak_chain.links[0].certificate.serial_number
    revoked = gcp.google.endorsements(NOW, (serial,)).crls
    endorsements = msgspec.structs.replace(gcp.endorsements, crls=revoked)
    for mode in (Revocation.REQUIRED, Revocation.IF_AVAILABLE):
        with refuses("crl.revoked"):
            verify(endorsements=endorsements, policy=with_gcp(revocation=mode))


def test_refuses_a_simulated_half_next_to_a_real_one(gcp: GcpForge, verify: Verify) -> None:
    posing = tuple(msgspec.structs.replace(anchor, production=True) for anchor in gcp.anchors.gcp_tpm[-1:])
    with refuses("gcp.anchor.mixed"):
        verify(anchors=msgspec.structs.replace(gcp.anchors, gcp_tpm=posing))


def test_production_anchors_refuse_simulated_evidence(verify: Verify) -> None:
    with refuses("gcp.chain.anchor"):
        verify(anchors=TrustAnchors.production())


# --- N-24: the kernel's command line ---


def test_n24_refuses_an_rtmr2_that_the_policy_does_not_list(gcp: GcpForge, verify: Verify) -> None:
    policy = with_gcp(rtmr2=(bytes(48), RTMR2))
    assert verify(policy=policy).rtmr2_listed
    with refuses("gcp.rtmr2", PolicyDenied):
        verify(gcp.evidence(quote=gcp.tdx_quote(rtmr2=bytes(47) + b"\1")), policy=policy)


# --- N-25: structures ---


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("tpm.attest.magic", {"magic": 0}),
        ("tpm.attest.type", {"kind": 0x8017}),
        ("tpm.attest.trailing", {"tail": b"\0"}),
        ("tpm.attest.bank", {"selections": [selection((0, 2, 14), 0x0004)]}),
        ("tpm.pcr.digest", {"digest": bytes(32)}),
        ("tpm.pcr.digest", {"digest": bytes(20)}),
        ("gcp.platform", {"platform": "dstack"}),
        ("gcp.platform", {"platform": "aws-ec2"}),
        ("tpm.signature.truncated", {"signature": b""}),
        ("gcp.chain.malformed", {"ak_cert": b""}),
    ],
)
def test_n25_refuses_one_fault(gcp: GcpForge, verify: Verify, code: str, changes: dict[str, Any]) -> None:
    with refuses(code):
        verify(gcp.evidence(**changes))


def test_n25_refuses_registers_of_a_weaker_bank(gcp: GcpForge, verify: Verify) -> None:
    values = [PcrValue(index, "sha1", value[:20]) for index, value in PCRS.items()]
    with refuses("tpm.pcr.algorithm"):
        verify(gcp.evidence(values=values))


# --- N-10, N-11: order and cost ---


@pytest.mark.parametrize(
    ("code", "changes", "events"),
    [
        ("tpm.pcr.count", {"pcr_values": Unread(5000)}, EVENTS),
        ("tpm.log.count", {"event_log": Unread(100_000)}, EVENTS),
        ("event_log.count", {}, Unread(100_000)),
    ],
)
def test_n10_floods_are_refused_before_signatures(
    gcp: GcpForge, code: str, changes: dict[str, Any], events: Sequence[RuntimeEvent]
) -> None:
    evidence = gcp.evidence(signature=b"\x00\x18\x00\x0b\x00\x01\x07\x00\x01\x07")
    evidence = msgspec.structs.replace(evidence, tpm=msgspec.structs.replace(evidence.tpm, **changes))
    with refuses(code):
        precheck_gcp(evidence, events)


def test_n11_a_bad_signature_is_refused_before_any_endorsement(gcp: GcpForge) -> None:
    evidence = gcp.evidence(signature=sign_attest(b"another message", gcp.key))
    with refuses("tpm.signature.invalid"):
        precheck_gcp(evidence, EVENTS)
    with refuses("tpm.signature.invalid"):
        verify_gcp(evidence, EVENTS, now=NOW, anchors=gcp.anchors, endorsements=NO_ENDORSEMENTS)


def test_the_first_check_needs_no_trust_and_gives_none(gcp: GcpForge) -> None:
    stranger = GcpForge()
    assert precheck_gcp(stranger.evidence(), EVENTS).pcrs == PCRS
    with refuses("gcp.chain.signature"):
        verify_gcp(
            stranger.evidence(), EVENTS, now=NOW, anchors=gcp.anchors, endorsements=stranger.endorsements
        )


def test_refuses_without_collateral(gcp: GcpForge, verify: Verify) -> None:
    with refuses("tdx.collateral.missing"):
        verify(endorsements=gcp.google.endorsements(NOW))


# --- what is remembered ---


def test_what_is_remembered_does_not_change_a_verdict(gcp: GcpForge, verify: Verify) -> None:
    again = partial(verify, cache=VerifierCache())
    endorsements = gcp.endorsements
    assert again(endorsements=endorsements) == again(endorsements=endorsements)
    with refuses("tpm.signature.invalid"):
        again(gcp.evidence(key=ec.generate_private_key(ec.SECP256R1())))
    with refuses("crl.missing"):
        again(endorsements=msgspec.structs.replace(endorsements, crls=()))
    with refuses("gcp.chain.anchor"):
        again(endorsements=Endorsements(tdx=endorsements.tdx, crls=endorsements.crls))
    with refuses("gcp.chain.expired"):
        again(endorsements=endorsements, now=4_102_444_801)


# --- every byte ---


def test_every_flip_of_the_vtpms_part_is_refused(gcp: GcpForge) -> None:
    """One bit of each byte of message, signature, registers, certificate and log of quoted registers."""
    evidence = gcp.evidence(quote=gcp.quote)
    tpm = evidence.tpm

    def accepts(**changes: Any) -> bool:
        changed = msgspec.structs.replace(evidence, tpm=msgspec.structs.replace(tpm, **changes))
        try:
            verify_gcp(changed, EVENTS, now=NOW, anchors=gcp.anchors, endorsements=endorsements, cache=cache)
        except (InvalidEvidence, PolicyDenied):
            return False
        return True

    endorsements, cache = gcp.endorsements, VerifierCache()
    assert accepts()
    for name in ("message", "signature", "ak_cert"):
        whole: bytes = getattr(tpm, name)
        for at in range(len(whole)):
            altered = bytearray(whole)
            altered[at] ^= 1 << at % 8
            assert not accepts(**{name: bytes(altered)}), (name, at)
    for index, value in enumerate(tpm.pcr_values):
        for at in range(32):
            flipped = value.value[:at] + bytes([value.value[at] ^ 1 << at % 8]) + value.value[at + 1 :]
            values = list(tpm.pcr_values)
            values[index] = PcrValue(value.index, value.algorithm, flipped)
            assert not accepts(pcr_values=tuple(values))
    for index, event in enumerate(tpm.event_log):
        flipped = bytes([event.digest[0] ^ 1]) + event.digest[1:]
        log = list(tpm.event_log)
        log[index] = TpmEvent(event.pcr_index, flipped)
        assert accepts(event_log=tuple(log)) == (event.pcr_index not in PCRS)


def test_pcr14_is_the_replay_that_upstream_defines() -> None:
    register = bytes(32)
    for event in EVENTS:
        text = bytes.fromhex("01000008") + b":" + event.event.encode() + b":" + event.payload
        register = hashlib.sha256(register + hashlib.sha256(text).digest()).digest()
    assert register == replay(EVENTS, "sha256") == PCRS[14]

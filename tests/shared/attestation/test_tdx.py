"""What a verifier believes of a TDX quote, and each thing that it does not."""

import re
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.simulator.intel_documents import level, platform_tcb, sgx_extension, utc_text
from enclave.simulator.revocation_lists import sign_list
from enclave.simulator.tdx import Domain, Identity, QuotingEnclave, SimulatedIntel, SimulatedTdx
from shared.attestation.collateral import parse_collateral
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements, TdxCollateral
from shared.attestation.pck import join_pem
from shared.attestation.policy import TcbStatus, TdAttribute, TdxPolicy
from shared.attestation.tdx import CollateralCache, precheck_tdx, verify_tdx
from shared.attestation.trust import TrustAnchors
from shared.errors import PolicyDenied
from tests.shared.attestation.forgery import refuses
from tests.shared.attestation.tdx_forgery import (
    DAY,
    DEFAULT_POLICY,
    NOW,
    REPORT_DATA,
    TdxForge,
    leaf,
    recertified,
    redated,
)

SAMPLES = Path(__file__).parents[2] / "data" / "attestation" / "synthetic" / "tdx"
OLD_COLLATERAL = TdxPolicy(max_collateral_age=7 * 365 * DAY)
SEPT = 1 << 28
ALL_STATUSES = tuple(TcbStatus)
# Everything but Revoked, which dcap-qvl itself refuses, and the two that only a TD 1.5 can have.
PLATFORM_STATUSES = (
    TcbStatus.SW_HARDENING_NEEDED,
    TcbStatus.CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
    TcbStatus.OUT_OF_DATE,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
)
MODULE = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


@pytest.fixture(scope="module")
def forge() -> TdxForge:
    return TdxForge()


def quoted(forge: TdxForge, **domain: Any) -> bytes:
    return SimulatedTdx(forge.intel, Domain(**domain)).quote(REPORT_DATA)


def with_level(
    forge: TdxForge, status: str, *advisories: str, date: str = "2025-12-01T00:00:00Z"
) -> TdxCollateral:
    levels = [level(platform_tcb(), status, date, advisories)]
    return forge.intel.collateral(NOW, tcb_info={"tcbLevels": levels})


def with_module(forge: TdxForge, *levels: dict[str, object], name: str = "TDX_01") -> TdxCollateral:
    identity = {"id": name, **MODULE, "tcbLevels": list(levels)}
    return forge.intel.collateral(NOW, tcb_info={"tdxModuleIdentities": [identity]})


# --- what is accepted ---


@pytest.mark.parametrize(("version", "body"), [(4, 0), (5, 2), (5, 3)])
def test_a_simulated_quote_of_each_layout_verifies(forge: TdxForge, version: int, body: int) -> None:
    quote = SimulatedTdx(forge.intel, version=version, body_type=body).quote(REPORT_DATA)
    verified = forge.verify(quote)
    assert verified.status is TcbStatus.UP_TO_DATE
    assert verified.tcb_reason == "UpToDate, which the policy accepts"
    assert (verified.advisory_ids, verified.tcb_evaluation_number) == ((), 17)
    assert (len(verified.ppid), verified.fmspc) == (16, bytes(6))
    assert verified.quote.report.report_data == REPORT_DATA
    assert (verified.collateral_issued, verified.valid_until) == (NOW, NOW + 7 * DAY + 1)
    assert verified.simulated
    assert verified.anchor == forge.anchors[1].name


@pytest.mark.parametrize("name", ["quote_v4", "quote_v5_td10", "quote_v5_td15"])
def test_samples_verify(name: str) -> None:
    verified = verify_sample(name)
    assert verified.status is TcbStatus.UP_TO_DATE
    assert verified.ppid.hex() == "fa7cc20591d9c4e5128287cf92c30025"
    assert verified.fmspc.hex() == "00a06d080000"


def verify_sample(name: str, policy: TdxPolicy = OLD_COLLATERAL) -> Any:
    anchors = TrustAnchors.production().with_extra((SAMPLES / "root-ca.pem").read_bytes()).tdx
    collateral = parse_collateral((SAMPLES / "collateral.json").read_bytes())
    quote = (SAMPLES / f"{name}.bin").read_bytes()
    return verify_tdx(
        quote, now=NOW, anchors=anchors, policy=policy, endorsements=Endorsements(tdx=(collateral,))
    )


def test_n14_collateral_of_the_samples_is_too_old_by_default() -> None:
    with refuses("tdx.collateral.age"):
        verify_sample("quote_v4", DEFAULT_POLICY)


def test_n15_the_outdated_sample_is_refused_unless_the_policy_accepts_it() -> None:
    with refuses("tdx.tcb.status", PolicyDenied):
        verify_sample("quote_v4_outofdate")
    lax = msgspec.structs.replace(OLD_COLLATERAL, accept=(TcbStatus.OUT_OF_DATE,))
    assert verify_sample("quote_v4_outofdate", lax).advisory_ids == ("INTEL-SA-01036",)


def test_n16_the_debug_sample_is_refused() -> None:
    with refuses("tdx.attributes.debug"):
        verify_sample("quote_v4_debug")


def test_n12_the_tampered_sample_is_refused() -> None:
    with refuses("tdx.dcap.quote_signature"):
        verify_sample("quote_v4_tampered")


def test_real_quotes_want_collateral_of_their_platform(shared_data: Callable[[str], Path]) -> None:
    quote = shared_data("attestation/upstream/tdx/tdx_quote.bin").read_bytes()
    production = TrustAnchors.production().tdx
    with refuses("tdx.collateral.missing"):
        verify_tdx(quote, now=NOW, anchors=production, policy=DEFAULT_POLICY, endorsements=NO_ENDORSEMENTS)
    assert precheck_tdx(quote, anchors=production, policy=DEFAULT_POLICY).version == 4


# --- the domain, before anything is verified ---


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        (SEPT | 1, "debug"),
        *((SEPT | 1 << bit, "reserved") for bit in (1, 7, 8, 27, 29, 32, 62)),
        (0, "sept_ve"),
    ],
)
def test_n16_attributes_of_another_domain_are_refused(forge: TdxForge, attributes: int, code: str) -> None:
    with refuses(f"tdx.attributes.{code}"):
        forge.verify(quoted(forge, td_attributes=attributes))


@pytest.mark.parametrize(
    ("attribute", "bit"), [(TdAttribute.PKS, 30), (TdAttribute.KL, 31), (TdAttribute.PERFMON, 63)]
)
def test_n16_an_attribute_is_allowed_by_policy_alone(
    forge: TdxForge, attribute: TdAttribute, bit: int
) -> None:
    quote = quoted(forge, td_attributes=SEPT | 1 << bit)
    with refuses("tdx.attributes.policy", PolicyDenied):
        forge.verify(quote)
    assert forge.verify(quote, policy=TdxPolicy(allow_attributes=(attribute,)))


@pytest.mark.parametrize("xfam", [0, 1, 2, 0x602E7 | 1 << 8, 0x602E7 | 1 << 63])
def test_n16_unexpected_xfam_is_refused(forge: TdxForge, xfam: int) -> None:
    with refuses("tdx.xfam"):
        forge.verify(quoted(forge, xfam=xfam))


@pytest.mark.parametrize(
    ("field", "size"), [("mr_signer_seam", 48), ("seam_attributes", 8), ("mr_service_td", 48)]
)
def test_n16_a_register_that_must_be_zero_is(forge: TdxForge, field: str, size: int) -> None:
    domain = Domain(**{field: bytes(size - 1) + b"\x01"})  # type: ignore[arg-type] - one of three names
    with refuses(f"tdx.{field}"):
        forge.verify(SimulatedTdx(forge.intel, domain, version=5).quote(REPORT_DATA))


def test_n10_the_domain_is_judged_before_any_signature(forge: TdxForge) -> None:
    quote = bytearray(quoted(forge, td_attributes=SEPT | 1))
    quote[48 + 584 + 4] ^= 1  # the signature
    with refuses("tdx.attributes.debug"):
        forge.verify(bytes(quote))


def test_n17_another_report_data_is_refused(forge: TdxForge) -> None:
    for other in (bytes(64), b""):
        with refuses("tdx.report_data"):
            forge.verify(report_data=other)
    assert forge.verify(report_data=None).quote.report.report_data == REPORT_DATA


def test_n18_a_quote_for_an_earlier_challenge_is_refused(forge: TdxForge) -> None:
    """Its signature and its platform are as good as ever: only the challenge tells."""
    earlier = SimulatedTdx(forge.intel).quote(b"earlier challenge".ljust(64, b"\0"))
    with refuses("tdx.report_data"):
        forge.verify(earlier, report_data=b"this challenge".ljust(64, b"\0"))


# --- whose root ---


def test_another_root_is_refused_before_its_collateral_is_wanted(forge: TdxForge) -> None:
    with refuses("tdx.anchor"):
        forge.verify(anchors=TrustAnchors.production().tdx)
    with refuses("tdx.anchor"):
        precheck_tdx(forge.quote, anchors=TrustAnchors.production().tdx, policy=DEFAULT_POLICY)


def test_a_chain_that_only_names_the_root_is_refused(forge: TdxForge) -> None:
    """The root in the quote is ours, the certificates before it are another Intel's."""
    other = SimulatedIntel.create()
    for intel in (
        SimulatedIntel(forge.intel.root, forge.intel.platform, other.pck, forge.intel.tcb),
        SimulatedIntel(forge.intel.root, other.platform, other.pck, forge.intel.tcb),
    ):
        with refuses("tdx.dcap.chain"):
            forge.verify(SimulatedTdx(intel).quote(REPORT_DATA))


def test_an_expired_leaf_is_refused(forge: TdxForge) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    extension = sgx_extension(bytes(6), bytes(16))
    made = leaf(forge.intel.platform, key.public_key(), extension, not_after=NOW - 1)
    intel = SimulatedIntel(forge.intel.root, forge.intel.platform, Identity(made, key), forge.intel.tcb)
    with refuses("tdx.dcap.chain"):
        forge.verify(SimulatedTdx(intel).quote(REPORT_DATA))


# --- the quote's own signatures ---


def test_n12_a_flip_in_each_signed_part_has_its_code(forge: TdxForge) -> None:
    quote = forge.quote
    auth = 48 + 584 + 4
    for at, code in (
        (48 + 136, "quote_signature"),  # MRTD
        (auth, "quote_signature"),
        (auth + 64, "attestation_key"),
        (auth + 134 + 64, "qe_report_signature"),  # mr_enclave of the QE
        (auth + 134 + 384, "qe_report_signature"),
        (auth + 134 + 384 + 64 + 2, "attestation_key"),  # QE authentication data
    ):
        altered = bytearray(quote)
        altered[at] ^= 1
        with refuses(f"tdx.dcap.{code}"):
            forge.verify(bytes(altered))


# --- QE identity ---


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"mrsigner": "00" * 32}, "qe_mrsigner"),
        ({"isvprodid": 1}, "qe_isvprodid"),
        ({"miscselect": "01000000"}, "qe_miscselect"),
        ({"attributes": "13" + "00" * 15}, "qe_attributes"),
        ({"tcbLevels": [level({"isvsvn": 5})]}, "qe_isvsvn"),
        ({"tcbLevels": []}, "refused"),
        ({"id": "QE"}, "qe_identity_kind"),
        ({"version": 1}, "qe_identity_kind"),
    ],
)
def test_n13_another_quoting_enclave_is_refused(
    forge: TdxForge, members: dict[str, object], code: str
) -> None:
    with refuses(f"tdx.dcap.{code}"):
        forge.verify(None, forge.intel.collateral(NOW, qe_identity=members))


@pytest.mark.parametrize(
    ("enclave", "code"),
    [
        (QuotingEnclave(mr_signer=bytes(32)), "qe_mrsigner"),
        (QuotingEnclave(isv_prod_id=1), "qe_isvprodid"),
        (QuotingEnclave(misc_select=1), "qe_miscselect"),
        (QuotingEnclave(attributes=bytes(16)), "qe_attributes"),
        (QuotingEnclave(attributes=b"\x17" + bytes(15)), "qe_debug"),
        (QuotingEnclave(isv_svn=3), "qe_isvsvn"),
    ],
)
def test_n13_a_quoting_enclave_that_is_not_intels_is_refused(
    forge: TdxForge, enclave: QuotingEnclave, code: str
) -> None:
    with refuses(f"tdx.dcap.{code}"):
        forge.verify(SimulatedTdx(forge.intel, quoting_enclave=enclave).quote(REPORT_DATA))


def test_n13_a_newer_quoting_enclave_is_as_good_as_its_level(forge: TdxForge) -> None:
    quote = SimulatedTdx(forge.intel, quoting_enclave=QuotingEnclave(isv_svn=9)).quote(REPORT_DATA)
    assert forge.verify(quote).status is TcbStatus.UP_TO_DATE


@pytest.mark.parametrize("field", ["tcb_info", "qe_identity"])
def test_n13_collateral_that_intel_did_not_sign_is_refused(forge: TdxForge, field: str) -> None:
    text: str = getattr(forge.collateral, field)
    unsigned = {f"{field}_signature": b"\x11" * 64}
    spaced = {field: text.replace(",", ", ", 1)}  # the same document, not the same text
    for fields in (unsigned, spaced):
        with refuses(f"tdx.dcap.{field}_signature"):
            forge.verify(None, forge.altered(**fields))


def test_n13_collateral_signed_by_anothers_signer_is_refused(forge: TdxForge) -> None:
    other = SimulatedIntel.create().collateral(NOW)
    for field in ("tcb_info", "qe_identity"):
        names = (field, f"{field}_signature", f"{field}_issuer_chain")
        with refuses("tdx.dcap.chain"):
            forge.verify(None, forge.altered(**{name: getattr(other, name) for name in names}))


# --- TDX module ---


@pytest.mark.parametrize("name", ["TDX_02", "TDX_03"])
def test_n13_a_module_of_an_unknown_version_is_refused(forge: TdxForge, name: str) -> None:
    with refuses("tdx.dcap.module"):
        forge.verify(None, with_module(forge, level({"isvsvn": 4}), name=name))


def test_n13_a_module_below_every_level_is_refused(forge: TdxForge) -> None:
    with refuses("tdx.dcap.module"):
        forge.verify(None, with_module(forge, level({"isvsvn": 6})))


@pytest.mark.parametrize("document", ["tcb_info", "qe_identity"])
def test_n13_a_document_that_a_platforms_key_signed_is_refused(forge: TdxForge, document: str) -> None:
    """dcap-qvl takes any certificate under the root for Intel's signer, that of a machine too."""
    text: str = getattr(forge.collateral, document)
    chain = {f"{document}_issuer_chain": forge.intel.pck_chain.decode()}
    signature = {f"{document}_signature": forge.intel.pck.sign(text.encode())}
    with refuses("tdx.collateral.signer"):
        forge.verify(None, forge.altered(**chain, **signature))


@pytest.mark.parametrize("change", [{"mrsigner": "11" * 48}, {"attributes": "01" + "00" * 7}])
def test_n13_a_module_of_another_signer_is_refused(forge: TdxForge, change: dict[str, str]) -> None:
    identity = {"id": "TDX_01", **MODULE, **change, "tcbLevels": [level({"isvsvn": 4})]}
    with refuses("tdx.dcap.module"):
        forge.verify(None, forge.intel.collateral(NOW, tcb_info={"tdxModuleIdentities": [identity]}))


def test_a_module_that_is_behind_makes_the_platform_so(forge: TdxForge) -> None:
    behind = with_module(forge, level({"isvsvn": 4}, "OutOfDate", "2025-12-01T00:00:00Z", ("INTEL-SA-1",)))
    verified = forge.verify(None, behind, policy=TdxPolicy(accept=ALL_STATUSES))
    assert (verified.status, verified.advisory_ids) == (TcbStatus.OUT_OF_DATE, ("INTEL-SA-1",))


def test_a_domain_older_than_its_platform_is_told_so(forge: TdxForge) -> None:
    """TD 1.5 reports the module that started it and the one that runs now."""
    old = bytes([3, 1, 2]) + bytes(13)
    quote = SimulatedTdx(forge.intel, Domain(tee_tcb_svn=old), version=5).quote(REPORT_DATA)
    collateral = with_module(forge, level({"isvsvn": 4}), level({"isvsvn": 2}, "OutOfDate"))
    with refuses("tdx.tcb.status", PolicyDenied):
        forge.verify(quote, collateral)
    accepting = TdxPolicy(accept=(TcbStatus.TD_RELAUNCH_ADVISED,))
    assert forge.verify(quote, collateral, policy=accepting).status is TcbStatus.TD_RELAUNCH_ADVISED


# --- revocation and dates ---


@pytest.mark.parametrize("role", ["pck", "platform"])
def test_n14_a_revoked_chain_is_refused(forge: TdxForge, role: str) -> None:
    with refuses("tdx.pck.revoked"):
        forge.verify(None, forge.intel.collateral(NOW, revoked=(role,)))


def test_n14_a_revoked_signer_of_collateral_is_refused(forge: TdxForge) -> None:
    with refuses("tdx.dcap.chain"):
        forge.verify(None, forge.intel.collateral(NOW, revoked=("tcb",)))


def test_n14_a_revocation_list_of_another_ca_is_refused(forge: TdxForge) -> None:
    other = SimulatedIntel.create().collateral(NOW)
    with refuses("tdx.dcap.chain"):
        forge.verify(None, forge.altered(pck_crl=other.pck_crl))
    with refuses("tdx.dcap.refused"):
        forge.verify(None, forge.altered(root_ca_crl=other.root_ca_crl))


def test_n14_overdue_collateral_is_refused(forge: TdxForge) -> None:
    past = {"nextUpdate": utc_text(NOW - 1)}
    for collateral in (
        forge.intel.collateral(NOW, tcb_info=past),
        forge.intel.collateral(NOW, qe_identity=past),
        forge.intel.collateral(NOW, crl_issued=NOW - DAY, crl_lifetime=timedelta(days=1, seconds=-1)),
    ):
        with refuses("tdx.collateral.expired"):
            forge.verify(None, collateral)


def test_n14_collateral_from_the_future_is_refused(forge: TdxForge) -> None:
    future = {"issueDate": utc_text(NOW + 1)}
    for collateral in (
        forge.intel.collateral(NOW, tcb_info=future),
        forge.intel.collateral(NOW, qe_identity=future),
        forge.intel.collateral(NOW, crl_issued=NOW + 1),
    ):
        with refuses("tdx.collateral.future"):
            forge.verify(None, collateral)


def test_n14_collateral_that_intel_still_stands_by_is_refused_by_age(forge: TdxForge) -> None:
    issued = {"issueDate": utc_text(NOW - 7 * DAY)}
    for collateral in (
        forge.intel.collateral(NOW, tcb_info=issued),
        forge.intel.collateral(NOW, qe_identity=issued),
        forge.intel.collateral(NOW, crl_issued=NOW - 7 * DAY),
    ):
        verified = forge.verify(None, collateral)
        assert verified.valid_until == NOW + 1
        assert verified.collateral_issued == NOW - 7 * DAY
        with refuses("tdx.collateral.age"):
            forge.verify(None, collateral, now=verified.valid_until)


def test_n14_collateral_of_another_platform_is_never_used(forge: TdxForge) -> None:
    other = SimulatedIntel(
        forge.intel.root, forge.intel.platform, SimulatedIntel.create(fmspc=b"abcdef").pck, forge.intel.tcb
    )
    processor = forge.altered(pck_crl=renamed_crl(forge))
    for collateral in (other.collateral(NOW), processor):
        with refuses("tdx.collateral.missing"):
            forge.verify(None, collateral)
    assert forge.verify(None, other.collateral(NOW), forge.collateral, processor)


def renamed_crl(forge: TdxForge) -> bytes:
    """The revocation list, by its issuer's name a processor CA's."""
    return forge.collateral.pck_crl.replace(
        b"Simulated SGX PCK Platform CA", b"Simulated SGX PCK Processr CA"
    )


def test_of_several_collaterals_the_youngest_is_used(forge: TdxForge) -> None:
    old = forge.intel.collateral(NOW - DAY)
    for collaterals in ((old, forge.collateral), (forge.collateral, old)):
        assert forge.verify(None, *collaterals).collateral_issued == NOW


def test_collateral_that_is_younger_than_the_time_asked_about_is_passed_over(forge: TdxForge) -> None:
    """A verdict about the past, with a bundle that was renewed since."""
    old = forge.intel.collateral(NOW - DAY)
    verified = forge.verify(None, forge.collateral, old, now=NOW - 1)
    assert verified.collateral_issued == NOW - DAY


def test_valid_until_is_the_last_second_that_verifies(forge: TdxForge) -> None:
    policy = TdxPolicy(max_collateral_age=365 * DAY)
    due = forge.intel.collateral(NOW, tcb_info={"nextUpdate": utc_text(NOW + 50)})
    verified = forge.verify(None, due, policy=policy)
    assert verified.valid_until == NOW + 51
    assert forge.verify(None, due, policy=policy, now=NOW + 50).valid_until == NOW + 51
    with refuses("tdx.collateral.expired"):
        forge.verify(None, due, policy=policy, now=NOW + 51)


def test_valid_until_ends_with_a_certificate(forge: TdxForge) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    made = leaf(forge.intel.platform, key.public_key(), sgx_extension(bytes(6), bytes(16)), not_after=NOW + 9)
    intel = SimulatedIntel(forge.intel.root, forge.intel.platform, Identity(made, key), forge.intel.tcb)
    assert forge.verify(SimulatedTdx(intel).quote(REPORT_DATA)).valid_until == NOW + 10


@pytest.mark.parametrize("role", ["root", "platform", "pck", "tcb"])
def test_valid_until_ends_with_any_certificate_of_evidence_and_collateral(forge: TdxForge, role: str) -> None:
    intel = with_validity(forge, role, NOW - DAY, NOW + 9)
    verified = TdxForge(intel).verify()
    assert verified.valid_until == NOW + 10
    assert TdxForge(intel).verify(now=NOW + 9)


def test_n14_a_root_outside_its_validity_vouches_for_nothing(forge: TdxForge) -> None:
    for dates in ((NOW - DAY, NOW - 1), (NOW + 1, NOW + DAY)):
        with refuses("tdx.anchor.validity"):
            TdxForge(with_validity(forge, "root", *dates)).verify()


def test_n14_a_root_list_that_is_overdue_or_of_the_future_is_refused(forge: TdxForge) -> None:
    root = forge.intel.root
    for start, code in ((NOW - 8 * DAY, "expired"), (NOW + 1, "future")):
        listed = sign_list(root.certificate.subject, root.key, now=start)
        with refuses(f"tdx.collateral.{code}"):
            forge.verify(None, forge.altered(root_ca_crl=listed))


def with_validity(forge: TdxForge, role: str, not_before: int, not_after: int) -> SimulatedIntel:
    """Return the same Intel but for the validity of one certificate."""
    issuer = forge.intel.platform if role == "pck" else forge.intel.root
    identity: Identity = getattr(forge.intel, role)
    return msgspec.structs.replace(forge.intel, **{role: redated(identity, issuer, not_before, not_after)})


# --- TCB ---


@pytest.mark.parametrize("status", PLATFORM_STATUSES)
def test_n15_each_status_is_refused_by_default_and_accepted_by_name(
    forge: TdxForge, status: TcbStatus
) -> None:
    collateral = with_level(forge, status.value, "INTEL-SA-9")
    with refuses("tdx.tcb.status", PolicyDenied):
        forge.verify(None, collateral)
    others = tuple(other for other in ALL_STATUSES if other is not status)
    with refuses("tdx.tcb.status", PolicyDenied):
        forge.verify(None, collateral, policy=TdxPolicy(accept=others))
    verified = forge.verify(None, collateral, policy=TdxPolicy(accept=(status,)))
    assert (verified.status, verified.advisory_ids) == (status, ("INTEL-SA-9",))


def test_n15_revoked_is_refused_by_every_policy(forge: TdxForge) -> None:
    lax = TdxPolicy(accept=ALL_STATUSES)
    for collateral in (
        with_level(forge, "Revoked"),
        with_module(forge, level({"isvsvn": 4}, "Revoked")),
        forge.intel.collateral(NOW, qe_identity={"tcbLevels": [level({"isvsvn": 4}, "Revoked")]}),
    ):
        with refuses("tdx.tcb.revoked", PolicyDenied):
            forge.verify(None, collateral, policy=lax)


def test_n15_the_quoting_enclaves_status_counts(forge: TdxForge) -> None:
    behind = forge.intel.collateral(NOW, qe_identity={"tcbLevels": [level({"isvsvn": 4}, "OutOfDate")]})
    with refuses("tdx.tcb.status", PolicyDenied):
        forge.verify(None, behind)


def test_n15_a_rejected_advisory_refuses_whatever_the_status(forge: TdxForge) -> None:
    collateral = with_level(forge, "UpToDate", "INTEL-SA-7", "INTEL-SA-8")
    assert forge.verify(None, collateral, policy=TdxPolicy(reject_advisories=("INTEL-SA-9",)))
    with refuses("tdx.advisory", PolicyDenied):
        forge.verify(None, collateral, policy=TdxPolicy(reject_advisories=("INTEL-SA-9", "INTEL-SA-8")))


def test_n15_a_grace_ends(forge: TdxForge) -> None:
    policy = TdxPolicy(grace={TcbStatus.OUT_OF_DATE: 3600})
    begin = NOW - 3000
    collateral = graced(forge, platform=begin, module=NOW, quoting_enclave=NOW)
    verified = forge.verify(None, collateral, policy=policy)
    assert verified.tcb_reason == f"OutOfDate, in its grace until {begin + 3600}"
    assert verified.valid_until == begin + 3601
    assert forge.verify(None, collateral, policy=policy, now=begin + 3600)
    with refuses("tdx.tcb.grace", PolicyDenied):
        forge.verify(None, collateral, policy=policy, now=begin + 3601)


@pytest.mark.parametrize("part", ["platform", "module", "quoting_enclave"])
def test_n15_a_grace_counts_from_the_earliest_level(forge: TdxForge, part: str) -> None:
    policy = TdxPolicy(grace={TcbStatus.OUT_OF_DATE: 3600})
    dates = {"platform": NOW, "module": NOW, "quoting_enclave": NOW}
    assert forge.verify(None, graced(forge, **dates), policy=policy).valid_until == NOW + 3601
    with refuses("tdx.tcb.grace", PolicyDenied):
        forge.verify(None, graced(forge, **dates | {part: NOW - 3601}), policy=policy)


def graced(forge: TdxForge, *, platform: int, module: int, quoting_enclave: int) -> TdxCollateral:
    """Collateral with an outdated platform, and the dates of the levels."""
    identity = {"id": "TDX_01", **MODULE, "tcbLevels": [level({"isvsvn": 4}, date=utc_text(module))]}
    return forge.intel.collateral(
        NOW,
        tcb_info={
            "tcbLevels": [level(platform_tcb(), "OutOfDate", utc_text(platform))],
            "tdxModuleIdentities": [identity],
        },
        qe_identity={"tcbLevels": [level({"isvsvn": 4}, date=utc_text(quoting_enclave))]},
    )


def test_a_platform_below_every_level_is_refused(forge: TdxForge) -> None:
    for tcb in (platform_tcb(cpu_svn=3), platform_tcb(pce_svn=12)):
        with refuses("tdx.dcap.tcb_level"):
            forge.verify(None, forge.intel.collateral(NOW, tcb_info={"tcbLevels": [level(tcb)]}))


def test_the_best_level_that_the_platform_reaches_counts(forge: TdxForge) -> None:
    levels = [level(platform_tcb(cpu_svn=3)), level(platform_tcb(cpu_svn=1), "OutOfDate")]
    collateral = forge.intel.collateral(NOW, tcb_info={"tcbLevels": levels})
    with refuses("tdx.tcb.status", PolicyDenied):
        forge.verify(None, collateral)


@pytest.mark.parametrize("members", [{"id": "SGX"}, {"version": 2}])
def test_n13_tcb_info_of_another_kind_is_refused(forge: TdxForge, members: dict[str, object]) -> None:
    with refuses("tdx.dcap.tcb_info_kind"):
        forge.verify(None, forge.intel.collateral(NOW, tcb_info=members))


def test_a_status_that_nobody_knows_is_refused(forge: TdxForge) -> None:
    with refuses("tdx.dcap.refused"):
        forge.verify(None, with_level(forge, "Splendid"))


def test_an_earlier_tcb_evaluation_is_refused(forge: TdxForge) -> None:
    assert forge.verify(policy=TdxPolicy(min_tcb_evaluation_number=17))
    with refuses("tdx.tcb.evaluation", PolicyDenied):
        forge.verify(policy=TdxPolicy(min_tcb_evaluation_number=18))
    earlier = {"tcbEvaluationDataNumber": 16}
    for collateral in (
        forge.intel.collateral(NOW, tcb_info=earlier),
        forge.intel.collateral(NOW, qe_identity=earlier),
    ):
        with refuses("tdx.tcb.evaluation", PolicyDenied):
            forge.verify(None, collateral, policy=TdxPolicy(min_tcb_evaluation_number=17))


# --- quotes without a chain ---


@pytest.mark.parametrize("kind", [2, 3])
def test_a_quote_without_a_chain_uses_the_collaterals(forge: TdxForge, kind: int) -> None:
    quote = recertified(forge.quote, kind, bytes(276 if kind == 2 else 404))
    with refuses("tdx.quote.certification"):
        forge.verify(quote)
    chained = forge.altered(pck_certificate_chain=forge.intel.pck_chain.decode())
    assert forge.verify(quote, forge.collateral, chained).fmspc == bytes(6)
    with refuses("tdx.anchor"):
        forge.verify(quote, chained, anchors=TrustAnchors.production().tdx)


def test_a_quote_without_a_chain_takes_no_other_machines(forge: TdxForge) -> None:
    quote = recertified(forge.quote, 3, bytes(404))
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    other_kind = leaf(forge.intel.platform, key, sgx_extension(bytes(6), bytes(16)))
    for der in (SimulatedIntel.create().pck.der, other_kind.public_bytes(Encoding.DER)):
        chain = join_pem((der, forge.intel.platform.der, forge.intel.root.der)).decode()
        with refuses("tdx.quote.certification"):
            forge.verify(quote, forge.altered(pck_certificate_chain=chain))


def test_the_quotes_own_chain_is_used_where_it_has_one(forge: TdxForge) -> None:
    """dcap-qvl would take the collateral's, which whoever brings the collateral chose."""
    other = SimulatedIntel.create().pck_chain.decode()
    assert forge.verify(None, forge.altered(pck_certificate_chain=other))


def test_a_chain_of_the_collateral_that_is_no_text_is_refused(forge: TdxForge) -> None:
    with refuses("tdx.pck.pem"):
        forge.verify(None, forge.altered(pck_certificate_chain=forge.intel.pck_chain.decode() + "\ud800"))


# --- the library ---


def test_a_cache_gives_the_same_verdict(forge: TdxForge) -> None:
    cache = CollateralCache(size=1)
    first = forge.verify(cache=cache)
    assert forge.verify(cache=cache) == first == forge.verify()
    assert len(cache) == 1
    forge.verify(None, forge.intel.collateral(NOW - 1), cache=cache)
    assert len(cache) == 1


class _Claims:
    def __init__(self, claims: Any) -> None:
        self._claims = claims

    def to_json(self) -> str:
        return msgspec.json.encode(self._claims).decode()


@pytest.mark.parametrize("part", ["report", "fmspc"])
def test_two_readings_of_one_quote_are_refused(
    forge: TdxForge, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    import dcap_qvl  # noqa: PLC0415 - the class that is replaced

    class Misreading:
        def __init__(self, root: bytes) -> None:
            self._verifier = original(root)

        def verify_with_policy(self, *arguments: Any) -> _Claims:
            claims = msgspec.json.decode(self._verifier.verify_with_policy(*arguments).to_json())
            if part == "report":
                claims["report"]["TD10"]["rt_mr3"] = "11" * 48
            else:
                claims["platform"]["pck"]["fmspc"] = [1] * 6
            return _Claims(claims)

    original = dcap_qvl.QuoteVerifier
    monkeypatch.setattr(dcap_qvl, "QuoteVerifier", Misreading)
    with refuses("tdx.dcap.disagrees"):
        forge.verify()


class PanicException(BaseException):
    """Named like PyO3's."""


@pytest.mark.parametrize("kind", [PanicException, KeyboardInterrupt])
def test_a_panic_is_a_refusal_and_an_interrupt_is_not(
    forge: TdxForge, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    class Panicking:
        def __init__(self, _root: bytes) -> None:
            raise kind

    monkeypatch.setattr(sys.modules["dcap_qvl"], "QuoteVerifier", Panicking)
    if kind is PanicException:
        with refuses("tdx.dcap.panic"):
            forge.verify()
    else:
        with pytest.raises(KeyboardInterrupt):
            forge.verify()


def test_the_installed_library_is_not_one_that_forgets_the_qe_identity() -> None:
    """CVE-2026-22696: before 0.3.9 nobody checked who signed the QE identity."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version("dcap-qvl"))[:3])
    assert (0, 3, 9) < (0, 7, 0) <= numbers < (0, 8, 0)

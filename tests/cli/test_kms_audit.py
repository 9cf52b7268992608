"""The pure audit of a KMS: each forged input is refused in its own lane, by its own code."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cli.kms_audit import (
    BOOTSTRAP,
    CHAIN,
    LANES,
    Contract,
    Finding,
    Proven,
    Seen,
    Status,
    attempt,
    audit,
    caveats,
    outcome,
    subject,
)
from cli.kms_hints import HINTS_KMS, hint_for_kms
from cli.kms_meta import MAX_META, MAX_RECORD, parse_meta, parse_record
from cli.kms_report import report_on
from cli.kms_strictness import KmsPolicy, lax_settings
from shared.attestation.envelope import TdxQuote
from shared.attestation.policy import Policy, TdxPolicy
from shared.attestation.report_data import bootstrap_report_data
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.chain.decision import Decision, KmsRoots
from shared.errors import ConfigError, DstackError, ExitCode, InvalidEvidence, UnavailableError
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.certificates import rpc_certificate, self_signed_ca, spki_der
from shared.ratls.csr import CsrConfig
from shared.ratls.peer import ratls_report_data
from shared.rpc import kms_pb2 as pb
from tests.docs.references import is_error_code
from tests.shared.attestation.forgery import NOW, PCRS, REPORT_DATA, Forge
from tests.shared.attestation.guest_forgery import LEGACY, TdxGuest
from tests.shared.refusal import refuses

HOST = "kms.test"
ADDRESS = b"k" * 20
K256 = b"\2" + b"k" * 32
CONTRACT = Contract(1, ADDRESS, ("one.test", "two.test"))
ALLOWED = Decision(
    is_allowed=True,
    reason="",
    gateway_app_id="",
    app_implementation=bytes(20),
    finalized_number=7,
    expires_at=NOW + 60,
)
STRICT: dict[str, Any] = {
    "auth_mode": "proof",
    "clock_source": "nsm",
    "simulated": True,  # as the forged evidence is
    "evidence_anchor": "external",
    "self_authorization": True,
    "attested_certificate": True,
    "image_verification": True,
    "evidence_policy": [],
    "treat_nitro_as_up_to_date": False,
    "nitro_enclave_key_release": False,
    "nitro_app_id_pcr": True,
    "nitro_tpm_key_release": False,
    "quorum": 2,
    "quorum_plain_http": False,
    "finalized_block": 7,
    "max_block_age": 1800,
    "max_head_age": 120,
    "allow_cache": 0,
    "block_cache": 0,
    "pinned_implementations": 0,
    "custody": "tpm",
    "key_handover": "admin",
}


class World:
    """A KMS without a fault: its enclave, its root CA, its certificate, and what it tells."""

    def __init__(self) -> None:
        self.forge = Forge()
        self.root = ec.generate_private_key(ec.SECP256R1())
        self.ca = self_signed_ca(self.root, "Dstack KMS CA", 1, NOW - 60, NOW + 86_400)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ca_pubkey = spki_der(self.root.public_key())
        bare = self.certificate(b"none")
        self.leaf = self.certificate(self.forge.envelope(report_data=ratls(bare), user_data=ratls(bare)))
        self.server = self.evidence(ratls(self.leaf))
        self.made = self.evidence(bootstrap_report_data(self.ca_pubkey, K256))

    def certificate(self, attestation: bytes, **changes: Any) -> bytes:
        values: dict[str, Any] = {"domain": HOST, "issuer": (self.ca, self.root), "now": NOW}
        return der(rpc_certificate(self.key, attestation=attestation, **values | changes))

    def app_leaf(self) -> bytes:
        return der(
            app_certificate(
                self.key.public_key(),
                CsrConfig(subject="app", subject_alt_names=(HOST,), usage_server_auth=True),
                Stamps(app_id=b"a" * 20, attestation=self.forge.envelope()),
                issuer=(self.ca, self.root),
                times=(NOW - 60, NOW + 3600),
            )
        )

    def evidence(self, report_data: bytes, **changes: Any) -> VerifiedAttestation:
        return verify_attestation(
            self.forge.envelope(report_data=report_data, user_data=report_data, **changes),
            now=NOW,
            anchors=self.forge.anchors,
            report_data=report_data,
        )

    def record(self, **changes: str) -> dict[str, Any]:
        made = {"ca_pubkey": self.ca_pubkey.hex(), "k256_pubkey": K256.hex(), "attestation": "00"}
        return made | changes

    def meta(self, policy: dict[str, Any] | None = STRICT, **changes: Any) -> bytes:
        told = {
            "ca_cert": self.ca.public_bytes(Encoding.PEM).decode(),
            "allow_any_upgrade": False,
            "k256_pubkey": K256.hex(),
            "bootstrap_info": self.record(),
            "is_dev": False,
            "gateway_app_id": None,
            "kms_contract_address": f"0x{ADDRESS.hex()}",
            "chain_id": 1,
            "app_auth_implementation": None,
            "policy": policy,
        }
        return json.dumps(told | changes).encode()

    def seen(self, **changes: Any) -> Seen:
        values: dict[str, Any] = {
            "leaf": self.leaf,
            "server": self.server,
            "meta": parse_meta(self.meta()),
            "contract": CONTRACT,
            "proven": Proven(KmsRoots(self.ca_pubkey, K256, 7, NOW + 60), ALLOWED),
            "record": parse_record(json.dumps(self.record()).encode()),
            "record_evidence": self.made,
        }
        return Seen(**values | changes)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def ratls(leaf: bytes) -> bytes:
    return ratls_report_data(leaf)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def judge(seen: Seen, hostname: str = HOST) -> dict[str, Finding]:
    return audit(seen, hostname=hostname, now=NOW)


def codes(lanes: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.code for name, finding in lanes.items() if finding.code}


def verdict(seen: Seen) -> ExitCode:
    return outcome(judge(seen), with_contract=seen.contract is not None)


def test_a_kms_without_a_fault_is_verified(world: World) -> None:
    lanes = judge(world.seen())
    assert tuple(lanes) == LANES
    assert {name for name, lane in lanes.items() if lane.status is not Status.VERIFIED} == {"policy"}
    assert lanes["policy"].status is Status.SELF_ASSERTED
    assert verdict(world.seen()) is ExitCode.OK
    assert caveats(lanes, with_contract=True) == ()


# --- the server ---


def test_refuses_an_apps_certificate(world: World) -> None:
    lanes = judge(world.seen(leaf=world.app_leaf()))
    assert codes(lanes) == {"certificate": "ratls.usage"}
    assert lanes["evidence"].status is Status.SKIPPED


def test_refuses_a_certificate_out_of_its_dates(world: World) -> None:
    leaf = world.certificate(world.forge.envelope(), now=NOW - 10 * 86_400)
    assert codes(judge(world.seen(leaf=leaf))) == {"certificate": "ratls.certificate.expired"}


def test_refuses_evidence_over_another_key(world: World) -> None:
    """Though whoever calls has verified it, over what it carries."""
    lanes = judge(world.seen(server=world.evidence(REPORT_DATA)))
    assert codes(lanes) == {"evidence": "attestation.report_data"}
    assert lanes["allowed"].status is Status.SKIPPED


def test_refuses_evidence_that_does_not_verify(world: World) -> None:
    lanes = judge(world.seen(server=InvalidEvidence("nitro.stale", "document is old")))
    assert codes(lanes) == {"evidence": "nitro.stale"}
    assert verdict(world.seen(server=InvalidEvidence("nitro.stale", "document is old"))) is ExitCode.REFUSED


def test_refuses_another_image_than_the_config_names(world: World) -> None:
    server = world.evidence(ratls(world.leaf), config='{"os_image_hash":"%s"}' % ("11" * 32))
    assert codes(judge(world.seen(server=server))) == {"image": "identity.os_image.mismatch"}


def test_refuses_an_image_that_only_a_lax_policy_accepts(world: World) -> None:
    """A report may pass it, a key server may not: it would itself release nothing on such evidence."""
    guest, lax = TdxGuest(), Policy(tdx=TdxPolicy(allow_unverified_image=True))
    attestation = guest.attestation(config=LEGACY, report_data=ratls(world.leaf))
    assert isinstance(attestation.quote, TdxQuote)
    server = guest.verify(attestation, policy=lax, report_data=ratls(world.leaf))
    assert codes(judge(world.seen(server=server))) == {"image": "identity.os_image.unverified"}


def test_nothing_is_believed_of_a_server_that_was_not_verified(world: World) -> None:
    seen = world.seen(server=None)
    assert verdict(seen) is ExitCode.REFUSED
    assert {lane.status for name, lane in judge(seen).items() if name != "certificate"} == {Status.SKIPPED}


# --- its answer ---


def test_refuses_a_ca_that_did_not_issue_the_certificate(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    other = self_signed_ca(key, "Dstack KMS CA", 1, NOW - 60, NOW + 86_400)
    meta = parse_meta(world.meta(ca_cert=other.public_bytes(Encoding.PEM).decode()))
    lanes = judge(world.seen(meta=meta))
    assert lanes["issuer"].code == "ratls.signature"
    assert lanes["root_ca"].code == "kms_audit.root_ca.other"


def test_refuses_a_ca_cert_that_is_no_ca(world: World) -> None:
    leaf = x509.load_der_x509_certificate(world.leaf).public_bytes(Encoding.PEM).decode()
    assert judge(world.seen(meta=parse_meta(world.meta(ca_cert=leaf))))["issuer"].code == "kms_audit.ca_cert"


def test_refuses_two_ca_certs(world: World) -> None:
    pem = world.ca.public_bytes(Encoding.PEM).decode()
    meta = parse_meta(world.meta(ca_cert=pem + pem))
    assert judge(world.seen(meta=meta))["issuer"].code == "kms_audit.ca_cert"


def test_another_name_is_told_and_no_refusal(world: World) -> None:
    lanes = judge(world.seen(), hostname="tunnel.test")
    assert lanes["issuer"].status is Status.VERIFIED
    assert lanes["hostname"].status is Status.SKIPPED
    assert "tunnel.test" in lanes["hostname"].reason


def test_an_answer_that_did_not_come_is_a_failure(world: World) -> None:
    seen = world.seen(meta=UnavailableError("kms_audit.status", "GetMeta was answered with 400"))
    assert codes(judge(seen)) == {"meta": "kms_audit.status"}
    assert verdict(seen) is ExitCode.FAILED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ca_cert": None}, "kms_audit.meta.invalid"),
        ({"ca_cert": "nothing"}, "kms_audit.meta.invalid"),
        ({"ca_cert": "\ud800"}, "kms_audit.meta.invalid"),
        ({"k256_pubkey": "02"}, "kms_audit.meta.invalid"),
        ({"k256_pubkey": "zz" * 33}, "kms_audit.meta.invalid"),
        ({"is_dev": 1}, "kms_audit.meta.invalid"),
        ({"chain_id": "1"}, "kms_audit.meta.invalid"),
        ({"kms_contract_address": "0x1"}, "kms_audit.meta.invalid"),
        ({"bootstrap_info": []}, "kms_audit.meta.invalid"),
        ({"policy": []}, "kms_audit.meta.invalid"),
        ({"policy": STRICT | {"quorum": True}}, "kms_audit.meta.invalid"),
        ({"policy": STRICT | {"self_authorization": "yes"}}, "kms_audit.meta.invalid"),
        ({"policy": STRICT | {"evidence_policy": "none"}}, "kms_audit.meta.invalid"),
        ({"more": "x" * MAX_META}, "kms_audit.meta.size"),
    ],
)
def test_refuses_an_answer_that_is_none(world: World, changes: dict[str, Any], code: str) -> None:
    with refuses(code):
        parse_meta(world.meta(**changes))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "kms_audit.meta.syntax"),
        (b"[]", "kms_audit.meta.invalid"),
        (b"{}", "kms_audit.meta.invalid"),
        (b'{"a":1,"a":2}', "kms_audit.meta.duplicate_key"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "kms_audit.meta.depth"),
    ],
)
def test_refuses_what_is_no_answer(raw: bytes, code: str) -> None:
    with refuses(code):
        parse_meta(raw)


# --- the contract ---


def test_without_a_contract_it_says_so(world: World) -> None:
    seen = world.seen(contract=None, proven=None)
    lanes = judge(seen)
    assert {lanes[name].status for name in CHAIN} == {Status.SKIPPED}
    assert verdict(seen) is ExitCode.OK
    assert caveats(lanes, with_contract=False) == (
        "without the contract: whose keys these are was not checked",
    )


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"kms_contract_address": None}, "kms_audit.contract.unnamed"),
        ({"kms_contract_address": ""}, "kms_audit.contract.unnamed"),
        ({"kms_contract_address": "0x" + "11" * 20}, "kms_audit.contract.other"),
        ({"chain_id": 2}, "kms_audit.contract.chain"),
        ({"chain_id": None}, "kms_audit.contract.chain"),
    ],
)
def test_refuses_a_kms_of_another_contract(world: World, told: dict[str, Any], code: str) -> None:
    assert codes(judge(world.seen(meta=parse_meta(world.meta(**told))))) == {"contract": code}


OTHER_CA = spki_der(ec.generate_private_key(ec.SECP256R1()).public_key())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ca_pubkey": None}, {"root_ca": "kms_audit.root_ca.unset"}),
        ({"ca_pubkey": OTHER_CA}, {"root_ca": "kms_audit.root_ca.other"}),
        ({"k256_pubkey": None}, {"k256_key": "kms_audit.k256_key.unset"}),
        ({"k256_pubkey": b"\3" + K256[1:]}, {"k256_key": "kms_audit.k256_key.other"}),
    ],
)
def test_refuses_keys_that_the_contract_does_not_publish(
    world: World, changes: dict[str, Any], expected: dict[str, str]
) -> None:
    roots = msgspec.structs.replace(KmsRoots(world.ca_pubkey, K256, 7, NOW + 60), **changes)
    seen = world.seen(proven=Proven(roots, ALLOWED))
    assert codes(judge(seen)) == expected
    assert verdict(seen) is ExitCode.REFUSED


def test_refuses_a_kms_that_the_contract_does_not_allow(world: World) -> None:
    denied = msgspec.structs.replace(ALLOWED, is_allowed=False, reason="Aggregated MR not allowed")
    lanes = judge(world.seen(proven=Proven(KmsRoots(world.ca_pubkey, K256, 7, NOW), denied)))
    assert codes(lanes) == {"allowed": "kms_audit.denied"}
    assert lanes["allowed"].reason.endswith("Aggregated MR not allowed")


def test_what_could_not_be_proven_is_no_success(world: World) -> None:
    gone = UnavailableError("quorum.too_few", "nobody answers")
    assert verdict(world.seen(proven=Proven(gone, gone))) is ExitCode.FAILED
    lied = InvalidEvidence("proof.header.stale", "block 7 is old")
    assert verdict(world.seen(proven=Proven(gone, lied))) is ExitCode.REFUSED
    assert verdict(world.seen(proven=None)) is ExitCode.REFUSED


def test_the_contract_is_told_up_to_date_only_where_the_kms_says_that_it_does_so(world: World) -> None:
    strict = parse_meta(world.meta())
    filling = parse_meta(world.meta(STRICT | {"treat_nitro_as_up_to_date": True}))
    silent = parse_meta(world.meta(None))
    told = [subject(world.server, meta).tcb_status for meta in (strict, filling, silent)]
    assert told == ["", "UpToDate", ""]
    assert "told UpToDate" in judge(world.seen(meta=filling))["allowed"].reason
    assert "told UpToDate" not in judge(world.seen(meta=strict))["allowed"].reason


# --- the bootstrap ---


def test_a_kms_without_a_record_is_told_as_such(world: World) -> None:
    seen = world.seen(record=None, record_evidence=None)
    lanes = judge(seen)
    assert {lanes[name].status for name in BOOTSTRAP} == {Status.NOT_APPLICABLE}
    assert lanes["bootstrap_keys"].reason.startswith("absent: ")
    assert verdict(seen) is ExitCode.OK


@pytest.mark.parametrize("name", ["ca_pubkey", "k256_pubkey"])
def test_refuses_a_record_of_other_keys(world: World, name: str) -> None:
    other = {"ca_pubkey": OTHER_CA, "k256_pubkey": b"\3" + K256[1:]}[name]
    record = parse_record(json.dumps(world.record(**{name: other.hex()})).encode())
    evidence = world.evidence(bootstrap_report_data(record.ca_pubkey, record.k256_pubkey))
    seen = world.seen(record=record, record_evidence=evidence)
    assert codes(judge(seen)) == {"bootstrap_keys": "kms_audit.bootstrap.other_keys"}
    assert verdict(seen) is ExitCode.REFUSED


def test_refuses_a_record_whose_evidence_is_over_something_else(world: World) -> None:
    lanes = judge(world.seen(record_evidence=world.evidence(REPORT_DATA)))
    assert codes(lanes) == {"bootstrap_evidence": "attestation.report_data"}
    assert lanes["bootstrap_image"].status is Status.SKIPPED


def test_refuses_a_record_whose_evidence_does_not_verify(world: World) -> None:
    forged = InvalidEvidence("cose.signature", "the signature does not verify")
    assert codes(judge(world.seen(record_evidence=forged))) == {"bootstrap_evidence": "cose.signature"}


def test_refuses_a_record_of_an_image_that_is_not_the_measured_one(world: World) -> None:
    keys = bootstrap_report_data(world.ca_pubkey, K256)
    evidence = world.evidence(keys, config='{"os_image_hash":"%s"}' % ("11" * 32))
    assert codes(judge(world.seen(record_evidence=evidence))) == {
        "bootstrap_image": "identity.os_image.mismatch"
    }


def test_keys_that_another_image_made_are_told_in_the_first_lines(world: World) -> None:
    keys = bootstrap_report_data(world.ca_pubkey, K256)
    evidence = world.evidence(keys, pcrs=PCRS | {0: b"\1" * 48})
    lanes = judge(world.seen(record_evidence=evidence))
    assert lanes["bootstrap_image"].status is Status.SKIPPED
    (caveat,) = caveats(lanes, with_contract=True)
    assert caveat.startswith("with keys that another image made")


def test_an_unreadable_record_is_refused(world: World) -> None:
    error = attempt(lambda: parse_record(b"{}"))
    assert isinstance(error, DstackError)
    seen = world.seen(record=error, record_evidence=None)
    assert codes(judge(seen)) == {"bootstrap_keys": "kms_audit.bootstrap.invalid"}


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "kms_audit.bootstrap.syntax"),
        (b"[]", "kms_audit.bootstrap.invalid"),
        (b'{"ca_pubkey":"","k256_pubkey":"02"}', "kms_audit.bootstrap.invalid"),
        (b'{"ca_pubkey":1,"k256_pubkey":"02"}', "kms_audit.bootstrap.invalid"),
        (b'{"ca_pubkey":"","ca_pubkey":""}', "kms_audit.bootstrap.duplicate_key"),
        (b" " * (MAX_RECORD + 1), "kms_audit.bootstrap.size"),
    ],
)
def test_refuses_what_is_no_record(raw: bytes, code: str) -> None:
    with refuses(code):
        parse_record(raw)


def test_the_auditors_own_mistakes_pass_through() -> None:
    def step() -> None:
        raise ConfigError("policy.invalid", "policy")

    with refuses("policy.invalid", ConfigError):
        attempt(step)


# --- strictness ---


def test_a_strict_kms_has_no_lax_setting(world: World) -> None:
    meta = parse_meta(world.meta(STRICT | {"simulated": False}))
    assert meta.lax == ()
    assert meta.policy is not None
    assert meta.policy.unreported == ()


LAX: dict[str, Any] = {
    "auth_mode": "webhook",
    "simulated": True,
    "clock_source": "system (set by the host)",
    "self_authorization": False,
    "attested_certificate": False,
    "image_verification": False,
    "treat_nitro_as_up_to_date": True,
    "nitro_enclave_key_release": True,
    "nitro_tpm_key_release": True,
    "quorum": 1,
    "quorum_plain_http": True,
    "max_block_age": 1801,
    "max_head_age": 121,
    "allow_cache": 1,
    "block_cache": 1,
    "pinned_implementations": 1,
    "custody": "file",
    "key_handover": "main, admin",
    "evidence_policy": ["gcp.assume_boot is true"],
}


@pytest.mark.parametrize("name", LAX)
def test_each_lax_setting_is_listed_alone(name: str) -> None:
    told = STRICT | {"simulated": False}
    policy = msgspec.convert(told | {name: LAX[name]}, KmsPolicy)
    (setting,) = lax_settings(policy)
    value = LAX[name][0] if name == "evidence_policy" else LAX[name]
    assert (setting.name, setting.value) == (name, value)
    assert setting.meaning


def test_every_setting_is_judged_or_only_informs() -> None:
    informs = {"evidence_anchor", "finalized_block"}
    of_enclaves = {"nitro_app_id_pcr"}
    assert set(KmsPolicy.__struct_fields__) == set(LAX) | informs | of_enclaves == set(STRICT)


def test_every_setting_that_our_kms_reports_is_known() -> None:
    assert {field.name for field in pb.KmsPolicy.DESCRIPTOR.fields} <= set(KmsPolicy.__struct_fields__)


def test_an_app_id_of_its_own_claim_counts_where_enclaves_get_keys() -> None:
    for gate, names in ((False, []), (True, ["nitro_enclave_key_release", "nitro_app_id_pcr"])):
        told = STRICT | {
            "simulated": False,
            "nitro_app_id_pcr": False,
            "nitro_enclave_key_release": gate,
        }
        assert [setting.name for setting in lax_settings(msgspec.convert(told, KmsPolicy))] == names


def test_a_quorum_is_of_proofs_alone() -> None:
    policy = msgspec.convert({"auth_mode": "dev", "quorum": 0}, KmsPolicy)
    assert [setting.name for setting in lax_settings(policy)] == ["auth_mode"]


def test_upstreams_own_fields_are_judged_too(world: World) -> None:
    meta = parse_meta(world.meta(None, is_dev=True, allow_any_upgrade=True, gateway_app_id="any"))
    assert [setting.name for setting in meta.lax] == ["is_dev", "allow_any_upgrade", "gateway_app_id"]
    assert judge(world.seen(meta=meta))["policy"].reason.startswith("policy unknown")


def test_what_is_not_told_is_named(world: World) -> None:
    told = {name: value for name, value in STRICT.items() if name not in {"custody", "quorum"}}
    meta = parse_meta(world.meta(told))
    assert meta.policy is not None
    assert meta.policy.unreported == ("quorum", "custody")


def test_unknown_keys_are_kept(world: World) -> None:
    meta = parse_meta(world.meta(STRICT | {"quantum": [1]}, epoch={"number": 3}))
    report = report_on(world.seen(meta=meta), url="https://kms.test", hostname=HOST, now=NOW)
    assert report.kms is not None
    assert report.kms.policy == STRICT | {"quantum": [1]}
    assert report.kms.other == {"epoch": {"number": 3}}


def test_refuses_a_kms_that_calls_simulated_evidence_real(world: World) -> None:
    meta = parse_meta(world.meta(STRICT | {"simulated": False}))
    assert codes(judge(world.seen(meta=meta))) == {"policy": "kms_audit.policy.simulated"}


# --- the report ---


def reports(world: World, **changes: Any) -> dict[str, Any]:
    report = report_on(world.seen(**changes), url="https://kms.test", hostname=HOST, now=NOW)
    document: dict[str, Any] = json.loads(msgspec.json.encode(report))
    return document


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {},
        lambda _: {"leaf": UnavailableError("net.unreachable", "nobody"), "server": None, "meta": None},
        lambda world: {"leaf": world.app_leaf()},
        lambda _: {"contract": None, "proven": None, "record": None, "record_evidence": None},
        lambda _: {"meta": UnavailableError("kms_audit.status", "400")},
    ],
)
def test_the_keys_of_a_report_stay(world: World, change: Callable[[World], dict[str, Any]]) -> None:
    document = reports(world, **change(world))
    assert set(document) == {
        *("is_valid", "exit_code", "url", "judged_at", "simulated", "caveats", "code", "reason", "hint"),
        *("lanes", "lax", "chain", "kms", "app_info", "verdict", "bootstrap_verdict"),
    }
    assert tuple(document["lanes"]) == LANES
    assert document["is_valid"] == (document["exit_code"] == 0) == (document["code"] is None)


def test_the_first_refusal_is_the_reports(world: World) -> None:
    denied = msgspec.structs.replace(ALLOWED, is_allowed=False, reason="OS image is not allowed")
    document = reports(world, proven=Proven(KmsRoots(None, None, 7, NOW), denied))
    assert document["code"] == "kms_audit.root_ca.unset"
    assert document["hint"] == hint_for_kms("kms_audit.root_ca.unset")
    assert document["exit_code"] == 3


def test_simulated_is_told_of_what_is_refused_too(world: World) -> None:
    server = world.evidence(ratls(world.leaf), config='{"os_image_hash":"%s"}' % ("11" * 32))
    document = reports(world, server=server)
    assert (document["is_valid"], document["simulated"], document["app_info"]) == (False, True, None)


# --- hints ---


def test_each_hint_is_of_a_code_that_something_raises() -> None:
    beginnings = ("proof", "quorum", "rpc", "ratls", "net", "tdx", "kms_audit", "nitro")
    for prefix in HINTS_KMS:
        assert prefix.startswith(beginnings) or is_error_code(prefix), prefix


def test_each_code_of_ours_has_a_hint_of_its_own() -> None:
    general = hint_for_kms("nothing.of.ours")
    for code in ("kms_audit.meta.size", "kms_audit.bootstrap.depth", "proof.node.missing", "cose.signature"):
        assert hint_for_kms(code) != general


def test_no_hint_names_an_option_that_the_command_lacks() -> None:
    for code in ("nitro.stale", "nitro.chain.expired", "tdx.collateral.age", "tdx.anchor.validity"):
        assert "--at" not in hint_for_kms(code)


def test_a_hint_is_one_line_without_an_end() -> None:
    for hint in HINTS_KMS.values():
        assert "\n" not in hint
        assert "  " not in hint
        assert not hint.endswith((".", " "))

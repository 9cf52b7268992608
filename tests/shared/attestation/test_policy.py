import pytest

from shared.attestation.policy import (
    DAY,
    DEFAULT_POLICY,
    GCE_FIRMWARE_V2_TDX,
    MAX_POLICY,
    Firmware,
    GcpPolicy,
    NitroPolicy,
    Policy,
    Revocation,
    TcbStatus,
    TdAttribute,
    TdxPolicy,
    parse_policy,
)
from shared.boot_info import AWS_NITRO_TPM, GCP_TDX, NITRO_ENCLAVE, TDX
from shared.errors import ConfigError, PolicyDenied
from tests.shared.attestation.forgery import refuses

NOW = 1_800_000_000
WEAK = [status for status in TcbStatus if status is not TcbStatus.UP_TO_DATE]

FULL = b"""
[nitro]
max_age = 600
revocation = "required"

[tdx]
accept = ["UpToDate", "SWHardeningNeeded"]
grace = { OutOfDate = 2592000 }
reject_advisories = ["INTEL-SA-00960"]
min_tcb_evaluation_number = 17
max_collateral_age = 86400
allow_attributes = ["perfmon"]
xfam = 0x602e7
require_mr_config = true
allow_unverified_image = true

[gcp]
revocation = "if_available"
assume_boot = true
rtmr2 = ["%s"]
partition_tables = ["%s"]

[[gcp.firmware]]
pcr0 = "%s"
provenance = "seen on our own machines"
""" % (b"ab" * 48, b"ef" * 32, b"cd" * 32)


def test_a_file_states_everything() -> None:
    policy = parse_policy(FULL)
    assert policy.nitro == NitroPolicy(max_age=600, revocation=Revocation.REQUIRED)
    assert policy.tdx == TdxPolicy(
        accept=(TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED),
        grace={TcbStatus.OUT_OF_DATE: 30 * DAY},
        reject_advisories=("INTEL-SA-00960",),
        min_tcb_evaluation_number=17,
        max_collateral_age=DAY,
        allow_attributes=(TdAttribute.PERFMON,),
        xfam=0x602E7,
        require_mr_config=True,
        allow_unverified_image=True,
    )
    assert policy.gcp == GcpPolicy(
        firmware=(Firmware(b"\xcd" * 32, "seen on our own machines"),),
        revocation=Revocation.IF_AVAILABLE,
        rtmr2=(b"\xab" * 48,),
        partition_tables=(b"\xef" * 32,),
        assume_boot=True,
    )


def test_an_empty_file_is_the_default() -> None:
    assert parse_policy(b"") == DEFAULT_POLICY


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"\xff", "policy.syntax"),
        (b"[nitro", "policy.syntax"),
        (b"x = " + b"[" * 5000, "policy.syntax"),
        (b"[nitro]\nmax_agee = 1", "policy.invalid"),
        (b"[amd]", "policy.invalid"),
        (b'[tdx]\naccept = ["Fine"]', "policy.invalid"),
        (b'[tdx]\nallow_attributes = ["debug"]', "policy.invalid"),
        (b'[gcp]\nrtmr2 = ["abcd"]', "policy.invalid"),
        (b"[gcp]\nrtmr2 = [7]", "policy.invalid"),
        (b'[gcp]\nrtmr2 = "abcd"', "policy.invalid"),
        (b'[[gcp.firmware]]\npcr0 = "00"\nprovenance = "x"', "policy.invalid"),
        (b"[[gcp.firmware]]\npcr0 = 5\nprovenance = 'x'", "policy.invalid"),
        (b"[gcp]\nfirmware = [5]", "policy.invalid"),
        (b"[gcp]\nfirmware = 5", "policy.invalid"),
        (b"gcp = 5", "policy.invalid"),
        (b"#" * (MAX_POLICY + 1), "policy.size"),
        (b"a" + b".a" * 100_000 + b" = 1", "policy.size"),
        (b"[nitro]\nmax_age = " + b"9" * 5000, "policy.syntax"),
        (b"[nitro]\nmax_age = 0x" + b"f" * 5000, "policy.invalid"),
        (b"[nitro]\nmax_age = -1", "policy.invalid"),
        (b"[tdx]\nxfam = -1", "policy.invalid"),
        (b"[tdx]\ngrace = { OutOfDate = -1 }", "policy.invalid"),
        (b'[tdx]\nreject_advisories = ["intel-sa-00960"]', "policy.invalid"),
        (b'[tdx]\nreject_advisories = ["INTEL-SA-960"]', "policy.invalid"),
    ],
)
def test_refuses_a_file_that_it_cannot_follow(text: bytes, code: str) -> None:
    with refuses(code, ConfigError):
        parse_policy(text)


# --- TCB ---


def test_up_to_date_is_accepted_by_default() -> None:
    reason = DEFAULT_POLICY.tdx.check_tcb(TcbStatus.UP_TO_DATE, ("INTEL-SA-1",), 0, NOW)
    assert reason == "UpToDate, which the policy accepts"


@pytest.mark.parametrize("status", WEAK)
def test_n15_the_default_refuses_every_weaker_status(status: TcbStatus) -> None:
    code = "tdx.tcb.revoked" if status is TcbStatus.REVOKED else "tdx.tcb.status"
    with refuses(code, PolicyDenied):
        DEFAULT_POLICY.tdx.check_tcb(status, (), NOW, NOW)


@pytest.mark.parametrize("status", TcbStatus)
def test_n15_a_policy_accepts_what_it_names_and_revoked_never(status: TcbStatus) -> None:
    policy = TdxPolicy(accept=(status,), grace={status: DAY})
    if status is TcbStatus.REVOKED:
        with refuses("tdx.tcb.revoked", PolicyDenied):
            policy.check_tcb(status, (), NOW, NOW)
    else:
        assert status.value in policy.check_tcb(status, (), 0, NOW)


@pytest.mark.parametrize("status", WEAK[:-1])
def test_n15_a_grace_window_ends(status: TcbStatus) -> None:
    policy = TdxPolicy(grace={status: DAY})
    assert "grace" in policy.check_tcb(status, (), NOW - DAY, NOW)
    with refuses("tdx.tcb.grace", PolicyDenied):
        policy.check_tcb(status, (), NOW - DAY - 1, NOW)


def test_n15_a_rejected_advisory_refuses_whatever_the_status() -> None:
    policy = TdxPolicy(reject_advisories=("INTEL-SA-2",))
    assert policy.check_tcb(TcbStatus.UP_TO_DATE, ("INTEL-SA-1",), NOW, NOW)
    with refuses("tdx.advisory", PolicyDenied):
        policy.check_tcb(TcbStatus.UP_TO_DATE, ("INTEL-SA-1", "INTEL-SA-2"), NOW, NOW)


def test_n15_an_advisory_is_rejected_in_any_case_of_its_letters() -> None:
    for listed, named in (("intel-sa-2", "INTEL-SA-2"), ("INTEL-SA-2", "Intel-SA-2")):
        with refuses("tdx.advisory", PolicyDenied):
            TdxPolicy(reject_advisories=(listed,)).check_tcb(TcbStatus.UP_TO_DATE, (named,), NOW, NOW)


# --- what a verdict tells of a policy ---


def test_the_default_relaxes_nothing() -> None:
    for variant in (NITRO_ENCLAVE, AWS_NITRO_TPM, TDX, GCP_TDX):
        assert DEFAULT_POLICY.relaxations(variant) == ()


def test_a_stricter_policy_relaxes_nothing() -> None:
    policy = Policy(
        nitro=NitroPolicy(max_age=60, max_future=0, revocation=Revocation.REQUIRED),
        tdx=TdxPolicy(max_collateral_age=DAY, xfam=3, require_mr_config=True, reject_advisories=("x",)),
    )
    for variant in (NITRO_ENCLAVE, AWS_NITRO_TPM, TDX, GCP_TDX):
        assert policy.relaxations(variant) == ()


def test_each_relaxation_is_told_where_it_matters() -> None:
    policy = parse_policy(FULL)
    tdx = (
        "tdx.accept has SWHardeningNeeded",
        "tdx.grace gives OutOfDate 2592000 s",
        "tdx.allow_attributes has perfmon",
        "tdx.allow_unverified_image is true",
    )
    assert policy.relaxations(NITRO_ENCLAVE) == ()
    assert policy.relaxations(TDX) == tdx
    assert policy.relaxations(GCP_TDX) == (
        *tdx,
        f"gcp.firmware accepts {'cd' * 32} (seen on our own machines)",
        "gcp.revocation is if_available",
        "gcp.assume_boot is true",
    )


def test_wider_masks_and_ages_are_told() -> None:
    policy = Policy(
        nitro=NitroPolicy(max_age=7200, max_future=600, revocation=Revocation.OFF),
        tdx=TdxPolicy(max_collateral_age=30 * DAY, xfam=0x161AE7),
    )
    assert policy.relaxations(AWS_NITRO_TPM) == (
        "nitro.max_age is 7200 s",
        "nitro.max_future is 600 s",
        "nitro.revocation is off",
    )
    assert policy.relaxations(TDX) == (
        "tdx.max_collateral_age is 2592000 s",
        "tdx.xfam accepts 0x100000 more",
    )


def test_the_default_firmware_is_googles() -> None:
    assert [firmware.pcr0 for firmware in DEFAULT_POLICY.gcp.firmware] == [GCE_FIRMWARE_V2_TDX]

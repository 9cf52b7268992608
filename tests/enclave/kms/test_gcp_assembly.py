"""A KMS on Google Cloud: from what its app-compose measures to its parts."""

import pytest

from enclave.devices.clock import SystemClock
from enclave.kms import assembly
from enclave.kms.assembly import Parts, assemble
from enclave.simulator.authority import SimulatedAuthority
from shared.attestation.trust import TrustAnchors
from shared.boot_info import GCP_TDX
from shared.errors import ConfigError, DstackError
from tests.enclave.gcp import NOW, Machines

DEV = '\n[core.auth_api]\ntype = "dev"\n'
FLAG = "[core.attestation]\ninsecure_allow_external_trust_anchors = true\n"
ROOTS = '[core.attestation.root_ca]\ntdx = "/intel.pem"\ngcp_tpm = "/google.pem"\n'
APP_ID = bytes([9]) * 20


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)


def _assemble(gcp: Machines, config: str, files: dict[str, bytes] | None = None) -> Parts:
    measured = {"/etc/kms/kms.toml": config.encode(), "/etc/dstack/app-id": APP_ID.hex().encode()}
    guest = gcp.start({**measured, **(files or {})}, app_id=APP_ID, key_provider="tpm", no_instance_id=True)
    return assemble(guest.platform)


def _refusal(gcp: Machines, config: str, files: dict[str, bytes] | None = None) -> str:
    with pytest.raises(DstackError) as refusal:
        _assemble(gcp, config, files)
    return refusal.value.code


def _urls(gcp: Machines) -> str:
    return f'[core.attestation.urls]\npccs = "{gcp.vendors.server.url}"\n'


def test_a_simulated_kms_reports_itself(gcp: Machines) -> None:
    parts = _assemble(gcp, FLAG + ROOTS + _urls(gcp) + DEV)
    told = parts.policy
    assert parts.own.verdict.platform == GCP_TDX
    assert (told.simulated, told.auth_mode, list(told.evidence_policy)) == (True, "dev", [])
    assert told.clock_source == "system (secure_time)"
    assert told.evidence_anchor.count("external-") == 2


def test_a_lax_policy_is_told(gcp: Machines) -> None:
    policy = b'[tdx]\naccept = ["UpToDate", "OutOfDate"]\n[nitro]\nmax_age = 7200\n'
    gates = "[core]\naws_nitro_tpm_key_release = true\n"
    config = gates + FLAG + 'policy = "/policy.toml"\n' + ROOTS + _urls(gcp) + DEV
    told = _assemble(gcp, config, {"/policy.toml": policy}).policy
    assert list(told.evidence_policy) == ["nitro.max_age is 7200 s", "tdx.accept has OutOfDate"]
    assert told.nitro_tpm_key_release


def test_treating_nitro_as_up_to_date_says_nothing_of_a_guest(gcp: Machines) -> None:
    lax = "[core]\ntreat_nitro_as_up_to_date = true\n"
    assert _assemble(gcp, lax + FLAG + ROOTS + _urls(gcp) + DEV).own.verdict.disabled_checks == ()


def test_refuses_to_start_without_its_own_collateral(gcp: Machines) -> None:
    gcp.vendors.withheld = True
    assert _refusal(gcp, FLAG + ROOTS + _urls(gcp) + DEV) == "pccs.unavailable"


def test_refuses_to_start_for_another_app(gcp: Machines) -> None:
    other = {"/etc/dstack/app-id": b"11" * 20}
    assert _refusal(gcp, FLAG + ROOTS + _urls(gcp) + DEV, other) == "image.app_id"


def test_refuses_roots_without_the_flag(gcp: Machines) -> None:
    assert _refusal(gcp, ROOTS + DEV) == "config.anchors.flag"


def test_refuses_to_start_on_a_malformed_policy(gcp: Machines) -> None:
    config = FLAG + 'policy = "/policy.toml"\n' + ROOTS + DEV
    assert _refusal(gcp, config, {"/policy.toml": b"[tdx]\nmood = 1\n"}) == "policy.invalid"


@pytest.fixture
def real(gcp: Machines, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Return machines whose vendors pass for Intel and Google: the only way to test a real KMS's refusals."""
    known = TrustAnchors((), (), ())
    known = known.with_extra(gcp.vendors.authority.intel.root_pem, signer="tdx")
    known = known.with_extra(gcp.vendors.authority.google.root_pem, signer="gcp_tpm")
    genuine = TrustAnchors((), _as_production(known.tdx), _as_production(known.gcp_tpm))
    monkeypatch.setattr(TrustAnchors, "production", classmethod(lambda _cls: genuine))
    return gcp


def _as_production(anchors):
    return tuple(
        type(anchor)(**{**{f: getattr(anchor, f) for f in anchor.__struct_fields__}, "production": True})
        for anchor in anchors
    )


def test_a_real_kms_refuses_extra_trust_anchors(real: Machines) -> None:
    nitro = '[core.attestation.root_ca]\naws_nitro_tpm = "/aws.pem"\n'
    files = {"/aws.pem": SimulatedAuthority.create().root_pem}
    assert _refusal(real, FLAG + nitro + _urls(real) + DEV, files) == "config.anchors.mixed"


def test_a_real_kms_refuses_plain_http_collateral(real: Machines) -> None:
    assert _refusal(real, _urls(real) + DEV) == "pccs.config.plain_http"


def test_n59_a_real_kms_refuses_dev_mode(real: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    # its collateral comes over https, which the vendors here do not speak: only their policy is at stake
    establish = assembly.establish_trust
    monkeypatch.setattr(
        assembly,
        "establish_trust",
        lambda platform, _settings: establish(platform, real.vendors.settings()),
    )
    assert _refusal(real, DEV) == "config.dev.real"


def test_config_names_upstreams_roots() -> None:
    with pytest.raises(ConfigError) as refusal:
        assembly.parse_config(f'[core.attestation.root_ca]\naws_nitro_tpm = "/x"\n{DEV}'.encode())
    assert refusal.value.code == "config.anchors.flag"

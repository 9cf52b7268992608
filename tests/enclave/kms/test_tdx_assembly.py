"""A KMS in a TDX guest on a machine of one's own: its parts, and where its keys can be."""

import pytest

from enclave.devices.clock import SystemClock
from enclave.kms.assembly import Parts, assemble
from enclave.kms.daemon import _custody
from enclave.platform import Platform
from shared.boot_info import TDX
from shared.errors import ConfigError
from tests.enclave.gcp import NOW
from tests.enclave.tdx import TdxMachine
from tests.shared.refusal import refuses

CONFIG = """[core.attestation]
insecure_allow_external_trust_anchors = true
[core.attestation.root_ca]
tdx = "/intel.pem"
[core.auth_api]
type = "dev"
[core.attestation.urls]
"""


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)


def _assembled(tdx: TdxMachine, more: str = "") -> tuple[Platform, Parts]:
    config = f'{CONFIG}pccs = "{tdx.vendors.server.url}"\n{more}'
    guest = tdx.start({"/etc/kms/kms.toml": config.encode()}, key_provider="none")
    return guest.platform, assemble(guest.platform)


def test_it_verifies_itself_and_says_what_it_is(tdx: TdxMachine) -> None:
    _, parts = _assembled(tdx)
    assert parts.own.verdict.platform == TDX
    assert (parts.policy.simulated, parts.policy.clock_source) == (True, "system (secure_time)")


def test_refuses_to_keep_keys_in_a_tpm_that_there_is_not(tdx: TdxMachine) -> None:
    platform, parts = _assembled(tdx, '[core.custody]\ntype = "tpm"\n[core.custody.tpm]\npcrs = [0, 2, 14]\n')
    with refuses("config.custody.tpm", ConfigError):
        _custody(platform, parts)

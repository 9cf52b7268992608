"""Peers are judged by measured settings, with what their vendors publish right now."""

from pathlib import Path

import msgspec
import pytest

from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.intel_documents import level, platform_tcb
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.tee.peers import PeerVerifier, TrustSettings, establish_trust
from enclave.vsock.transport import UnixStandIn
from shared.attestation.envelope import Attestation, decode_envelope, encode_envelope
from shared.attestation.policy import DEFAULT_POLICY, TcbStatus
from shared.attestation.verify import VerifiedAttestation
from shared.errors import ConfigError, DstackError
from shared.net.dialer import DirectDialer
from tests.enclave.gcp import NOW, Machines, with_vtpm_of

DAY = 86_400
OUT_OF_DATE = {"tcb_info": {"tcbLevels": [level(platform_tcb(), "OutOfDate", advisories=("INTEL-SA-1",))]}}


def _refusal(verifier: PeerVerifier, evidence: Attestation) -> str:
    with pytest.raises(DstackError) as refusal:
        _verify(verifier, evidence)
    return refusal.value.code


def _verify(verifier: PeerVerifier, evidence: Attestation) -> VerifiedAttestation:
    return verifier.verify(encode_envelope(evidence), evidence.report_data)


def test_a_guest_is_verified_with_collateral_of_the_moment(gcp: Machines) -> None:
    guest = gcp.start()
    verified = _verify(gcp.verifier(guest), guest.evidence())
    assert (verified.verdict.simulated, verified.verdict.tcb_status) == (True, "UpToDate")
    assert verified.valid_until > NOW
    assert any("tcb?fmspc" in target for target in gcp.vendors.server.requests)


def test_collateral_is_asked_for_once(gcp: Machines) -> None:
    guest = gcp.start()
    verifier = gcp.verifier(guest)
    _verify(verifier, guest.evidence())
    asked = len(gcp.vendors.server.requests)
    _verify(verifier, guest.evidence(bytes([1]) * 64))
    assert len(gcp.vendors.server.requests) == asked


def test_refuses_stale_collateral(gcp: Machines) -> None:
    guest = gcp.start()
    gcp.vendors.published_at = NOW - 8 * DAY
    assert _refusal(gcp.verifier(guest), guest.evidence()) == "pccs.unavailable"


def test_refuses_without_collateral(gcp: Machines) -> None:
    guest = gcp.start()
    gcp.vendors.withheld = True
    assert _refusal(gcp.verifier(guest), guest.evidence()) == "pccs.unavailable"


def test_refuses_a_platform_that_is_out_of_date(gcp: Machines) -> None:
    guest = gcp.start()
    gcp.vendors.changes = OUT_OF_DATE
    assert _refusal(gcp.verifier(guest), guest.evidence()) == "tdx.tcb.status"


def test_a_measured_policy_may_accept_it_and_is_told(gcp: Machines) -> None:
    guest = gcp.start({"/policy.toml": b'[tdx]\naccept = ["UpToDate", "OutOfDate"]\n'})
    gcp.vendors.changes = OUT_OF_DATE
    verifier = gcp.verifier(guest, policy="/policy.toml")
    assert TcbStatus.OUT_OF_DATE in verifier.policy.tdx.accept
    verdict = _verify(verifier, guest.evidence()).verdict
    assert (verdict.tcb_status, verdict.advisory_ids) == ("OutOfDate", ("INTEL-SA-1",))
    assert verdict.disabled_checks == ("tdx.accept has OutOfDate",)


def test_refuses_quotes_of_two_machines(gcp: Machines) -> None:
    guest, other = gcp.start(), gcp.start()
    evidence = guest.evidence()
    mixed = msgspec.structs.replace(evidence, quote=with_vtpm_of(evidence, other.evidence()))
    before = len(gcp.vendors.server.requests)
    assert _refusal(gcp.verifier(guest), mixed) == "gcp.binding"
    assert len(gcp.vendors.server.requests) == before


def test_refuses_evidence_over_something_else(gcp: Machines) -> None:
    guest = gcp.start()
    with pytest.raises(DstackError) as refusal:
        gcp.verifier(guest).verify(guest.attestor.attest(bytes(64)), bytes([1]) * 64)
    assert refusal.value.code == "attestation.report_data"


@pytest.mark.parametrize(("signer", "code"), [("tdx", "tdx.anchor"), ("gcp_tpm", "issuers.none")])
def test_refuses_a_guest_of_which_half_has_no_known_root(gcp: Machines, signer: str, code: str) -> None:
    guest = gcp.start()
    roots = {name: path for name, path in gcp.vendors.settings().roots.items() if name != signer}
    assert _refusal(gcp.verifier(guest, roots=roots), guest.evidence()) == code


def test_plain_http_takes_an_extra_root(gcp: Machines) -> None:
    guest = gcp.start()
    with pytest.raises(ConfigError) as refusal:
        establish_trust(guest.platform, gcp.vendors.settings(roots={}))
    assert refusal.value.code == "pccs.config.plain_http"


def test_a_guest_that_names_no_service_asks_the_public_ones(gcp: Machines) -> None:
    settings = TrustSettings()
    assert not settings.has_extra_roots
    trust = establish_trust(gcp.start().platform, settings)
    assert trust.verifier.policy is DEFAULT_POLICY
    assert trust.clock.source.startswith("system")


def test_tls_roots_are_read_from_the_image(gcp: Machines) -> None:
    guest = gcp.start({"/tls.pem": b"no certificate"})
    with pytest.raises(ConfigError) as refusal:
        gcp.verifier(guest, tls_roots="/tls.pem")
    assert refusal.value.code == "net.roots.invalid"


class TestEnclave:
    """A Nitro Enclave whose peers may be Google Cloud guests."""

    @pytest.fixture
    def enclave(self, gcp: Machines, authority: SimulatedAuthority, tmp_path: Path) -> Platform:
        image = tmp_path / "enclave"
        image.mkdir()
        for path, pem in {**gcp.vendors.roots, "/aws.pem": authority.root_pem}.items():
            (image / path.lstrip("/")).write_bytes(pem)
        nsm = SimulatedNsm({index: bytes([index + 1]) * 48 for index in range(3)}, authority)
        return Platform(image, image, NitroTee(nsm, UnixStandIn(image, 16)))

    def test_fetches_nothing_by_itself(self, enclave: Platform, gcp: Machines) -> None:
        trust = establish_trust(enclave, gcp.vendors.settings(pccs=()))
        trust.verifier.now = lambda: NOW
        assert _refusal(trust.verifier, gcp.start().evidence()).startswith(("gcp.chain", "tdx.collateral"))
        assert gcp.vendors.server.requests == []

    def test_fetches_the_lists_that_its_policy_requires(self, enclave: Platform, gcp: Machines) -> None:
        """From AWS's hosts alone: the simulated authority names another one. Collateral is not fetched."""
        (enclave.image / "policy.toml").write_bytes(b'[nitro]\nrevocation = "required"\n')
        trust = establish_trust(enclave, TrustSettings(roots={"nitro": ("/aws.pem",)}, policy="/policy.toml"))
        evidence = decode_envelope(enclave.tee.attestor(None).attest(bytes(64)))
        assert _refusal(trust.verifier, evidence) == "issuers.url"
        assert gcp.vendors.server.requests == []

    def test_asks_through_the_parents_forwarder(self, enclave: Platform, gcp: Machines) -> None:
        trust = establish_trust(enclave, gcp.vendors.settings())
        trust.verifier.now = lambda: NOW
        assert _refusal(trust.verifier, gcp.start().evidence()) == "vsock.connect.refused"
        assert gcp.vendors.server.requests == []

    def test_verifies_a_guest_with_what_comes_through_it(
        self, enclave: Platform, gcp: Machines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(NitroTee, "dialer", lambda _self: DirectDialer())
        trust = establish_trust(enclave, gcp.vendors.settings())
        trust.verifier.now = lambda: NOW
        assert _verify(trust.verifier, gcp.start().evidence()).verdict.tcb_status == "UpToDate"

"""Gathering endorsements: nothing is asked for evidence that does not hold, and nothing twice."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from enclave.devices.nsm import Nsm
from enclave.simulator.ak_authority import (
    INTERMEDIATE_LIST_PATH,
    INTERMEDIATE_PATH,
    ROOT_LIST_PATH,
    SimulatedAkAuthority,
)
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.simulator.pccs import CollateralServer
from enclave.simulator.tdx import TD_ATTRIBUTES, Domain, SimulatedIntel, SimulatedTdx
from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements, TdxCollateral
from shared.attestation.envelope import (
    Attestation,
    GcpTdxQuote,
    NitroEnclaveQuote,
    NitroTpmQuote,
    SevSnpQuote,
    TdxQuote,
)
from shared.attestation.gcp import verify_gcp
from shared.attestation.policy import DAY, Firmware, GcpPolicy, NitroPolicy, Policy, Revocation, TdxPolicy
from shared.attestation.tdx import verify_tdx
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, DstackError, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.endorsement_source import COLLATERAL_REFRESH, EndorsementSource, production_source
from shared.net.fetch import HttpClient
from shared.net.fresh_cache import RETRY_AFTER
from shared.net.issuers import IssuerClient
from shared.net.pccs import PccsClient
from tests.shared.net.evidence import AK, REPORT_DATA, anchors_of, gcp_evidence, tdx_evidence, with_tpm
from tests.shared.net.services import NOW, RoutedDialer, utc

POLICY = Policy()
COLLATERAL_ROUTES = [
    "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
    "/tdx/certification/v4/tcb?fmspc=000000000000",
    "/tdx/certification/v4/qe/identity?update=standard",
    "/sgx/certification/v4/rootcacrl",
]


class World:
    """Vendors, one loopback server that publishes for them, and a source that asks it."""

    def __init__(self, server: CollateralServer) -> None:
        self.server = server
        self.intel = SimulatedIntel.create()
        self.google = SimulatedAkAuthority.create(server.url)
        self.anchors = anchors_of(self.intel, self.google)
        self.published: TdxCollateral | None = self.intel.collateral(NOW)
        server.files.update(self.google.resources(NOW))
        self.told: list[str] = []
        self.ak_certificate = self.google.issue_ak(AK.public_key())

    def source(self, bundle: Endorsements = NO_ENDORSEMENTS, *, offline: bool = False) -> EndorsementSource:
        http = HttpClient(DirectDialer(), timeout=30)
        pccs = None if offline else PccsClient([self.server.url], http, allow_plain_http=True)
        issuers = None if offline else IssuerClient(http, origins=[self.server.url])
        return EndorsementSource(pccs, issuers, bundle=bundle, tell=self.told.append)

    def intel_published(self) -> TdxCollateral:
        assert self.published is not None
        return self.published

    def tdx(self) -> Attestation:
        return tdx_evidence(self.intel)

    def gcp(self) -> Attestation:
        return gcp_evidence(self.intel, self.ak_certificate)

    def gather(
        self, source: EndorsementSource, attestation: Attestation, *, now: int = NOW, policy: Policy = POLICY
    ) -> Endorsements:
        return source.gather(attestation, anchors=self.anchors, policy=policy, now=now)


@pytest.fixture
def world() -> Iterator[World]:
    made: list[World] = []
    with CollateralServer(lambda _fmspc, _ca: made[0].published) as server:
        made.append(World(server))
        yield made[0]


def code(call: Callable[[], object]) -> str:
    with pytest.raises(DstackError) as caught:
        call()
    return caught.value.code


def test_tdx_evidence_verifies_with_what_was_fetched(world: World) -> None:
    attestation = world.tdx()
    gathered = world.gather(world.source(), attestation)
    assert gathered == Endorsements(tdx=(world.intel_published(),))
    assert isinstance(attestation.quote, TdxQuote)
    verified = verify_tdx(
        attestation.quote.quote,
        now=NOW,
        anchors=world.anchors.tdx,
        policy=POLICY.tdx,
        endorsements=gathered,
        report_data=REPORT_DATA,
    )
    assert verified.simulated
    assert world.server.requests == COLLATERAL_ROUTES


def test_gcp_evidence_verifies_with_what_was_fetched(world: World) -> None:
    attestation = world.gcp()
    policy = Policy(gcp=GcpPolicy(firmware=(Firmware(b"\x01" * 32, "of this test"),)))
    gathered = world.gather(world.source(), attestation, policy=policy)
    assert gathered.certificates == (world.google.intermediate.der,)
    assert gathered.crls == tuple(
        world.server.files[path] for path in (INTERMEDIATE_LIST_PATH, ROOT_LIST_PATH)
    )
    assert world.server.requests == [
        INTERMEDIATE_PATH,
        *COLLATERAL_ROUTES,
        INTERMEDIATE_LIST_PATH,
        ROOT_LIST_PATH,
    ]
    assert isinstance(attestation.quote, GcpTdxQuote)
    assert verify_gcp(
        attestation.quote,
        (),
        now=NOW,
        anchors=world.anchors,
        policy=policy,
        endorsements=gathered,
        report_data=REPORT_DATA,
    ).simulated


def test_nothing_is_fetched_twice(world: World) -> None:
    source = world.source()
    first = world.gather(source, world.gcp())
    asked = len(world.server.requests)
    assert world.gather(source, world.gcp(), now=NOW + 60) == first
    assert len(world.server.requests) == asked


def test_threads_share_one_fetch_of_collateral(world: World) -> None:
    source = world.source()
    with ThreadPoolExecutor(8) as pool:
        gathered = list(pool.map(lambda _: world.gather(source, world.tdx()), range(16)))
    assert {found.tdx for found in gathered} == {(world.published,)}
    assert world.server.requests == COLLATERAL_ROUTES


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda found: with_tpm(found, signature=found.quote.tpm.signature[:-1] + b"\0"),
            "tpm.signature.invalid",
        ),
        (lambda found: with_tpm(found, message=b"\0" + found.quote.tpm.message[1:]), "tpm.attest.magic"),
        (lambda found: with_tpm(found, pcr_values=found.quote.tpm.pcr_values * 2000), "tpm.pcr.count"),
        (lambda found: with_tpm(found, pcr_values=()), "tpm.pcr.index"),
        (lambda found: with_tpm(found, ak_cert=b"\x30\x00"), "gcp.chain.malformed"),
        (lambda found: with_tpm(found, platform="dstack"), "gcp.platform"),
    ],
    ids=["signature", "magic", "many registers", "no registers", "certificate", "platform"],
)
def test_n11_nothing_is_fetched_for_a_vtpm_quote_that_does_not_hold(
    world: World, spoil: Callable[[Attestation], Attestation], expected: str
) -> None:
    assert code(lambda: world.gather(world.source(), spoil(world.gcp()))) == expected
    assert world.server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}0",
        "http://169.254.169.254",
        "http://metadata.google.internal",
        "http://localhost:{port}",
    ],
)
def test_n11_nothing_is_fetched_from_where_evidence_says(world: World, url: str) -> None:
    """The evidence holds together, so only its addresses stand against it."""
    port = world.server.url.rpartition(":")[2]
    stranger = SimulatedAkAuthority.create(url.format(port=port))
    attestation = gcp_evidence(world.intel, stranger.issue_ak(AK.public_key()))
    assert code(lambda: world.gather(world.source(), attestation)) == "issuers.url"
    assert world.server.requests == []


def test_n11_nothing_is_fetched_for_an_expired_attestation_key(world: World) -> None:
    expired = world.google.issue_ak(AK.public_key(), not_after=utc(NOW) - timedelta(days=1))
    attestation = gcp_evidence(world.intel, expired)
    assert code(lambda: world.gather(world.source(), attestation)) == "gcp.chain.expired"
    assert world.server.requests == []


def test_nothing_is_fetched_for_a_key_that_did_not_sign(world: World) -> None:
    attestation = gcp_evidence(world.intel, world.ak_certificate, ec.generate_private_key(ec.SECP256R1()))
    assert code(lambda: world.gather(world.source(), attestation)) == "tpm.signature.invalid"
    assert world.server.requests == []


def test_a_chain_to_another_root_ends_before_collateral_is_fetched(world: World) -> None:
    stranger = SimulatedAkAuthority.create(world.server.url)
    world.server.files.update(stranger.resources(NOW))
    attestation = gcp_evidence(world.intel, stranger.issue_ak(AK.public_key()))
    # by the anchor's name, not by its key
    assert code(lambda: world.gather(world.source(), attestation)) == "gcp.chain.signature"
    assert not set(world.server.requests) & set(COLLATERAL_ROUTES)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda quote: quote[:100], "tdx.quote.size"),
        (lambda quote: b"\x09" + quote[1:], "tdx.quote.version"),
    ],
)
def test_n11_nothing_is_fetched_for_what_is_no_quote(
    world: World, spoil: Callable[[bytes], bytes], expected: str
) -> None:
    attestation = world.tdx()
    assert isinstance(attestation.quote, TdxQuote)
    bad = msgspec.structs.replace(attestation, quote=TdxQuote(spoil(attestation.quote.quote), ()))
    assert code(lambda: world.gather(world.source(), bad)) == expected
    assert world.server.requests == []


def test_nothing_is_fetched_for_a_platform_under_another_root(world: World) -> None:
    """Or anybody could have us ask for as many platform models as there are numbers."""
    stranger = tdx_evidence(SimulatedIntel.create(fmspc=b"\x01" * 6))
    assert code(lambda: world.gather(world.source(), stranger)) == "tdx.anchor"
    assert world.server.requests == []


def test_nothing_is_fetched_for_a_platform_whose_chain_is_forged(world: World) -> None:
    """The real root at the end of a chain that it did not begin."""
    forged = SimulatedIntel.create(fmspc=b"\x01" * 6)
    forged = msgspec.structs.replace(forged, root=world.intel.root)
    assert code(lambda: world.gather(world.source(), tdx_evidence(forged))) == "tdx.dcap.chain"
    assert world.server.requests == []


def test_nothing_is_fetched_for_a_domain_in_debug_mode(world: World) -> None:
    quote = TdxQuote(
        SimulatedTdx(world.intel, Domain(td_attributes=TD_ATTRIBUTES | 1)).quote(REPORT_DATA), ()
    )
    attestation = Attestation(quote, (), REPORT_DATA, "{}")
    assert code(lambda: world.gather(world.source(), attestation)) == "tdx.attributes.debug"
    assert world.server.requests == []


def test_n20_a_service_that_the_evidence_names_is_ignored(world: World) -> None:
    with CollateralServer() as named:
        config = f'{{"pccs_url":"{named.url}","collateral_base_url":"{named.url}","vm_config":"{{}}"}}'
        attestation = msgspec.structs.replace(world.tdx(), config=config)
        assert world.gather(world.source(), attestation).tdx == (world.published,)
        assert named.requests == []


def test_collateral_is_renewed_and_never_goes_back(world: World) -> None:
    source = world.source()
    world.gather(source, world.tdx())
    newer = world.published = world.intel.collateral(NOW + COLLATERAL_REFRESH)
    assert world.gather(source, world.tdx(), now=NOW + COLLATERAL_REFRESH).tdx == (newer,)
    world.published = world.intel.collateral(NOW)
    assert world.gather(source, world.tdx(), now=NOW + 3 * COLLATERAL_REFRESH).tdx == (newer,)
    assert "endorsements.older" in world.told[0]


def test_n20_collateral_serves_within_its_age_while_the_service_is_down(world: World) -> None:
    source = world.source()
    gathered = world.gather(source, world.tdx())
    world.published = None
    assert world.gather(source, world.tdx(), now=NOW + 7 * DAY) == gathered
    assert "pccs.unavailable" in world.told[0]
    late = NOW + 7 * DAY + RETRY_AFTER
    assert code(lambda: world.gather(source, world.tdx(), now=late)) == "pccs.unavailable"


def test_n14_collateral_older_than_the_policy_allows_is_not_taken(world: World) -> None:
    policy = Policy(tdx=TdxPolicy(max_collateral_age=DAY))
    with pytest.raises(UnavailableError) as caught:
        world.gather(world.source(), world.tdx(), now=NOW + 2 * DAY, policy=policy)
    assert "endorsements.not_current" in caught.value.message


@pytest.mark.parametrize("now", [NOW - 1, NOW + 31 * DAY])
def test_n14_collateral_of_the_future_or_past_its_end_is_not_taken(world: World, now: int) -> None:
    policy = Policy(tdx=TdxPolicy(max_collateral_age=365 * DAY))
    assert (
        code(lambda: world.gather(world.source(), world.tdx(), now=now, policy=policy)) == "pccs.unavailable"
    )


def test_what_a_bundle_holds_is_not_fetched(world: World) -> None:
    google = world.google.endorsements(NOW)
    bundle = msgspec.structs.replace(google, tdx=(world.intel.collateral(NOW),))
    gathered = world.gather(world.source(bundle, offline=True), world.gcp())
    assert gathered.tdx == bundle.tdx
    assert gathered.certificates == bundle.certificates
    assert set(gathered.crls) == set(bundle.crls)
    world.gather(world.source(bundle), world.gcp())
    assert world.server.requests == []


def test_the_youngest_of_a_bundle_is_taken(world: World) -> None:
    older, newer = world.intel.collateral(NOW - DAY), world.intel.collateral(NOW)
    other = SimulatedIntel.create(fmspc=b"\x01" * 6).collateral(NOW, tcb_info={"fmspc": "010101010101"})
    source = world.source(Endorsements(tdx=(other, newer, older)), offline=True)
    assert world.gather(source, world.tdx()).tdx == (newer,)


def test_what_of_a_bundle_is_not_current_is_fetched(world: World) -> None:
    stale = world.google.endorsements(NOW - 30 * DAY)
    bundle = msgspec.structs.replace(stale, tdx=(world.intel.collateral(NOW - 10 * DAY),))
    gathered = world.gather(world.source(bundle), world.gcp())
    assert gathered.tdx == (world.published,)
    assert world.server.requests == [*COLLATERAL_ROUTES, INTERMEDIATE_LIST_PATH, ROOT_LIST_PATH]


def test_a_bundle_gives_only_what_the_evidence_needs(world: World) -> None:
    aws = SimulatedAuthority.create()
    other = Endorsements(
        certificates=SimulatedAkAuthority.create().endorsements(NOW).certificates, crls=aws.crls(NOW)
    )
    bundle = Endorsements(certificates=other.certificates, crls=other.crls)
    gathered = world.gather(world.source(bundle), world.gcp())
    assert not set(gathered.crls) & set(other.crls)
    assert not set(gathered.certificates) & set(other.certificates)


@pytest.mark.parametrize("missing", ["tdx", "certificates", "crls"])
def test_offline_the_error_names_what_is_missing(world: World, missing: str) -> None:
    whole = msgspec.structs.replace(world.google.endorsements(NOW), tdx=(world.intel.collateral(NOW),))
    bundle = msgspec.structs.replace(whole, **{missing: ()})
    with pytest.raises(UnavailableError) as caught:
        world.gather(world.source(bundle, offline=True), world.gcp())
    assert caught.value.code == "endorsements.offline"
    names = {"tdx": "fmspc 000000000000", "certificates": "issuer", "crls": "revocation list of Simulated"}
    assert names[missing] in caught.value.message


@pytest.mark.parametrize(
    ("mode", "bundled", "expected"),
    [
        (Revocation.OFF, 2, 0),
        (Revocation.OFF, 0, 0),
        (Revocation.IF_AVAILABLE, 2, 2),
        (Revocation.IF_AVAILABLE, 0, 0),
    ],
)
def test_lists_are_fetched_only_where_they_are_required(
    world: World, mode: Revocation, bundled: int, expected: int
) -> None:
    bundle = world.google.endorsements(NOW) if bundled else NO_ENDORSEMENTS
    policy = Policy(gcp=GcpPolicy(revocation=mode))
    gathered = world.gather(world.source(bundle), world.gcp(), policy=policy)
    assert len(gathered.crls) == expected
    assert not {INTERMEDIATE_LIST_PATH, ROOT_LIST_PATH} & set(world.server.requests)


@pytest.mark.parametrize("bundle", [Endorsements(crls=(b"no list",)), "tdx"])
def test_a_bundle_that_cannot_be_read_is_refused_at_once(world: World, bundle: Endorsements | str) -> None:
    if isinstance(bundle, str):
        broken = msgspec.structs.replace(world.intel.collateral(NOW), tcb_info="{}")
        bundle = Endorsements(tdx=(broken,))
    with pytest.raises(ConfigError) as caught:
        EndorsementSource(None, None, bundle=bundle)
    assert caught.value.code == "endorsements.bundle"


def test_a_quote_without_its_chain_takes_the_bundles_collateral(world: World) -> None:
    """Such a chain can only come with collateral that an operator put there."""
    attestation = world.tdx()
    assert isinstance(attestation.quote, TdxQuote)
    at = attestation.quote.quote.index(b"-----BEGIN") - 6
    encrypted_ppid = bytearray(attestation.quote.quote)
    assert encrypted_ppid[at : at + 2] == b"\x05\0"
    encrypted_ppid[at] = 3
    bare = msgspec.structs.replace(attestation, quote=TdxQuote(bytes(encrypted_ppid), ()))
    bundle = Endorsements(tdx=(world.intel.collateral(NOW),))
    assert world.gather(world.source(bundle), bare).tdx == bundle.tdx
    assert world.server.requests == []


def test_evidence_that_nobody_here_verifies_needs_nothing(world: World) -> None:
    attestation = Attestation(SevSnpQuote(b"", (), ""), (), bytes(64), "{}")
    assert world.gather(world.source(), attestation) == NO_ENDORSEMENTS


PCRS = {index: bytes([0xA0 + index]) * 48 for index in (0, 1, 2)}


class Aws:
    """A Nitro authority whose lists a loopback server publishes."""

    def __init__(self, server: CollateralServer) -> None:
        self.server = server
        self.authority = SimulatedAuthority.create()
        self.anchors = TrustAnchors.production().with_extra(self.authority.root_pem, signer="nitro")
        self.lists = self.authority.crls(NOW)
        server.files.update({"/root.crl": self.lists[0], "/region.crl": self.lists[1]})
        document = Nsm(SimulatedNsm(PCRS, self.authority, clock=lambda: NOW)).attestation(REPORT_DATA)
        self.evidence = Attestation(NitroEnclaveQuote(document), (), REPORT_DATA, "{}")

    def gather(
        self, mode: Revocation, bundle: Endorsements = NO_ENDORSEMENTS, evidence: Attestation | None = None
    ) -> Endorsements:
        http = HttpClient(RoutedDialer(int(self.server.url.rpartition(":")[2])), timeout=30)
        issuers = IssuerClient(http, origins=["http://nitro-lists.invalid"])
        policy = Policy(nitro=NitroPolicy(revocation=mode))
        return EndorsementSource(None, issuers, bundle=bundle).gather(
            evidence or self.evidence, anchors=self.anchors, policy=policy, now=NOW
        )


@pytest.fixture
def aws() -> Iterator[Aws]:
    with CollateralServer() as server:
        yield Aws(server)


def test_nitro_lists_are_fetched_where_they_are_required(aws: Aws) -> None:
    assert set(aws.gather(Revocation.REQUIRED).crls) == set(aws.lists)
    assert sorted(aws.server.requests) == ["/region.crl", "/root.crl"]


@pytest.mark.parametrize("mode", [Revocation.OFF, Revocation.IF_AVAILABLE])
def test_nitro_lists_are_never_fetched_otherwise(aws: Aws, mode: Revocation) -> None:
    assert aws.gather(mode) == NO_ENDORSEMENTS
    assert aws.server.requests == []


@pytest.mark.parametrize("mode", [Revocation.REQUIRED, Revocation.IF_AVAILABLE])
def test_nitro_lists_of_a_bundle_are_taken(aws: Aws, mode: Revocation) -> None:
    assert set(aws.gather(mode, Endorsements(crls=aws.lists)).crls) == set(aws.lists)
    assert aws.server.requests == []


def test_n11_nothing_is_fetched_for_a_nitro_document_that_does_not_hold(aws: Aws) -> None:
    quote = aws.evidence.quote
    assert isinstance(quote, NitroEnclaveQuote)
    forged = quote.nsm_quote[:-1] + bytes([quote.nsm_quote[-1] ^ 1])
    evidence = msgspec.structs.replace(aws.evidence, quote=NitroEnclaveQuote(forged))
    assert code(lambda: aws.gather(Revocation.REQUIRED, evidence=evidence)) == "cose.signature.invalid"
    assert aws.server.requests == []


def test_n11_nothing_is_fetched_for_a_nitrotpm_document_that_does_not_hold(aws: Aws) -> None:
    quote = aws.evidence.quote
    assert isinstance(quote, NitroEnclaveQuote)
    evidence = msgspec.structs.replace(aws.evidence, quote=NitroTpmQuote(quote.nsm_quote))
    assert code(lambda: aws.gather(Revocation.REQUIRED, evidence=evidence)) == "nitro.field"
    assert aws.server.requests == []


def test_a_configured_service_is_asked_for_simulated_anchors(world: World) -> None:
    source = production_source(pccs_url=world.server.url, external=True)
    assert world.gather(source, world.gcp()).tdx == (world.published,)


def test_the_way_to_the_services_may_be_given(world: World) -> None:
    dialer = RoutedDialer(int(world.server.url.rpartition(":")[2]))
    source = production_source(pccs_url="http://pccs.example", external=True, http=HttpClient(dialer))
    assert world.gather(source, world.tdx()).tdx == (world.published,)
    assert set(dialer.dialed) == {("pccs.example", 80)}


def test_production_asks_no_loopback_address(world: World) -> None:
    with pytest.raises(ConfigError) as caught:
        production_source(pccs_url=world.server.url)
    assert caught.value.code == "pccs.config.plain_http"


def test_production_services_are_made_without_asking_them() -> None:
    production_source()
    production_source(external=True)


def test_offline_nothing_is_asked(world: World) -> None:
    source = production_source(offline=True, pccs_url=world.server.url, external=True)
    assert code(lambda: world.gather(source, world.tdx())) == "endorsements.offline"
    assert world.server.requests == []

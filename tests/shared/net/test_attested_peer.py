"""Whom a peer is taken for, and what it is refused for (SECURITY N-50, N-51; relay of evidence)."""

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.devices.attestor import NitroAttestor
from enclave.devices.nsm import Nsm
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.evidence import certificate_evidence
from shared.attestation.app_id_register import APP_ID_PCR, app_id_message
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, InvalidEvidence
from shared.keys.kdf import p256_key
from shared.net.attested_peer import Expected, Peer, check_client, check_server
from shared.net.attested_session import attested_session
from shared.net.peer_verifier import PeerVerifier
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.certificates import (
    ROOT_CA_NAME,
    app_ca_certificate,
    client_certificate,
    rpc_certificate,
    self_signed_ca,
)
from shared.ratls.csr import CsrConfig
from tests.shared.refusal import refuses

NOW = 1_900_000_000
APP_ID, OTHER_ID = bytes([3]) * 20, bytes([4]) * 20
CONFIG = CsrConfig(subject="app", usage_server_auth=True, usage_client_auth=True)


class World:
    """A KMS's root, one app's enclave, and the certificates that either could show."""

    def __init__(self) -> None:
        self.authority = SimulatedAuthority.create()
        self.now = NOW
        pcrs = {index: bytes([9, index]) * 24 for index in range(3)}
        nsm = Nsm(SimulatedNsm(pcrs, self.authority, clock=lambda: NOW))
        self.attestor = NitroAttestor(nsm, APP_ID)
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self_signed_ca(self.root_key, ROOT_CA_NAME, 1, NOW - 10, NOW + 10**6)
        self.root_ca = self.root.public_bytes(Encoding.PEM)
        anchors = TrustAnchors.production().with_extra(self.authority.root_pem)
        self.verifier = PeerVerifier(anchors=anchors, now=lambda: self.now)

    def evidence(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        return certificate_evidence(self.attestor, key.public_key())

    def chain(self, config: CsrConfig = CONFIG, **changes: Any) -> list[bytes]:
        """Return what an app shows under the KMS's root; `changes` bend it."""
        key = ec.generate_private_key(ec.SECP256R1())
        app_id = changes.get("app_id", APP_ID)
        ca_key = p256_key(bytes(31) + b"\5")
        issuer = changes.get("root", (self.root, self.root_key))
        ca = app_ca_certificate(ca_key, app_id=changes.get("ca_app_id", app_id), issuer=issuer)
        leaf = app_certificate(
            key.public_key(),
            config,
            Stamps(
                app_id=app_id,
                attestation=changes.get("attestation", self.evidence(changes.get("over", key))),
            ),
            issuer=(ca, ca_key),
            times=changes.get("times", (NOW - 5, NOW + 10**5)),
        )
        return [one.public_bytes(Encoding.DER) for one in (leaf, ca, issuer[0])]

    def self_issued(self) -> list[bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = client_certificate(key, attestation=self.evidence(key), issuer=None, now=NOW)
        return [leaf.public_bytes(Encoding.DER)]

    def kms(self, **changes: Any) -> list[bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        options = {"domain": "kms.test", "issuer": (self.root, self.root_key), "now": NOW, **changes}
        return [rpc_certificate(key, attestation=self.evidence(key), **options).public_bytes(Encoding.DER)]

    def server(self, chain: list[bytes], **pins: Any) -> Peer:
        expected = Expected(**{"root_ca": self.root_ca, "app_id": APP_ID, **pins})
        return check_server(chain, expected=expected, hostname="kms.test", verifier=self.verifier)


@pytest.fixture
def world() -> World:
    return World()


def test_says_who_it_is_and_by_whose_word(world: World) -> None:
    peer = world.server(world.chain())
    assert (peer.app_id, peer.vouched_by, peer.self_asserted) == (APP_ID, "kms", ())
    assert peer.simulated
    assert peer.to_json()["app_id"] == APP_ID.hex()
    assert peer.to_json()["verdict"]["lanes"]["compose_hash"]["status"] == "verified"


def test_a_client_is_judged_alike(world: World) -> None:
    expected = Expected(root_ca=world.root_ca, app_id=APP_ID)
    assert check_client(world.chain(), expected=expected, verifier=world.verifier).app_id == APP_ID


def test_a_client_without_a_certificate_is_refused(world: World) -> None:
    for root_ca in (world.root_ca, None):
        expected = Expected(root_ca=root_ca, app_id=APP_ID)
        with refuses("ratls.chain"):
            check_client([], expected=expected, verifier=world.verifier)


@pytest.mark.parametrize("pins", [{}, {"root_ca": b"pem"}, {"usage": "kms:rpc"}, {"instance_id": bytes(20)}])
def test_an_expectation_that_anybody_meets_is_refused(pins: dict[str, Any]) -> None:
    with refuses("peer.expected", ConfigError):
        Expected(**pins)


def test_no_kms_calls_an_app(world: World) -> None:
    expected = Expected(usage="kms:rpc", root_ca=world.root_ca)
    with refuses("peer.expected", ConfigError):
        check_client(world.chain(), expected=expected, verifier=world.verifier)


def test_n50_evidence_over_another_key_is_refused(world: World) -> None:
    with refuses("attestation.report_data"):
        world.server(world.chain(over=ec.generate_private_key(ec.SECP256R1())))


def test_n50_a_certificate_without_evidence_is_refused(world: World) -> None:
    with refuses("ratls.attestation.missing"):
        world.server(world.chain(attestation=None))


def test_n51_an_apps_certificate_is_no_kms(world: World) -> None:
    with refuses("ratls.issuer"):
        world.server(world.chain(CsrConfig(subject="k", subject_alt_names=("kms.test",))), usage="kms:rpc")


def test_n51_a_leaf_of_the_root_without_the_usage_is_no_kms(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = app_certificate(
        key.public_key(),
        CsrConfig(subject="k", subject_alt_names=("kms.test",)),
        Stamps(app_id=APP_ID, attestation=world.evidence(key)),
        issuer=(world.root, world.root_key),
        times=(NOW - 5, NOW + 5),
    )
    with refuses("ratls.usage"):
        world.server([leaf.public_bytes(Encoding.DER)], usage="kms:rpc", app_id=None)


def test_a_kms_is_no_app(world: World) -> None:
    with refuses("ratls.chain"):
        world.server(world.kms())
    with refuses("ratls.usage"):
        world.server(world.kms(), root_ca=None)


def test_a_kms_is_known_under_its_name_alone(world: World) -> None:
    assert world.server(world.kms(), usage="kms:rpc", app_id=None).vouched_by == "kms"
    with refuses("ratls.hostname"):
        world.server(world.kms(domain="other.test"), usage="kms:rpc", app_id=None)


def test_stale_evidence_is_refused_by_its_own_time(world: World) -> None:
    chain = world.chain()
    world.now = NOW + 61
    assert world.server(chain, max_age=61).app_id == APP_ID
    with refuses("peer.stale"):
        world.server(chain, max_age=60)


def test_n18_a_certificate_that_is_still_valid_does_not_freshen_its_evidence(world: World) -> None:
    chain = world.chain()
    world.now = NOW + 3601
    with refuses("nitro.stale"):
        world.server(chain, max_age=None)


@pytest.mark.parametrize("name", ["app_id", "instance_id", "compose_hash", "os_image_hash", "device_id"])
def test_another_machine_than_wanted_is_refused(world: World, name: str) -> None:
    with refuses(f"peer.{name}"):
        world.server(world.chain(), **{name: bytes(20 if name.endswith("_id") else 32)})


def test_a_certificate_of_another_app_than_its_evidence_is_refused(world: World) -> None:
    with refuses("peer.app_id.mixed"):
        world.server(world.chain(app_id=OTHER_ID), app_id=OTHER_ID)


def test_a_leaf_of_another_app_than_its_ca_is_refused(world: World) -> None:
    with refuses("ratls.app_id"):
        world.server(world.chain(app_id=OTHER_ID, ca_app_id=APP_ID))


def test_an_app_id_that_only_the_peer_says_is_not_enough(world: World) -> None:
    with refuses("peer.self_asserted"):
        world.server(world.self_issued(), root_ca=None)


def test_an_app_id_that_an_unknown_image_bound_in_its_register_is_not_enough(world: World) -> None:
    """Whoever builds an image of his own extends PCR16 with whatever app id he likes."""
    nsm = Nsm(
        SimulatedNsm({index: bytes([66]) * 48 for index in range(3)}, world.authority, clock=lambda: NOW)
    )
    nsm.extend_pcr(APP_ID_PCR, app_id_message(APP_ID))
    nsm.lock_pcr(APP_ID_PCR)
    world.attestor = NitroAttestor(nsm, APP_ID)
    with refuses("peer.image"):
        world.server(world.self_issued(), root_ca=None)


@pytest.mark.parametrize("pin", ["compose_hash", "os_image_hash"])
def test_a_known_image_may_name_its_app(world: World, pin: str) -> None:
    image = getattr(world.server(world.chain()), pin)
    peer = world.server(world.self_issued(), root_ca=None, **{pin: image})
    assert (peer.app_id, peer.vouched_by, peer.self_asserted) == (APP_ID, "evidence", ("app_id",))


def test_a_self_issued_certificate_is_not_one_of_the_kms(world: World) -> None:
    with refuses("ratls.chain"):
        world.server(world.self_issued())


def test_a_chain_under_another_root_is_refused(world: World) -> None:
    other = World()
    with refuses("ratls.chain"):
        world.server(other.chain())
    with refuses("ratls.signature"):
        world.server(other.chain()[:2])


def test_a_longer_chain_is_refused(world: World) -> None:
    chain = world.chain()
    with refuses("ratls.chain"):
        world.server([*chain, chain[2]])


def test_a_critical_extension_of_an_apps_ca_that_nobody_knows_is_refused(world: World) -> None:
    """It could limit what the CA may sign."""
    chain = world.chain()
    ca = x509.load_der_x509_certificate(chain[1])
    builder = x509.CertificateBuilder(
        issuer_name=ca.issuer,
        subject_name=ca.subject,
        public_key=ca.public_key(),
        serial_number=ca.serial_number,
        not_valid_before=ca.not_valid_before_utc,
        not_valid_after=ca.not_valid_after_utc,
        extensions=list(ca.extensions),
    )
    limits = x509.NameConstraints(None, [x509.DNSName("example.com")])
    bent = builder.add_extension(limits, critical=True).sign(world.root_key, SHA256())
    with refuses("ratls.extension.critical"):
        world.server([chain[0], bent.public_bytes(Encoding.DER), chain[2]])


@pytest.mark.parametrize("taken_for", ["leaf", "kms"])
def test_what_is_no_apps_ca_signs_no_app(world: World, taken_for: str) -> None:
    """A leaf, or a KMS's certificate, in the place of the app's CA."""
    chain = world.chain()
    ca = chain[0] if taken_for == "leaf" else world.kms()[0]
    with pytest.raises(InvalidEvidence) as caught:
        world.server([chain[0], ca, chain[2]])
    assert caught.value.code in {"ratls.issuer", "ratls.chain"}


def test_a_certificate_for_clients_alone_serves_nobody(world: World) -> None:
    with refuses("ratls.extended_key_usage"):
        world.server(world.chain(CsrConfig(subject="app", usage_client_auth=True)))


@pytest.mark.parametrize("times", [(NOW + 5, NOW + 9), (NOW - 9, NOW - 5)])
def test_a_certificate_outside_its_time_is_refused(world: World, times: tuple[int, int]) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        world.server(world.chain(times=times))
    assert caught.value.code in {"ratls.certificate.not_yet_valid", "ratls.certificate.expired"}


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "https://",
        "https://a/path",
        "https://a:99999",
        "https://u@a",
        "https://:p@a",
        "https://a?q",
        "https://[a",
    ],
)
def test_a_url_that_is_no_origin_is_refused(world: World, url: str) -> None:
    with refuses("session.url", ConfigError):
        attested_session(url, expected=Expected(app_id=APP_ID), verifier=world.verifier)

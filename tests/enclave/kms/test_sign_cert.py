"""SignCert: who gets a certificate, what it says, and in which order it is refused (spec kms section 2.2)."""

from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification

from enclave.kms.authorization import Decision
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.serving.attested_tls import build_server
from enclave.serving.prpc import DEFAULT_BODY_BYTES
from enclave.tee.peers import PeerVerifier
from shared.attestation.envelope import TdxQuote, decode_envelope
from shared.attestation.event_log_json import event_log_json
from shared.attestation.identity import app_info
from shared.attestation.messagepack import decode_strict
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.verify import VerifiedAttestation
from shared.errors import PolicyDenied, ProtocolError
from shared.keys.app_keys import app_ca_scalar
from shared.keys.kdf import p256_key
from shared.net.attested_client import AttestedConnection
from shared.ratls.certificates import BACKDATE, spki_der
from shared.ratls.csr import Csr, CsrConfig, encode_csr, signed_csr
from shared.ratls.extensions import APP_ID, APP_INFO, ATTESTATION, USAGE, read_extension
from shared.ratls.peer import (
    check_client_certificate,
    check_kms_certificate,
    check_source_kms_certificate,
    ratls_report_data,
)
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json, to_json
from tests.enclave.gcp import GUEST_APP_ID
from tests.shared.ratls.old_csr import old_csr
from tests.shared.refusal import refuses

TDX_ENVELOPE = Path(__file__).parents[2] / "data/attestation/synthetic/envelopes/v0_tdx.bin"
NOW = 1_900_000_000
DAY = 86_400
ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")
OPEN = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)
CONFIG = CsrConfig(
    subject="app.example.com",
    subject_alt_names=("app.example.com", "10.0.0.1"),
    usage_server_auth=True,
    ext_quote=True,
    ext_app_info=True,
)


@pytest.fixture
def keys(bootstrap):
    return bootstrap()


@pytest.fixture
def service(keys, policy, kms_enclave, anchors):
    def make(core: Core = OPEN) -> KmsService:
        own = kms_enclave.evidence(anchors)
        return KmsService(
            core=core, keys=keys, authorizer=policy, own=own, policy=pb.KmsPolicy(), now=lambda: NOW
        )

    return make


@pytest.fixture
def verifier(anchors) -> PeerVerifier:
    return PeerVerifier(anchors=anchors, now=lambda: NOW)


def asked(attestor, config: CsrConfig = CONFIG, *, over=None, **request: object) -> pb.SignCertRequest:
    """Return a request as a guest makes one; `over` is the key that is attested in place of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    envelope = attestor.attest(report_data(RATLS_CERT, spki_der((over or key).public_key())))
    data, signature = signed_csr(key, config, envelope)
    return pb.SignCertRequest(**{"api_version": 2, "csr": data, "signature": signature, **request})


def chain_of(response: pb.SignCertResponse) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in response.certificate_chain]


def test_issues_the_chain_of_the_app(service, verifier, app_enclave, keys, policy) -> None:
    leaf, app_ca, root = chain_of(service().sign_cert(asked(app_enclave.attestor), verifier.verify))
    assert root == keys.root_ca_cert
    assert app_ca.public_key() == p256_key(app_ca_scalar(keys.root_keys(), ID)).public_key()
    app_ca.verify_directly_issued_by(root)
    leaf.verify_directly_issued_by(app_ca)
    assert read_extension(leaf, APP_ID) == read_extension(app_ca, APP_ID) == ID
    assert (read_extension(app_ca, USAGE), read_extension(leaf, USAGE)) == (b"app:ca", b"app:custom")
    assert [kind for kind, _ in policy.asked] == ["kms", "app"]


def test_a_strict_client_accepts_the_chain(service, verifier, app_enclave, keys) -> None:
    leaf, app_ca, _ = chain_of(service().sign_cert(asked(app_enclave.attestor), verifier.verify))
    store = verification.Store([keys.root_ca_cert])
    at = leaf.not_valid_before_utc
    client = verification.PolicyBuilder().store(store).time(at.replace(tzinfo=None))
    found = client.build_server_verifier(x509.DNSName("app.example.com")).verify(leaf, [app_ca])
    assert found == [leaf, app_ca, keys.root_ca_cert]


def test_n53_the_certificate_says_what_was_verified(service, verifier, app_enclave, anchors) -> None:
    leaf = chain_of(service().sign_cert(asked(app_enclave.attestor), verifier.verify))[0]
    info = app_info(app_enclave.evidence(anchors))
    encoded = read_extension(leaf, APP_INFO)
    assert encoded is not None
    stamped = decode_strict(encoded)
    assert isinstance(stamped, list)
    assert stamped[:4] == [ID, info.compose_hash, b"", info.device_id]
    assert stamped[6] == info.os_image_hash == info.compose_hash
    assert app_enclave.evidence(anchors).verdict.lanes.app_id.status == "self_asserted"


def test_the_evidence_in_the_certificate_is_for_its_key(service, verifier, app_enclave) -> None:
    leaf = chain_of(service().sign_cert(asked(app_enclave.attestor), verifier.verify))[0]
    envelope = read_extension(leaf, ATTESTATION)
    assert envelope is not None
    bound = ratls_report_data(leaf.public_bytes(Encoding.DER))
    assert verifier.verify(envelope, bound).attestation.report_data == bound


def test_gives_no_evidence_and_no_app_info_that_was_not_asked_for(service, verifier, app_enclave) -> None:
    leaf = chain_of(service().sign_cert(asked(app_enclave.attestor, CsrConfig(subject="")), verifier.verify))[
        0
    ]
    assert read_extension(leaf, ATTESTATION) is None
    assert read_extension(leaf, APP_INFO) is None


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (CONFIG, "ratls.extended_key_usage"),
        (CsrConfig(subject="kms", subject_alt_names=("other.test",)), "ratls.issuer"),
    ],
)
def test_n51_the_certificate_is_neither_a_kms_nor_a_caller(
    service, verifier, app_enclave, keys, config: CsrConfig, code: str
) -> None:
    leaf = chain_of(service().sign_cert(asked(app_enclave.attestor, config), verifier.verify))[0]
    der = leaf.public_bytes(Encoding.DER)
    root = keys.root_ca_cert.public_bytes(Encoding.PEM)
    with refuses("ratls.issuer"):
        check_kms_certificate(der, root_ca_pem=root, hostname=config.subject_alt_names[0], now=NOW)
    with refuses("ratls.usage"):  # an onboarding KMS knows no root to hold it to
        check_source_kms_certificate(der, now=NOW)
    with refuses(code):
        check_client_certificate(der, temp_ca_der=keys.temp_ca_der(), now=NOW)


@pytest.mark.parametrize("version", [0, 3])
def test_refuses_another_api_version_after_the_self_check(
    service, verifier, app_enclave, policy, version
) -> None:
    with refuses("csr.version", ProtocolError) as caught:
        service().sign_cert(asked(app_enclave.attestor, api_version=version), verifier.verify)
    assert caught.value.message == "Unsupported API version"
    assert [kind for kind, _ in policy.asked] == ["kms"]


def test_a_kms_that_is_no_longer_allowed_signs_nothing(service, verifier, policy) -> None:
    policy.kms = Decision(is_allowed=False, reason="gone", gateway_app_id="")
    with refuses("kms.self.denied", PolicyDenied) as caught:
        service().sign_cert(pb.SignCertRequest(), verifier.verify)
    assert caught.value.message == "KMS self authorization failed: KMS is not allowed: gone"


def test_n50_refuses_a_request_that_another_key_signed(service, app_enclave) -> None:
    request = asked(app_enclave.attestor)
    stranger = ec.generate_private_key(ec.SECP256R1())
    request.signature = stranger.sign(request.csr, ec.ECDSA(SHA256()))
    with refuses("csr.signature"):
        service().sign_cert(request, _unreached)


def test_refuses_another_confirm_word_before_any_evidence(service) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = Csr(confirm="sign this", pubkey=spki_der(key.public_key()), config=CONFIG, envelope=b"")
    data = encode_csr(csr)
    signature = key.sign(data, ec.ECDSA(SHA256()))
    with refuses("csr.confirm"):
        service().sign_cert(pb.SignCertRequest(api_version=2, csr=data, signature=signature), _unreached)


def test_n50_refuses_evidence_in_a_request_for_another_key(service, verifier, app_enclave, policy) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with refuses("attestation.report_data") as caught:
        service().sign_cert(asked(app_enclave.attestor, over=other), verifier.verify)
    assert caught.value.message.startswith("invalid quote: ")
    assert [kind for kind, _ in policy.asked] == ["kms"]


def test_refuses_a_request_without_evidence(service, verifier) -> None:
    data, signature = signed_csr(ec.generate_private_key(ec.SECP256R1()), CONFIG, b"")
    with refuses("envelope.empty"):
        service().sign_cert(pb.SignCertRequest(api_version=2, csr=data, signature=signature), verifier.verify)


def test_refuses_a_guest_without_an_app_id(service, verifier, kms_enclave) -> None:
    with refuses("kms.app_id"):
        service().sign_cert(asked(kms_enclave.attestor), verifier.verify)


def test_refuses_with_the_policys_reason_before_it_looks_at_names(
    service, verifier, app_enclave, policy
) -> None:
    policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    request = asked(app_enclave.attestor, CsrConfig(subject="*"))
    with refuses("kms.app.denied", PolicyDenied) as caught:
        service().sign_cert(request, verifier.verify)
    assert caught.value.message == "Boot denied: Compose hash not allowed"


def test_n37_signs_nothing_for_a_nitro_enclave_unless_opted_in(service, verifier, app_enclave) -> None:
    closed = msgspec.structs.replace(OPEN, aws_nitro_enclave_key_release=False)
    with refuses("kms.release.gate", PolicyDenied):
        service(closed).sign_cert(asked(app_enclave.attestor), verifier.verify)


@pytest.mark.parametrize("name", ["kms.test", "KMS.TEST"])
def test_n52_signs_no_name_of_the_kms(service, verifier, app_enclave, name: str) -> None:
    request = asked(app_enclave.attestor, CsrConfig(subject="app", subject_alt_names=(name,)))
    with refuses("csr.name.kms", PolicyDenied):
        service().sign_cert(request, verifier.verify)


def test_n54_refuses_a_vm_config_of_another_image_in_a_request(service, verifier, app_enclave) -> None:
    request = asked(app_enclave.attestor, vm_config='{"os_image_hash":"' + "ab" * 32 + '"}')
    with refuses("identity.os_image.mismatch"):
        service().sign_cert(request, verifier.verify)


def test_policy_is_asked_before_the_image_is_checked(service, verifier, policy, app_enclave) -> None:
    policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    request = asked(app_enclave.attestor, vm_config='{"os_image_hash":"' + "ab" * 32 + '"}')
    with refuses("kms.app.denied", PolicyDenied):
        service().sign_cert(request, verifier.verify)


def test_a_certificate_is_valid_for_no_longer_than_the_policy_says(service, verifier, app_enclave) -> None:
    core = msgspec.structs.replace(OPEN, app_certificate_days=2)
    config = msgspec.structs.replace(CONFIG, not_before=0, not_after=NOW + 3650 * DAY)
    leaf = chain_of(service(core).sign_cert(asked(app_enclave.attestor, config), verifier.verify))[0]
    assert int(leaf.not_valid_before_utc.timestamp()) == NOW - BACKDATE
    assert int(leaf.not_valid_after_utc.timestamp()) == NOW + 2 * DAY


def test_the_old_layout_has_its_quote_verified_over_the_requests_key(service, app_enclave, anchors) -> None:
    """The quote of a TDX guest stands for its evidence; here another guest's is found to be good."""
    quote = decode_envelope(TDX_ENVELOPE.read_bytes()).quote
    assert isinstance(quote, TdxQuote)
    key = ec.generate_private_key(ec.SECP256R1())
    csr = old_csr(key, CONFIG, quote.quote, event_log_json(quote.event_log).encode())
    request = pb.SignCertRequest(api_version=1, csr=csr, signature=key.sign(csr, ec.ECDSA(SHA256())))
    given = []

    def verify(envelope: bytes, bound: bytes) -> VerifiedAttestation:
        given.append((decode_envelope(envelope).quote, bound))
        return app_enclave.evidence(anchors)

    leaf = chain_of(service().sign_cert(request, verify))[0]
    assert given == [(quote, ratls_report_data(leaf.public_bytes(Encoding.DER)))]
    assert leaf.public_key() == key.public_key()
    assert read_extension(leaf, APP_INFO) is None


def test_a_google_guest_is_judged_as_it_booted(service, gcp, policy) -> None:
    guest = gcp.start()
    guest.platform.tee.record_keys(os_image_hash=bytes(32), kms_root=b"\xab")
    verify = gcp.verifier(guest).verify
    leaf, app_ca, _ = chain_of(service().sign_cert(asked(guest.attestor), verify))
    evidence = verify(guest.attestor.attest(bytes(64)), bytes(64))
    kind, subject = policy.asked[-1]
    assert (kind, subject.app_id, subject.key_provider_info) == ("app", GUEST_APP_ID, b"")
    assert subject.mr_aggregated == app_info(evidence, boot_time=True).mr_aggregated
    assert subject.mr_aggregated != app_info(evidence).mr_aggregated
    encoded = read_extension(leaf, APP_INFO)
    assert encoded is not None
    stamped = decode_strict(encoded)
    assert isinstance(stamped, list)
    assert stamped[3] == app_info(evidence).device_id
    assert stamped[5] == app_info(evidence).mr_aggregated
    assert read_extension(app_ca, APP_ID) == GUEST_APP_ID


def test_serves_the_method_over_tls(keys, service, verifier, app_enclave, kms_enclave, serve) -> None:
    callers = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=verifier)
    identity = RpcIdentity(keys, kms_enclave.attestor, lambda: NOW)
    app = main_app(service(), callers, version="1", metrics=True, lifespan=identity.renewing)
    dialer = serve(build_server(app, context_factory=identity.context))
    request = asked(app_enclave.attestor)
    large = msgspec.structs.replace(CONFIG, subject="a" * (DEFAULT_BODY_BYTES - len(request.csr)))
    with AttestedConnection.connect(
        dialer, "kms.test", 8000, check_peer=lambda _leaf: None, timeout=20
    ) as connection:
        answer = connection.request("POST", "/prpc/SignCert?json", to_json(request))
        binary = connection.request("POST", "/prpc/KMS.SignCert", request.SerializeToString())
        too_long = connection.request(
            "POST", "/prpc/SignCert?json", to_json(asked(app_enclave.attestor, large))
        )
        metrics = connection.request("GET", "/metrics").body.decode()
    chains = [from_json(pb.SignCertResponse, answer.body), pb.SignCertResponse.FromString(binary.body)]
    first, second = map(chain_of, chains)
    assert first[0].public_key() == second[0].public_key()
    assert (too_long.status, msgspec.json.decode(too_long.body)["code"]) == (400, "csr.subject")
    assert "dstack_kms_attestation_requests_total 3\n" in metrics
    assert "dstack_kms_attestation_failures_total 1\n" in metrics


def _unreached(_envelope: bytes, _report_data: bytes) -> None:
    raise AssertionError("evidence was looked at before the signature and the word")

"""The KMS's listeners over real sockets: prpc, TLS, and who gets how far (N-50, N-56)."""

import hashlib
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from enclave.kms.attestation_info import attestation_info
from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app, onboard_app
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService, kms_boot_info
from enclave.serving.attested_tls import build_plain_server, build_server
from enclave.serving.prpc import DEFAULT_BODY_BYTES
from enclave.tee.peers import PeerVerifier
from shared.attestation.report_data import RATLS_CERT, bootstrap_report_data, report_data
from shared.attestation.verify import verify_attestation
from shared.errors import DstackError
from shared.net.attested_client import AttestedConnection
from shared.net.fetch import HttpClient
from shared.ratls.certificates import client_certificate, rpc_certificate, spki_der
from shared.ratls.peer import check_kms_certificate, ratls_report_data
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json

NOW = 1_900_000_000
CORE = Core(aws_nitro_enclave_key_release=True, treat_nitro_as_up_to_date=True)


@pytest.fixture
def keys(bootstrap):
    return bootstrap()


@pytest.fixture
def main_listener(keys, policy, kms_enclave, anchors, serve):
    service = KmsService(
        core=CORE,
        keys=keys,
        authorizer=policy,
        own=kms_enclave.evidence(anchors),
        policy=pb.KmsPolicy(auth_mode="proof"),
        now=lambda: NOW,
    )
    verifier = PeerVerifier(anchors=anchors, now=lambda: NOW)
    callers = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=verifier)
    identity = RpcIdentity(keys, kms_enclave.attestor, lambda: NOW)
    app = main_app(service, callers, version="9.9.9", metrics=True, lifespan=identity.renewing)
    return serve(build_server(app, context_factory=identity.context))


def _connect(dialer, check=lambda _leaf: None, **client: object) -> AttestedConnection:
    return AttestedConnection.connect(dialer, "kms.test", 8000, check_peer=check, timeout=20, **client)


def _error(response) -> dict[str, str]:
    assert response.status == 400
    return msgspec.json.decode(response.body, type=dict[str, str])


def test_the_server_proves_itself_to_a_pinned_client(main_listener, keys, anchors) -> None:
    root = keys.root_ca_cert.public_bytes(Encoding.PEM)

    def check(leaf: bytes) -> None:
        envelope = check_kms_certificate(leaf, root_ca_pem=root, hostname="kms.test", now=NOW)
        verify_attestation(envelope, now=NOW, anchors=anchors, report_data=ratls_report_data(leaf))

    with _connect(main_listener, check) as connection:
        assert connection.request("GET", "/health").body == b"OK"


def test_get_app_key_needs_both_connections(main_listener, app_enclave) -> None:
    """The path of a guest: fetch the temporary CA, come back with evidence, get keys; in both encodings."""
    with _connect(main_listener) as connection:
        response = connection.request("POST", "/prpc/KMS.GetTempCaCert?json", b"null")
    temporary = from_json(pb.GetTempCaCertResponse, response.body)

    class Issuer:
        temp_ca_cert = x509.load_pem_x509_certificate(temporary.temp_ca_cert.encode())
        temp_ca_key = load_pem_private_key(temporary.temp_ca_key.encode(), None)

    leaf, key = app_enclave.certificate(Issuer)
    chain = (x509.load_der_x509_certificate(leaf),)
    with _connect(main_listener, client_key=key, client_chain=chain) as connection:
        answer = connection.request("POST", "/prpc/GetAppKey?json", b'{"api_version":1,"vm_config":""}')
        binary = connection.request(
            "POST", "/prpc/GetAppKey", pb.GetAppKeyRequest(api_version=1).SerializeToString()
        )
    assert from_json(pb.AppKeyResponse, answer.body) == pb.AppKeyResponse.FromString(binary.body)
    assert binary.headers["content-type"] == "application/octet-stream"


def test_n50_no_client_certificate_gets_no_key(main_listener) -> None:
    with _connect(main_listener) as connection:
        error = _error(connection.request("POST", "/prpc/GetAppKey?json", b"{}"))
    assert error == {"error": "App not allowed: No attestation provided", "code": "kms.no_attestation"}


def test_n50_a_temporary_ca_certificate_without_evidence_gets_no_key(main_listener, keys) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = (keys.temp_ca_cert, keys.temp_ca_key)
    bare = client_certificate(key, attestation=None, issuer=issuer, now=NOW)
    with _connect(main_listener, client_key=key, client_chain=(bare,)) as connection:
        error = _error(connection.request("POST", "/prpc/GetAppKey?json", b"{}"))
    assert error["code"] == "kms.no_attestation"


@pytest.mark.parametrize("method", ["GetAppKey", "GetMeta", "GetTempCaCert"])
def test_n50_evidence_for_another_key_is_refused_for_every_method(
    main_listener, keys, app_enclave, method: str
) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    leaf, key = app_enclave.certificate(keys, over=other)
    chain = (x509.load_der_x509_certificate(leaf),)
    with _connect(main_listener, client_key=key, client_chain=chain) as connection:
        error = _error(connection.request("POST", f"/prpc/{method}?json", b"{}"))
    assert error["code"] == "attestation.report_data"
    assert error["error"].startswith("invalid quote: ")


def test_a_self_issued_certificate_is_accepted(main_listener, app_enclave) -> None:
    leaf, key = app_enclave.certificate(None)
    chain = (x509.load_der_x509_certificate(leaf),)
    with _connect(main_listener, client_key=key, client_chain=chain) as connection:
        assert connection.request("POST", "/prpc/GetAppKey?json", b"{}").status == 200


def test_refuses_an_unknown_method(main_listener) -> None:
    with _connect(main_listener) as connection:
        error = _error(connection.request("POST", "/prpc/KMS.Nothing?json", b"{}"))
    assert error == {"error": "Service not found: Nothing", "code": "prpc.method"}


def test_refuses_an_oversize_body_in_upstreams_words(main_listener) -> None:
    with _connect(main_listener) as connection:
        response = connection.request("POST", "/prpc/GetAppKey?json", bytes(DEFAULT_BODY_BYTES + 1))
    assert _error(response)["error"] == "failed to read data: payload too large"


def test_headers_and_counters_are_upstreams(main_listener) -> None:
    with _connect(main_listener) as connection:
        refused = connection.request("POST", "/prpc/GetAppKey?json", b"{}")
        connection.request("GET", "/prpc/GetMeta")
        metrics = connection.request("GET", "/metrics").body.decode()
    assert refused.headers["x-app-version"] == "9.9.9"
    assert refused.headers["server"] == "DStack KMS"
    assert "dstack_kms_attestation_requests_total 1\n" in metrics
    assert "dstack_kms_attestation_failures_total 1\n" in metrics


def test_meta_answers_in_json_with_upstreams_field_names(main_listener, keys) -> None:
    with _connect(main_listener) as connection:
        meta = msgspec.json.decode(connection.request("GET", "/prpc/GetMeta").body)
    assert meta["ca_cert"] == keys.root_ca_cert.public_bytes(Encoding.PEM).decode()
    assert meta["kms_contract_address"] == "0x" + "11" * 20
    assert meta["policy"]["auth_mode"] == "proof"
    assert len(bytes.fromhex(meta["k256_pubkey"])) == 33


# Onboarding


@pytest.fixture
def onboarding(
    store, kms_enclave, serve, anchors, policy
) -> Iterator[tuple[Callable[..., object], list[bool]]]:
    maker = Bootstrapper(
        store=store, random=kms_enclave.nsm.get_random, attestor=kms_enclave.attestor, now=lambda: NOW
    )
    finished: list[bool] = []
    app = onboard_app(
        bootstrap=lambda domain: maker.bootstrap(domain, check_self=lambda: None, attest=True),
        onboard=lambda _source, _domain, _token: pb.OnboardResponse(),
        finish=lambda: finished.append(True),
        describe=lambda: attestation_info(
            kms_enclave.evidence(anchors), msgspec.structs.replace(CORE, site_name="here"), policy.info
        ),
    )
    http = HttpClient(serve(build_plain_server(app)), timeout=20)

    def call(method: str, body: object = None):
        return http.request("POST", f"http://kms.test:8001/prpc/{method}?json", msgspec.json.encode(body))

    yield call, finished
    http.close()


def test_bootstrap_attests_the_new_keys(onboarding, anchors) -> None:
    call, _ = onboarding
    record = from_json(pb.BootstrapResponse, call("Bootstrap", {"domain": "kms.test"}).body)
    expected = bootstrap_report_data(record.ca_pubkey, record.k256_pubkey)
    verify_attestation(record.attestation, now=NOW, anchors=anchors, report_data=expected)


def test_n56_a_second_bootstrap_is_refused(onboarding, store) -> None:
    call, _ = onboarding
    call("Onboard.Bootstrap", {"domain": "kms.test"})
    first = store.load().k256
    error = _error(call("Bootstrap", {"domain": "kms.test"}))
    assert error == {"error": "KMS has already been bootstrapped", "code": "kms.bootstrapped"}
    assert store.load().k256 == first


def test_n56_bootstraps_at_once_make_one_set_of_keys(onboarding, store) -> None:
    call, _ = onboarding
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(call("Bootstrap", {"domain": "kms.test"}).status))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 400, 400, 400, 400, 400]
    assert store.load() is not None


@pytest.mark.parametrize("domain", ["", "-a.test", "a..b", "a b", "x" * 254, "ü.test"])
def test_refuses_a_domain_that_is_no_name(onboarding, store, domain: str) -> None:
    call, _ = onboarding
    assert _error(call("Bootstrap", {"domain": domain}))["code"] == "kms.domain"
    assert store.load() is None


def test_every_domain_that_can_be_bootstrapped_can_be_served(onboarding, store, kms_enclave, anchors) -> None:
    """A name longer than a common name may be: the certificate carries it as its alternative name."""
    call, _ = onboarding
    domain = ".".join(["a" * 60] * 4)
    assert call("Bootstrap", {"domain": domain}).status == 200
    keys = store.load()
    identity = RpcIdentity(keys, kms_enclave.attestor, lambda: NOW)
    assert identity.context() is not None
    key = ec.generate_private_key(ec.SECP256R1())
    attestation = kms_enclave.attestor.attest(report_data(RATLS_CERT, spki_der(key.public_key())))
    issuer = (keys.root_ca_cert, keys.root_ca_key)
    leaf = rpc_certificate(key, domain=domain, issuer=issuer, attestation=attestation, now=NOW)
    root = keys.root_ca_cert.public_bytes(Encoding.PEM)
    der = leaf.public_bytes(Encoding.DER)
    envelope = check_kms_certificate(der, root_ca_pem=root, hostname=domain, now=NOW)
    verify_attestation(envelope, now=NOW, anchors=anchors, report_data=ratls_report_data(der))


def test_attestation_info_is_what_the_contract_is_asked_about(onboarding, kms_enclave, anchors) -> None:
    call, _ = onboarding
    told = from_json(pb.AttestationInfoResponse, call("GetAttestationInfo").body)
    asked = kms_boot_info(kms_enclave.evidence(anchors), CORE)
    assert told == pb.AttestationInfoResponse(
        device_id=asked.device_id,
        mr_aggregated=asked.mr_aggregated,
        os_image_hash=asked.os_image_hash,
        tee_variant="dstack-nitro-enclave",
        site_name="here",
        kms_contract_address="0x" + "11" * 20,
        ppid=b"i",
        simulated=True,
    )
    assert hashlib.sha256(told.ppid).digest() == told.device_id


def test_attestation_info_does_without_the_contract(onboarding, policy, monkeypatch) -> None:
    def gone() -> None:
        raise DstackError("auth.api.status", "gone")

    monkeypatch.setattr(policy, "info", gone)
    call, _ = onboarding
    told = from_json(pb.AttestationInfoResponse, call("GetAttestationInfo").body)
    assert (told.kms_contract_address, told.eth_rpc_url) == ("", "")
    assert len(told.mr_aggregated) == 32


def test_finish_ends_onboarding(onboarding) -> None:
    call, finished = onboarding
    response = call("Finish")
    assert (response.status, response.body) == (200, b"null")
    assert finished == [True]


def test_a_kms_that_is_not_allowed_makes_no_keys(store, kms_enclave) -> None:
    maker = Bootstrapper(
        store=store, random=kms_enclave.nsm.get_random, attestor=kms_enclave.attestor, now=lambda: NOW
    )

    def denied() -> None:
        raise DstackError("kms.self.denied", "no")

    with pytest.raises(DstackError) as refusal:
        maker.bootstrap("kms.test", check_self=denied, attest=True)
    assert refusal.value.code == "kms.self.denied"
    assert store.load() is None

"""Certificates for apps (spec kms 2.2, 4.2, 4.5), checked with OpenSSL and read by hand."""

import hashlib
import json
from dataclasses import replace
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.conftest import Meeting, Site
from tests.interop.openssl import verified_by_openssl
from tests.interop.spec_client import evidence, keys, messagepack
from tests.interop.spec_client.certificates import (
    APP_ID,
    APP_INFO,
    ATTESTATION,
    USAGE,
    CertConfig,
    csr_v2,
    extension,
    signed,
    spki,
)
from tests.interop.spec_client.evidence import Evidence, binding
from tests.interop.spec_client.kms import Attest, sign_cert
from tests.interop.spec_client.prpc import Refused

CONFIG = CertConfig(
    subject="app.example",
    org_name="An app",
    subject_alt_names=("app.example", "192.0.2.7"),
    usage_server_auth=True,
    usage_client_auth=True,
    ext_quote=True,
    ext_app_info=True,
)


class Asked(NamedTuple):
    """A key, its evidence, and the request for its certificate."""

    key: ec.EllipticCurvePrivateKey
    evidence: Evidence
    csr: bytes


def _asked(attest: Attest, config: CertConfig = CONFIG) -> Asked:
    key = ec.generate_private_key(ec.SECP256R1())
    shown = evidence.stripped(attest(binding(spki(key))))
    return Asked(key, shown, csr_v2(spki(key), config, evidence.encode(shown)))


@pytest.fixture(scope="module")
def asked(meeting: Meeting) -> Asked:
    return _asked(meeting.attest)


@pytest.fixture(scope="module")
def chain(meeting: Meeting, asked: Asked) -> list[x509.Certificate]:
    return sign_cert(meeting.site.kms.anyone, asked.key, asked.csr, vm_config=meeting.vm_config)


def _refusal(site: Site, asked: Asked, **changes: object) -> Refused:
    with pytest.raises(Refused) as refused:
        sign_cert(site.kms.anyone, asked.key, asked.csr, **changes)  # type: ignore[arg-type]
    assert refused.value.answer.status == 400
    return refused.value


def test_openssl_verifies_the_chain(meeting: Meeting, chain: list[x509.Certificate]) -> None:
    root = x509.load_pem_x509_certificate(meeting.site.kms.get_temp_ca().root_pem.encode())
    assert chain[2] == root
    assert verified_by_openssl(chain, root)


def test_the_leaf_is_of_the_key_and_names_that_were_asked(
    asked: Asked, chain: list[x509.Certificate]
) -> None:
    leaf = chain[0]
    assert spki(leaf) == spki(asked.key)
    assert leaf.subject.rfc4514_string() == "CN=app.example,O=An app"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["app.example"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {one.dotted_string for one in usages} == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}


def test_the_app_ca_is_the_derived_one(meeting: Meeting, chain: list[x509.Certificate]) -> None:
    app_ca = chain[1]
    scalar = keys.app_ca_scalar(meeting.site.root_keys().root_ca, meeting.app_id)
    derived = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())
    assert spki(app_ca) == spki(derived)
    assert app_ca.subject.rfc4514_string() == "CN=Dstack App CA,O=Dstack"
    constraints = app_ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_usage_and_app_id_are_read_from_both(meeting: Meeting, chain: list[x509.Certificate]) -> None:
    assert [extension(one, USAGE) for one in chain] == [b"app:custom", b"app:ca", None]
    assert [extension(one, APP_ID) for one in chain] == [meeting.app_id, meeting.app_id, None]


def test_the_evidence_is_the_requests(asked: Asked, chain: list[x509.Certificate]) -> None:
    shown = evidence.decode(extension(chain[0], ATTESTATION) or b"")
    assert shown == asked.evidence
    assert evidence.attested_report_data(shown) == binding(spki(chain[0]))


def test_an_enclaves_app_info(nitro: Site, enclave: Attest) -> None:
    asked = _asked(enclave)
    leaf = sign_cert(nitro.kms.anyone, asked.key, asked.csr)[0]
    info = messagepack.unpack(extension(leaf, APP_INFO) or b"")
    image_hash = bytes.fromhex(json.loads(asked.evidence.config)["os_image_hash"])
    app_id = dict(asked.evidence.runtime_events)["app-id"]
    device_id = hashlib.sha256(b"i").digest()
    assert info == [app_id, image_hash, b"", device_id, image_hash, image_hash, image_hash, b"", []]


def test_a_google_guests_app_info(gcp: Site, gcp_app: Attest) -> None:
    asked = _asked(gcp_app)
    config = asked.evidence.config
    leaf = sign_cert(gcp.kms.anyone, asked.key, asked.csr, vm_config=config)[0]
    info = messagepack.unpack(extension(leaf, APP_INFO) or b"")
    events = dict(asked.evidence.runtime_events)
    image_hash = bytes.fromhex(json.loads(config)["os_image_hash"])
    assert isinstance(info, list)
    assert len(info) == 9
    assert info[:3] == [events["app-id"], events["compose-hash"], events["instance-id"]]
    assert info[4] == hashlib.sha256(image_hash + bytes(32)).digest()
    assert info[5] == _gcp_aggregated(asked.evidence)
    assert info[6:8] == [image_hash, b""]


def _gcp_aggregated(shown: Evidence) -> bytes:
    """PCR0, PCR2 and the replayed PCR14 (spec kms 6.3)."""
    assert shown.tpm is not None
    pcrs = {index: value for index, _, value in shown.tpm.pcrs}
    replayed = bytes(32)
    for name, payload in shown.runtime_events:
        digest = hashlib.sha256(b"\x01\x00\x00\x08:" + name.encode() + b":" + payload).digest()
        replayed = hashlib.sha256(replayed + digest).digest()
    assert replayed == pcrs[14]
    return hashlib.sha256(pcrs[0] + pcrs[2] + replayed).digest()


def test_what_was_not_asked_for_is_not_there(nitro: Site, enclave: Attest) -> None:
    asked = _asked(enclave, CertConfig("app.example"))
    leaf = sign_cert(nitro.kms.anyone, asked.key, asked.csr)[0]
    assert [extension(leaf, number) for number in (ATTESTATION, APP_INFO)] == [None, None]
    present = {one.oid.dotted_string for one in leaf.extensions}
    assert not present & {"2.5.29.17", "2.5.29.37"}


def test_times_that_were_asked_for_lie_within_the_certificates(nitro: Site, enclave: Attest) -> None:
    usual = sign_cert(nitro.kms.anyone, *_asked(enclave)[::2])[0]
    begin, end = (int(one.timestamp()) for one in (usual.not_valid_before_utc, usual.not_valid_after_utc))
    config = replace(CONFIG, not_before=begin + 600, not_after=end - 600)
    leaf = sign_cert(nitro.kms.anyone, *_asked(enclave, config)[::2])[0]
    assert int(leaf.not_valid_after_utc.timestamp()) == end - 600


def test_a_request_around_an_envelope_of_version_1(nitro: Site, enclave: Attest) -> None:
    """Its signature is over what the KMS encodes again: both must write the envelope alike (4.5)."""
    asked = _asked(enclave)
    csr = csr_v2(spki(asked.key), CONFIG, evidence.encode_v1(asked.evidence))
    leaf = sign_cert(nitro.kms.anyone, asked.key, csr)[0]
    assert spki(leaf) == spki(asked.key)


def test_another_word_than_the_agreed_one(nitro: Site, enclave: Attest) -> None:
    asked = _asked(enclave)
    csr = csr_v2(spki(asked.key), CONFIG, evidence.encode(asked.evidence), confirm="please sign it:")
    assert b'"code": "csr.confirm"' in _refusal(nitro, asked._replace(csr=csr)).answer.body


def test_a_signature_of_another_key(nitro: Site, enclave: Attest) -> None:
    asked = _asked(enclave)
    forged = signed(ec.generate_private_key(ec.SECP256R1()), asked.csr)
    assert b'"code": "csr.signature"' in _refusal(nitro, asked, signature=forged).answer.body


def test_evidence_for_another_key(nitro: Site, enclave: Attest) -> None:
    asked, another = _asked(enclave), _asked(enclave)
    csr = csr_v2(spki(asked.key), CONFIG, evidence.encode(another.evidence))
    told = _refusal(nitro, asked._replace(csr=csr))
    assert told.text.startswith("invalid quote: report data mismatch")


@pytest.mark.parametrize("version", [0, 3])
def test_other_versions_of_requests(nitro: Site, enclave: Attest, version: int) -> None:
    assert _refusal(nitro, _asked(enclave), api_version=version).text == "Unsupported API version"

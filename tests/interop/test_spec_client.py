"""The second reading itself, against the values that the specification gives (spec kms 3.7, 4, 5.2)."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.spec_client import certificates, evidence, keys, protobuf
from tests.interop.spec_client.evidence import Evidence
from tests.interop.spec_client.kms import expected_app_keys, generated_keys_report_data

Vectors = dict[str, Any]


@pytest.fixture
def inputs(vectors: Vectors) -> dict[str, bytes]:
    return {k: bytes.fromhex(v) for k, v in vectors["inputs"].items() if isinstance(v, str)}


def test_keccak_is_the_original_one() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keys.keccak256(b"").hex() == empty
    long = keys.keccak256(bytes(range(256)) * 2).hex()
    assert long != hashlib.sha3_256(bytes(range(256)) * 2).hexdigest()


def test_upstreams_stable_derivation(vectors: Vectors, inputs) -> None:
    vector = vectors["upstream_stable_vector"]
    context = tuple(text.encode() for text in vector["context_ascii"])
    assert keys.derive_dh(inputs["root_ca_p256_scalar"], context).hex() == vector["derive_dh_secret"]


def test_an_apps_keys(vectors: Vectors, inputs) -> None:
    root, k256 = inputs["root_ca_p256_scalar"], inputs["root_k256_scalar"]
    found = expected_app_keys(root, k256, inputs["app_id"], inputs["instance_id"])
    assert {name: value.hex() for name, value in found.items()} == {
        "disk_crypt_key": vectors["disk"]["disk_crypt_key"],
        "env_crypt_key": vectors["env"]["env_crypt_key"],
        "k256_key": vectors["k256"]["app_k256_key"],
        "k256_signature": vectors["k256"]["k256_signature"],
    }
    assert (
        keys.disk_crypt_key(root, inputs["app_id"], b"").hex()
        == (vectors["disk"]["disk_crypt_key_empty_instance_id"])
    )
    assert keys.app_ca_scalar(root, inputs["app_id"]).hex() == vectors["app_ca"]["derived_p256_scalar"]


def test_the_env_keys_signatures(vectors: Vectors, inputs) -> None:
    vector, app_id = vectors["env"], inputs["app_id"]
    public_key = keys.env_public_key(bytes.fromhex(vector["env_crypt_key"]))
    assert public_key.hex() == vector["x25519_public_key"]
    legacy = keys.env_message(app_id, public_key)
    timed = keys.env_message(app_id, public_key, vectors["inputs"]["timestamp"])
    for message, name in ((legacy, "signature"), (timed, "signature_v1")):
        signature = keys.k256_sign(inputs["root_k256_scalar"], message)
        assert signature.hex() == vector[name]
        assert keys.k256_recover(message, signature) == inputs["root_k256_pubkey_compressed"]


def test_upstreams_signers_are_recovered(vectors: Vectors) -> None:
    env, chain = vectors["upstream_env_pubkey_signature"], vectors["upstream_k256_chain"]
    message = keys.env_message(bytes.fromhex(env["app_id"]), bytes.fromhex(env["public_key"]))
    assert keys.k256_recover(message, bytes.fromhex(env["signature"])).hex() == env["signer_compressed"]
    issued = b"dstack-kms-issued:" + bytes.fromhex(chain["app_id"]) + bytes.fromhex(chain["app_pubkey"])
    assert keys.k256_recover(issued, bytes.fromhex(chain["signature"])).hex() == chain["root_pubkey"]


def test_upstreams_env_is_decrypted(vectors: Vectors) -> None:
    vector = vectors["upstream_dh_decrypt"]
    plaintext = keys.decrypt_env(bytes.fromhex(vector["env_crypt_key"]), bytes.fromhex(vector["ciphertext"]))
    assert plaintext.decode() == vector["plaintext"]


def test_report_data(vectors: Vectors, inputs) -> None:
    spki = inputs["root_ca_spki_der"]
    assert evidence.binding(spki).hex() == vectors["ratls_report_data_for_root_spki"]
    found = generated_keys_report_data(spki, inputs["root_k256_pubkey_compressed"])
    assert found.hex() == vectors["bootstrap_report_data"]


@pytest.mark.parametrize(
    ("name", "ext_quote", "quote"), [("no_quote", False, b""), ("quote_09", True, b"\x09")]
)
def test_upstreams_certificate_requests(vectors: Vectors, name: str, ext_quote: bool, quote: bytes) -> None:  # noqa: FBT001
    config = certificates.CertConfig("test.example.com", usage_server_auth=True, ext_quote=ext_quote)
    attestation = evidence.encode(Evidence(evidence.TDX, quote, bytes(64)))
    csr = certificates.csr_v2(bytes.fromhex("010203"), config, attestation)
    assert csr.hex() == vectors["upstream_csr_v2_scale"][name]


def test_the_protobuf_examples() -> None:
    assert protobuf.data(1, bytes([0x11]) * 20).hex() == "0a14" + "11" * 20
    assert (protobuf.uint(1, 1) + protobuf.text(2, "{}")).hex() == "080112027b7d"
    error = protobuf.text(1, "App not allowed: No attestation provided")
    assert error.hex() == (
        "0a28417070206e6f7420616c6c6f7765643a204e6f206174746573746174696f6e2070726f7669646564"
    )
    assert protobuf.fields(error) == {1: [b"App not allowed: No attestation provided"]}


@pytest.mark.parametrize(
    "name", ["simulator-attestation.bin", "nitro-attestation.bin", "nitro-attestation-debug.bin"]
)
def test_upstreams_envelopes_come_out_as_they_went_in(shared_data: Callable[[str], Path], name: str) -> None:
    envelope = shared_data(f"kms/{name}").read_bytes()
    shown = evidence.decode(envelope)
    assert evidence.encode(shown) == envelope
    assert evidence.attested_report_data(shown) == shown.report_data


def test_a_real_enclaves_image_hash_is_the_one_it_shows(shared_data: Callable[[str], Path]) -> None:
    shown = evidence.decode(shared_data("kms/nitro-attestation.bin").read_bytes())
    again = evidence.nitro(shown.quote, shown.report_data, dict(shown.runtime_events)["app-id"])
    assert json.loads(again.config)["os_image_hash"] == json.loads(shown.config)["os_image_hash"]


def test_the_pages_envelope_of_version_1() -> None:
    shown = Evidence(
        evidence.NITRO, bytes.fromhex("8444a101"), b"\xff\x7f" + bytes(62), (("app-id", b"\x11" * 20),), "{}"
    )
    assert evidence.encode_v1(shown).hex() == (
        "83a776657273696f6e01a8706c6174666f726d82a46b696e64ad6e6974726f2d656e636c617665a46461746181"
        "a96e736d5f71756f746594cc8444cca101a5737461636b82a46b696e64a664737461636ba46461746183"
        "ab7265706f72745f64617461dc0040ccff7f"
        + "00" * 62
        + "ae72756e74696d655f6576656e74739182a56576656e74a66170702d6964a77061796c6f6164c414"
        + "11" * 20
        + "a6636f6e666967a27b7d"
    )


def test_a_real_enclaves_document_is_believed_under_awss_root(shared_data: Callable[[str], Path]) -> None:
    pem = shared_data("attestation/upstream/certs/AWS_NitroEnclaves_Root-G1.pem").read_bytes()
    document = evidence.decode(shared_data("kms/nitro-attestation.bin").read_bytes()).quote
    evidence.check_nsm_document(document, x509.load_pem_x509_certificate(pem))


def test_a_client_certificate_carries_its_evidence() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certificates.client_certificate(key, {certificates.ATTESTATION: b"\0evidence"}, None)
    assert certificates.extension(certificate, certificates.ATTESTATION) == b"\0evidence"
    assert certificates.extension(certificate, certificates.APP_INFO) is None
    assert certificate.version is x509.Version.v3

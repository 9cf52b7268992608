"""Every vector of the KMS's specification (kms 3.7), made again by our own code: none is left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from shared.attestation.envelope import Attestation, TdxQuote, decode_envelope, encode_envelope
from shared.attestation.event_log import system_events
from shared.attestation.report_data import RATLS_CERT, bootstrap_report_data, report_data
from shared.keccak import keccak256
from shared.keys import app_keys, env_encryption, k256, kdf
from shared.ratls.certificates import spki_der
from shared.ratls.csr import Csr, CsrConfig, encode_csr
from shared.ratls.extensions import app_id_extension

TEXT = (Path(__file__).parents[2] / "data" / "kms" / "vectors.json").read_text()
VECTORS: dict[str, Any] = json.loads(TEXT)
INPUTS = VECTORS["inputs"]
ROOT = app_keys.RootKeys(
    bytes.fromhex(INPUTS["root_ca_p256_scalar"]), bytes.fromhex(INPUTS["root_k256_scalar"])
)
APP_ID, INSTANCE_ID = (bytes.fromhex(INPUTS[name]) for name in ("app_id", "instance_id"))
WORDS = {"confirmed_by", "note", "context_ascii", "salt_ascii"}
"""What is no value to reproduce."""


def _raw(section: str, name: str) -> bytes:
    return bytes.fromhex(VECTORS[section][name])


def _inputs() -> dict[str, Any]:
    return {
        "root_ca_p256_scalar": ROOT.ca_scalar,
        "root_ca_spki_der": spki_der(kdf.p256_key(ROOT.ca_scalar).public_key()),
        "root_k256_scalar": ROOT.k256,
        "root_k256_pubkey_compressed": k256.public_key(ROOT.k256),
        "app_id": APP_ID,
        "instance_id": INSTANCE_ID,
        "timestamp": INPUTS["timestamp"],
    }


def _disk() -> dict[str, Any]:
    context = (APP_ID, INSTANCE_ID, b"app-disk-crypt-key")
    return {
        "derived_p256_scalar": kdf.derive_p256_scalar(ROOT.ca_scalar, context),
        "disk_crypt_key": app_keys.derive_app_keys(ROOT, APP_ID, INSTANCE_ID).disk_crypt_key,
        "disk_crypt_key_empty_instance_id": app_keys.derive_app_keys(ROOT, APP_ID).disk_crypt_key,
    }


def _env() -> dict[str, Any]:
    scalar = kdf.derive_p256_scalar(ROOT.ca_scalar, (APP_ID, b"env-encrypt-key"))
    private = app_keys.env_crypt_key(ROOT, APP_ID)
    public = app_keys.env_public_key(private)
    time = INPUTS["timestamp"]
    legacy, timed = app_keys.sign_env_public_key(ROOT.signing_key, APP_ID, public, time)
    return {
        "derived_p256_scalar": scalar,
        "derived_pkcs8_der": kdf.p256_pkcs8(scalar),
        "env_crypt_key": private,
        "x25519_public_key": public,
        "legacy_digest": keccak256(app_keys._env_message(APP_ID, public, None)),
        "signature": legacy,
        "v1_digest": keccak256(app_keys._env_message(APP_ID, public, time)),
        "signature_v1": timed,
    }


def _k256() -> dict[str, Any]:
    keys = app_keys.derive_app_keys(ROOT, APP_ID, INSTANCE_ID)
    public = k256.public_key(keys.k256_key)
    message = b"dstack-kms-issued:" + APP_ID + public
    return {
        "app_k256_key": keys.k256_key,
        "app_k256_pubkey_compressed": public,
        "message": message,
        "digest": keccak256(message),
        "k256_signature": keys.k256_signature,
    }


def _env_signer() -> dict[str, Any]:
    section = "upstream_env_pubkey_signature"
    app_id, public, signature = (_raw(section, name) for name in ("app_id", "public_key", "signature"))
    signer = k256.recover_public_key(app_keys._env_message(app_id, public, None), signature)
    verified = app_keys.verify_env_public_key(
        app_id, public, signature, timestamp=None, now=0, trusted=[signer]
    )
    return {"public_key": public, "app_id": app_id, "signature": signature, "signer_compressed": verified}


def _opened_env() -> dict[str, Any]:
    key, blob = (_raw("upstream_dh_decrypt", name) for name in ("env_crypt_key", "ciphertext"))
    return {
        "env_crypt_key": key,
        "ciphertext": blob,
        "plaintext": env_encryption.open_sealed(blob, key).decode(),
    }


def _k256_chain() -> dict[str, Any]:
    issued = {name: _raw("upstream_k256_chain", name) for name in ("app_id", "app_pubkey", "signature")}
    return {**issued, "root_pubkey": app_keys.issuer_of_key(*issued.values())}


def _csr(quote: bytes) -> bytes:
    config = CsrConfig(subject="test.example.com", usage_server_auth=True, ext_quote=bool(quote))
    envelope = encode_envelope(Attestation(TdxQuote(quote, ()), (), bytes(64), ""))
    return encode_csr(Csr(pubkey=b"\1\2\3", config=config, envelope=envelope))


def _made() -> dict[str, Any]:
    spki, public = _inputs()["root_ca_spki_der"], k256.public_key(ROOT.k256)
    context = [word.encode() for word in VECTORS["upstream_stable_vector"]["context_ascii"]]
    return {
        "inputs": _inputs(),
        "hkdf": {"prk_from_root_ca": kdf.extract(kdf.SALT, ROOT.ca_scalar)},
        "upstream_stable_vector": {"derive_dh_secret": kdf.derive_dh_secret(ROOT.ca_scalar, context)},
        "disk": _disk(),
        "env": _env(),
        "app_ca": {"derived_p256_scalar": app_keys.app_ca_scalar(ROOT, APP_ID)},
        "k256": _k256(),
        "bootstrap_report_data": bootstrap_report_data(spki, public),
        "ratls_report_data_for_root_spki": report_data(RATLS_CERT, spki),
        "upstream_env_pubkey_signature": _env_signer(),
        "upstream_dh_decrypt": _opened_env(),
        "upstream_k256_chain": _k256_chain(),
        "upstream_csr_v2_scale": {"no_quote": _csr(b""), "quote_09": _csr(b"\x09")},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if name not in WORDS}
    return value.hex() if isinstance(value, bytes) else value


@pytest.mark.parametrize("section", list(VECTORS))
def test_our_code_makes_every_value_of(section: str) -> None:
    assert _plain(_made()[section]) == _plain(VECTORS[section])


def test_the_copy_is_the_specifications(shared_data: Callable[[str], Path]) -> None:
    assert shared_data("kms/vectors.json").read_text() == TEXT


def test_the_salt_is_the_named_one() -> None:
    assert kdf.SALT.decode() == VECTORS["hkdf"]["salt_ascii"]


def test_makes_the_pages_env_blob() -> None:
    """The one vector of 3.7 that stands on the page alone."""
    ephemeral = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c8e9d1c2b2c2d2e2f303132333435")
    plaintext = b'{"env":[{"key":"FOO","value":"bar"}]}'
    public = _raw("env", "x25519_public_key")
    blob = env_encryption._seal(plaintext, public, ephemeral, bytes(range(12)))
    assert blob.hex() == (
        "b896899629878684bbf7cb07b43498e272f5b83b3becaeece8625c175e08697f000102030405060708090a0b"
        "506be3e5db0828d7960295ddafc476f1beb8c5531f1df28156e96e2323a529a9b2dce7e85dbf974a34f402e0"
        "9a1cc8f1b46d8daa54"
    )
    assert env_encryption.open_sealed(blob, _raw("env", "env_crypt_key")) == plaintext


def test_an_app_id_is_wrapped_twice() -> None:
    assert app_id_extension(APP_ID).value.hex() == "0414" + "11" * 20


def test_the_simulator_recorded_the_root_that_it_shows(shared_data: Callable[[str], Path]) -> None:
    """The `key-provider` event is the SPKI of the KMS's root CA (4.7)."""
    shown = json.loads(shared_data("kms/simulator-appkeys.json").read_text())
    root = x509.load_pem_x509_certificate(shown["ca_cert"].encode())
    attestation = decode_envelope(shared_data("kms/simulator-attestation.bin").read_bytes())
    recorded = json.loads(system_events(attestation.runtime_events).key_provider)
    assert recorded == {"name": "kms", "id": spki_der(root.public_key()).hex()}


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("simulator-attestation.bin", "tdx/v0_tdx_attestation.bin"),
        ("nitro-attestation.bin", "nitro/nitro_attestation.bin"),
        ("nitro-attestation-debug.bin", "nitro/nitro_attestation_dbg.bin"),
    ],
)
def test_the_envelopes_are_those_whose_values_other_tests_check(
    name: str, copied: str, shared_data: Callable[[str], Path]
) -> None:
    """`tests/shared/attestation/` reads these names: test_identity_vectors.py, test_fixtures.py."""
    first = shared_data(f"kms/{name}").read_bytes()
    assert shared_data(f"attestation/upstream/{copied}").read_bytes() == first

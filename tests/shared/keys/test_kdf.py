import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_der_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.keys import kdf

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "kms" / "vectors.json").read_text())
ROOT = bytes.fromhex(VECTORS["inputs"]["root_ca_p256_scalar"])
APP_ID = bytes.fromhex(VECTORS["inputs"]["app_id"])
INSTANCE_ID = bytes.fromhex(VECTORS["inputs"]["instance_id"])
DISK_CONTEXT = (APP_ID, INSTANCE_ID, b"app-disk-crypt-key")
ENV_CONTEXT = (APP_ID, b"env-encrypt-key")


def test_reproduces_the_upstream_dh_secret() -> None:
    vector = VECTORS["upstream_stable_vector"]
    context = [item.encode() for item in vector["context_ascii"]]
    assert kdf.derive_dh_secret(ROOT, context).hex() == vector["derive_dh_secret"]


def test_reproduces_the_pseudorandom_key() -> None:
    assert kdf.extract(kdf.SALT, ROOT).hex() == VECTORS["hkdf"]["prk_from_root_ca"]


@pytest.mark.parametrize(
    ("context", "name"),
    [(DISK_CONTEXT, "disk"), (ENV_CONTEXT, "env"), ((APP_ID, b"app-ca"), "app_ca")],
)
def test_reproduces_the_derived_scalars(context: tuple[bytes, ...], name: str) -> None:
    assert kdf.derive_p256_scalar(ROOT, context).hex() == VECTORS[name]["derived_p256_scalar"]


def test_pkcs8_is_138_bytes_with_the_public_point() -> None:
    der = kdf.p256_pkcs8(bytes.fromhex(VECTORS["env"]["derived_p256_scalar"]))
    assert len(der) == kdf.PKCS8_BYTES == 138
    assert der.hex() == VECTORS["env"]["derived_pkcs8_der"]
    load_der_private_key(der, password=None)


@pytest.mark.parametrize(
    "scalar",
    [
        bytes(32),
        kdf.P256_ORDER.to_bytes(32),
        (kdf.P256_ORDER + 1).to_bytes(32),
        b"\xff" * 32,
        b"\x01",
        b"\x01".rjust(33, b"\0"),
        b"",
    ],
)
def test_refuses_what_is_no_scalar(scalar: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        kdf.p256_pkcs8(scalar)
    assert caught.value.code == "keys.p256.scalar"


@pytest.mark.parametrize("scalar", [1, kdf.P256_ORDER - 1])
def test_takes_the_ends_of_the_scalar_range(scalar: int) -> None:
    assert kdf.p256_key(scalar.to_bytes(32)).private_numbers().private_value == scalar


@pytest.mark.parametrize("output", [bytes(32), kdf.P256_ORDER.to_bytes(32)])
def test_refuses_derived_bytes_that_are_no_scalar(output: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdf, "hkdf_sha256", lambda *_: output)
    with pytest.raises(ConfigError) as caught:
        kdf.derive_p256_scalar(ROOT, (b"unlucky",))
    assert caught.value.code == "keys.p256.scalar"


@pytest.mark.parametrize("length", [-1, 0, 255 * 32 + 1])
def test_refuses_lengths_that_hkdf_cannot_give(length: int) -> None:
    with pytest.raises(ConfigError) as caught:
        kdf.hkdf_sha256(ROOT, (), length)
    assert caught.value.code == "keys.hkdf.length"


@settings(deadline=None)
@given(st.binary(max_size=80), st.lists(st.binary(max_size=20), max_size=4), st.integers(1, 300))
def test_agrees_with_another_hkdf(key: bytes, context: list[bytes], length: int) -> None:
    other = HKDF(SHA256(), length, b"RATLS", b"".join(context)).derive(key)
    assert kdf.hkdf_sha256(key, context, length) == other

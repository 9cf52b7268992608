import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError, InvalidEvidence
from shared.keccak import keccak256
from shared.keys import k256
from shared.keys.k256_coincurve import CoincurveCurve
from shared.keys.k256_openssl import OpenSslCurve

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "kms" / "vectors.json").read_text())
ROOT = bytes.fromhex(VECTORS["inputs"]["root_k256_scalar"])
BACKENDS = [CoincurveCurve(), OpenSslCurve()]
MESSAGE = bytes.fromhex(VECTORS["k256"]["message"])
SIGNATURE = bytes.fromhex(VECTORS["k256"]["k256_signature"])


def test_reproduces_the_root_public_key() -> None:
    assert k256.public_key(ROOT).hex() == VECTORS["inputs"]["root_k256_pubkey_compressed"]


def test_reproduces_the_issued_digest() -> None:
    assert keccak256(MESSAGE).hex() == VECTORS["k256"]["digest"]


def test_reproduces_the_issued_signature() -> None:
    assert k256.sign_recoverable(ROOT, MESSAGE) == SIGNATURE


def test_recovers_the_signer() -> None:
    assert k256.recover_public_key(MESSAGE, SIGNATURE) == k256.public_key(ROOT)


def test_recovery_id_is_0_or_1() -> None:
    ids = {k256.sign_recoverable(ROOT, bytes([number]))[64] for number in range(16)}
    assert ids == {0, 1}


@pytest.mark.parametrize("private", [bytes(32), k256.ORDER.to_bytes(32), b"\xff" * 32, b"\1" * 31, b""])
def test_refuses_what_is_no_private_key(private: bytes) -> None:
    for use in (k256.public_key, k256.SigningKey):
        with pytest.raises(ConfigError) as caught:
            use(private)
        assert caught.value.code == "keys.k256.scalar"


@pytest.mark.parametrize("length", [0, 64, 66])
def test_refuses_signatures_of_another_length(length: int) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        k256.recover_public_key(b"", bytes(length))
    assert caught.value.code == "keys.signature.length"


@pytest.mark.parametrize(
    "signature",
    [
        SIGNATURE[:64] + b"\x1b",  # Ethereum's 27
        SIGNATURE[:64] + b"\x02",
        bytes(32) + SIGNATURE[32:],
        SIGNATURE[:32] + bytes(32) + SIGNATURE[64:],
        k256.ORDER.to_bytes(32) + SIGNATURE[32:],
        SIGNATURE[:32] + k256.ORDER.to_bytes(32) + SIGNATURE[64:],
    ],
)
def test_refuses_signatures_out_of_range(signature: bytes) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        k256.recover_public_key(MESSAGE, signature)
    assert caught.value.code == "keys.signature.invalid"


def test_a_signing_key_does_not_show_its_secret() -> None:
    key = k256.SigningKey(ROOT)
    assert ROOT.hex() not in f"{key!r}{key}"
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize("backend", BACKENDS, ids=["coincurve", "openssl"])
def test_each_backend_reproduces_the_vector(backend: k256.Curve) -> None:
    digest = keccak256(MESSAGE)
    assert backend.signer(ROOT).sign_digest(digest) == SIGNATURE
    assert backend.public_key(ROOT).hex() == VECTORS["inputs"]["root_k256_pubkey_compressed"]
    assert backend.recover(digest, SIGNATURE) == backend.public_key(ROOT)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, k256.ORDER - 1), st.binary(min_size=32, max_size=32))
def test_the_backends_sign_alike(private: int, digest: bytes) -> None:
    ours, other = (backend.signer(private.to_bytes(32)).sign_digest(digest) for backend in BACKENDS)
    assert ours == other


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, k256.ORDER - 1),
    st.integers(1, k256.ORDER - 1),
    st.integers(0, 1),
    st.binary(min_size=32, max_size=32),
)
def test_the_backends_recover_alike(r: int, s: int, recovery_id: int, digest: bytes) -> None:
    signature = r.to_bytes(32) + s.to_bytes(32) + bytes([recovery_id])
    assert _recovered(BACKENDS[0], digest, signature) == _recovered(BACKENDS[1], digest, signature)


def test_the_backends_refuse_the_point_at_infinity() -> None:
    # R = G and s = e make s R - e G vanish
    generator = k256.public_key((1).to_bytes(32))
    digest = keccak256(b"infinity")
    signature = generator[1:] + digest + bytes([generator[0] - 2])
    assert _recovered(BACKENDS[0], digest, signature) is _recovered(BACKENDS[1], digest, signature) is None


def test_openssl_stands_in_where_coincurve_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shared.keys.k256_coincurve", None)
    assert isinstance(k256.load_curve(), OpenSslCurve)


@settings(deadline=None)
@given(st.binary(max_size=70), st.binary(max_size=66))
def test_recovery_raises_nothing_but_our_errors(message: bytes, signature: bytes) -> None:
    try:
        key = k256.recover_public_key(message, signature)
    except InvalidEvidence:
        return
    assert len(key) == 33


def _recovered(backend: k256.Curve, digest: bytes, signature: bytes) -> bytes | None:
    try:
        return backend.recover(digest, signature)
    except ValueError:
        return None

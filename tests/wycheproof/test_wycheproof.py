"""Every primitive that we expose agrees with C2SP's vectors, which are read from ../shared/data.

None of the files used here holds an `acceptable` case, so there is no choice to list. X25519's does, but we
expose only the multiplication of the base point (`env_public_key`), where no peer chooses a point.
"""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from shared.attestation import certificate, cose, issuer_key, tpm_quote
from shared.errors import ConfigError, InvalidEvidence
from shared.keys import k256, kdf
from shared.keys.k256_coincurve import CoincurveCurve
from shared.keys.k256_openssl import OpenSslCurve
from shared.ratls.leaf import verify_p256

Find = Callable[[str], Path]
Case = dict[str, Any]

# Valid ECDSA, but the nonce's point has x beyond the group order. That needs recovery id 2 or 3, which the
# KMS's signatures do not have; a signer meets such a nonce with probability 2**-128.
NEEDS_RECOVERY_ID_2 = {350, 471}


def test_hkdf_sha256(shared_data: Find) -> None:
    def accepts(_: Case, case: Case) -> bool:
        prk = kdf.extract(_bytes(case["salt"]), _bytes(case["ikm"]))
        return kdf.expand(prk, _bytes(case["info"]), case["size"]) == _bytes(case["okm"])

    assert _disagreements(shared_data("wycheproof/hkdf_sha256_test.json"), accepts) == set()


@pytest.mark.parametrize("backend", [CoincurveCurve(), OpenSslCurve()], ids=["coincurve", "openssl"])
def test_secp256k1_recovery(backend: k256.Curve, shared_data: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k256, "_CURVE", backend)

    def accepts(group: Case, case: Case) -> bool:
        key = _key(group).public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        try:
            r, s = decode_dss_signature(_bytes(case["sig"]))
            signature = r.to_bytes(32) + s.to_bytes(32)
        except (ValueError, OverflowError):
            return False  # bad DER, or numbers that our fixed format cannot say
        digest = sha256(_bytes(case["msg"])).digest()
        return any(key == _recover(digest, signature + bytes([recovery_id])) for recovery_id in (0, 1))

    path = shared_data("wycheproof/ecdsa_secp256k1_sha256_test.json")
    assert _disagreements(path, accepts) == NEEDS_RECOVERY_ID_2


def test_p256_certificate_signatures(shared_data: Find) -> None:
    def accepts(group: Case, case: Case) -> bool:
        verify_p256(_key(group), _bytes(case["sig"]), _bytes(case["msg"]))
        return True

    path = shared_data("wycheproof/ecdsa_secp256r1_sha256_test.json")
    assert _disagreements(path, accepts) == set()


def test_p384_cose_signatures(shared_data: Find) -> None:
    def accepts(group: Case, case: Case) -> bool:
        signature = _bytes(case["sig"])
        if len(signature) != 96:  # parse_sign1 refuses it before there is anything to verify
            return False
        message = SimpleNamespace(signature=signature, signed_text=_bytes(case["msg"]))
        cose.verify_es384(message, _key(group))
        return True

    path = shared_data("wycheproof/ecdsa_secp384r1_sha384_p1363_test.json")
    assert _disagreements(path, accepts) == set()


def test_p384_certificate_signatures(shared_data: Find) -> None:
    def accepts(group: Case, case: Case) -> bool:
        signed = SimpleNamespace(signature=_bytes(case["sig"]), tbs=_bytes(case["msg"]))
        return certificate.Certificate.is_signed_by(signed, _key(group))

    path = shared_data("wycheproof/ecdsa_secp384r1_sha384_test.json")
    assert _disagreements(path, accepts) == set()


@pytest.mark.parametrize(
    ("file", "algorithm"),
    [
        ("ecdsa_secp256r1_sha256_test.json", "300a06082a8648ce3d040302"),
        ("ecdsa_secp384r1_sha384_test.json", "300a06082a8648ce3d040303"),
    ],
)
def test_signatures_of_issuers_and_revocation_lists(file: str, algorithm: str, shared_data: Find) -> None:
    def accepts(group: Case, case: Case) -> bool:
        key = issuer_key.load_key(_bytes(group["publicKeyDer"]))
        return issuer_key.is_signed(_bytes(algorithm), key, _bytes(case["sig"]), _bytes(case["msg"]))

    assert _disagreements(shared_data(f"wycheproof/{file}"), accepts) == set()


def test_p256_tpm_quotes(shared_data: Find) -> None:
    def accepts(group: Case, case: Case) -> bool:
        try:
            r, s = decode_dss_signature(_bytes(case["sig"]))
            sized = b"".join(len(raw).to_bytes(2) + raw for raw in (number.to_bytes(32) for number in (r, s)))
        except (ValueError, OverflowError):
            return False  # bad DER, or numbers that a TPM's format cannot say
        signature = tpm_quote.parse_signature(bytes.fromhex("0018000b") + sized)
        tpm_quote.verify_quote(
            _bytes(case["msg"]), signature, issuer_key.load_key(_bytes(group["publicKeyDer"]))
        )
        return True

    path = shared_data("wycheproof/ecdsa_secp256r1_sha256_test.json")
    assert _disagreements(path, accepts) == set()


def _disagreements(path: Path, accepts: Callable[[Case, Case], bool]) -> set[int]:
    """Return the ids of the cases where our verdict differs from the file's."""
    found = set()
    for group, case in _cases(path):
        assert case["result"] in {"valid", "invalid"}
        try:
            accepted = accepts(group, case)
        except (InvalidEvidence, ConfigError):
            accepted = False
        if accepted != (case["result"] == "valid"):
            found.add(case["tcId"])
    return found


def _cases(path: Path) -> Iterator[tuple[Case, Case]]:
    for group in json.loads(path.read_text())["testGroups"]:
        for case in group["tests"]:
            yield group, case


def _key(group: Case) -> EllipticCurvePublicKey:
    key = load_der_public_key(_bytes(group["publicKeyDer"]))
    assert isinstance(key, EllipticCurvePublicKey)
    return key


def _recover(digest: bytes, signature: bytes) -> bytes | None:
    try:
        return k256.recover_digest(digest, signature)
    except InvalidEvidence:
        return None


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text)

import hashlib
import json
from pathlib import Path

import pytest

from shared.attestation.report_data import RATLS_CERT, bootstrap_report_data, deploy_challenge, report_data
from shared.errors import ProtocolError
from tests.shared.attestation.forgery import refuses

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "kms" / "vectors.json").read_text())
ROOT_SPKI = bytes.fromhex(VECTORS["inputs"]["root_ca_spki_der"])


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (
            "",
            (
                "7ea0b744ed5e9c0c83ff9f575668e1697652cd349f2027cdf26f918d4c53e8cd"
                "50b5ea9b449b4c3d50e20ae00ec29688d5a214e8daff8a10041f5d624dae8a01"
            ),
        ),
        ("sha256", "278fdb367382d9d10871ebb44498a29d54e705fa8924ce0a6fe8629542fc1a65"),
        (
            "sha384",
            "3967015e6798cc3d90f60b0a8dd045856e33273c4118dcdf04cc40a051ef8f3c008c73fb6e89d0af961c91a3a73efc5e",
        ),
        ("sha3-256", "bb98d4376d590cb17968d89250ac8f3d6241c9267d74995121a60766d0a6c665"),
        ("keccak256", "71d9e489e5d4046e8c1a5ef5137a88d940c77db95de9a5eadcde469c4fc50c29"),
        (
            "keccak512",
            (
                "cdf84b140204fe2ab9fe3951887170ddc9e14715b3e70ec9bed03ea72861d368"
                "7a684d4da336ca3154c8c9ae426a5afdd97b5ddef4f50a7d4657854f96b1a3e3"
            ),
        ),
    ],
)
def test_equals_the_published_vectors(algorithm: str, expected: str) -> None:
    assert report_data("app-data", b"test content", algorithm) == bytes.fromhex(expected).ljust(64, b"\0")


def test_a_tls_key_is_bound_by_its_published_vector() -> None:
    assert report_data(RATLS_CERT, bytes(range(91))).hex() == (
        "3fc3deaabdc18ef2640a107def2bbf8efc5103b4f0f9bda3cb234b39b29d8da8"
        "d00d814e005adfc6a7ecfb292c359ff4a4120052a877e007c08ad8f75472a8a9"
    )


def test_a_kms_root_key_is_bound_by_its_vector() -> None:
    assert report_data(RATLS_CERT, ROOT_SPKI).hex() == VECTORS["ratls_report_data_for_root_spki"]


def test_a_bootstrap_attests_both_root_keys_by_its_vector() -> None:
    k256 = bytes.fromhex(VECTORS["inputs"]["root_k256_pubkey_compressed"])
    assert bootstrap_report_data(ROOT_SPKI, k256).hex() == VECTORS["bootstrap_report_data"]


@pytest.mark.parametrize("algorithm", ["sha512", "sha3-384", "sha3-512", "keccak384"])
def test_every_algorithm_gives_64_bytes(algorithm: str) -> None:
    assert len(report_data("tag", b"x", algorithm)) == 64


def test_raw_takes_64_bytes_as_they_are() -> None:
    assert report_data("ignored", bytes(range(64)), "raw") == bytes(range(64))


def test_refuses_raw_content_of_another_length() -> None:
    with refuses("report_data.length", ProtocolError):
        report_data("ignored", bytes(63), "raw")


@pytest.mark.parametrize("algorithm", ["md5", "SHA256", "sha1", "sha3_256"])
def test_refuses_an_unknown_algorithm(algorithm: str) -> None:
    with refuses("report_data.algorithm", ProtocolError):
        report_data("tag", b"", algorithm)


def test_a_deploy_challenge_binds_the_challenge_and_the_app() -> None:
    expected = hashlib.sha512(b"dstack-deploy-challenge:" + b"\x01" * 32 + b"\x02" * 20).digest()
    assert deploy_challenge(b"\x01" * 32, b"\x02" * 20) == expected


@pytest.mark.parametrize(("challenge", "app_id"), [(31, 21), (33, 20), (32, 0)])
def test_refuses_challenges_and_app_ids_of_another_length(challenge: int, app_id: int) -> None:
    with refuses("report_data.length", ProtocolError):
        deploy_challenge(bytes(challenge), bytes(app_id))

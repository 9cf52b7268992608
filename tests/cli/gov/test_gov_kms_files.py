"""What `gov kms` makes of a KMS's own answers: no chain is asked."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from shared.attestation.report_data import bootstrap_report_data
from shared.ratls.certificates import ROOT_CA_NAME, self_signed_ca, spki_der
from tests.docs.console_page import call


@pytest.fixture
def answers() -> tuple[dict[str, str], dict[str, str]]:
    key = ec.generate_private_key(ec.SECP256R1())
    root = self_signed_ca(key, ROOT_CA_NAME, 1, 1_900_000_000, 1_900_086_400)
    made = {"ca_pubkey": spki_der(key.public_key()).hex(), "k256_pubkey": "02" * 33}
    meta = {"ca_cert": root.public_bytes(Encoding.PEM).decode(), "k256_pubkey": "02" * 33}
    return made, meta


def written(place: Path, name: str, document: object) -> str:
    path = place / name
    path.write_text(json.dumps(document))
    return str(path)


def test_prints_the_report_data_of_the_root_keys(
    tmp_path: Path, answers: tuple[dict[str, str], dict[str, str]]
) -> None:
    made, _ = answers
    output, code = call(["gov", "kms", "report-data", written(tmp_path, "made", made)])
    keys = bytes.fromhex(made["ca_pubkey"]), bytes.fromhex(made["k256_pubkey"])
    assert (output, code) == (bootstrap_report_data(*keys).hex() + "\n", 0)


def test_prints_the_root_ca_of_the_same_keys(
    tmp_path: Path, answers: tuple[dict[str, str], dict[str, str]]
) -> None:
    made, meta = (written(tmp_path, f"{index}", one) for index, one in enumerate(answers))
    assert call(["gov", "kms", "root-ca", made, meta]) == (answers[1]["ca_cert"], 0)


@pytest.mark.parametrize(("wrong", "value"), [("ca_pubkey", "03" * 91), ("k256_pubkey", "03" * 33)])
def test_prints_no_root_ca_of_other_root_keys(
    tmp_path: Path, answers: tuple[dict[str, str], dict[str, str]], wrong: str, value: str
) -> None:
    made, meta = answers
    output, code = call(
        [
            "gov",
            "kms",
            "root-ca",
            written(tmp_path, "made", made | {wrong: value}),
            written(tmp_path, "meta", meta),
        ]
    )
    assert ("[gov.kms.other_keys]" in output, "BEGIN" in output, code) == (True, False, 3)


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ({}, "gov.kms.file"),
        ({"ca_pubkey": "03", "k256_pubkey": "02" * 33}, "gov.kms.bootstrap_info"),
        ({"ca_pubkey": "zz" * 91, "k256_pubkey": "02" * 33}, "gov.kms.bootstrap_info"),
    ],
)
def test_refuses_what_is_no_bootstrap_answer(tmp_path: Path, made: object, code: str) -> None:
    output, exit_code = call(["gov", "kms", "report-data", written(tmp_path, "made", made)])
    assert (f"[{code}]" in output, exit_code) == (True, 2)


def test_refuses_a_meta_without_a_certificate(
    tmp_path: Path, answers: tuple[dict[str, str], dict[str, str]]
) -> None:
    made, meta = answers
    paths = [written(tmp_path, "made", made), written(tmp_path, "meta", meta | {"ca_cert": "x"})]
    output, code = call(["gov", "kms", "root-ca", *paths])
    assert ("[gov.kms.meta]" in output, code) == (True, 2)

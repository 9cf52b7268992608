"""Sample evidence: what it writes verifies under its own root, and nowhere else."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enclave.simulator.__main__ import main
from enclave.simulator.evidence import APP_COMPOSE, Kind, sample_guest, write_sample
from shared.attestation.collateral import describe, parse_bundle
from shared.attestation.identity import boot_info
from shared.attestation.image import check_image
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.errors import DstackError, StorageError

KINDS: tuple[Kind, ...] = ("nitro", "nitro-tpm", "tdx", "gcp")
NOW = 1_767_225_600
CHALLENGE = bytes(range(64))
COMMON = {
    "root.pem",
    "collateral.json",
    "app-compose.json",
    "evidence.bin",
    "request.json",
    "certificate.pem",
    "image",
}


def verified(place: Path) -> VerifiedAttestation:
    return verify_attestation(
        (place / "evidence.bin").read_bytes(),
        now=NOW,
        anchors=TrustAnchors.production().with_extra((place / "root.pem").read_bytes()),
        endorsements=parse_bundle((place / "collateral.json").read_bytes()),
        report_data=CHALLENGE,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_verifies_and_shows_what_was_told(kind: Kind, tmp_path: Path) -> None:
    told = write_sample(tmp_path, kind, now=NOW, challenge=CHALLENGE)
    checked = check_image(verified(tmp_path))
    assert checked.verdict.simulated
    assert checked.verdict.lanes.revocation.status is Status.VERIFIED
    info = boot_info(checked)
    assert told["report_data"] == CHALLENGE.hex()
    assert told["os_image_hash"] == info.os_image_hash.hex()
    assert told["compose_hash"] == hashlib.sha256(APP_COMPOSE).hexdigest()
    if kind != "nitro":  # an enclave's image is its app
        assert told["compose_hash"] == info.compose_hash.hex()
    assert info.app_id.hex() == told["compose_hash"][:40]


@pytest.mark.parametrize(
    ("kind", "more"),
    [("nitro", {"document.cose"}), ("nitro-tpm", set()), ("tdx", {"quote.bin"}), ("gcp", set())],
)
def test_it_writes_each_form(kind: Kind, more: set[str], tmp_path: Path) -> None:
    write_sample(tmp_path, kind, now=NOW, challenge=CHALLENGE)
    assert {path.name for path in tmp_path.iterdir()} == COMMON | more
    request = json.loads((tmp_path / "request.json").read_text())
    assert bytes.fromhex(request["attestation"]) == (tmp_path / "evidence.bin").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_no_production_verifier_takes_it(kind: Kind, tmp_path: Path) -> None:
    write_sample(tmp_path, kind, now=NOW, challenge=CHALLENGE)
    with pytest.raises(DstackError) as caught:
        verify_attestation(
            (tmp_path / "evidence.bin").read_bytes(),
            now=NOW,
            anchors=TrustAnchors.production(),
            endorsements=parse_bundle((tmp_path / "collateral.json").read_bytes()),
        )
    assert caught.value.code in {"nitro.chain.anchor", "tdx.anchor", "gcp.chain.anchor"}


@pytest.mark.parametrize("kind", KINDS)
def test_another_image_is_another_hash(kind: Kind, tmp_path: Path) -> None:
    hashes = set()
    for content in (b"one", b"two"):
        image = tmp_path / content.decode()
        image.mkdir()
        (image / "run.sh").write_bytes(content)
        guest = sample_guest(kind, image, now=NOW)
        evidence = verify_attestation(
            guest.attest(CHALLENGE),
            now=NOW,
            anchors=TrustAnchors.production().with_extra(guest.root_pem),
            endorsements=guest.endorsements,
        )
        hashes.add(boot_info(evidence).os_image_hash)
    assert len(hashes) == 2


def test_the_command_takes_a_challenge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evidence", str(tmp_path / "a"), "--platform", "nitro"]
    assert main([*arguments, "--report-data", CHALLENGE.hex()]) == 0
    assert json.loads(capsys.readouterr().out)["report_data"] == CHALLENGE.hex()
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["report_data"] != CHALLENGE.hex()


@pytest.mark.parametrize("text", ["", "00", "zz" * 64])
def test_a_challenge_is_64_bytes(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evidence", str(tmp_path), "--platform", "nitro", "--report-data", text]
    assert main(arguments) != 0
    assert "--report-data" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        write_sample(tmp_path / "file", "nitro", now=NOW, challenge=CHALLENGE)
    assert caught.value.code == "simulator.evidence.write"


def test_it_is_made_now(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "enclave.simulator", "evidence", str(tmp_path), "--platform", "tdx"]
    before = int(time.time())
    subprocess.run(command, check=True, capture_output=True)
    (collateral,) = parse_bundle((tmp_path / "collateral.json").read_bytes()).tdx
    assert before - 60 <= describe(collateral).issued <= int(time.time()) - 59

"""`dstack-cloud image inspect` over the click runner: exit codes, both outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec

from cli import image_report
from cli.image import image
from cli.image_report import hint_for
from shared.measurement.eif import measure_eif
from shared.measurement.eif_signature import KeySigner
from tests.shared.measurement import made_eif
from tests.shared.measurement.made_eif import (
    BOOT,
    DATA,
    KERNEL_TYPE,
    METADATA,
    NOT_AFTER,
    NOT_BEFORE,
    TINY,
    TINY_SECTIONS,
    raw_image,
    signing_certificate,
)

EXPECTED = next(one for one in json.loads((DATA / "vectors.json").read_text()) if one["name"] == "tiny.eif")[
    "output"
]
NOW = str(NOT_BEFORE + 1000)
KEY = ec.generate_private_key(ec.SECP384R1())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(image, ["inspect", *arguments])


def report(path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = run(str(path), "--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture
def tiny() -> Path:
    return DATA / "tiny.eif"


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    path = tmp_path / "signed.eif"
    path.write_bytes(made_eif.image(signer=KeySigner(KEY, signing_certificate(KEY)))[0])
    return path


def test_prints_what_an_image_measures(tiny: Path) -> None:
    result = run(str(tiny))
    assert result.exit_code == 0
    for name in ("pcr0", "pcr1", "pcr2", "os_image_hash", "crc32"):
        assert EXPECTED[name] in result.stdout
    assert "EIF for x86_64, 3582 bytes, crc 1d271598 ok" in result.stdout
    assert "signature      none" in result.stdout
    assert "stock" not in result.stdout


def test_reports_every_field_as_json(tiny: Path) -> None:
    code, found = report(tiny)
    assert code == 0
    image_found = found.pop("image")
    assert found == {
        "is_valid": True,
        "exit_code": 0,
        "kind": "eif",
        "code": None,
        "reason": None,
        "hint": None,
    }
    assert image_found["sections"] == [
        {"kind": "kernel", "offset": 560, "size": 96},
        {"kind": "cmdline", "offset": 668, "size": 84},
        {"kind": "metadata", "offset": 764, "size": 234},
        {"kind": "ramdisk", "offset": 1010, "size": 512},
        {"kind": "ramdisk", "offset": 1534, "size": 2048},
    ]
    assert {name: image_found[name] for name in EXPECTED if name != "sha256"} == {
        name: value for name, value in EXPECTED.items() if name != "sha256"
    }
    assert image_found["metadata"]["BuildMetadata"]["BuildTool"] == "dstack-cloud"
    assert (image_found["arch"], image_found["size"], image_found["signature"]) == ("x86_64", 3582, None)
    assert image_found["stock_bootstrap"] is False


def test_tells_a_stock_bootstrap(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny.open("rb") as file:
        monkeypatch.setattr(image_report, "STOCK_PCR1", {measure_eif(file).pcr1})
    assert f"{EXPECTED['pcr1']}  (stock AWS bootstrap)" in run(str(tiny)).stdout
    assert report(tiny)[1]["image"]["stock_bootstrap"] is True


def test_verifies_a_signature_at_the_time_given(signed: Path) -> None:
    result = run(str(signed), "--at", NOW)
    assert result.exit_code == 0
    assert "signature      valid" in result.stdout
    assert "CN=signer, 2023-11-14 to 2027-01-15" in result.stdout
    code, found = report(signed, "--at", NOW)
    signature = found["image"]["signature"]
    assert (code, signature["is_valid"], signature["code"], signature["judged_at"]) == (
        0,
        True,
        None,
        int(NOW),
    )
    assert len(signature["pcr8"]) == 96


def test_a_signature_is_judged_now_where_no_time_is_given(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: NOT_AFTER + 2.5)
    code, found = report(signed)
    assert (code, found["image"]["signature"]["judged_at"]) == (3, NOT_AFTER + 2)


def test_an_expired_signature_is_refused_and_the_registers_are_shown(signed: Path) -> None:
    late = str(NOT_AFTER + 1)
    result = run(str(signed), "--at", late)
    assert result.exit_code == 3
    assert EXPECTED["pcr0"] in result.stdout
    assert "REFUSED: signing certificate expired" in result.stdout
    assert "hint: sign the image with a new certificate" in result.stdout
    code, found = report(signed, "--at", late)
    assert (code, found["is_valid"], found["exit_code"]) == (3, False, 3)
    assert found["image"]["signature"]["code"] == "eif.signature.expired"


@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (b"", "unknown", "eif.magic"),
        (BOOT, "unknown", "eif.magic"),
        (TINY[:-1], "eif", "eif.section.size"),
        (TINY[:-1] + b"\1", "eif", "eif.crc"),
        (TINY + b"\0", "eif", "eif.trailing"),
        (raw_image([*TINY_SECTIONS, (KERNEL_TYPE, b"")]), "eif", "eif.section.order"),
        (raw_image([*TINY_SECTIONS, (4, b"")]), "eif", "cbor.truncated"),
    ],
)
def test_another_file_is_refused_with_a_hint(tmp_path: Path, content: bytes, kind: str, code: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    exit_code, found = report(path)
    assert (exit_code, found["kind"], found["code"], found["image"]) == (3, kind, code, None)
    assert found["hint"] == hint_for(code)
    shown = run(str(path))
    assert shown.exit_code == 3
    assert shown.stdout.splitlines() == [f"REFUSED  {found['reason']} [{code}]", f"hint: {found['hint']}"]


def test_n06_what_the_images_maker_wrote_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "image.eif"
    metadata = msgspec.structs.replace(METADATA, image_name="\x1b[2J\u202e" + "x" * 9999)
    path.write_bytes(made_eif.image(metadata=metadata, cmdline=b"a\x9b1")[0])
    shown = run(str(path)).stdout
    assert shown.isascii()
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) < 300
    assert report(path)[1]["image"]["metadata"]["ImageName"].startswith("\x1b[2J")


@pytest.mark.parametrize("arguments", [(), ("absent",), (str(DATA),), (str(DATA / "tiny.eif"), "--at", "-1")])
def test_usage_errors_exit_with_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_pipe_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        result = run(str(path))
    finally:
        os.close(writer)
    assert result.exit_code == 2
    assert "is a pipe" in result.stderr


def test_an_unsigned_image_is_measured_without_cryptography(tiny: Path) -> None:
    program = (
        "import sys\nfrom cli.main import cli\n"
        "try:\n    cli(['image', 'inspect', sys.argv[1]])\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "assert not any(name.startswith(('cryptography', 'rich')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny)], check=True, capture_output=True)


def test_a_code_without_a_hint_of_its_own_gets_the_general_one() -> None:
    assert hint_for("storage.read") == hint_for("eif")

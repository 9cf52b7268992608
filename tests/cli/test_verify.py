"""`dstack-cloud verify` over the click runner: inputs, exit codes, both outputs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.verify import MAX_INPUT, verify
from shared.errors import ConfigError
from tests.shared.attestation.forgery import APP_ID, NOW, PCRS, Forge

REAL = "attestation/upstream/nitro/"


@pytest.fixture(scope="module")
def forge() -> Forge:
    """A chain without a fault."""
    return Forge()


@pytest.fixture
def root(tmp_path: Path, forge: Forge) -> str:
    """Its root as a file."""
    path = tmp_path / "root.pem"
    path.write_bytes(forge.made["root"].pem)
    return str(path)


def run(*arguments: str, data: bytes | None = None) -> Result:
    return CliRunner().invoke(verify, [*arguments], input=data)


def trusted(root: str) -> tuple[str, ...]:
    return ("--at", str(NOW), "--trust-anchor", root)


def report(*arguments: str, data: bytes) -> tuple[int, dict[str, Any]]:
    result = run("-", "--json", *arguments, data=data)
    shown: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, shown


@pytest.mark.parametrize(
    "form",
    [
        lambda data: data,
        lambda data: data.hex().encode(),
        lambda data: data.hex().upper().encode() + b"\n",
        lambda data: b"0x" + data.hex().encode(),
        lambda data: b"\n".join(data.hex()[i : i + 64].encode() for i in range(0, 2 * len(data), 64)) + b"\n",
    ],
)
def test_verifies_an_envelope_and_a_bare_document_in_any_form(
    form: Callable[[bytes], bytes], forge: Forge, root: str
) -> None:
    for kind, data in (("envelope", forge.envelope()), ("nitro-document", forge.document())):
        code, shown = report(*trusted(root), data=form(data))
        assert (code, shown["is_valid"], shown["kind"]) == (0, True, kind)


def test_verifies_a_file(tmp_path: Path, forge: Forge, root: str) -> None:
    path = tmp_path / "evidence.bin"
    path.write_bytes(forge.envelope())
    result = run(str(path), *trusted(root))
    assert result.exit_code == 0
    assert result.stdout.startswith("VERIFIED")


def test_says_simulated_wherever_the_anchor_is_not_aws(forge: Forge, root: str) -> None:
    code, shown = report(*trusted(root), data=forge.envelope())
    assert code == 0
    assert shown["simulated"] is shown["verdict"]["simulated"] is True
    text = run("-", *trusted(root), data=forge.envelope()).stdout
    assert "SIMULATED" in text.splitlines()[0]
    assert "(simulated)" in text


def test_shows_lanes_identities_anchor_and_age(forge: Forge, root: str) -> None:
    arguments = ("--at", str(NOW + 60), "--trust-anchor", root)
    text = run("-", *arguments, data=forge.envelope()).stdout
    assert "60 s before" in text
    assert forge.anchors.anchors[1].name in text
    assert f"{APP_ID.hex()} (self-asserted)" in text
    for value in (PCRS[0].hex(), "os_image_hash", "compose_hash", "i-0123456789abcdef0-enc0123456789abcdef"):
        assert value in text
    for lane in ("chain", "freshness", "debug", "revocation", "tcb_status", "self_asserted", "skipped"):
        assert lane in text


def test_json_holds_the_whole_verdict(forge: Forge, root: str) -> None:
    _, shown = report(*trusted(root), data=forge.envelope())
    assert (shown["judged_at"], shown["made_at"]) == (NOW, NOW)
    assert (shown["code"], shown["reason"], shown["hint"]) == (None, None, None)
    assert shown["app_info"]["app_id"] == APP_ID.hex()
    assert shown["pcrs"]["0"] == PCRS[0].hex()
    assert {lane["name"] for lane in shown["verdict"]["lanes"]} >= {"signature", "chain", "os_image"}


def test_a_document_without_user_data_is_shown(forge: Forge, root: str) -> None:
    data = forge.document(user_data=None)
    assert report(*trusted(root), data=data)[1]["report_data"] is None
    assert "none" in run("-", *trusted(root), data=data).stdout


@pytest.mark.parametrize(
    ("changes", "at", "code", "hint"),
    [
        ({}, NOW + 3601, "nitro.stale", f"--at {NOW}"),
        ({}, NOW - 301, "nitro.future", f"--at {NOW}"),
        ({"pcrs": dict.fromkeys(PCRS, bytes(48))}, NOW, "nitro.debug", "without debug mode"),
        ({"report_data": bytes(64)}, NOW, "nitro.user_data", "another document"),
        ({"config": "{}"}, NOW, "identity.os_image.mismatch", "another image"),
        ({"config": "x"}, NOW, "identity.vm_config", "altered"),
    ],
)
def test_a_refusal_has_a_sentence_a_code_and_a_hint(
    changes: dict[str, Any], at: int, code: str, hint: str, forge: Forge, root: str
) -> None:
    arguments = ("--at", str(at), "--trust-anchor", root)
    data = forge.envelope(**changes)
    exit_code, shown = report(*arguments, data=data)
    assert (exit_code, shown["is_valid"], shown["code"]) == (3, False, code)
    assert hint in shown["hint"]
    assert shown["verdict"] is None
    text = run("-", *arguments, data=data).stdout
    assert text.startswith("REFUSED")
    assert f"[{code}]" in text
    assert f"hint: {shown['hint']}" in text


def test_n31_simulated_evidence_is_refused_without_its_root(forge: Forge) -> None:
    exit_code, shown = report("--at", str(NOW), data=forge.envelope())
    assert (exit_code, shown["code"]) == (3, "nitro.chain.anchor")
    assert "--trust-anchor" in shown["hint"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "envelope.empty"),
        (b"\n", "envelope.version.unknown"),
        (b"hello", "envelope.version.unknown"),
        (b"\x00", "scale.truncated"),
        (b"\x83", "envelope.version.unsupported"),
        (b"\x84", "cbor.length"),
        (b"\xd2\x84", "cbor.length"),
        (b"0", "envelope.version.unknown"),
    ],
)
def test_n01_damaged_input_is_refused_not_a_crash(data: bytes, code: str) -> None:
    exit_code, shown = report(data=data)
    assert (exit_code, shown["code"]) == (3, code)
    assert shown["hint"]


def test_trailing_bytes_are_refused(forge: Forge, root: str) -> None:
    for data, code in ((forge.envelope(), "scale.trailing"), (forge.document(), "cbor.trailing")):
        exit_code, shown = report(*trusted(root), data=data + b"\x00")
        assert (exit_code, shown["code"]) == (3, code)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("/absent/file",),
        ("-", "--at", "yesterday"),
        ("-", "--at", "-1"),
        ("-", "--trust-anchor", "/absent.pem"),
        ("-", "--unknown"),
    ],
)
def test_misuse_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments, data=b"").exit_code == 2


def test_a_trust_anchor_that_is_none_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(b"nothing")
    error = run("-", "--trust-anchor", str(path), data=b"").exception
    assert isinstance(error, ConfigError)
    assert (error.code, error.exit_code) == ("trust.anchor.malformed", 2)


def test_n03_an_oversize_file_is_not_read_to_its_end() -> None:
    error = run("-", data=bytes(MAX_INPUT + 1)).exception
    assert isinstance(error, ConfigError)
    assert error.code == "verify.file.size"


@pytest.mark.parametrize(
    ("name", "at"), [("nitro_attestation.bin", 1766678659), ("nitro_attestation_nsm_qvl.bin", 1766668537)]
)
def test_real_evidence_verifies_at_its_own_time(
    name: str, at: int, shared_data: Callable[[str], Path]
) -> None:
    path = str(shared_data(REAL + name))
    result = run(path, "--at", str(at), "--json")
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["simulated"]) == (0, False)
    assert "SIMULATED" not in run(path, "--at", str(at)).stdout


def test_real_evidence_is_stale_now_and_the_hint_says_when_it_was_not(
    shared_data: Callable[[str], Path],
) -> None:
    result = run(str(shared_data(REAL + "nitro_attestation.bin")))
    assert result.exit_code == 3
    assert "[nitro.stale]" in result.stdout
    assert "--at 1766678659" in result.stdout


def test_real_debug_evidence_is_refused_by_policy(shared_data: Callable[[str], Path]) -> None:
    result = run(str(shared_data(REAL + "nitro_attestation_dbg.bin")), "--at", "1766650846")
    assert result.exit_code == 3
    assert "[nitro.debug]" in result.stdout


def test_other_platforms_are_refused_with_a_hint(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("attestation/upstream/tdx/v0_tdx_attestation.bin")
    exit_code, shown = report(data=path.read_bytes())
    assert (exit_code, shown["code"]) == (3, "attestation.platform.unsupported")
    assert "Nitro" in shown["hint"]


def test_the_command_loads_rich_only_to_print() -> None:
    script = "import sys, cli.verify; print('rich' in sys.modules, 'web3' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]

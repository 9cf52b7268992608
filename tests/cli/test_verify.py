"""`dstack-cloud verify` over the click runner: options, exit codes, both outputs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cli.verify import MAX_INPUT, verify
from shared.attestation.collateral import bundle_json, collateral_json, parse_bundle
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import TdxQuote, encode_envelope
from shared.attestation.report_data import report_data
from shared.attestation.stripped import strip
from shared.errors import ConfigError
from shared.ratls.certificates import client_certificate, spki_der
from tests.shared.attestation.forgery import APP_ID, NOW, PCRS, REPORT_DATA, Forge
from tests.shared.attestation.guest_forgery import LEGACY, GcpGuest, TdxGuest, TpmGuest

REAL = "attestation/upstream/nitro/"
LAX = b"[tdx]\nallow_unverified_image = true\n"


@pytest.fixture(scope="module")
def forge() -> Forge:
    """A chain without a fault."""
    return Forge()


@pytest.fixture(scope="module")
def tdx() -> TdxGuest:
    """A TDX guest without a fault."""
    return TdxGuest()


@pytest.fixture(scope="module")
def gcp() -> GcpGuest:
    """A Google Cloud guest without a fault."""
    return GcpGuest()


@pytest.fixture(scope="module")
def tpm() -> TpmGuest:
    """An EC2 guest without a fault."""
    return TpmGuest()


@pytest.fixture
def trust(
    tmp_path: Path, forge: Forge, tdx: TdxGuest, gcp: GcpGuest, tpm: TpmGuest
) -> dict[str, tuple[str, ...]]:
    """By platform, the options with which its guest's evidence verifies."""
    roots = {
        "nitro": forge.made["root"].pem,
        "nitro-tpm": tpm.authority.root_pem,
        "tdx": tdx.intel.root_pem,
        "gcp": gcp.forge.intel.root_pem + gcp.forge.google.root_pem,
    }
    bundles = {"tdx": tdx.endorsements, "gcp": gcp.endorsements}
    options: dict[str, tuple[str, ...]] = {}
    for name, pem in roots.items():
        (tmp_path / f"{name}.pem").write_bytes(pem)
        options[name] = ("--at", str(NOW), "--trust-anchor", str(tmp_path / f"{name}.pem"))
        if name in bundles:
            (tmp_path / f"{name}.json").write_text(bundle_json(bundles[name]))
            options[name] += ("--collateral", str(tmp_path / f"{name}.json"))
    return options


def run(*arguments: str, data: bytes | None = None) -> Result:
    return CliRunner().invoke(verify, [*arguments], input=data)


def report(*arguments: str, data: bytes) -> tuple[int, dict[str, Any]]:
    result = run("-", "--json", *arguments, data=data)
    assert result.stdout, result.exception
    shown: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, shown


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


# --- each platform ---


def test_verifies_each_platform(
    trust: dict[str, tuple[str, ...]], forge: Forge, tdx: TdxGuest, gcp: GcpGuest, tpm: TpmGuest
) -> None:
    evidence = {
        "nitro": (forge.envelope(), "dstack-nitro-enclave", "PCR0"),
        "nitro-tpm": (encode_envelope(tpm.attestation()), "dstack-aws-nitro-tpm", "PCR14"),
        "tdx": (encode_envelope(tdx.attestation()), "dstack-tdx", "RTMR3"),
        "gcp": (encode_envelope(gcp.attestation()), "dstack-gcp-tdx", "PCR2"),
    }
    for name, (data, platform, register) in evidence.items():
        code, shown = report(*trust[name], data=data)
        assert (code, shown["is_valid"], shown["kind"]) == (0, True, "envelope"), shown
        assert shown["verdict"]["platform"] == platform
        assert shown["verdict"]["lanes"]["os_image"]["status"] == "verified"
        assert len(shown["registers"][register]) in {64, 96}
        text = run("-", *trust[name], data=data).stdout
        assert text.splitlines()[0] == (
            f"VERIFIED  {platform}, judged at 2026-01-01 00:00:00 UTC (--at)  "
            "SIMULATED: an anchor is not the vendor's root"
        )
        assert register in text


def test_verifies_bare_evidence(trust: dict[str, tuple[str, ...]], forge: Forge, tdx: TdxGuest) -> None:
    quote = tdx.attestation().quote
    assert isinstance(quote, TdxQuote)
    for name, data, kind in (
        ("nitro", forge.document(), "nitro-document"),
        ("tdx", quote.quote, "tdx-quote"),
    ):
        code, shown = report(*trust[name], data=data)
        assert (code, shown["kind"], shown["report_data"]) == (0, kind, REPORT_DATA.hex())
        assert shown["verdict"]["lanes"]["app_id"]["status"] == "not_applicable"
        assert "bare evidence has no envelope" in run("-", *trust[name], data=data).stdout


def test_verifies_a_certificate_and_binds_its_key(trust: dict[str, tuple[str, ...]], tdx: TdxGuest) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    bound = report_data("ratls-cert", spki_der(key.public_key()))
    for carried, exit_code in ((bound, 0), (REPORT_DATA, 3)):
        envelope = encode_envelope(strip(tdx.attestation(report_data=carried)))
        made = client_certificate(key, attestation=envelope, issuer=None, now=NOW)
        code, shown = report(*trust["tdx"], data=made.public_bytes(Encoding.PEM))
        assert (code, shown["kind"]) == (exit_code, "certificate")
        if exit_code:
            assert shown["code"] == "attestation.report_data"
        else:
            assert shown["verdict"]["lanes"]["report_data_expected"]["status"] == "verified"


def test_a_certificates_key_and_the_callers_wish_must_agree(
    trust: dict[str, tuple[str, ...]], tdx: TdxGuest
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    bound = report_data("ratls-cert", spki_der(key.public_key()))
    envelope = encode_envelope(strip(tdx.attestation(report_data=bound)))
    made = client_certificate(key, attestation=envelope, issuer=None, now=NOW).public_bytes(Encoding.DER)
    assert report(*trust["tdx"], "--report-data", bound.hex(), data=made)[0] == 0
    code, shown = report(*trust["tdx"], "--report-data", "00" * 64, data=made)
    assert (code, shown["code"]) == (3, "attestation.report_data")


def test_verifies_a_file(tmp_path: Path, forge: Forge, trust: dict[str, tuple[str, ...]]) -> None:
    path = write(tmp_path / "evidence.bin", forge.envelope())
    result = run(path, *trust["nitro"])
    assert result.exit_code == 0
    assert result.stdout.startswith("VERIFIED")


# --- what is shown ---


def test_says_simulated_wherever_an_anchor_is_not_the_vendors(
    forge: Forge, trust: dict[str, tuple[str, ...]]
) -> None:
    code, shown = report(*trust["nitro"], data=forge.envelope())
    assert code == 0
    assert shown["simulated"] is shown["verdict"]["simulated"] is True
    text = run("-", *trust["nitro"], data=forge.envelope()).stdout
    assert "SIMULATED" in text.splitlines()[0]
    assert "(simulated)" in text


def test_shows_lanes_identities_anchor_and_age(forge: Forge, trust: dict[str, tuple[str, ...]]) -> None:
    arguments = ("--at", str(NOW + 60), *trust["nitro"][2:])
    text = run("-", *arguments, data=forge.envelope()).stdout
    assert "60 s before" in text
    assert forge.anchors.nitro[1].name in text
    assert f"{APP_ID.hex()} (self-asserted)" in text
    for value in (PCRS[0].hex(), "os_image_hash", "compose_hash", "i-0123456789abcdef0-enc0123456789abcdef"):
        assert value in text
    for lane in ("chain", "freshness", "debug", "revocation", "tcb_status", "self_asserted", "skipped"):
        assert lane in text


def test_each_lane_is_one_line(tdx: TdxGuest, trust: dict[str, tuple[str, ...]]) -> None:
    data = encode_envelope(tdx.attestation())
    _, shown = report(*trust["tdx"], data=data)
    lines = [line.split(None, 2) for line in run("-", *trust["tdx"], data=data).stdout.splitlines()]
    for name, lane in shown["verdict"]["lanes"].items():
        assert [name, lane["status"], lane["reason"]] in lines


def test_json_holds_the_whole_verdict(forge: Forge, trust: dict[str, tuple[str, ...]]) -> None:
    _, shown = report(*trust["nitro"], data=forge.envelope())
    assert (shown["judged_at"], shown["made_at"], shown["exit_code"]) == (NOW, NOW, 0)
    assert (shown["code"], shown["reason"], shown["hint"]) == (None, None, None)
    assert shown["app_info"]["app_id"] == APP_ID.hex()
    assert shown["registers"]["PCR0"] == PCRS[0].hex()
    assert set(shown["verdict"]["lanes"]) >= {"signature", "chain", "os_image"}


def test_a_document_without_user_data_is_shown(forge: Forge, trust: dict[str, tuple[str, ...]]) -> None:
    data = forge.document(user_data=None)
    assert report(*trust["nitro"], data=data)[1]["report_data"] is None
    assert "none" in run("-", *trust["nitro"], data=data).stdout


def test_a_module_id_cannot_write_to_the_terminal(forge: Forge, trust: dict[str, tuple[str, ...]]) -> None:
    text = run("-", *trust["nitro"], data=forge.document(module_id="i-\x1b[2Jé-enc")).stdout
    assert "\x1b[2J" not in text
    assert r"i-\x1b[2J\xe9-enc" in text


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "at", "code", "hint"),
    [
        ({}, NOW + 3601, "nitro.stale", f"--at {NOW}"),
        ({}, NOW - 301, "nitro.future", f"--at {NOW}"),
        ({"pcrs": dict.fromkeys(PCRS, bytes(48))}, NOW, "nitro.debug", "without debug mode"),
        ({"report_data": bytes(64)}, NOW, "nitro.user_data", "another document"),
        ({"config": "{}"}, NOW, "identity.os_image.mismatch", "another image"),
        ({"config": "x"}, NOW, "vm_config.syntax", "vm_config"),
    ],
)
def test_a_refusal_has_a_sentence_a_code_and_a_hint(
    changes: dict[str, Any], at: int, code: str, hint: str, forge: Forge, trust: dict[str, tuple[str, ...]]
) -> None:
    arguments = ("--at", str(at), *trust["nitro"][2:])
    data = forge.envelope(**changes)
    exit_code, shown = report(*arguments, data=data)
    assert (exit_code, shown["is_valid"], shown["code"], shown["exit_code"]) == (3, False, code, 3)
    assert hint in shown["hint"]
    assert shown["verdict"] is None
    text = run("-", *arguments, data=data).stdout
    assert text.startswith("REFUSED")
    assert f"[{code}]" in text
    assert f"hint: {shown['hint']}" in text


def test_a_stale_tpm_document_names_its_own_time(tpm: TpmGuest, trust: dict[str, tuple[str, ...]]) -> None:
    arguments = ("--at", str(NOW + 9999), *trust["nitro-tpm"][2:])
    _, shown = report(*arguments, data=encode_envelope(tpm.attestation()))
    assert (shown["code"], shown["made_at"]) == ("nitro.stale", NOW)
    assert f"--at {NOW}" in shown["hint"]


def test_n31_simulated_evidence_is_refused_without_its_root(forge: Forge, tdx: TdxGuest) -> None:
    for data, code in (
        (forge.envelope(), "nitro.chain.anchor"),
        (encode_envelope(tdx.attestation()), "tdx.anchor"),
    ):
        exit_code, shown = report("--at", str(NOW), "--offline", data=data)
        assert (exit_code, shown["code"]) == (3, code)
        assert "--trust-anchor" in shown["hint"]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "envelope.empty"), (b"hello", "envelope.version.unknown"), (b"\x84", "cbor.length")],
)
def test_n01_damaged_input_is_refused_not_a_crash(data: bytes, code: str) -> None:
    exit_code, shown = report(data=data)
    assert (exit_code, shown["code"], shown["kind"]) == (3, code, shown["kind"])
    assert shown["hint"]


def test_n17_report_data_is_compared(forge: Forge, tdx: TdxGuest, trust: dict[str, tuple[str, ...]]) -> None:
    quote = tdx.attestation().quote
    assert isinstance(quote, TdxQuote)
    for name, data, code in (
        ("nitro", forge.envelope(), "attestation.report_data"),
        ("nitro", forge.document(), "nitro.user_data"),
        ("tdx", encode_envelope(tdx.attestation()), "attestation.report_data"),
        ("tdx", quote.quote, "tdx.report_data"),
    ):
        exit_code, shown = report(*trust[name], "--report-data", "00" * 64, data=data)
        assert (exit_code, shown["code"]) == (3, code)
        exit_code, shown = report(*trust[name], "--report-data", REPORT_DATA.hex(), data=data)
        assert exit_code == 0
        assert shown["verdict"]["lanes"]["report_data_expected"]["status"] == "verified"


def test_another_platform_is_refused_with_a_hint(shared_data: Callable[[str], Path]) -> None:
    request = shared_data("attestation/upstream/verifier/sev-snp-attestation.json")
    exit_code, shown = report("--offline", data=request.read_bytes())
    assert (exit_code, shown["code"]) == (3, "attestation.platform.unsupported")
    assert "SEV-SNP" in shown["hint"]


# --- policy ---


def test_a_policy_file_decides_and_shows(
    tmp_path: Path, tdx: TdxGuest, trust: dict[str, tuple[str, ...]]
) -> None:
    data = encode_envelope(tdx.attestation(config=LEGACY))
    exit_code, shown = report(*trust["tdx"], data=data)
    assert (exit_code, shown["code"]) == (3, "identity.os_image.acpi")
    assert "allow_unverified_image" in shown["hint"]
    options = (*trust["tdx"], "--policy", write(tmp_path / "policy.toml", LAX))
    exit_code, shown = report(*options, data=data)
    assert (exit_code, shown["verdict"]["lanes"]["os_image"]["status"]) == (0, "skipped")
    assert shown["app_info"]["self_asserted"] == ["os_image_hash"]
    text = run("-", *options, data=data).stdout
    assert "  relaxed: tdx.allow_unverified_image is true" in text.splitlines()
    assert f"os_image_hash  {'ab' * 32} (self-asserted)" in text


def test_n35_a_policy_may_require_aws_lists(
    tmp_path: Path, tpm: TpmGuest, trust: dict[str, tuple[str, ...]]
) -> None:
    data = encode_envelope(tpm.attestation())
    policy = write(tmp_path / "policy.toml", b'[nitro]\nrevocation = "required"\n')
    options = (*trust["nitro-tpm"], "--policy", policy)
    exit_code, shown = report(*options, "--offline", data=data)
    assert (exit_code, shown["code"]) == (3, "endorsements.offline")
    lists = bundle_json(Endorsements(crls=tpm.authority.crls(NOW - 60))).encode()
    exit_code, shown = report(*options, "--collateral", write(tmp_path / "b.json", lists), data=data)
    assert (exit_code, shown["verdict"]["lanes"]["revocation"]["status"]) == (0, "verified")


# --- collateral ---


def test_collateral_is_upstreams_object_or_a_bundle(
    tmp_path: Path, tdx: TdxGuest, trust: dict[str, tuple[str, ...]]
) -> None:
    data = encode_envelope(tdx.attestation())
    single = collateral_json(tdx.endorsements.tdx[0]).encode()
    options = (*trust["tdx"][:4], "--collateral", write(tmp_path / "single.json", single))
    assert report(*options, data=data)[0] == 0


def test_an_offline_run_without_collateral_is_refused_and_says_what_is_missing(
    tdx: TdxGuest, gcp: GcpGuest, trust: dict[str, tuple[str, ...]]
) -> None:
    for name, guest in (("tdx", tdx), ("gcp", gcp)):
        data = encode_envelope(guest.attestation())
        exit_code, shown = report(*trust[name][:4], "--offline", data=data)
        assert (exit_code, shown["code"]) == (3, "endorsements.offline")
        assert "--collateral" in shown["hint"]


def test_what_was_used_can_be_saved_and_judges_again(
    tmp_path: Path, gcp: GcpGuest, trust: dict[str, tuple[str, ...]]
) -> None:
    data, saved = encode_envelope(gcp.attestation()), tmp_path / "saved.json"
    first = report(*trust["gcp"], "--save-collateral", str(saved), data=data)
    again = report(*trust["gcp"][:4], "--collateral", str(saved), "--offline", data=data)
    assert first == again
    assert parse_bundle(saved.read_bytes()).tdx == gcp.endorsements.tdx


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"tdx":[1]}'])
def test_collateral_that_cannot_be_read_is_a_configuration_error(
    content: bytes, tmp_path: Path, tdx: TdxGuest, trust: dict[str, tuple[str, ...]]
) -> None:
    options = (*trust["tdx"][:4], "--collateral", write(tmp_path / "bad.json", content))
    error = run("-", *options, data=encode_envelope(tdx.attestation())).exception
    assert isinstance(error, ConfigError)
    assert (error.code.partition(".")[0], error.exit_code) == ("collateral", 2)
    assert "bad.json" in error.message


def test_a_place_that_cannot_be_written_is_a_configuration_error(
    tmp_path: Path, forge: Forge, trust: dict[str, tuple[str, ...]]
) -> None:
    place = tmp_path / "absent" / "saved.json"
    error = run("-", *trust["nitro"], "--save-collateral", str(place), data=forge.envelope()).exception
    assert isinstance(error, ConfigError)
    assert (error.code, error.exit_code) == ("verify.save", 2)


# --- misuse ---


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("/absent/file",),
        ("-", "--at", "yesterday"),
        ("-", "--at", "-1"),
        ("-", "--trust-anchor", "/absent.pem"),
        ("-", "--collateral", "/absent.json"),
        ("-", "--policy", "/absent.toml"),
        ("-", "--unknown"),
    ],
)
def test_misuse_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments, data=b"").exit_code == 2


@pytest.mark.parametrize(
    ("option", "content", "code"),
    [
        ("--trust-anchor", b"nothing", "trust.anchor.malformed"),
        ("--policy", b"[tdx", "policy.syntax"),
        ("--policy", b"[tdx]\nunknown = 1\n", "policy.invalid"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_configuration_error(
    option: str, content: bytes, code: str, tmp_path: Path
) -> None:
    error = run("-", option, write(tmp_path / "file", content), data=b"").exception
    assert isinstance(error, ConfigError)
    assert (error.code, error.exit_code) == (code, 2)


@pytest.mark.parametrize("text", ["", "00", "zz" * 64, "00" * 65])
def test_expected_report_data_must_be_64_bytes_of_hex(text: str) -> None:
    error = run("-", "--report-data", text, data=b"").exception
    assert isinstance(error, ConfigError)
    assert error.code == "verify.report_data"


def test_a_collateral_service_that_is_no_url_is_a_configuration_error(
    tdx: TdxGuest, trust: dict[str, tuple[str, ...]]
) -> None:
    for url in ("ftp://127.0.0.1", "nothing"):
        data = encode_envelope(tdx.attestation())
        error = run("-", *trust["tdx"][:4], "--pccs", url, data=data).exception
        assert isinstance(error, ConfigError), url


def test_plain_http_is_for_simulated_anchors_alone(tdx: TdxGuest) -> None:
    data = encode_envelope(tdx.attestation())
    error = run("-", "--pccs", "http://127.0.0.1:1", data=data).exception
    assert isinstance(error, ConfigError)


def test_n03_an_oversize_file_is_not_read_to_its_end() -> None:
    error = run("-", data=bytes(MAX_INPUT + 1)).exception
    assert isinstance(error, ConfigError)
    assert error.code == "verify.file.size"


def test_help_names_every_exit_code_and_the_page() -> None:
    text = run("--help").stdout
    for code in ("0 verified", "1 the network failed", "2 usage", "3 refused"):
        assert code in " ".join(text.split())
    assert "docs/verification.md" in text


# --- real evidence ---


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


def test_real_debug_evidence_is_refused(shared_data: Callable[[str], Path]) -> None:
    result = run(str(shared_data(REAL + "nitro_attestation_dbg.bin")), "--at", "1766650846")
    assert result.exit_code == 3
    assert "[nitro.debug]" in result.stdout


@pytest.mark.parametrize(
    "name",
    [
        "tdx/v0_tdx_attestation.bin",
        "tdx/tdx_quote.bin",
        "verifier/quote-report.json",
        "verifier/tdx-lite-getquote.json",
        "verifier/tdx-lite-attestation.json",
    ],
)
def test_real_tdx_evidence_lacks_collateral_alone_when_offline(
    name: str, shared_data: Callable[[str], Path]
) -> None:
    exit_code, shown = report("--offline", data=shared_data(f"attestation/upstream/{name}").read_bytes())
    assert (exit_code, shown["code"]) == (3, "endorsements.offline")
    assert "collateral for fmspc" in shown["reason"]


# --- what is loaded ---


def loaded(path: Path, *options: str) -> set[str]:
    """The modules that a run has loaded at its end."""
    script = (
        "import sys, json, atexit\n"
        "from cli.main import cli\n"
        "atexit.register(lambda: print('\\nLOADED', *sys.modules, file=sys.stderr))\n"
        "cli(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, "verify", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED")[2].split())


def test_nitro_evidence_loads_neither_rich_nor_dcap_nor_the_network(
    tmp_path: Path, forge: Forge, tdx: TdxGuest, trust: dict[str, tuple[str, ...]]
) -> None:
    path = tmp_path / "evidence.bin"
    path.write_bytes(forge.envelope())
    modules = loaded(path, *trust["nitro"], "--json")
    heavy = {
        "rich",
        "dcap_qvl",
        "shared.net.fetch",
        "shared.attestation.tdx",
        "shared.attestation.gcp",
        "web3",
    }
    assert not modules & heavy
    assert not {name for name in modules if name.startswith(("shared.net", "functions"))}
    path.write_bytes(encode_envelope(tdx.attestation()))
    assert "dcap_qvl" in loaded(path, *trust["tdx"], "--json")


def test_the_command_loads_rich_only_to_print() -> None:
    script = "import sys, cli.verify; print('rich' in sys.modules, 'web3' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]

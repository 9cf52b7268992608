"""Every subcommand: arguments, what it prints, exit codes (spec deploy section 6.1)."""

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from enclave.devices.clock import SystemClock
from enclave.dstack_util.main import run
from enclave.dstack_util.tools import Tools
from enclave.platform import Platform
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from shared.attestation.envelope import decode_envelope
from shared.attestation.event_log_json import parse_event_log_json
from shared.attestation.report_data import KMS_ROOT_CA, RATLS_CERT, report_data
from shared.attestation.tdx_quote import parse_quote
from shared.keys.app_keys_file import parse_app_keys
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import read_attestation, read_extensions
from tests.enclave.conftest import registers
from tests.enclave.dstack_util.gcp_world import trust_toml
from tests.enclave.dstack_util.machine import RecordedMachine
from tests.enclave.gcp import NOW, Guest, Machines


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)


@pytest.fixture
def guest(gcp: Machines) -> Guest:
    return gcp.start({"/etc/dstack/setup.toml": trust_toml(gcp)})


class Session:
    """Runs commands, and keeps what the last one printed."""

    def __init__(self, platform: Platform | None, machine: RecordedMachine) -> None:
        self.platform = platform
        self.machine = machine
        self.out = b""

    def __call__(self, *argv: str, stdin: bytes = b"") -> int:
        stdout = io.BytesIO()
        tools = Tools(self.platform, machine=self.machine, stdin=io.BytesIO(stdin), stdout=stdout)
        code = run(list(argv), tools)
        self.out = stdout.getvalue()
        return code


@pytest.fixture
def machine(tmp_path: Path) -> RecordedMachine:
    return RecordedMachine(tmp_path / "machine")


@pytest.fixture
def here(guest: Guest, machine: RecordedMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return Session(guest.platform, machine)


@pytest.fixture
def nitro(authority, machine: RecordedMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    image = tmp_path / "nitro"
    (image / "etc/dstack").mkdir(parents=True)
    (image / "root.pem").write_bytes(authority.root_pem)
    (image / "etc/dstack/setup.toml").write_text('[trust]\nnitro_roots = ["/root.pem"]\n')
    monkeypatch.chdir(image)
    nsm = SimulatedNsm(registers(1), authority, clock=lambda: NOW)
    return Session(Platform(image, image, NitroTee(nsm, vsock=None)), machine)  # type: ignore[arg-type]


@pytest.fixture
def nowhere(machine: RecordedMachine) -> Session:
    return Session(None, machine)


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the code that the last command named on standard error."""
    return capsys.readouterr().err.rstrip().rpartition("[")[2].rstrip("]")


@pytest.mark.parametrize("argv", [[], ["nothing"], ["extend"], ["attest", "--nothing"], ["host-shared", "x"]])
def test_wrong_arguments_end_with_two(nowhere: Session, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        nowhere(*argv)
    assert ended.value.code == 2


def test_quotes_exactly_what_stands_on_standard_input(here: Session) -> None:
    assert here("quote", stdin=bytes(range(64))) == 0
    assert parse_quote(here.out).report.report_data == bytes(range(64))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_quotes_nothing_else(here: Session, capsys, length: int) -> None:
    assert here("quote", stdin=bytes(length)) == 1
    assert refusal(capsys) == "dstack_util.report_data"


def test_an_enclave_has_no_bare_quote(nitro: Session, capsys) -> None:
    assert nitro("quote", stdin=bytes(64)) == 1
    assert refusal(capsys) == "quote.platform"


def test_reports_evidence_as_json(here: Session, capsys) -> None:
    assert here("quote-report", "--report-data", "abcd", "--debug") == 0
    attestation = decode_envelope(bytes.fromhex(json.loads(here.out)["attestation"]))
    assert attestation.report_data == b"\xab\xcd" + bytes(62)
    assert "tee_variant: dstack-gcp-tdx" in capsys.readouterr().err


def test_reports_evidence_with_the_config_of_a_file(here: Session) -> None:
    Path("sys.json").write_text('{"vm_config":"{\\"x\\":1}"}')
    assert here("quote-report", "--sys-config", "sys.json", "-o", "out.json") == 0
    document = json.loads(Path("out.json").read_text())
    assert decode_envelope(bytes.fromhex(document["attestation"])).config == '{"x":1}'


@pytest.mark.parametrize(
    ("given", "code"), [("00" * 65, "dstack_util.report_data"), ("0g", "hex.invalid"), ("abc", "hex.invalid")]
)
def test_refuses_report_data_that_does_not_fit(here: Session, capsys, given: str, code: str) -> None:
    assert here("attest", "--report-data", given) == 1
    assert refusal(capsys) == code


def test_attests_into_a_file_and_looks_at_it(here: Session) -> None:
    assert here("attest", "--report-data", "01") == 0
    whole = Path("attestation.bin").read_bytes()
    assert here("attest-info") == 0
    assert f"attestation: {len(whole)} bytes\n".encode() in here.out
    assert here("attest-json") == 0
    shown = json.loads(here.out)
    assert (shown["tee_variant"], shown["report_data"]) == ("dstack-gcp-tdx", "01".ljust(128, "0"))
    assert here("attest-strip") == 0
    assert len(Path("attestation.strip.bin").read_bytes()) < len(whole)


def test_attests_in_hex(here: Session) -> None:
    assert here("attest", "--hex") == 0
    assert decode_envelope(bytes.fromhex(here.out.decode())).report_data == bytes(64)


def test_an_enclaves_evidence_claims_the_app_that_is_named(nitro: Session) -> None:
    assert nitro("attest", "--app-id", "0x" + "07" * 20, "--hex") == 0
    (event,) = decode_envelope(bytes.fromhex(nitro.out.decode())).runtime_events
    assert (event.event, event.payload) == ("app-id", bytes([7]) * 20)


def test_a_guest_that_recorded_its_app_attests_for_no_other(here: Session, capsys) -> None:
    assert here("attest", "--app-id", "08" * 20) == 1
    assert refusal(capsys) == "image.app_id"


def test_a_file_that_is_no_evidence_is_refused(here: Session, capsys) -> None:
    Path("attestation.bin").write_bytes(b"\0\xff")
    assert here("attest-json") == 1
    assert refusal(capsys) == "envelope.variant.unknown"


def test_a_file_that_is_not_there_is_said(here: Session, capsys) -> None:
    assert here("attest-info", "-i", "gone") == 1
    assert refusal(capsys) == "dstack_util.unreadable"


def test_prints_the_event_log_and_what_it_replays_to(here: Session, guest: Guest) -> None:
    assert here("eventlog") == 0
    log = parse_event_log_json(here.out)
    assert {event.imr for event in log} == {0, 1, 2, 3}
    assert here("replay-imr") == 0
    quote = guest.evidence().quote.tdx.quote  # type: ignore[union-attr]
    expected = [f"IMR{i}: {value.hex()}" for i, value in enumerate(parse_quote(quote).report.rtmrs)]
    assert here.out.decode().splitlines() == expected


def test_an_enclave_has_no_event_log(nitro: Session, capsys) -> None:
    assert nitro("eventlog") == 1
    assert refusal(capsys) == "eventlog.platform"


def test_extends_the_register_by_an_event(here: Session, guest: Guest) -> None:
    assert here("extend", "-e", "mine", "-p", "0102") == 0
    last = guest.evidence().runtime_events[-1]
    assert (last.event, last.payload) == ("mine", b"\1\2")


def test_an_enclave_has_no_register_to_extend(nitro: Session, capsys) -> None:
    assert nitro("extend", "-e", "mine", "-p", "") == 1
    assert refusal(capsys) == "setup.unsupported"


def test_shows_who_this_guest_is(here: Session, guest: Guest) -> None:
    assert here("show") == 0
    events = {event.event: event.payload.hex() for event in guest.evidence().runtime_events}
    shown = json.loads(here.out)
    assert (shown["app_id"], shown["compose_hash"]) == (events["app-id"], events["compose-hash"])
    assert shown["instance_id"] == events["instance-id"]


def test_shows_what_an_enclave_is(nitro: Session) -> None:
    assert nitro("show") == 0
    assert len(json.loads(nitro.out)["os_image_hash"]) == 64


def test_prints_hex_without_a_newline(nowhere: Session, tmp_path: Path) -> None:
    assert nowhere("hex", stdin=b"\x01\xff") == 0
    assert nowhere.out == b"01ff"
    (tmp_path / "file").write_bytes(b"\x02")
    assert nowhere("hex", str(tmp_path / "file")) == 0
    assert nowhere.out == b"02"


def test_takes_no_endless_file(nowhere: Session, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("enclave.dstack_util.commands.octets.MAX_HEX", 3)
    (tmp_path / "file").write_bytes(bytes(4))
    for argv, stdin in ((["hex", str(tmp_path / "file")], b""), (["hex"], bytes(4))):
        assert nowhere(*argv, stdin=stdin) == 1
        assert refusal(capsys) == "dstack_util.size"


def test_draws_random_bytes(nowhere: Session, tmp_path: Path) -> None:
    assert nowhere("rand") == 0
    assert len(nowhere.out) == 20
    assert nowhere("rand", "-n", "8", "-x") == 0
    assert len(bytes.fromhex(nowhere.out.decode())) == 8
    output = tmp_path / "seed"
    output.write_bytes(b"old")
    assert nowhere("rand", "-n", "32", "-o", str(output)) == 0
    assert len(output.read_bytes()) == 32
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


@pytest.mark.parametrize("count", ["0", "-1", "1048577"])
def test_draws_no_senseless_number(nowhere: Session, capsys, count: str) -> None:
    assert nowhere("rand", "-n", count) == 1
    assert refusal(capsys) == "rand.size"


def test_an_output_that_cannot_be_written_is_said(nowhere: Session, tmp_path: Path, capsys) -> None:
    assert nowhere("rand", "-o", str(tmp_path / "no" / "file")) == 1
    assert refusal(capsys) == "dstack_util.write"


def _evidence(certificate: x509.Certificate) -> bytes:
    envelope = read_attestation(read_extensions(certificate))
    assert envelope is not None
    return decode_envelope(envelope).report_data


def test_makes_a_ca_and_a_certificate_under_it(here: Session) -> None:
    assert here("gen-ca-cert", "--cert", "ca.pem", "--key", "ca.key", "--ca-level", "2") == 0
    ca = x509.load_pem_x509_certificate(Path("ca.pem").read_bytes())
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 2
    assert "App Root CA" in ca.subject.rfc4514_string()
    assert _evidence(ca) == report_data(KMS_ROOT_CA, spki_der(ca.public_key()))  # type: ignore[arg-type]
    argv = ("--ca-cert", "ca.pem", "--ca-key", "ca.key", "-c", "leaf.pem", "-k", "leaf.key")
    assert here("gen-ra-cert", *argv) == 0
    leaf = x509.load_pem_x509_certificate(Path("leaf.pem").read_bytes())
    leaf.verify_directly_issued_by(ca)
    assert _evidence(leaf) == report_data(RATLS_CERT, spki_der(leaf.public_key()))  # type: ignore[arg-type]
    assert stat.S_IMODE(Path("leaf.key").stat().st_mode) == 0o600
    key = load_pem_private_key(Path("leaf.key").read_bytes(), None)
    assert key.public_key() == leaf.public_key()


def test_refuses_a_key_that_is_not_the_cas(here: Session, capsys) -> None:
    for name in ("a", "b"):
        assert here("gen-ca-cert", "--cert", f"{name}.pem", "--key", f"{name}.key") == 0
    argv = ("--ca-cert", "a.pem", "--ca-key", "b.key", "-c", "leaf.pem", "-k", "leaf.key")
    assert here("gen-ra-cert", *argv) == 1
    assert refusal(capsys) == "gen_cert.ca"


@pytest.mark.parametrize("level", ["-1", "256"])
def test_refuses_a_level_that_no_ca_has(here: Session, capsys, level: str) -> None:
    assert here("gen-ca-cert", "--cert", "a", "--key", "b", "--ca-level", level) == 1
    assert refusal(capsys) == "gen_cert.level"


def test_makes_app_keys_that_nobody_provides(here: Session) -> None:
    assert here("gen-app-keys", "-o", "keys.json") == 0
    assert stat.S_IMODE(Path("keys.json").stat().st_mode) == 0o600
    keys = parse_app_keys(Path("keys.json").read_bytes())
    assert keys.key_provider.kind == "None"  # type: ignore[union-attr]
    assert "App Root Cert" in x509.load_pem_x509_certificate(keys.ca_cert.encode()).subject.rfc4514_string()


def test_quotes_the_tpm_and_verifies_it(here: Session, gcp: Machines) -> None:
    authority = gcp.vendors.authority.google
    bundle = authority.root_pem + b"".join(
        x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        for der in authority.endorsements(NOW).certificates
    )
    Path("roots.pem").write_bytes(bundle)
    assert here("tpm-quote", "-d", "01", "-o", "quote.json") == 0
    assert here("tpm-verify", "--root-ca", "roots.pem", "-q", "quote.json") == 0
    assert here.out.startswith(b"verified\n")


def _altered(name: str, change: Callable[[Any], Any]) -> None:
    document = json.loads(Path("quote.json").read_text())
    document[name] = change(document[name])
    Path("quote.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("qualifying_data", lambda _: "00" * 32, "tpm_verify.data"),
        ("message", lambda text: text[:-2] + "00", "tpm.signature.invalid"),
        ("pcr_values", lambda rows: rows[:-1], "tpm.pcr.index"),
        ("pcr_values", lambda _: "x", "tpm_verify.file"),
    ],
)
def test_refuses_an_altered_tpm_quote(
    here: Session, gcp: Machines, capsys, name: str, change: Callable[[Any], Any], code: str
) -> None:
    test_quotes_the_tpm_and_verifies_it(here, gcp)
    _altered(name, change)
    assert here("tpm-verify", "--root-ca", "roots.pem", "-q", "quote.json") == 1
    assert refusal(capsys) == code


@pytest.mark.parametrize("words", [(), ("--format", "json")])
def test_quotes_over_a_nonce_and_verifies_that(here: Session, gcp: Machines, words: tuple[str, ...]) -> None:
    test_quotes_the_tpm_and_verifies_it(here, gcp)
    assert here("vtpm-attest", "--root-ca", "roots.pem", "--nonce", "0102", *words) == 0
    assert b"0102" in here.out
    assert b"PCR14" in here.out


def test_tells_whether_an_image_was_booted(here: Session, gcp: Machines, capsys) -> None:
    test_quotes_the_tpm_and_verifies_it(here, gcp)
    common = ("vtpm-attest", "--root-ca", "roots.pem", "--nonce", "01", "--key-algo", "ecc")
    assert here(*common, "--expected-os-hash", "ab" * 32) == 1
    told = capsys.readouterr().err
    assert "[vtpm_attest.image]" in told
    booted = told.partition("image ")[2].partition(" ")[0]
    assert here(*common, "--expected-os-hash", booted) == 0
    assert f"os_image_hash: {booted}".encode() in here.out


def test_verifies_under_no_other_root(here: Session, gcp: Machines, capsys) -> None:
    test_quotes_the_tpm_and_verifies_it(here, gcp)
    Path("intel.pem").write_bytes(gcp.vendors.authority.intel.root_pem)
    assert here("tpm-verify", "--root-ca", "intel.pem", "-q", "quote.json") == 1
    assert refusal(capsys) == "gcp.chain.anchor"


def test_a_root_file_without_a_root_is_refused(here: Session, gcp: Machines, capsys) -> None:
    test_quotes_the_tpm_and_verifies_it(here, gcp)
    Path("empty.pem").write_text("")
    assert here("tpm-verify", "--root-ca", "empty.pem", "-q", "quote.json") == 1
    assert refusal(capsys) == "tpm_verify.root"


def test_data_that_is_not_hashed_has_32_bytes(here: Session, capsys) -> None:
    assert here("tpm-quote", "-d", "01", "-H", "none") == 1
    assert refusal(capsys) == "tpm_quote.data"


def test_a_key_that_the_tpm_has_not_is_said(here: Session, capsys) -> None:
    assert here("tpm-quote", "-d", "01", "-k", "rsa") == 1
    assert refusal(capsys) == "tpm_device.ak.absent"


def test_an_enclave_has_no_tpm(nitro: Session, capsys) -> None:
    assert nitro("tpm-quote", "-d", "01") == 1
    assert refusal(capsys) == "tpm_quote.platform"


def test_mounts_the_hosts_share_and_unmounts_it(here: Session, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "app-compose.json").write_text("{}")
    (here.machine.root / "dev/disk/by-label/DSTACKSHR").symlink_to(share)
    point = tmp_path / "mnt"
    assert here("host-shared", "mount", "--mount-point", str(point)) == 0
    assert (point / "app-compose.json").read_text() == "{}"
    assert here("host-shared", "unmount", "--mount-point", str(point)) == 0
    assert not here.machine.is_mounted(point)


@pytest.mark.parametrize(
    "argv",
    [
        ["setup"],
        ["host-shared", "mount"],
        ["host-shared", "unmount"],
        ["gateway-refresh"],
        ["gateway-checker"],
    ],
)
def test_a_simulated_guest_changes_no_machine(here: Session, capsys, argv: list[str]) -> None:
    assert run(argv, Tools(here.platform)) == 1
    assert refusal(capsys) == "dstack_util.simulated"


def test_nobody_is_told_on_a_cloud(here: Session, nitro: Session) -> None:
    for session in (here, nitro):
        assert session("notify-host", "-e", "boot.progress", "-d", "done") == 0
        assert session.out == b""


def test_the_gateways_commands_need_what_a_boot_leaves(nowhere: Session, tmp_path: Path, capsys) -> None:
    for command in ("gateway-refresh", "gateway-checker"):
        assert nowhere(command, "--work-dir", str(tmp_path)) == 1
        assert refusal(capsys) == "dstack_util.unreadable"


def test_boots_by_the_command(
    gcp: Machines, machine: RecordedMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = gcp.start(
        {"/etc/dstack/setup.toml": trust_toml(gcp)}, boots_itself=True, key_provider="tpm", storage_fs="ext4"
    )
    share = guest.platform.writable / "config-disk"
    (machine.root / "dev/disk/by-label/DSTACKSHR").symlink_to(share)
    disk = machine.root / "dev/vdb"
    with disk.open("wb") as file:
        file.truncate(20 << 20)
    work = guest.platform.writable / "dstack"
    session = Session(guest.platform, machine)
    monkeypatch.setattr("enclave.dstack_util.commands.boot.DEFAULT_MOUNT", str(tmp_path / "mnt"))
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", "")  # set by the command, and put back after the test
    assert session("setup", "--work-dir", str(work), "--device", str(disk)) == 0
    assert machine.is_mounted(work / "persistent")
    assert parse_app_keys((work / ".host-shared/.appkeys.json").read_bytes()).disk_crypt_key

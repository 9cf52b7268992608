"""`dstack-cloud demo` from the outside: the story ends well, the keys are right, and nothing stays behind."""

import contextlib
import hashlib
import hmac
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cli.demo import command
from cli.demo.command import demo
from cli.demo.deployment import Enclaves
from cli.demo.guests import Measured
from cli.demo.narration import Narrator, StepFailed
from cli.demo.scenario import Scenario, with_vtpm_of
from cli.devchain import launcher
from cli.devchain.launcher import find_anvil
from functions.deploy.evidence import Verifier
from shared.attestation.envelope import Attestation, NitroEnclaveQuote, decode_envelope
from shared.attestation.nitro import parse_document
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, InvalidEvidence, UnavailableError
from shared.measurement.eif import measure_eif
from shared.net.fetch import HttpClient
from shared.net.response import Response

TIMEOUT = 120
STOPPING = 60
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def work() -> Iterator[Path]:
    """Return a directory that does not exist yet, with a name short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="dd-") as directory:
        yield Path(directory) / "w"


def _demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "demo", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            stdout, stderr = child.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            _stop(child)
            raise
    return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)


def _stop(child: "subprocess.Popen[str]") -> None:
    """End a demo politely, so that it stops what it started, then not."""
    child.terminate()
    try:
        child.communicate(timeout=STOPPING)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def _demo_under_way(
    directory: str, *prefix: str, platform: str = "nitro"
) -> Iterator["subprocess.Popen[str]"]:
    """Enter when a demo that works below `directory` has started a chain, a function, and an enclave."""
    with subprocess.Popen(
        [*prefix, sys.executable, "-m", "cli", "demo", "--engine", "py-evm", "--platform", platform],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": directory},
    ) as child:
        try:
            assert child.stdout is not None
            assert any("KMS allowed" in line for line in child.stdout)
            yield child
        finally:
            if child.poll() is None:
                _stop(child)


def _hkdf(key: bytes, info: bytes) -> bytes:
    prk = hmac.digest(b"RATLS", key, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


def _dh(scalar: bytes, info: bytes) -> bytes:
    derived = ec.derive_private_key(int.from_bytes(_hkdf(scalar, info)), ec.SECP256R1())
    der = derived.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return hashlib.sha256(der).digest()


def _event(log: Path, name: str) -> dict[str, str]:
    """Return the first event of a process that has this name, empty where it told none."""
    events = (json.loads(line) for line in log.read_text().splitlines())
    return next((event for event in events if event["event"] == name), {})


def _fingerprint(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()[:16]


def _no_anvil() -> bool:
    return find_anvil() is None


_needs_anvil = pytest.mark.skipif(_no_anvil(), reason="anvil is absent: install node and npm")


@pytest.mark.parametrize(
    ("platform", "engine", "disk"),
    [
        pytest.param("nitro", "anvil", "kms-memory", marks=_needs_anvil),
        ("nitro", "py-evm", "kms-memory"),
        ("gcp", "auto", "kms-disk"),
    ],
)
def test_the_demo_releases_the_keys_that_the_kms_roots_derive(
    platform: str, engine: str, disk: str, work: Path
) -> None:
    """The derivation here is independent of shared/: HKDF by hmac, spec kms section 3.2."""
    done = _demo("--json", "--platform", platform, "--engine", engine, "--keep", str(work))
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["ok"] is True
    assert report["simulated"] is True
    assert report["platform"] == platform
    assert engine in {report["chain_engine"], "auto"}
    details = {step["name"]: step["detail"] for step in report["steps"]}
    assert platform != "gcp" or "[gcp.binding]" in details["two machines posing as one"]
    assert _processes_mentioning(str(work)) == []
    assert all(set(step) == {"name", "ok", "seconds", "detail"} and step["ok"] for step in report["steps"])
    assert "Compose hash not allowed" in report["steps"][-1]["detail"]
    # issue 8: a removal stops the running app through a signed webhook within one poll
    stopped = details["governance -> webhook -> app stopped"]
    assert stopped.endswith("and poll 1 of the runner stopped the running app: Compose hash not allowed")

    if platform == "nitro":
        _check_enclave_images(work, details)

    certs = work / disk / "var/lib/kms"
    root = load_pem_private_key((certs / "root-ca.key").read_bytes(), None)
    assert isinstance(root, ec.EllipticCurvePrivateKey)
    scalar = root.private_numbers().private_value.to_bytes(32, "big")
    app_id = bytes.fromhex(report["app_id"][2:])
    # an enclave has no instance id, a guest has one of its vTPM
    instance_id = bytes.fromhex(_event(work / "logs" / "app.log", "guest.booted").get("instance_id", ""))
    assert len(instance_id) == (20 if platform == "gcp" else 0)
    assert report["keys"] == {
        "disk_crypt_key": _fingerprint(_dh(scalar, app_id + instance_id + b"app-disk-crypt-key")),
        "env_crypt_key": _fingerprint(_dh(scalar, app_id + b"env-encrypt-key")),
        "k256_key": _fingerprint(_hkdf((certs / "root-k256.key").read_bytes(), app_id + b"app-key")),
    }


def _check_enclave_images(work: Path, details: dict[str, str]) -> None:
    """Both images are kept and what was told of them is true; the KMS's NSM measured the built one."""
    for name, step in (("app-image", "developer -> app image"), ("kms-image", "operator -> KMS image")):
        with (work / f"{name}.eif").open("rb") as eif:
            measured = measure_eif(eif)
        assert f"OS_IMAGE_HASH 0x{measured.os_image_hash.hex()} of {name}.eif, built " in details[step]
        assert "by dstack-cloud content/" in details[step]
        assert measured.pcr0 == _pcr0(work / f"{name}.eif")
        assert (work / f"{name}-oci" / "oci-layout").is_file()
    bootstrapped = json.loads((work / "kms-memory/var/lib/kms/bootstrap-info.json").read_text())
    quote = decode_envelope(bytes.fromhex(bootstrapped["attestation"])).quote
    assert isinstance(quote, NitroEnclaveQuote)
    pcrs = parse_document(quote.nsm_quote).pcrs
    assert [pcrs[index] for index in range(3)] == [measured.pcr0, measured.pcr1, measured.pcr2]


def _pcr0(path: Path) -> bytes:
    """Compute PCR0 from the file's layout, by the platform's documentation and nothing of ours."""
    raw = path.read_bytes()
    content, at = hashlib.sha384(), 548
    while at < len(raw):
        kind, _, size = struct.unpack_from(">HHQ", raw, at)
        if kind in {1, 2, 3}:  # kernel, command line, ramdisks
            content.update(raw[at + 12 : at + 12 + size])
        at += 12 + size
    return hashlib.sha384(bytes(48) + content.digest()).digest()


def test_the_derivation_of_this_test_gives_the_specs_vectors() -> None:
    scalar = bytes.fromhex("f57527cea4ab7ffb49af99b158cdc0e3ec06398f528349ea236b7d2afe19cec1")
    app_id = bytes([0x11]) * 20
    k256 = bytes(range(1, 33))
    assert _dh(scalar, app_id + b"app-disk-crypt-key").hex() == (
        "14de7a7fd8bddf8e641a55ca97f043cac4344d175419f743940840f3a348f049"
    )
    assert _dh(scalar, app_id + b"env-encrypt-key").hex() == (
        "a7470db8cfdd0fe24134b461d60766afa7c078abe6dce9f2c8a5c44034ca400e"
    )
    assert _hkdf(k256, app_id + b"app-key").hex() == (
        "3956d6d72feda854379a188470804198a86306067c0f5648b2fd2f403a916f7d"
    )


@pytest.mark.parametrize(
    ("prefix", "number", "platform"),
    [
        pytest.param((), signal.SIGINT, "nitro", id="ctrl-c"),
        pytest.param((), signal.SIGINT, "gcp", id="ctrl-c-gcp"),
        # what a job in the background of a script inherits
        pytest.param(
            ("sh", "-c", 'trap "" INT; exec "$@"', "sh"), signal.SIGINT, "nitro", id="inherited-as-ignored"
        ),
        pytest.param((), signal.SIGTERM, "nitro", id="sigterm"),
    ],
)
def test_ctrl_c_stops_everything_and_leaves_nothing(
    prefix: tuple[str, ...], number: int, platform: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="dd-") as directory:
        with _demo_under_way(directory, *prefix, platform=platform) as child:
            child.send_signal(number)
            child.communicate(timeout=TIMEOUT)
        assert child.returncode == 128 + number
        assert list(Path(directory).iterdir()) == []
        assert _processes_mentioning(directory) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only linux tells a child of its parent's death")
def test_killed_demo_leaves_no_process() -> None:
    # not all of what was killed half way can be removed at once
    with tempfile.TemporaryDirectory(prefix="dd-", ignore_cleanup_errors=True) as directory:
        with _demo_under_way(directory) as child:
            assert len(_processes_mentioning(directory)) > 3
            child.kill()
            child.communicate()  # ends when the last heir of its standard error has ended
        deadline = time.monotonic() + STOPPING
        while (left := _processes_mentioning(directory)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []


def _processes_mentioning(text: str) -> list[str]:
    """Return the command lines of running processes that name `text` in them or in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            known = command + (process / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in known:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {one: signal.getsignal(one) for one in SIGNALS}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_unwinds_once_and_handlers_come_back(number: signal.Signals) -> None:
    for one in SIGNALS:
        signal.signal(one, signal.SIG_DFL)

    def story() -> None:
        with command._unwinding():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)  # impatience does not interrupt the cleaning

    with pytest.raises(SystemExit) as caught:
        story()
    assert caught.value.code == 128 + number
    assert [signal.getsignal(one) for one in SIGNALS] == [signal.SIG_DFL] * 3


@pytest.mark.usefixtures("handlers")
def test_signal_counts_while_the_story_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading takes a second or two; where SIGINT was inherited as ignored, the demo would go on after it."""
    monkeypatch.setattr(command, "_load_scenario", lambda: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert CliRunner().invoke(demo, []).exit_code == 128 + signal.SIGINT


@pytest.mark.usefixtures("handlers")
def test_signal_after_the_story_does_not_cut_the_stopping_short(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []

    def tell(_scenario: Scenario, stack: ExitStack) -> None:
        stack.callback(stopped.append, 2)
        stack.callback(signal.raise_signal, signal.SIGINT)
        stack.callback(stopped.append, 1)

    monkeypatch.setattr(Scenario, "_tell", tell)
    assert CliRunner().invoke(demo, []).exit_code == 0
    assert stopped == [1, 2]


@pytest.mark.usefixtures("handlers")
def test_nohup_holds() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with command._unwinding():
        signal.raise_signal(signal.SIGHUP)


def test_refuses_to_keep_into_a_directory_that_exists(tmp_path: Path) -> None:
    done = _demo("--keep", str(tmp_path))
    assert done.returncode == 2
    assert "[demo.keep]" in done.stderr


def test_a_failing_step_is_a_failing_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(scenario: Scenario) -> None:
        with scenario.narrator.step("governance -> contracts"):
            raise UnavailableError("devchain.start", "the chain ended")

    monkeypatch.setattr(Scenario, "run", fail)
    done = CliRunner().invoke(demo, ["--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 1
    assert report["ok"] is False
    assert report["steps"][0]["detail"] == "the chain ended [devchain.start]"


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "web3", None)  # what imports as absent
    for user in ("cli.devchain.governance", "cli.demo.scenario"):
        monkeypatch.delitem(sys.modules, user)
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(
            demo, ["--keep", str(tmp_path / "w")], catch_exceptions=False, standalone_mode=False
        )
    assert caught.value.code == "demo.extra"
    assert "web3" in caught.value.message
    assert "pip install 'dstack-cloud[demo]'" in caught.value.message
    assert not (tmp_path / "w").exists()


def test_missing_module_of_ours_is_not_called_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cli.demo.scenario", None)
    with pytest.raises(ModuleNotFoundError):
        CliRunner().invoke(demo, [], catch_exceptions=False, standalone_mode=False)


class Responder(Enclaves):
    """Stands in for guests of which one answers evidence challenges."""

    def __init__(self) -> None:
        self.verifier = Verifier(TrustAnchors.production(), lambda: 0)

    def evidence_url(self) -> str:
        return "http://app"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"attestation":1}', b'{"attestation":"\xff"}'])
def test_unreadable_evidence_fails_its_step(
    body: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    narrator = Narrator(quiet=True)
    scenario = Scenario(tmp_path, narrator, engine="py-evm", now=lambda: 0)
    monkeypatch.setattr(HttpClient, "request", lambda *_, **__: Response(200, {}, body))
    planned = Measured(image=tmp_path, os_image_hash=bytes(32), compose_hash=bytes(32))
    with pytest.raises(StepFailed):
        scenario._challenge(Responder(), planned)
    assert not narrator.steps[0].ok
    assert narrator.steps[0].detail.endswith("[demo.answer]")


def test_py_evm_in_anvils_place_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launcher, "find_anvil", lambda: None)
    narrator = Narrator(quiet=True)
    with ExitStack() as stack:
        Scenario(tmp_path, narrator, engine="auto", now=lambda: 0)._start_chain(stack)
    assert narrator.steps[0].detail.startswith("anvil is absent (install node and npm), so ")


def test_evidence_without_a_vtpm_cannot_be_mixed() -> None:
    enclave = Attestation(NitroEnclaveQuote(b""), (), bytes(64), "")
    with pytest.raises(InvalidEvidence) as refusal:
        with_vtpm_of(enclave, enclave)
    assert refusal.value.code == "demo.evidence.kind"

"""`dstack-cloud demo` from the outside: the story ends well, the keys are right, and nothing stays behind."""

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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

from cli.demo.command import demo
from cli.demo.scenario import Scenario
from cli.devchain.launcher import find_anvil
from shared.errors import UnavailableError

TIMEOUT = 120


@pytest.fixture
def work() -> Iterator[Path]:
    """Return a directory that does not exist yet, with a name short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="dd-") as directory:
        yield Path(directory) / "w"


def _demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def _hkdf(key: bytes, info: bytes) -> bytes:
    prk = hmac.digest(b"RATLS", key, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


def _dh(scalar: bytes, info: bytes) -> bytes:
    derived = ec.derive_private_key(int.from_bytes(_hkdf(scalar, info)), ec.SECP256R1())
    der = derived.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return hashlib.sha256(der).digest()


def _fingerprint(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()[:16]


def _no_anvil() -> bool:
    return find_anvil() is None


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(
            "anvil", marks=pytest.mark.skipif(_no_anvil(), reason="anvil is absent: install node and npm")
        ),
        "py-evm",
    ],
)
def test_the_demo_releases_the_keys_that_the_kms_roots_derive(engine: str, work: Path) -> None:
    """The derivation here is independent of shared/: HKDF by hmac, spec kms section 3.2."""
    done = _demo("--json", "--engine", engine, "--keep", str(work))
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["ok"] is True
    assert report["simulated"] is True
    assert report["chain_engine"] == engine
    assert all(set(step) == {"name", "ok", "seconds", "detail"} and step["ok"] for step in report["steps"])
    assert "Compose hash not allowed" in report["steps"][-1]["detail"]

    certs = work / "kms-memory" / "var/lib/kms"
    root = load_pem_private_key((certs / "root-ca.key").read_bytes(), None)
    assert isinstance(root, ec.EllipticCurvePrivateKey)
    scalar = root.private_numbers().private_value.to_bytes(32, "big")
    app_id = bytes.fromhex(report["app_id"][2:])
    assert report["keys"] == {
        "disk_crypt_key": _fingerprint(_dh(scalar, app_id + b"app-disk-crypt-key")),
        "env_crypt_key": _fingerprint(_dh(scalar, app_id + b"env-encrypt-key")),
        "k256_key": _fingerprint(_hkdf((certs / "root-k256.key").read_bytes(), app_id + b"app-key")),
    }


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


def test_ctrl_c_stops_everything_and_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="dd-") as directory:
        environment = {**os.environ, "TMPDIR": directory}
        child = subprocess.Popen(
            [sys.executable, "-m", "cli", "demo", "--engine", "py-evm"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert child.stdout is not None
        for line in child.stdout:
            if "KMS allowed" in line:  # chain, function, forwarder and enclave are running by now
                break
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=TIMEOUT)
        assert child.returncode != 0
        assert list(Path(directory).iterdir()) == []
        assert _processes_mentioning(directory) == []


def _processes_mentioning(text: str) -> list[str]:
    """Return the command lines of running processes that name `text`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


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

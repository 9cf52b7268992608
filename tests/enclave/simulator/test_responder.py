"""The main process of a simulated guest, as the clouds' stand-ins start it: a process, evidence over HTTP."""

import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.vsock.transport import UnixStandIn
from shared.attestation.envelope import Attestation, decode_envelope
from shared.compose.shared_files import APP_COMPOSE
from shared.measurement.config_disk import config_disk
from shared.measurement.cpio import CpioEntry
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.enclave.gcp import app_compose
from tests.enclave.simulator.test_config_disk import APP_ID, FILES
from tests.shared.measurement import made_eif

CHALLENGE = bytes(range(32))
YAML = (
    "services:\n  web:\n    image: web@sha256:" + "ab" * 32 + "\n    ports: ['80:80']\n  db:\n    build: .\n"
)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("authorities")
    GcpAuthority.create("http://127.0.0.1:9").save(directory / "gcp")
    SimulatedAuthority.create().save(directory / "nitro")
    return directory


class Guest:
    """A guest as a process: its events, its console, and its end."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "enclave.simulator", "run", *arguments],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._console = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def event(self, name: str) -> dict[str, Any]:
        """Return an event, waiting for it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = json.loads(line)
            if found["event"] == name:
                return dict(found)
        raise AssertionError(self.end()[1])

    def end(self) -> tuple[int, str]:
        """Return exit code and console once it has been asked to power off."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(30)
        self._reader.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code, self._console.decode()

    def wait(self) -> tuple[int, str]:
        """Return exit code and console once it has ended by itself."""
        self._process.wait(30)
        return self.end()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            self._console = stream.read()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started = []

    def run(*arguments: str) -> Guest:
        started.append(Guest(*arguments, cwd=tmp_path))
        return started[-1]

    yield run
    for guest in started:
        if guest._process.poll() is None:
            guest.end()


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"127.78.{port // 256}.{port % 256}"


def boot(start: Any, place: Path, authorities: Path, compose: bytes, address: str, *more: str) -> Guest:
    with (place / "config.img").open("wb") as file:
        config_disk(FILES | {APP_COMPOSE: compose, ".encrypted-env": b"sealed"}).write_to(file)
    (place / "own").mkdir()
    found: Guest = start(
        *("--platform", "gcp", "--config-disk", "config.img", "--writable", "own", "--tpm", "software"),
        *("--authority", str(authorities / "gcp"), "--address", address, *more, "responder"),
    )
    return found


def ask(dialer: Any, url: str) -> Attestation:
    http = HttpClient(dialer, timeout=20)
    answer = http.request("POST", url, msgspec.json.encode({"challenge": CHALLENGE.hex()}))
    http.close()
    return decode_envelope(bytes.fromhex(msgspec.json.decode(answer.body)["attestation"]))


def payloads(evidence: Attestation) -> dict[str, bytes]:
    return {event.event: event.payload for event in evidence.runtime_events}


def test_a_guest_answers_at_its_own_address(start: Any, tmp_path: Path, authorities: Path) -> None:
    compose = app_compose(
        {}, docker_compose_file=YAML, init_script="echo hi", storage_fs="zfs", key_provider="tpm"
    )
    address = free_address()
    guest = boot(start, tmp_path, authorities, compose, address)
    assert guest.event("guest.listening")["address"] == f"{address}:8090"
    evidence = payloads(ask(DirectDialer(), f"http://{address}:8090/evidence"))
    assert list(evidence) == [
        *("system-preparing", "app-id", "compose-hash", "init-script-hash", "gpu-policy-hash"),
        *("instance-id", "boot-mr-done", "key-provider", "storage-fs", "system-ready"),
    ]
    assert evidence["app-id"] == APP_ID
    assert evidence["compose-hash"] == hashlib.sha256(compose).digest()
    assert evidence["init-script-hash"] == hashlib.sha256(b"echo hi").digest()
    assert evidence["storage-fs"] == b"zfs"
    code, console = guest.end()
    assert code == 0
    assert "starting service web of web@sha256:" in console
    assert "starting service db of a build" in console
    assert ".encrypted-env is there and stays encrypted" in console
    assert console.rstrip().endswith("powering off")


def test_without_a_kms_the_boot_has_no_end(start: Any, tmp_path: Path, authorities: Path) -> None:
    """No keys came, and the guest does not record that any did."""
    address = free_address()
    guest = boot(start, tmp_path, authorities, app_compose({}, key_provider="kms"), address)
    guest.event("responder.ready")
    evidence = payloads(ask(DirectDialer(), f"http://{address}:8090/evidence"))
    assert list(evidence)[-1] == "boot-mr-done"
    assert "no kms was asked" in guest.end()[1]


def test_an_app_that_names_a_kms_is_run_by_its_agent(start: Any, tmp_path: Path, authorities: Path) -> None:
    """It comes as far as the root of a KMS that is none."""
    config = b'app_id = "22222222222222222222222222222222"\n'
    guest = boot(
        start, tmp_path, authorities, app_compose({"/etc/dstack/enclave.toml": config}), free_address()
    )
    code, console = guest.wait()
    assert code == 2
    assert "starting the app's agent" in console
    assert "[image.config]" in console


def test_an_address_that_is_taken_is_told(start: Any, tmp_path: Path, authorities: Path) -> None:
    address = free_address()
    with socket.create_server((address, 8090)):
        guest = boot(start, tmp_path, authorities, app_compose({}), address)
        code, console = guest.wait()
    assert code == 1
    assert "boot failed: port 8090" in console
    assert "[tee.listen]" in console


@pytest.mark.parametrize("named", [APP_ID, b""])
def test_an_enclave_answers_on_its_vsock_port(
    start: Any, tmp_path: Path, authorities: Path, named: bytes
) -> None:
    """As the app that its image names, which nobody can talk it out of; else as the one of the command."""
    entries = [(CpioEntry(b"rootfs", stat.S_IFDIR | 0o755), b"")]
    if named:
        entries += [
            (CpioEntry(b"rootfs/etc", stat.S_IFDIR | 0o755), b""),
            (CpioEntry(b"rootfs/etc/dstack", stat.S_IFDIR | 0o755), b""),
            (
                CpioEntry(b"rootfs/etc/dstack/app-id", stat.S_IFREG | 0o644, size=41),
                f"{named.hex()}\n".encode(),
            ),
        ]
    (tmp_path / "app.eif").write_bytes(
        made_eif.image(ramdisks=(made_eif.BOOT, made_eif.archive(*entries)))[0]
    )
    (tmp_path / "v").mkdir()
    guest = start(
        *("--eif", "app.eif", "--writable", "own", "--authority", str(authorities / "nitro")),
        *("--vsock", "v", "--cid", "16", "responder", "--app-id", "44" * 20),
    )
    assert guest.event("responder.ready")["evidence_port"] == 8080

    class Vsock:
        def dial(self, host: str, port: int, timeout: float) -> socket.socket:
            del host, port
            return UnixStandIn(tmp_path / "v", 3).connect(16, 8080, timeout)

    evidence = payloads(ask(Vsock(), "http://enclave/evidence"))
    assert evidence["app-id"] == (named or b"\x44" * 20)
    assert guest.end()[0] == 0

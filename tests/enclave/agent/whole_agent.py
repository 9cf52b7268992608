"""A whole agent process in a simulated guest whose keys came from no KMS."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enclave.agent.sockets import short_path
from enclave.simulator.gcp_authority import GcpAuthority
from shared.keys.app_keys_file import AppKeysFile, SeedProvider
from shared.ratls.certificates import self_signed_ca
from tests.docs.references import REPOSITORY
from tests.enclave.event_log import PATIENCE
from tests.enclave.gcp import app_compose

K256_KEY = bytes([5]) * 32
APP_ID = bytes([7]) * 20
SOCKET = "var/run/dstack/dstack.sock"
KEYS = "/keys.json"
GCP = ("--platform", "gcp", "--tpm", "software")


def keys_file() -> bytes:
    """Return a keys file with a CA of the guest's own."""
    key, now = ec.generate_private_key(ec.SECP256R1()), int(time.time())
    ca = self_signed_ca(key, "App Root Cert", 1, now - 10, now + 3600)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return AppKeysFile(
        disk_crypt_key=bytes(32),
        env_crypt_key=b"",
        k256_key=K256_KEY,
        k256_signature=b"",
        gateway_app_id="",
        ca_cert=ca.public_bytes(Encoding.PEM).decode(),
        key_provider=SeedProvider(kind="None", key=pem),
    ).to_json()


class WholeAgent:
    """The process, and its sockets."""

    def __init__(self, process: subprocess.Popen[str], writable: Path, errors: Path) -> None:
        self.process = process
        self._errors = errors
        self.writable = writable
        self.ports: dict[int, int] = {}
        self.events: list[dict[str, Any]] = []

    def wait_for(self, name: str) -> dict[str, Any]:
        """Return the next event of this name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            self.events.append(event)
            if event["event"] == "guest.listening":
                self.ports[event["port"]] = int(event["address"].rpartition(":")[2])
            if event["event"] == name:
                return event
        raise AssertionError(f"no {name} in {self.events}: {self._errors.read_text()}")

    def connect(self) -> socket.socket:
        """Return a connection to the app's socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        with short_path(self.writable / SOCKET) as name:
            sock.connect(name)
        return sock

    def call(self, path: str, body: object = None) -> dict[str, Any]:
        """Call a method on it."""
        with short_path(self.writable / SOCKET) as name:
            transport = httpx.HTTPTransport(uds=name)
            with httpx.Client(transport=transport, base_url="http://a", timeout=PATIENCE) as client:
                response = client.post(path, json=body or {})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def whole_agent(
    directory: Path, *, keys: bytes | None = None, platform: Sequence[str] = GCP
) -> Iterator[WholeAgent]:
    """Start one, and end it however the block ends. `platform` are the simulator's words for the guest."""
    image, writable = directory / "image", directory / "disk"
    image.mkdir()
    writable.mkdir()
    (image / "kernel").write_bytes(b"kernel")
    compose = directory / "app-compose.json"
    compose.write_bytes(app_compose({}, key_provider="none"))
    GcpAuthority.create("http://127.0.0.1:1").save(directory / "authority")
    if keys is not None:
        (writable / KEYS.lstrip("/")).write_bytes(keys)
    config = directory / "agent.json"
    config.write_text(json.dumps({"default": {"core": {"keys_file": KEYS}}}))
    command = [sys.executable, "-m", "enclave.simulator", "run", *platform]
    command += ["--writable", str(writable), "--authority", str(directory / "authority")]
    command += ["--image", str(image), "--app-compose", str(compose), "--app-id", APP_ID.hex()]
    command += ["agent", "--config", str(config)]
    errors = directory / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        ) as process,
    ):
        try:
            yield WholeAgent(process, writable, errors)
        finally:
            process.kill()

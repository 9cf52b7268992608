"""Starts the demo's daemons the way a parent instance would, each as a process of its own."""

import socket
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cli.demo.answers import convert_answer
from cli.demo.processes import Process, ProcessGroup
from shared.errors import ConfigError, UnavailableError
from shared.hex import decode_hex
from shared.net.dialer import ConnectDialer, DirectDialer
from shared.net.fetch import HttpClient

PARENT_CID, PROXY_PORT = 3, 3128
KMS_PORT, EVIDENCE_PORT = 8000, 8080
READY_SECONDS = 30.0
POLL_SECONDS = 0.05
LOOPBACK = "127.0.0.1"


class Measured(msgspec.Struct, frozen=True):
    """A written image and its OS_IMAGE_HASH, sha256(PCR0 || PCR1 || PCR2)."""

    directory: Path
    os_image_hash: bytes


class _Registers(msgspec.Struct, frozen=True):
    """What the simulator's `measure` prints, as far as it matters here."""

    os_image_hash: str


class _Listening(msgspec.Struct, frozen=True):
    """A forwarder's `ready` event: name -> host:port."""

    listeners: dict[str, str]


class Enclaves:
    """One throw-away authority, the functions, two parents with their forwarders, and their enclaves.

    Each parent has a vsock directory of its own: the KMS's parent and the app's parent do not share one.
    """

    def __init__(self, processes: ProcessGroup, work: Path) -> None:
        self._processes = processes
        self._work = work
        self._authority = work / "authority"
        self._simulator("authority", "authority", str(self._authority))
        self.simulated_root = (self._authority / "root.pem").read_bytes()
        self.kms: Process

    def build(self, name: str, write: Callable[[Path], None]) -> Measured:
        """Write an image below the working directory and measure it."""
        directory = self._work / name
        directory.mkdir()
        write(directory)
        output = self._simulator(f"measure-{name}", "measure", str(directory))
        registers = convert_answer(output, _Registers, what="the simulator's measurement")
        return Measured(directory, decode_hex(registers.os_image_hash, what="os_image_hash", length=32))

    def start_authorize(self, rpc_url: str, kms_contract: str, chain_id: int) -> str:
        """Start the authorize function under functions-framework; returns its base URL once it answers."""
        spec = find_spec("functions.authorize.gcp")
        if spec is None or spec.origin is None:
            raise ConfigError("demo.function", "the authorize function is not installed")
        port = _free_port()
        process = self._processes.start(
            "authorize",
            [
                *(sys.executable, "-m", "functions_framework", "--source", spec.origin),
                *("--target", "authorize", "--host", LOOPBACK, "--port", str(port)),
            ],
            {"ETH_RPC_URL": rpc_url, "KMS_CONTRACT_ADDR": kms_contract, "ETH_CHAIN_ID": str(chain_id)},
        )
        url = f"http://{LOOPBACK}:{port}"
        _wait_until_ok(url, process)
        return url

    def start_kms(self, image: Measured, cid: int, reachable: tuple[str, ...]) -> tuple[str, int]:
        """Start the KMS's parent and enclave; returns (host, port) of the parent's listener for the KMS."""
        listen = self._start_parent("kms", cid, KMS_PORT, reachable)
        self.kms = self._start_enclave("kms", "kms", image, cid, "kms")
        self.kms.wait_for("kms.onboarding")
        return "localhost", int(listen.rpartition(":")[2])

    def start_app(self, image: Measured, cid: int, kms: tuple[str, int]) -> tuple[Process, str]:
        """Start the app's parent and enclave; returns the enclave and the URL of its evidence responder."""
        listen = self._start_parent("app", cid, EVIDENCE_PORT, (f"https://{kms[0]}:{kms[1]}",))
        return self._start_enclave("app", "app", image, cid, "agent"), f"http://{listen}/evidence"

    def start_app_again(self, image: Measured, cid: int) -> Process:
        """Start a second enclave with the app's image beside the first."""
        return self._start_enclave("app-again", "app", image, cid, "agent")

    def dial_from_app(self, url: str) -> None:
        """Try to reach `url` as the app's enclave would. Raises what the dialer raises; closes on success."""
        parts = urlsplit(url)
        path = self._vsock("app") / f"{PARENT_CID}_{PROXY_PORT}.sock"

        def open_proxy(timeout: float) -> socket.socket:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout)
            connection.connect(str(path))
            return connection

        ConnectDialer(open_proxy).dial(parts.hostname or "", parts.port or 0, READY_SECONDS).close()

    def _start_parent(self, name: str, cid: int, port: int, reachable: tuple[str, ...]) -> str:
        """Start a parent's forwarder; returns its TCP listener's address."""
        allowed = ", ".join(
            f'{{ host = "{parts.hostname}", ports = [{parts.port}] }}' for parts in map(urlsplit, reachable)
        )
        config = self._work / f"{name}-forwarder.toml"
        self._vsock(name).mkdir()
        config.write_text(
            f'transport = "unix"\ndirectory = "{self._vsock(name)}"\ncid = {PARENT_CID}\n\n'
            f'[[inbound]]\nname = "{name}"\nlisten = "{LOOPBACK}:0"\ntarget = "vsock://{cid}:{port}"\n\n'
            f'[[outbound]]\nname = "egress"\nlisten = {PROXY_PORT}\nallow = [{allowed}]\n'
        )
        forwarder = self._processes.python(f"{name}-forwarder", "enclave.vsock", "--config", str(config))
        what = "the forwarder's list of listeners"
        listeners = convert_answer(forwarder.wait_for("ready"), _Listening, what=what).listeners
        return convert_answer(listeners.get(name), str, what=what)

    def _start_enclave(self, name: str, parent: str, image: Measured, cid: int, daemon: str) -> Process:
        writable = self._work / f"{name}-memory"
        writable.mkdir(mode=0o700)
        return self._processes.python(
            name,
            "enclave.simulator",
            *("run", "--image", str(image.directory), "--writable", str(writable)),
            *("--authority", str(self._authority), "--vsock", str(self._vsock(parent)), "--cid", str(cid)),
            daemon,
        )

    def _vsock(self, parent: str) -> Path:
        return self._work / f"{parent}-vsock"

    def _simulator(self, name: str, *arguments: str) -> object:
        """Run a simulator command to its end and return the object that it prints."""
        process = self._processes.python(name, "enclave.simulator", *arguments)
        if process.wait_exit() != 0:
            raise UnavailableError("demo.simulator", f"{name} failed: {process.last_words()}")
        return next(iter(process.events()), {})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_until_ok(url: str, process: Process) -> None:
    http = HttpClient(DirectDialer(), timeout=READY_SECONDS)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            status = http.request("GET", url).status
            if status == HTTPStatus.OK:
                return
            problem = UnavailableError("demo.function.status", f"{url} answers {status}")
        except UnavailableError as error:
            problem = error
        if process.ended() or time.monotonic() > deadline:
            raise problem
        time.sleep(POLL_SECONDS)

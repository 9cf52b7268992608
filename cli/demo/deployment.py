"""Starts the demo's Nitro enclaves the way parent instances would, each as a process of its own."""

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cli.demo.answers import convert_answer
from cli.demo.enclave_images import ImageBuilder
from cli.demo.functions import LOOPBACK, READY_SECONDS
from cli.demo.guests import AGENT_SOCKET, Measured
from cli.demo.images import EVIDENCE_PORT, KMS_PORT, AppImage, KmsImage, Roots
from cli.demo.processes import Process, ProcessGroup
from cli.demo.simulator import run_simulator
from functions.deploy.evidence import Verifier
from shared.attestation.trust import TrustAnchors
from shared.net.dialer import ConnectDialer

PARENT_CID, PROXY_PORT = 3, 3128
KMS_CID, APP_CID, SECOND_APP_CID = 16, 17, 18
NITRO_DEVICE = bytes.fromhex("de7d1b721a1e0632b7cf04edf5032c8ecffa9f9a08492152b926f1a5a7e765d7")
"""sha256("i"): the device id that every Nitro enclave has at upstream's pin (spec kms trap 8)."""


class _Listening(msgspec.Struct, frozen=True):
    """A forwarder's `ready` event: name -> host:port."""

    listeners: dict[str, str]


class Enclaves:
    """One throw-away authority, two parents with their forwarders, and their enclaves.

    Each parent has a vsock directory of its own: the KMS's parent and the app's parent do not share one.
    """

    device_id = NITRO_DEVICE

    def __init__(self, processes: ProcessGroup, work: Path, now: Callable[[], int]) -> None:
        self._processes = processes
        self._work = work
        self._authority = work / "authority"
        run_simulator(processes, "authority", "authority", str(self._authority))
        root = (self._authority / "root.pem").read_bytes()
        self.roots = Roots(pems={"aws_nitro_enclave": root})
        self.verifier = Verifier(TrustAnchors.production().with_extra(root, signer="nitro"), now)
        self._builder = ImageBuilder(work)
        self.kms: Process
        self._evidence_address = ""

    def describe(self) -> str:
        """See `Guests.describe`."""
        return "made a throw-away attestation root"

    def build_kms(self, image: KmsImage) -> Measured:
        """See `Guests.build_kms`."""
        return self._build("kms-image", image)

    def build_app(self, image: AppImage) -> Measured:
        """See `Guests.build_app`."""
        return self._build("app-image", image)

    def start_kms(self, measured: Measured, reachable: tuple[str, ...]) -> tuple[str, int]:
        """Start the KMS's parent and enclave; returns (host, port) of the parent's listener for the KMS."""
        listen = self._start_parent("kms", KMS_CID, KMS_PORT, reachable)
        self.kms = self._start_enclave("kms", "kms", measured, KMS_CID, "kms")
        self.kms.wait_for("kms.onboarding")
        return "localhost", int(listen.rpartition(":")[2])

    def start_app(self, measured: Measured, kms: tuple[str, int]) -> Process:
        """Start the app's parent and enclave."""
        reachable = (f"https://{kms[0]}:{kms[1]}",)
        self._evidence_address = self._start_parent("app", APP_CID, EVIDENCE_PORT, reachable)
        return self._start_enclave("app", "app", measured, APP_CID, "init")

    def evidence_url(self) -> str:
        """Return the URL at the parent that leads to the enclave's responder."""
        return f"http://{self._evidence_address}/evidence"

    def app_socket(self) -> Path:
        """See `Guests.app_socket`."""
        return self._work / "app-memory" / AGENT_SOCKET

    def start_app_again(self, measured: Measured) -> Process:
        """Start a second enclave with the app's image beside the first."""
        return self._start_enclave("app-again", "app", measured, SECOND_APP_CID, "init")

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

    def _build(self, name: str, image: KmsImage | AppImage) -> Measured:
        built = self._builder.build(name, image)
        image_hash = built.measurement.os_image_hash
        return Measured(
            image=built.path,
            builder=built.inputs.builder,
            os_image_hash=image_hash,
            compose_hash=image_hash,
            mr_aggregated=image_hash,
        )

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

    def _start_enclave(self, name: str, parent: str, measured: Measured, cid: int, daemon: str) -> Process:
        writable = self._work / f"{name}-memory"
        writable.mkdir(mode=0o700)
        return self._processes.python(
            name,
            "enclave.simulator",
            *("run", "--eif", str(measured.image), "--writable", str(writable)),
            *("--authority", str(self._authority), "--vsock", str(self._vsock(parent)), "--cid", str(cid)),
            daemon,
        )

    def _vsock(self, parent: str) -> Path:
        return self._work / f"{parent}-vsock"

"""Starts the demo's Google Cloud guests, simulated TDX machines with a vTPM, each as a process of its own."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from cli.demo.answers import convert_answer
from cli.demo.guests import AGENT_SOCKET, Measured
from cli.demo.images import EVIDENCE_PORT, KMS_PORT, AppImage, KmsImage, Roots, write_os_image
from cli.demo.processes import Process, ProcessGroup
from cli.demo.simulator import run_simulator
from functions.deploy.evidence import Verifier
from shared.attestation.trust import TrustAnchors
from shared.hex import decode_hex
from shared.net.endorsement_source import production_source

_TPMS = {
    "swtpm": "swtpm, a real TPM 2.0 in software",
    "software": "the built-in software TPM (no swtpm here)",
}


class _Authority(msgspec.Struct, frozen=True):
    """The `ready` event of the vendors' service."""

    url: str
    device_id: str


class _Measurement(msgspec.Struct, frozen=True):
    os_image_hash: str
    compose_hash: str
    mr_aggregated: str = ""


class _Booted(msgspec.Struct, frozen=True):
    """A guest's `guest.booted` event, as far as it matters here."""

    tpm: str


class _Listening(msgspec.Struct, frozen=True):
    """A guest's `guest.listening` event."""

    port: int
    address: str


class GcpGuests:
    """Throw-away vendors with their collateral service, one OS image, and the guests that boot it."""

    def __init__(self, processes: ProcessGroup, work: Path, now: Callable[[], int]) -> None:
        self._processes = processes
        self._work = work
        self._authority = work / "authority"
        pccs = processes.python("pccs", "enclave.simulator", "pccs", str(self._authority))
        made = convert_answer(pccs.wait_for("ready"), _Authority, what="the simulator's authority")
        self.device_id = decode_hex(made.device_id, what="device_id", length=32)
        pems = {
            "tdx": (self._authority / "intel" / "root.pem").read_bytes(),
            "gcp_tpm": (self._authority / "google" / "root.pem").read_bytes(),
        }
        self.roots = Roots(pems=pems, pccs_url=made.url)
        anchors = TrustAnchors.production().with_extra(pems["tdx"], signer="tdx")
        anchors = anchors.with_extra(pems["gcp_tpm"], signer="gcp_tpm")
        self.verifier = Verifier(anchors, now, production_source(pccs_url=made.url, external=True))
        self._os_image = work / "os-image"
        self._os_image.mkdir()
        write_os_image(self._os_image)
        self.kms: Process
        self._app: Process
        self._app_ids: dict[Path, bytes] = {}

    def describe(self) -> str:
        """See `Guests.describe`."""
        return "made throw-away Intel and Google roots, and publish their collateral and revocation lists"

    def build_kms(self, image: KmsImage) -> Measured:
        """See `Guests.build_kms`."""
        return self._build("kms", image.app_compose(), image.app_id)

    def build_app(self, image: AppImage) -> Measured:
        """See `Guests.build_app`."""
        return self._build("app", image.app_compose(), decode_hex(image.app_id, what="app_id", length=20))

    def start_kms(self, measured: Measured, reachable: tuple[str, ...]) -> tuple[str, int]:
        """Start the KMS's guest; returns (host, port) of its listener."""
        del reachable  # a guest on Google Cloud has a network of its own
        self.kms = self._start("kms", measured, "kms")
        self.kms.wait_for("kms.onboarding")
        return "localhost", int(self._address(self.kms, KMS_PORT).rpartition(":")[2])

    def start_app(self, measured: Measured, kms: tuple[str, int]) -> Process:
        """Start the app's guest, whose app-compose names the KMS."""
        del kms
        self._app = self._start("app", measured, "agent")
        return self._app

    def evidence_url(self) -> str:
        """See `Guests.evidence_url`."""
        return f"http://{self._address(self._app, EVIDENCE_PORT)}/evidence"

    def app_socket(self) -> Path:
        """See `Guests.app_socket`."""
        return self._work / "app-disk" / AGENT_SOCKET

    def start_app_again(self, measured: Measured) -> Process:
        """See `Guests.start_app_again`."""
        return self._start("app-again", measured, "agent")

    def vtpm(self) -> str:
        """Return which TPM the KMS's guest has."""
        booted = convert_answer(self.kms.wait_for("guest.booted"), _Booted, what="the guest's boot").tpm
        return _TPMS.get(booted, booted)

    def _build(self, name: str, app_compose: bytes, app_id: bytes) -> Measured:
        path = self._work / f"{name}-app-compose.json"
        path.write_bytes(app_compose)
        self._app_ids[path] = app_id
        measured_files = ("--image", str(self._os_image), "--app-compose", str(path))
        output = self._simulator(f"measure-{name}", "measure", *measured_files, "--app-id", app_id.hex())
        measured = convert_answer(output, _Measurement, what="the simulator's measurement")
        return Measured(
            image=self._os_image,
            os_image_hash=decode_hex(measured.os_image_hash, what="os_image_hash", length=32),
            compose_hash=decode_hex(measured.compose_hash, what="compose_hash", length=32),
            mr_aggregated=decode_hex(measured.mr_aggregated, what="mr_aggregated"),
            app_compose=path,
        )

    def _start(self, name: str, measured: Measured, daemon: str) -> Process:
        if measured.app_compose is None:
            raise TypeError("a guest on Google Cloud needs an app-compose")
        disk = self._work / f"{name}-disk"
        disk.mkdir(mode=0o700)
        app_id = self._app_ids[measured.app_compose].hex()
        return self._processes.python(
            name,
            "enclave.simulator",
            *("run", "--platform", "gcp", "--image", str(measured.image), "--writable", str(disk)),
            *("--app-compose", str(measured.app_compose), "--app-id", app_id),
            *("--authority", str(self._authority), daemon),
        )

    def _simulator(self, name: str, command: str, *arguments: str) -> object:
        return run_simulator(self._processes, name, command, "--platform", "gcp", *arguments)

    def _address(self, guest: Process, port: int) -> str:
        listening = guest.wait_for("guest.listening", port=port)
        return convert_answer(listening, _Listening, what="the guest's listener").address

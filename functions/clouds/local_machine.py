"""One simulated machine on this computer: its files, its processes, and how they are started.

Its directory holds all there is of it. `machine.json` is written before anything else is made, and each file
appears whole under its name, so whoever is killed leaves a directory that the next one can go on with.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import msgspec

from functions.clouds.local_process import DetachedProcess, read_events
from functions.clouds.local_vendors import environment
from functions.deploy.cloud import EVIDENCE_PORT, FirewallRule
from shared.compose.enclave_toml import ENV_PORT, PROGRESS_PORT
from shared.errors import CloudError, StorageError
from shared.measurement.disk_image import DiskImage

T = TypeVar("T")

ENCLAVE_CID: Final = 16
ENCLAVE_EVIDENCE_PORT: Final = 8080
"""The vsock port of an enclave's evidence, to which its parent's 8090 leads."""

_PARENT_CID: Final = 3
_PROXY_PORT: Final = 3128
_READY: Final = ("responder.ready", "agent.ready")
_END_SECONDS: Final = 2.0
_DRAIN_SECONDS: Final = 0.5  # of the forwarder's connections: less than it has to end
_CHUNK: Final = 1 << 20

CONFIG_DISK: Final = "config.img"
ENCLAVE_IMAGE: Final = "app.eif"
ENV_FILE: Final = "encrypted-env"
PROGRESS_FILE: Final = "progress-url"
_STATE: Final = "machine.json"
_FIREWALL: Final = "firewall.json"
_ENDING: Final = "ending"
_OWN_DISK: Final = "own"
_VTPM: Final = ".vtpm"
_VSOCK: Final = "v"  # short: a socket's path has at most 107 bytes


class MachineState(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine was made for. `boots` counts its starts since somebody last asked for one."""

    plan_id: str
    platform: str
    address: str
    boots: int = 0


class LocalMachine:
    """The machine in `directory`; `python` runs it."""

    def __init__(self, directory: Path, python: str) -> None:
        self.directory = directory
        self._python = python
        self.guest = DetachedProcess(directory, "guest")
        self._forwarder = DetachedProcess(directory, "forwarder")

    # ---- its files ----

    def state(self) -> MachineState | None:
        """Return its state, None where there is no machine. Raises `StorageError("local.state")`."""
        return self._read(_STATE, MachineState)

    def write_state(self, state: MachineState) -> None:
        """Write its state, and make its directory."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.write_file(_STATE, lambda file: file.write(msgspec.json.encode(state)))

    def rules(self) -> tuple[FirewallRule, ...]:
        """Return the firewall rules."""
        return self._read(_FIREWALL, tuple[FirewallRule, ...]) or ()

    def write_rules(self, rules: Sequence[FirewallRule]) -> None:
        """Write the firewall rules: nothing on this computer enforces them."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.write_file(_FIREWALL, lambda file: file.write(msgspec.json.encode(rules)))

    def write_config_disk(self, disk: DiskImage) -> None:
        """Write the config disk, sparsely."""
        self.write_file(CONFIG_DISK, disk.write_to)

    def write_enclave_image(self, source: BinaryIO, digest: str) -> None:
        """Copy the enclave image, whose SHA-256 (hex) is `digest`.

        Raises `StorageError("deploy.blob.corrupt")`.
        """

        def copy(file: BinaryIO) -> None:
            copied = hashlib.sha256()
            while chunk := source.read(_CHUNK):
                copied.update(chunk)
                file.write(chunk)
            if copied.hexdigest() != digest:
                raise StorageError("deploy.blob.corrupt", f"blob {digest} holds other bytes than it did")

        self.write_file(ENCLAVE_IMAGE, copy)

    def write_offer(self, name: str, content: bytes) -> None:
        """Write what the parent offers to its enclave under a name; nothing takes the file away."""
        if content:
            self.write_file(name, lambda file: file.write(content))
        else:
            (self.directory / name).unlink(missing_ok=True)

    def has_file(self, name: str) -> bool:
        """Tell whether a file of the machine is there, and whole."""
        return (self.directory / name).exists()

    def write_file(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file so that it appears whole."""
        unfinished = self.directory / f".{name}"
        with unfinished.open("wb") as file:
            write(file)
        unfinished.replace(self.directory / name)

    def _read(self, name: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode((self.directory / name).read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise StorageError("local.state", f"{self.directory / name} cannot be read: {error}") from error

    # ---- its processes ----

    def is_running(self) -> bool:
        """Tell whether it is alive: the guest, and what leads to it."""
        state = self.state()
        is_reachable = state is None or state.platform != "nitro" or self._forwarder.is_running()
        return self.guest.is_running() and is_reachable

    def is_ending(self) -> bool:
        """Tell whether it was asked to power off, and has not done so yet."""
        return self.has_file(_ENDING)

    def boot_guest(self, authority: Path, tpm: str, boot_disk: Path | None) -> int | None:
        """Start a Google Cloud guest from its disks, unless it runs; returns its pid then."""
        state = self._known()
        disk = () if boot_disk is None else ("--boot-disk", str(boot_disk))
        command = self._simulator(
            *("run", "--platform", "gcp", "--config-disk", CONFIG_DISK, *disk, "--tpm", tpm),
            *("--writable", _OWN_DISK, "--authority", str(authority)),
            *("--address", state.address, "responder"),
        )
        return self.guest.start(command, environment=environment(), prepare=self._empty_own_disk)

    def boot_enclave(
        self,
        authority: Path,
        app_id: str,
        egress: Mapping[str, Sequence[int]],
        stand_in: Sequence[str] = (),
    ) -> int | None:
        """Start the parent's forwarder and the enclave, unless they run; returns the enclave's pid then.

        `egress` is what the enclave may reach through its parent: hosts and their ports. `stand_in` runs in
        the place of an app that init starts: nothing of an image is run.
        """
        state = self._known()
        (self.directory / _VSOCK).mkdir(exist_ok=True)
        config = _forwarder_config(state.address, egress).encode()
        self.write_file("forwarder.toml", lambda file: file.write(config))
        module = [self._python, "-P", "-m"]
        self._forwarder.start(
            [*module, "enclave.vsock", "--config", "forwarder.toml"], environment=environment()
        )
        command = self._simulator(
            *("run", "--platform", "nitro", "--eif", ENCLAVE_IMAGE, "--writable", _OWN_DISK),
            *("--authority", str(authority), "--vsock", _VSOCK, "--cid", str(ENCLAVE_CID)),
            *("responder", *(("--app-id", app_id) if app_id else ())),
            *(("--", *stand_in) if stand_in else ()),
        )
        return self.guest.start(command, environment=environment(), prepare=self._empty_own_disk)

    def evidence_url(self) -> str:
        """Return where evidence is answered, empty until the guest has said that it is."""
        state = self.state()
        if state is None or not self.is_running():
            return ""
        for name in _READY:
            found = read_events(self.guest.events_path, name)
            if found is not None:
                break
        else:
            return ""
        if state.platform == "gcp":
            return f"http://{state.address}:{found.get('evidence_port')}/evidence"
        if read_events(self._forwarder.events_path, "ready") is None:
            return ""
        return f"http://{state.address}:{EVIDENCE_PORT}/evidence"

    def power_off(self) -> bool:
        """Ask all processes to end, at the second call end them; True when none is left."""
        processes = (self.guest, self._forwarder)
        marker = self.directory / _ENDING
        force = marker.exists()
        ended = [one.end(seconds=_END_SECONDS, force=force) for one in processes]
        if all(ended):
            marker.unlink(missing_ok=True)
            return True
        with contextlib.suppress(FileNotFoundError):
            marker.touch()
        return False

    def discard(self, *, keep_rules: bool) -> None:
        """Remove its files; with `keep_rules` the firewall's stay."""
        if not keep_rules:
            _remove(self.directory)
        elif self.directory.exists():
            for path in sorted(self.directory.iterdir()):
                if path.name != _FIREWALL:
                    _remove(path)

    def _empty_own_disk(self) -> None:
        """Leave of an earlier boot the vTPM alone: the rest was in memory, or belongs to containers."""
        own = self.directory / _OWN_DISK
        own.mkdir(exist_ok=True, mode=0o700)
        for path in own.iterdir():
            if path.name != _VTPM:
                _remove(path)

    def _known(self) -> MachineState:
        state = self.state()
        if state is None:
            raise CloudError("local.machine", f"there is no machine in {self.directory}")
        return state

    def _simulator(self, *arguments: str) -> list[str]:
        return [self._python, "-P", "-m", "enclave.simulator", *arguments]


def _forwarder_config(address: str, egress: Mapping[str, Sequence[int]]) -> str:
    # a json text is a toml text too
    allowed = ", ".join(
        f"{{ host = {json.dumps(host)}, ports = {sorted(ports)} }}" for host, ports in egress.items()
    )
    return f"""\
transport = "unix"
directory = "{_VSOCK}"
cid = {_PARENT_CID}

[limits]
drain_seconds = {_DRAIN_SECONDS}

[[inbound]]
name = "evidence"
listen = "{address}:{EVIDENCE_PORT}"
target = "vsock://{ENCLAVE_CID}:{ENCLAVE_EVIDENCE_PORT}"

[[outbound]]
name = "egress"
listen = {_PROXY_PORT}
peers = [{ENCLAVE_CID}]
allow = [{allowed}]

[[offer]]
name = "env"
listen = {ENV_PORT}
file = "{ENV_FILE}"
peers = [{ENCLAVE_CID}]

[[offer]]
name = "progress"
listen = {PROGRESS_PORT}
file = "{PROGRESS_FILE}"
peers = [{ENCLAVE_CID}]
"""


def _remove(path: Path) -> None:
    """Remove a file or a directory, which may be gone already. Raises `CloudError("local.remove")`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if path.exists():
        raise CloudError("local.remove", f"cannot remove {path}")

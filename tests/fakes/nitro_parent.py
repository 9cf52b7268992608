"""A parent instance in a throw-away directory: its user data and the commands sent to it run, with bash."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

FAKES = Path(__file__).resolve().parent
REPOSITORY = FAKES.parent.parent

# What belongs to the machine alone; everything else (bash, coreutils, tar) is this machine's.
_OWN = (
    "/etc/nitro_enclaves",
    "/etc/dstack",
    "/etc/systemd/system",
    "/var/lib/dstack",
    "/opt/dstack",
    "/usr/local/lib/dstack",
)
_TOOLS = ("systemctl", "journalctl", "systemd-cat", "dnf", "aws", "sleep")
TIMEOUT = 60


class Ran(msgspec.Struct, frozen=True):
    """How a command ended."""

    exit_code: int
    output: str
    error: str


def _nothing(*_: Any) -> None:
    """Nobody wants to know."""


class Hooks(msgspec.Struct):
    """Called when something changed on a parent: with an image and its CID, or the forwarder's settings."""

    on_run_enclave: Callable[["ParentInstance", Path, int], None] = _nothing
    on_end_enclave: Callable[["ParentInstance"], None] = _nothing
    on_start_forwarder: Callable[["ParentInstance", str], None] = _nothing
    on_stop_forwarder: Callable[["ParentInstance"], None] = _nothing


class ParentInstance:
    """One machine. `boot` and `shut_down` are what its power switch does, `run` what its SSM agent does."""

    def __init__(
        self, directory: Path, instance_id: str, user_data: str, s3_url: str, hooks: Hooks | None = None
    ) -> None:
        self.instance_id = instance_id
        self.root = directory / "root"
        self.state = directory / "state"
        self._bin = directory / "bin"
        self._user_data = user_data
        self._hooks = hooks or Hooks()
        self._first = True
        self._seen: list[dict[str, Any]] = []
        self._forwards = False
        for own in (*_OWN, "/tmp"):  # noqa: S108 - below the machine's root
            (self.root / own[1:]).mkdir(parents=True)
        (self.state / "hidden").mkdir(parents=True)
        self._bin.mkdir()
        for name in _TOOLS:
            self._tool(self._bin / name, "parent_tools.py")
        self._tool(self.state / "hidden" / "nitro-cli", "nitro_cli.py")  # until dnf installs it
        for version in ("python3.11", "python3.12", "python3.13"):
            (self._bin / version).symlink_to(sys.executable)
        self._environment = {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PARENT_ROOT": str(self.root),
            "PARENT_S3": s3_url,
            "NITRO_FAKE_STATE": str(self.state),
            "NITRO_FAKE_PATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
            "NITRO_FAKE_INSTANCE": instance_id,
        }

    def boot(self) -> Ran:
        """Come up: run the user data the first time, and what is enabled each time."""
        if self._first:
            self._first = False
            return self.run(base64.b64decode(self._user_data).decode())
        return self.run("systemctl boot")

    def shut_down(self) -> None:
        """Go down, in order."""
        self.run("systemctl shutdown")

    def run(self, script: str) -> Ran:
        """Run a script as root would, with the machine's own directories in the place of this one's."""
        path = self.root / "tmp" / "script"
        path.write_text(self.located(script))
        path.chmod(0o755)
        ran = subprocess.run(
            ["sh", "-c", path],  # as the agent does: what needs bash has to say so itself
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        self._tell()
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def located(self, script: str) -> str:
        """Return a script with the machine's directories below its root, and this machine's Python."""
        for own in _OWN:
            script = script.replace(own, f"{self.root}{own}")
        return script.replace("/usr/bin/python3 ", f"{sys.executable} -S ")

    def file(self, path: str) -> Path:
        """Return where a file of the machine is."""
        return self.root / path[1:]

    def fail(self, command: str, code: int) -> None:
        """Let nitro-cli's command end with this code."""
        self._write("faults.json", {command: code})

    def lie(self, **fields: Any) -> None:
        """Let `nitro-cli describe-enclaves` show these fields."""
        self._write("lies.json", fields)

    def end_enclaves(self) -> None:
        """Let every enclave's main process end."""
        self._write("enclaves.json", [])
        self._tell()

    def have(self, **resources: int) -> None:
        """Have so many `cpu_count` and `memory_mib` to set aside."""
        self._write("machine.json", resources)

    def know(self, measured: dict[str, dict[str, str]]) -> None:
        """Know what images (by SHA-256) measure, and so be faster than by measuring them."""
        self._write("measured.json", measured)

    def enclaves(self) -> list[dict[str, Any]]:
        """Return what runs."""
        path = self.state / "enclaves.json"
        return json.loads(path.read_text()) if path.exists() else []

    def _tell(self) -> None:
        now = self.enclaves()
        before, self._seen = self._seen, now
        ids = {one["EnclaveID"] for one in before}
        if ids - {one["EnclaveID"] for one in now}:
            self._hooks.on_end_enclave(self)
        for one in now:
            if one["EnclaveID"] not in ids:
                self._hooks.on_run_enclave(self, Path(one["EifPath"]), one["EnclaveCID"])
        active = self.state / "active.json"
        forwards = active.exists() and "dstack-forwarder.service" in json.loads(active.read_text())
        before_it, self._forwards = self._forwards, forwards
        if forwards and not before_it:
            self._hooks.on_start_forwarder(self, self.file("/etc/dstack/forwarder.toml").read_text())
        if before_it and not forwards:
            self._hooks.on_stop_forwarder(self)

    def _write(self, name: str, value: Any) -> None:
        (self.state / name).write_text(json.dumps(value))

    def _tool(self, path: Path, source: str) -> None:
        # without site packages: they take longer to find than a tool to run
        path.write_text(f"#!{sys.executable} -S\n{(FAKES / source).read_text()}")
        path.chmod(0o755)


class QuickParent(ParentInstance):
    """A machine that runs no script: it answers as one whose scripts did what they should.

    For tests of what happens at AWS; what happens on the machine is a `ParentInstance`'s.
    """

    def __init__(self, directory: Path, instance_id: str, user_data: str, hooks: Hooks | None = None) -> None:
        self.instance_id = instance_id
        self.root, self.state = directory / "root", directory / "state"
        self.state.mkdir(parents=True)
        self._hooks = hooks or Hooks()
        self._seen: list[dict[str, Any]] = []
        self._forwards = False
        self._bringup = "pending"
        pcrs = re.findall(r"\b[0-9a-f]{96}\b", base64.b64decode(user_data).decode())
        self._measures = {f"PCR{number}": value for number, value in enumerate(pcrs)}
        self._count = 0

    def boot(self) -> Ran:
        """Come up with the enclave."""
        self._bringup = "done"
        self._begin()
        return Ran(0, "", "")

    def shut_down(self) -> None:
        """Go down."""
        self.end_enclaves()

    def run(self, script: str) -> Ran:
        """Answer one of the commands that a cloud sends."""
        if "describe-enclaves" in script and "printf" in script:
            return Ran(0, json.dumps(self._status()), "")
        if "terminate-enclave" in script:
            ended = self.enclaves()
            self.end_enclaves()
            answer = {"EnclaveID": ended[0]["EnclaveID"], "Terminated": True} if ended else None
            return Ran(0, json.dumps(answer) if answer else "", "")
        assert "systemctl restart dstack-enclave.service" in script
        self._begin()
        return Ran(0, "", "")

    def _status(self) -> dict[str, Any]:
        path = self.state / "lies.json"
        lies = json.loads(path.read_text()) if path.exists() else {}
        done = self._bringup == "done"
        return {
            "bringup": self._bringup,
            "step": "",
            "enclave_exit": "0" if done else "",
            "forwarder": "active" if done else "unknown",
            "enclaves": [one | lies for one in self.enclaves()],
            "error": "",
        }

    def _begin(self) -> None:
        self._count += 1
        enclave = {
            "EnclaveName": "app",
            "EnclaveID": f"{self.instance_id}-enc{self._count:016x}",
            "EnclaveCID": 16,
            "State": "RUNNING",
            "Flags": "NONE",
            "Measurements": self._measures,
            "EifPath": str(self.root / "app.eif"),
        }
        self._write("enclaves.json", [enclave])

"""The vendors of simulated machines: throw-away roots, made once per directory, and what they publish.

The simulator makes and keeps all of it; this side reads root certificates and an address. A verifier that was
given these anchors reports everything that it believes because of them as simulated.
"""

import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from functions.clouds.local_process import DetachedProcess
from shared.attestation.trust import Signer, TrustAnchors
from shared.errors import CloudError, UnavailableError

_MAKE_SECONDS: Final = 60.0
_PROBE_SECONDS: Final = 1.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONHOME")
_ROOTS: Final[dict[Signer, str]] = {
    "nitro": "nitro/root.pem",
    "tdx": "gcp/intel/root.pem",
    "gcp_tpm": "gcp/google/root.pem",
}


class LocalVendors:
    """AWS for enclaves, Intel and Google for TDX machines, all below `directory`; `python` runs them."""

    def __init__(self, directory: Path, python: str) -> None:
        self._directory = directory
        self._python = python
        self._publisher = DetachedProcess(directory, "vendors")

    @property
    def nitro(self) -> Path:
        """The directory of the roots of enclaves."""
        return self._directory / "nitro"

    @property
    def gcp(self) -> Path:
        """The directory of the roots of TDX machines and their vTPMs."""
        return self._directory / "gcp"

    def anchors(self) -> TrustAnchors:
        """Return the production anchors and the roots that were made so far."""
        anchors = TrustAnchors.production()
        for signer, name in _ROOTS.items():
            path = self._directory / name
            if path.exists():
                anchors = anchors.with_extra(path.read_bytes(), signer=signer)
        return anchors

    def pccs_url(self) -> str:
        """Return where collateral, issuers and lists are published, empty where there are no TDX roots.

        The service is started where it does not run: it must be there whenever evidence is verified. Raises
        `UnavailableError("local.vendors")` until it answers.
        """
        if not self.gcp.exists():
            return ""
        self.publish()
        if not self.is_publishing():
            raise UnavailableError("local.vendors", "the simulated vendors' service does not answer yet")
        return (self.gcp / "google" / "url").read_text()

    def make_nitro(self) -> None:
        """Make the roots of enclaves, unless they are there. Raises `CloudError("local.vendors")`."""
        with self._held():
            if self.nitro.exists():
                return
            unfinished = self._directory / ".nitro"
            shutil.rmtree(unfinished, ignore_errors=True)
            command = [self._python, "-P", "-m", "enclave.simulator", "authority", str(unfinished)]
            try:
                subprocess.run(  # noqa: S603 - our own program
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=True,
                    timeout=_MAKE_SECONDS,
                    env=environment(),
                )
            except subprocess.CalledProcessError as error:
                said = error.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][-200:].rstrip(".")
                reason = said or f"the simulator ended with {error.returncode}"
                raise CloudError("local.vendors", f"cannot make simulated roots: {reason}") from error
            except (OSError, subprocess.SubprocessError) as error:
                reason = f"the simulator did not run: {type(error).__name__}"
                raise CloudError("local.vendors", f"cannot make simulated roots: {reason}") from error
            unfinished.rename(self.nitro)

    def publish(self) -> None:
        """Start the service of the TDX roots, which makes them at its first start."""
        with self._held():
            command = [self._python, "-P", "-m", "enclave.simulator", "pccs", str(self.gcp)]
            self._publisher.start(command, environment=environment())

    def is_publishing(self) -> bool:
        """Tell whether the service answers."""
        if not (self.gcp.exists() and self._publisher.is_running()):
            return False
        port = urlsplit((self.gcp / "google" / "url").read_text()).port
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            return probe.connect_ex(("127.0.0.1", port or 0)) == 0

    def last_words(self) -> str:
        """Return the end of what the service wrote of its failure."""
        return last_lines(self._publisher.console_path)

    def retire(self) -> None:
        """Stop the service; the roots stay, and what is published of them starts again when it is needed."""
        with self._held():
            if not self._publisher.end(seconds=2.0):
                self._publisher.end(seconds=2.0, force=True)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep other processes from making the same at the same time."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._directory / "making.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def environment() -> dict[str, str]:
    """Return the environment of simulator processes: they outlive this one, and get no credential of it.

    They find this program's own packages from any directory.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    packages = str(Path(__file__).resolve().parents[2])
    paths = [packages, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def last_lines(path: Path, count: int = 3, size: int = 4096) -> str:
    """Return the last lines of a text file in one, empty for a file that is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return ""
    return " / ".join([line.strip() for line in lines if line.strip()][-count:])

"""What an enclave daemon stands on: the measured image, the NSM, and the way out to the parent.

Everything that decides (contract, trust anchors, KMS URL, root pin, app id) is read below `image`, whose
bytes the platform measured. Environment, arguments and vsock may not set any of it (DESIGN section 2).
In production `image` is the enclave's own root file system; the simulator passes a directory it measured.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from enclave.devices.nsm import DevNsm, NsmDevice
from enclave.vsock.transport import AfVsock, VsockTransport
from shared.attestation.trust import NitroAnchors
from shared.errors import ConfigError
from shared.net.dialer import ConnectDialer

PARENT_CID = 3
"""The parent instance as an enclave sees it (spec deploy section 5B.5)."""

PROXY_PORT = 3128
"""Where the parent's forwarder accepts CONNECT."""

MAX_IMAGE_FILE = 1 << 20
"""No configuration file, certificate or pin of an image is near 1 MiB."""


@dataclass(frozen=True)
class Platform:
    """One enclave: its measured files, its writable directory, its NSM and its vsock."""

    image: Path
    writable: Path
    nsm: NsmDevice
    vsock: VsockTransport

    @classmethod
    def nitro(cls) -> "Platform":
        """Return the platform of a real Nitro Enclave: its root file system, /dev/nsm and AF_VSOCK."""
        return cls(image=Path("/"), writable=Path("/"), nsm=DevNsm(), vsock=AfVsock())

    def read_measured(self, path: str) -> bytes:
        """Read a file of the measured image by its absolute path inside it.

        Raises `ConfigError`: `image.missing`, `image.oversize`.
        """
        try:
            with (self.image / path.lstrip("/")).open("rb") as file:
                content = file.read(MAX_IMAGE_FILE + 1)
        except OSError as error:
            raise ConfigError("image.missing", f"the measured image has no readable {path}") from error
        if len(content) > MAX_IMAGE_FILE:
            raise ConfigError("image.oversize", f"{path} is larger than {MAX_IMAGE_FILE} bytes")
        return content

    def has_measured(self, path: str) -> bool:
        """Tell whether the measured image has a file of this absolute path."""
        return (self.image / path.lstrip("/")).exists()

    def anchors(self, roots: tuple[str, ...]) -> NitroAnchors:
        """Return the production trust anchors and the image's extra ones, PEM files by path."""
        anchors = NitroAnchors.production()
        for path in roots:
            anchors = anchors.with_extra(self.read_measured(path))
        return anchors

    def writable_path(self, path: str) -> Path:
        """Return where the absolute in-enclave path `path` may be written."""
        return self.writable / path.lstrip("/")

    def dialer(self) -> ConnectDialer:
        """Return the way out: CONNECT through the parent's forwarder, which sees host and port only."""
        return ConnectDialer(partial(self.vsock.connect, PARENT_CID, PROXY_PORT))

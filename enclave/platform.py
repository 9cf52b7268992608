"""What a daemon stands on: the measured files, a writable place, and the guest that it runs in.

Everything that decides (contract, trust anchors, KMS URL, root pin, app id) is read below `image`, whose
bytes the platform measured. Environment, arguments and vsock may not set any of it (DESIGN section 2).
In production `image` is the root file system: an enclave's own, or on Google Cloud a container's, into which
the measured app-compose puts its `configs`. The simulator passes a directory of what it measured.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from enclave.tee.tee import Tee
from shared.attestation.trust import Signer, TrustAnchors
from shared.errors import ConfigError
from shared.net.dialer import Dialer

MAX_IMAGE_FILE = 1 << 20
"""No configuration file, certificate or pin of an image is near 1 MiB."""


@dataclass(frozen=True)
class Platform:
    """One guest: its measured files, its writable directory, and what differs between kinds of guest."""

    image: Path
    writable: Path
    tee: Tee

    @classmethod
    def detect(cls) -> "Platform":
        """Return the platform of the machine that this process runs on.

        Raises `UnavailableError("platform.device")`, `ConfigError("platform.unsupported")`.
        """
        # PLC0415: each kind of guest brings its own devices' modules
        from enclave.devices.detect import TeePlatform, detect_platform  # noqa: PLC0415

        found = detect_platform()
        tee: Tee
        match found:
            case TeePlatform.NITRO_ENCLAVE:
                from enclave.tee.nitro import NitroTee  # noqa: PLC0415

                tee = NitroTee.production()
            case TeePlatform.GCP_TDX:
                from enclave.tee.gcp import GcpTee  # noqa: PLC0415

                tee = GcpTee.production()
            case TeePlatform.TDX:
                from enclave.tee.tdx import TdxTee  # noqa: PLC0415

                tee = TdxTee.production()
            case TeePlatform.NITRO_TPM:
                raise ConfigError(
                    "platform.unsupported",
                    f"this guest is of {found.value}, daemons run on {TeePlatform.NITRO_ENCLAVE.value}, "
                    f"{TeePlatform.GCP_TDX.value} and {TeePlatform.TDX.value}",
                )
        return cls(image=Path("/"), writable=Path("/"), tee=tee)

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

    def anchors(self, roots: Mapping[Signer, Iterable[str]]) -> TrustAnchors:
        """Return the production anchors and the image's extra ones, PEM files by who signs under them."""
        anchors = TrustAnchors.production()
        for signer, paths in roots.items():
            for path in paths:
                anchors = anchors.with_extra(self.read_measured(path), signer=signer)
        return anchors

    def writable_path(self, path: str) -> Path:
        """Return where the absolute in-guest path `path` may be written."""
        return self.writable / path.lstrip("/")

    def dialer(self) -> Dialer:
        """Return the way out of the guest."""
        return self.tee.dialer()

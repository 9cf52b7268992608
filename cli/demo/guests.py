"""The demo's guests, whatever they are made of: a KMS, an app, and the app once more."""

from pathlib import Path
from typing import Protocol

import msgspec

from cli.demo.images import AppImage, KmsImage, Roots
from cli.demo.processes import Process
from functions.deploy.evidence import Verifier

AGENT_SOCKET = "var/run/dstack/dstack.sock"
"""Where the agent answers, below the guest's own root."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A workload before it runs, and what it will measure, 32 bytes each.

    `image` is the enclave image file, or the OS image's directory, and `builder` who built it, empty for the
    latter. `mr_aggregated` is empty where nobody can know it yet. On Nitro all three are the image's hash.
    `app_compose` is a Google Cloud guest's.
    """

    image: Path
    os_image_hash: bytes
    compose_hash: bytes
    mr_aggregated: bytes = b""
    app_compose: Path | None = None
    builder: str = ""


class Guests(Protocol):
    """One kind of guest. Making one makes its throw-away hardware.

    `device_id` is what a contract knows the machine by, `roots` what images need to believe it, and
    `verifier` is the deployer's.
    """

    device_id: bytes
    roots: Roots
    verifier: Verifier
    kms: Process

    def build_kms(self, image: KmsImage) -> Measured:
        """Make the KMS's image and measure it."""
        ...

    def build_app(self, image: AppImage) -> Measured:
        """Make the app's image and measure it."""
        ...

    def start_kms(self, measured: Measured, reachable: tuple[str, ...]) -> tuple[str, int]:
        """Start the KMS, which will want to reach some URLs; returns (host, port) of its listener."""
        ...

    def start_app(self, measured: Measured, kms: tuple[str, int]) -> Process:
        """Start the app."""
        ...

    def evidence_url(self) -> str:
        """Return the URL of the app's evidence responder, once it answers."""
        ...

    def app_socket(self) -> Path:
        """Return the path of the socket where the app's agent answers the app."""
        ...

    def start_app_again(self, measured: Measured) -> Process:
        """Start a second guest of the same app beside the first."""
        ...

    def describe(self) -> str:
        """Return a clause about the hardware."""
        ...

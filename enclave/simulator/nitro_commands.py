"""The Nitro half of `python -m enclave.simulator`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.image import measure_image
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.attestation.image import os_image_hash_of

Daemon = Callable[[list[str] | None, Platform | None], int]


def create_authority(directory: Path) -> None:
    """Make and save an authority."""
    SimulatedAuthority.create().save(directory)


def print_measurement(image: Path) -> None:
    """Print an image's registers and its hash as one JSON object."""
    pcrs = measure_image(image)
    report = {f"PCR{index}": value.hex() for index, value in sorted(pcrs.items())}
    print(json.dumps({**report, "os_image_hash": os_image_hash_of(pcrs).hex()}))  # noqa: T201 - a command


def run(arguments: argparse.Namespace, daemon: Daemon) -> int:
    """Run a daemon as an enclave."""
    nsm = SimulatedNsm(measure_image(arguments.image), SimulatedAuthority.load(arguments.authority))
    tee = NitroTee(nsm, UnixStandIn(arguments.vsock, cid=arguments.cid))
    platform = Platform(image=arguments.image, writable=arguments.writable, tee=tee)
    return daemon(arguments.arguments, platform)

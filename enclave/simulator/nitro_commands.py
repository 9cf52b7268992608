"""The Nitro half of `python -m enclave.simulator`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.enclave_image import read_registers, unpack_root
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.attestation.image import os_image_hash_of
from shared.errors import ConfigError, StorageError

_MEASURED = ".measured"

Daemon = Callable[[list[str] | None, Platform | None], int]


def create_authority(directory: Path) -> None:
    """Make and save an authority."""
    SimulatedAuthority.create().save(directory)


def print_measurement(eif: Path) -> None:
    """Print an image's registers and its hash as one JSON object."""
    with _opened(eif) as image:
        pcrs = read_registers(image)
    report = {f"PCR{index}": value.hex() for index, value in sorted(pcrs.items())}
    print(json.dumps({**report, "os_image_hash": os_image_hash_of(pcrs).hex()}))  # noqa: T201 - a command


def run(arguments: argparse.Namespace, daemon: Daemon) -> int:
    """Run a daemon as an enclave of an image, whose root file system is unpacked beside its own files."""
    root = arguments.writable / _MEASURED
    with _opened(arguments.eif) as image:
        nsm = SimulatedNsm(read_registers(image), SimulatedAuthority.load(arguments.authority))
        try:
            unpack_root(image, root)
        except OSError as error:
            raise StorageError(
                "simulator.image.write", f"cannot unpack {arguments.eif} into {root}: {error.strerror}"
            ) from error
    tee = NitroTee(nsm, UnixStandIn(arguments.vsock, cid=arguments.cid))
    return daemon(arguments.arguments, Platform(image=root, writable=arguments.writable, tee=tee))


def _opened(eif: Path) -> BinaryIO:
    try:
        return eif.open("rb")
    except OSError as error:
        raise ConfigError("simulator.image.missing", f"cannot read {eif}: {error.strerror}") from error

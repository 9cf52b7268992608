"""The Google Cloud half of `python -m enclave.simulator`."""

import argparse
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from enclave.log import log_event
from enclave.platform import Platform
from enclave.simulator.booted_guest import GuestFiles, boot_events
from enclave.simulator.compose import read_compose
from enclave.simulator.config_disk import GuestConfig
from enclave.simulator.console import serial_console, silent
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.gcp_guest import boot_guest, running_guest
from enclave.simulator.pccs import CollateralServer
from shared.attestation.event_log import replay
from shared.attestation.gcp import FIRMWARE_PCR, IMAGE_PCR
from shared.compose.app_compose import compose_hash
from shared.errors import ConfigError, StorageError
from shared.hex import decode_hex

Daemon = Callable[[list[str] | None, Platform | None], int]


def create_authority(directory: Path, url: str) -> dict[str, str]:
    """Make and save an authority; returns what an operator tells a contract of its machine."""
    if not urlsplit(url).port:
        raise ConfigError("simulator.url", f"got url {url!r}, expected http://127.0.0.1:PORT, for `pccs`")
    authority = GcpAuthority.create(url)
    authority.save(directory)
    return {"device_id": authority.device_id.hex()}


def measure(image: Path, app_compose: Path | None, app_id: bytes) -> dict[str, str]:
    """Return what an image and an app-compose will measure, before they run.

    `mr_aggregated` is that of a guest with keys from its TPM and no instance id, such as a KMS: it is known
    beforehand for no other one.
    """
    boot = GcpBoot.of(image)
    pcrs = {index: boot.pcr(index) for index in (FIRMWARE_PCR, IMAGE_PCR)}
    report = {f"PCR{index}": value.hex() for index, value in pcrs.items()}
    report["os_image_hash"] = boot.os_image_hash.hex()
    if app_compose is None:
        return report
    raw = app_compose.read_bytes()
    compose, digest = read_compose(raw), compose_hash(raw)
    report["compose_hash"] = digest.hex()
    if compose.no_instance_id and compose.key_provider == "tpm":
        events = boot_events(compose, app_id=app_id, compose_hash=digest, instance_id=b"")
        runtime = replay(events, "sha256")
        aggregated = hashlib.sha256(pcrs[FIRMWARE_PCR] + pcrs[IMAGE_PCR] + runtime).digest()
        report["mr_aggregated"] = aggregated.hex()
    return report


def open_publisher(directory: Path) -> tuple[GcpAuthority, CollateralServer]:
    """Return an authority and the server of what it publishes, bound to the address in its certificates.

    Where `directory` holds none it is made, for the port that was free.
    """

    def now() -> int:
        return int(time.time())

    # a request finds the authority: nothing is served before this function returns
    present = GcpAuthority.load(directory) if directory.exists() else None
    port = 0 if present is None else urlsplit(present.google.base_url).port or 0
    server = CollateralServer(lambda fmspc, ca: authority.collateral(fmspc, ca, now()), port=port)
    authority = present or GcpAuthority.create(server.url)
    if present is None:
        _save_whole(authority, directory)
    server.files.update(authority.files(now))
    return authority, server


def serve_collateral(directory: Path) -> int:
    """Publish, fresh at each request, until stopped."""
    authority, server = open_publisher(directory)
    log_event("ready", url=server.url, device_id=authority.device_id.hex())
    server.serve_forever()
    return 0


def run(arguments: argparse.Namespace, daemon: Daemon) -> int:
    """Boot a guest and run a daemon in it."""
    if arguments.config_disk is not None:
        return _run_from_disks(arguments, daemon)
    if arguments.image is None:
        raise ConfigError("simulator.arguments", "a gcp guest needs --image or --config-disk")
    if arguments.app_compose is None or arguments.app_id is None:
        raise ConfigError("simulator.arguments", "a gcp guest needs --app-compose and --app-id")
    files = GuestFiles(arguments.image, arguments.app_compose, arguments.writable)
    app_id = decode_hex(arguments.app_id, what="--app-id", length=20)
    authority = GcpAuthority.load(arguments.authority)
    with running_guest(files, authority, app_id, tpm=arguments.tpm) as platform:
        return daemon(arguments.arguments, platform)


def _run_from_disks(arguments: argparse.Namespace, daemon: Daemon) -> int:
    """Boot from what a deployment made: the config disk, and the boot disk where there is one."""
    config = GuestConfig.read(arguments.config_disk)
    boot = _boot_of_disks(arguments.boot_disk, arguments.image, config)
    authority = GcpAuthority.load(arguments.authority)
    console = serial_console if arguments.daemon == "responder" else silent
    with boot_guest(
        boot,
        config,
        authority,
        arguments.writable,
        tpm=arguments.tpm,
        address=arguments.address,
        console=console,
    ) as platform:
        return daemon(arguments.arguments, platform)


def _boot_of_disks(disk: Path | None, image: Path | None, config: GuestConfig) -> GcpBoot:
    if disk is not None:
        try:
            with disk.open("rb") as file:
                return GcpBoot.of_disk(file, config.measurement())
        except OSError as error:
            raise ConfigError("simulator.image.missing", f"cannot read {disk}: {error.strerror}") from error
    return GcpBoot.of_document(config.measurement()) if image is None else GcpBoot.of(image)


def _save_whole(authority: GcpAuthority, directory: Path) -> None:
    """Save so that a directory of this name is complete, whenever this process is killed."""
    unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    authority.save(unfinished)
    try:
        unfinished.rename(directory)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise StorageError(
            "simulator.authority.exists", f"cannot make {directory}: {error.strerror}"
        ) from error


def print_report(report: dict[str, str]) -> None:
    """Print one JSON object."""
    print(msgspec.json.encode(report).decode())  # noqa: T201 - a command

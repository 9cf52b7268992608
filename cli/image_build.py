"""What `dstack-cloud image build` does and prints."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from cli.places import cache_path
from functions.builder.blobs import BootBlobs, load_blob
from functions.builder.cache import BuildCache
from functions.builder.nitro_image import DEFAULT_CMDLINES, ArgvMode, BuiltImage, build_nitro_image
from functions.builder.sources import open_source
from shared.errors import ConfigError
from shared.measurement.eif_registers import STOCK_PCR1
from shared.measurement.image_reference import ImageReference
from shared.measurement.oci import Arch
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.registry import Credentials, RegistryClient


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The command's arguments, as they were given. `cache` None is the user's own directory."""

    source: str
    kernel: str
    init: str
    nsm_ko: str
    cmdline: str | None
    output: Path
    arch: Arch
    argv_mode: ArgvMode
    epoch: int
    name: str
    cache: Path | None
    user: str | None
    password: str | None
    plain_loopback: bool


def run_build(request: BuildRequest) -> BuiltImage:
    """Build what was asked for; raises what `build_nitro_image`, `open_source` and `load_blob` raise."""
    cache = BuildCache(cache_path(os.environ) if request.cache is None else request.cache)
    http = HttpClient(DirectDialer())
    blobs = BootBlobs(
        kernel=load_blob(request.kernel, cache, http),
        init=load_blob(request.init, cache, http),
        nsm_ko=load_blob(request.nsm_ko, cache, http),
        cmdline=_cmdline(request),
    )
    return build_nitro_image(
        open_source(request.source, _connector(request)),
        blobs,
        cache=cache,
        output=request.output,
        arch=request.arch,
        argv_mode=request.argv_mode,
        epoch=request.epoch,
        name=request.name,
    )


def as_object(image: BuiltImage) -> dict[str, Any]:
    """Return what `--json` prints: hashes as hex, the governance's one with 0x."""
    measurement = image.measurement
    return {
        "path": str(image.path),
        "os_image_hash": f"0x{measurement.os_image_hash.hex()}",
        "pcr0": measurement.pcr0.hex(),
        "pcr1": measurement.pcr1.hex(),
        "pcr2": measurement.pcr2.hex(),
        "stock_bootstrap": measurement.pcr1 in STOCK_PCR1,
        "cached": image.is_cached,
        "inputs": msgspec.to_builtins(image.inputs),
        "argv": list(image.built.argv),
        "env": list(image.built.env),
        "entries": image.built.entries,
        "warnings": list(image.built.warnings),
    }


def lines(image: BuiltImage) -> Iterator[str]:
    """Yield what a person reads. Texts of the image are shown escaped: a terminal obeys some of them."""
    measurement, inputs = image.measurement, image.inputs
    yield f"{'cached' if image.is_cached else 'built':<14} {image.path}"
    yield f"OS_IMAGE_HASH  0x{measurement.os_image_hash.hex()}"
    for number, register in enumerate((measurement.pcr0, measurement.pcr1, measurement.pcr2)):
        yield f"PCR{number}           {register.hex()}"
    if measurement.pcr1 not in STOCK_PCR1:
        yield "               PCR1 is not one of the kernels and bootstraps that nitro-cli shipped"
    yield f"image          {inputs.image}"
    yield f"kernel         {inputs.kernel}"
    yield f"init           {inputs.init}"
    yield f"nsm.ko         {inputs.nsm_ko}"
    yield f"builder        {inputs.builder}, argv as in {inputs.argv_mode}"
    yield f"argv           {' '.join(ascii(one)[1:-1] for one in image.built.argv)}"
    for warning in image.built.warnings:
        yield f"warning: {warning}"


def _cmdline(request: BuildRequest) -> bytes:
    if request.cmdline is None:
        return DEFAULT_CMDLINES[request.arch]
    try:
        return request.cmdline.encode("ascii")
    except UnicodeEncodeError as error:
        raise ConfigError("image.cmdline", "the kernel's command line is not ascii") from error


def _connector(request: BuildRequest) -> Callable[[ImageReference], RegistryClient]:
    credentials = None
    if request.user is not None:
        if request.password is None:
            raise ConfigError(
                "image.credentials", "a registry user is given, expected its password in the environment too"
            )
        credentials = Credentials(request.user, request.password)
    return lambda reference: RegistryClient(
        reference, credentials=credentials, plain_loopback=request.plain_loopback
    )

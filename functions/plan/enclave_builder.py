"""The builder of enclave images as a plan uses it: cached, and with the image itself left in the cache."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from functions.builder.blobs import BootBlobs, load_blob
from functions.builder.cache import BuildCache
from functions.builder.nitro_image import (
    DEFAULT_CMDLINES,
    ArgvMode,
    Built,
    build_nitro_image,
    measure_nitro_image,
)
from functions.builder.sources import ImageSource, open_source
from functions.plan.assembly import ImageFacts
from functions.plan.project_files import located
from shared.compose.project import NitroConfig
from shared.errors import ConfigError
from shared.measurement.image_reference import ImageReference
from shared.measurement.oci import Arch
from shared.net.dialer import Dialer, DirectDialer
from shared.net.fetch import HttpClient
from shared.net.registry import RegistryClient

_BLOBS: Final = ("kernel", "init", "nsm_ko")


class CachedBuilder:
    """Builds into the cache below `directory`, which is made when it is first needed.

    `connect` opens a registry for a reference; the default is https without credentials. `dialer` opens the
    connections that boot files are downloaded over. With `output` the image is left there too.
    """

    def __init__(
        self,
        directory: Path,
        connect: Callable[[ImageReference], RegistryClient] = RegistryClient,
        *,
        dialer: Dialer | None = None,
        output: Path | None = None,
    ) -> None:
        self._directory = directory
        self._connect = connect
        self._dialer = dialer or DirectDialer()
        self._output = output

    def __call__(self, image: str, settings: NitroConfig, directory: Path) -> ImageFacts:
        """See `EnclaveBuilder`. Raises `ConfigError("plan.nitro.blob")` where a boot file is not named."""
        cache = BuildCache(self._directory)
        http = HttpClient(self._dialer)
        arch: Arch = settings.arch or "x86_64"
        argv_mode: ArgvMode = settings.argv or "oci"
        kernel, init, nsm_ko = (
            load_blob(_place(name, getattr(settings, name), directory), cache, http) for name in _BLOBS
        )
        cmdline = _ascii(settings.cmdline) if settings.cmdline else DEFAULT_CMDLINES[arch]
        make = measure_nitro_image if self._output is None else partial(self._build, self._output)
        built = make(
            open_source(image, self._connect),
            BootBlobs(kernel=kernel, init=init, nsm_ko=nsm_ko, cmdline=cmdline),
            cache=cache,
            arch=arch,
            argv_mode=argv_mode,
            epoch=settings.epoch or 0,
        )
        measured, inputs = built.measurement, built.inputs
        return ImageFacts(
            os_image_hash=measured.os_image_hash,
            source=inputs.image,
            registers={"PCR0": measured.pcr0, "PCR1": measured.pcr1, "PCR2": measured.pcr2},
            inputs={
                "kernel": inputs.kernel,
                "init": inputs.init,
                "nsm_ko": inputs.nsm_ko,
                "argv": inputs.argv_mode,
                "builder": inputs.builder,
            },
            warnings=built.warnings,
            enclave_toml=built.enclave_toml,
        )

    @staticmethod
    def _build(output: Path, source: ImageSource, blobs: BootBlobs, **inputs: Any) -> Built:  # noqa: ANN401
        return build_nitro_image(source, blobs, output=output, **inputs).built


def _place(name: str, place: str, directory: Path) -> str:
    """Return where a boot file is: a URL as it is, a path below the project, digests kept."""
    if not place:
        raise ConfigError(
            "plan.nitro.blob",
            f"nitro_config.{name} is not set: an enclave image needs kernel, init and nsm_ko",
        )
    return place if "://" in place else str(located(directory, place))


def _ascii(cmdline: str) -> bytes:
    try:
        return cmdline.encode("ascii")
    except UnicodeEncodeError as error:
        raise ConfigError("plan.nitro.cmdline", "nitro_config.cmdline is not ascii") from error

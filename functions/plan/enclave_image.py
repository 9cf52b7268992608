"""Which image becomes the enclave, and what builds and measures it (measurement spec 3, deploy spec 5B.2)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from functions.plan.assembly import ImageFacts
from functions.plan.docker_build import docker_image
from functions.plan.project_files import ProjectFiles, located
from shared.compose.enclave_network import read_egress, read_ports, url_egress
from shared.compose.enclave_service import enclave_service
from shared.compose.findings import Finding, Severity, has_errors, warning
from shared.compose.project import NitroConfig
from shared.compose.services import is_pinned, read_compose_file, variables
from shared.errors import ConfigError, PolicyDenied, ProtocolError


class EnclaveBuilder(Protocol):
    """Builds an enclave image, or takes it from its cache, and measures it."""

    def __call__(self, image: str, settings: NitroConfig, directory: Path) -> ImageFacts:
        """Return the registers PCR0, PCR1 and PCR2 of `image`, and its os_image_hash.

        `image` is a pinned reference, or the absolute path of an OCI layout or a tar. `settings` names
        kernel, init and nsm.ko; relative paths are below `directory`.
        """
        ...


def measure_enclave(
    files: ProjectFiles, settings: NitroConfig, build: EnclaveBuilder
) -> tuple[ImageFacts, tuple[Finding, ...]]:
    """Return the measured image of the project's one service, and the findings about that service.

    Raises `PolicyDenied` with the code of the finding where there is no image that could be measured:
    `lint.nitro.services` (not exactly one service), `lint.image.*`, `lint.nitro.key`; `ConfigError`:
    `plan.nitro.docker`, `plan.nitro.image`; `UnavailableError("plan.nitro.build")`; and what the builder
    raises.
    """
    try:
        file = read_compose_file(files.docker_compose or "")
    except ProtocolError as error:
        raise PolicyDenied(f"lint.{error.code}", error.message) from error
    service, findings = enclave_service(file, image_given=bool(settings.image))
    if service is None or has_errors(findings):
        first = next(found for found in findings if found.severity is Severity.ERROR)
        raise PolicyDenied(first.code, f"{first.where} {first.message}")
    if settings.image:
        return build(_located(settings.image, files.directory), settings, files.directory), findings
    if service.image is not None and not service.has_build:
        return build(service.image, settings, files.directory), findings
    if service.image is not None and variables(service.image):
        raise PolicyDenied(
            "lint.image.variable", f"services.{service.name[:40]} names its build by a variable"
        )
    compose_file = files.directory / (files.project.docker_compose_file or "")
    with docker_image(compose_file, service.name, service.image) as tar:
        facts = build(str(tar), settings, files.directory)
    unstable = warning(
        "lint.nitro.dockerfile",
        f"services.{service.name[:40]}",
        "was built by docker: another build may make another hash, so push it and name its digest",
    )
    return facts, (*findings, unstable)


def enclave_network(files: ProjectFiles, settings: NitroConfig, kms_urls: Sequence[str]) -> NitroConfig:
    """Return the settings with the ports that the service publishes, and the KMS among what it may reach.

    Raises `ConfigError`: `nitro.ports.*`, `nitro.egress.*`.
    """
    ports = tuple(settings.ports or ())
    if not ports:
        services = read_compose_file(files.docker_compose or "").services
        ports = services[0].ports if len(services) == 1 else ()
    egress = (*(settings.egress or ()), *(url_egress(url) for url in kms_urls))
    return msgspec.structs.replace(
        settings,
        ports=tuple(str(port) for port in read_ports(ports)),
        egress=tuple(str(target) for target in read_egress(egress)),
    )


def _located(image: str, directory: Path) -> str:
    """Return a reference as it is, and a path made absolute: with a digest behind it where one was given."""
    place, at, digest = image.rpartition("@")
    path = located(directory, place if at else image)
    if path.exists():
        return f"{path.resolve()}@{digest}" if at else str(path.resolve())
    if is_pinned(image):
        return image
    raise ConfigError(
        "plan.nitro.image", f"{image[:120]!a} is no file here, and no reference like NAME@sha256:DIGEST"
    )

"""The one service of a compose file that becomes a Nitro enclave (DESIGN section 6, deploy spec 5B).

An enclave runs one image as it is: no second container, no mounts, and no settings beside the image, because
what is not in the image is not measured.
"""

from collections.abc import Iterator
from typing import Final

from shared.compose.enclave_network import read_ports
from shared.compose.findings import Finding, error, note
from shared.compose.lint import lint_image
from shared.compose.services import ComposeFile, Service
from shared.errors import ConfigError

# Of no meaning to what runs: the enclave ends when its process ends, and names are not measured.
_IGNORED: Final = frozenset({"container_name", "image", "labels", "platform", "pull_policy", "restart"})
# Served by the parent's forwarder, outside of what is measured.
_FORWARDED: Final = frozenset({"expose"})
_IN_IMAGE: Final = frozenset({"command", "entrypoint", "env_file", "environment", "user", "working_dir"})


def enclave_service(file: ComposeFile, *, image_given: bool) -> tuple[Service | None, tuple[Finding, ...]]:
    """Return the service that becomes the enclave, None where there is not exactly one, and the findings.

    `image_given` says that the project names the enclave's image itself, so that the service need not.
    """
    if len(file.services) != 1:
        names = ", ".join(service.name[:40] for service in file.services[:8])
        return None, (
            error(
                "lint.nitro.services",
                "docker_compose_file",
                f"has {len(file.services)} services ({names}): an enclave runs one image, so give each "
                "service its own project, or build one image that starts them all",
            ),
        )
    service = file.services[0]
    found = list(_findings(service, image_given=image_given))
    if file.has_include:
        found.append(error("lint.include", "docker_compose_file", "includes other files: write them out"))
    return service, tuple(found)


def _findings(service: Service, *, image_given: bool) -> Iterator[Finding]:
    where = f"services.{service.name[:40]}"
    # a Dockerfile is built before anything is measured, so what the build is called pins nothing
    if not image_given and not service.has_build:
        yield from lint_image(service)
    for key in service.keys:
        if key in _IN_IMAGE:
            yield error(
                "lint.nitro.key", f"{where}.{key}", "is not a part of the image: write it into the Dockerfile"
            )
        elif key == "ports":
            yield _ports(service)
        elif key in _FORWARDED:
            yield note("lint.nitro.ports", f"{where}.{key}", "is served by the forwarder on the parent")
        elif key not in _IGNORED and key != "build" and not key.startswith("x-"):
            yield error("lint.nitro.key", f"{where}.{key[:40]}", "means nothing inside an enclave: remove it")


def _ports(service: Service) -> Finding:
    where = f"services.{service.name[:40]}.ports"
    try:
        read_ports(service.ports)
    except ConfigError as problem:
        return error(f"lint.{problem.code}", where, problem.message)
    return note("lint.nitro.ports", where, "is served by the forwarder on the parent")

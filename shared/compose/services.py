"""The services of a docker-compose file, as far as they decide what runs (SECURITY N-73).

Only names, images, environments and references to files are read; all else is the container engine's.
"""

import re
from typing import Any, Final

import msgspec

from shared.compose.yaml_document import Yaml, read_yaml
from shared.errors import ProtocolError

MAX_SERVICES: Final = 256  # an app has a handful

_DIGEST: Final = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
# $NAME, ${NAME}, ${NAME:-default} and the like; $$ is a literal dollar sign.
_VARIABLE: Final = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)[^}]*\}|([A-Za-z_][A-Za-z0-9_]*))")
_DEFAULT: Final = re.compile(r"(?<!\$)\$\{[A-Za-z_][A-Za-z0-9_]*:?-([^}]+)\}")


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service. An environment value is None where the name alone is given; `keys` are sorted.

    `ports` are in the short form, `PUBLISHED:TARGET`; what has none stands as it was written.
    """

    name: str
    image: str | None
    has_build: bool
    environment: tuple[tuple[str, str | None], ...]
    has_env_file: bool
    has_extends: bool
    keys: tuple[str, ...]
    ports: tuple[str, ...] = ()


class ComposeFile(msgspec.Struct, frozen=True):
    """A compose file: its services in order, and whether it includes other files."""

    services: tuple[Service, ...]
    has_include: bool
    top_keys: tuple[str, ...]


def read_compose_file(text: str) -> ComposeFile:
    """Read the text of `docker_compose_file`.

    Raises `ProtocolError`: `services.missing` (no services), `services.count`, `services.type` (a part has
    another shape than compose files have), and what `read_yaml` raises.
    """
    document = read_yaml(text)
    if not isinstance(document, dict) or not document.get("services"):
        raise ProtocolError("services.missing", "the compose file has no services")
    services = _mapping(document["services"], "services")
    if len(services) > MAX_SERVICES:
        raise ProtocolError(
            "services.count",
            f"the compose file has {len(services)} services, at most {MAX_SERVICES} allowed",
        )
    return ComposeFile(
        tuple(_service(name, value) for name, value in services.items()),
        "include" in document,
        tuple(sorted(document)),
    )


def is_pinned(image: str) -> bool:
    """Whether an image reference ends in a sha256 digest, so that it names one image for ever."""
    return _DIGEST.fullmatch(image) is not None


def variables(text: str) -> tuple[str, ...]:
    """Return the names that Compose would replace in `text`, sorted, each once."""
    return tuple(sorted({found[1] or found[2] for found in _VARIABLE.finditer(text) if found[0] != "$$"}))


def plain_texts(text: str) -> tuple[str, ...]:
    """Return what of a value everybody can read: all of it, or with variables the defaults that stand in.

    The default of `${NAME:-default}` is as plain as a value; other forms have none.
    """
    if not variables(text):
        return (text,)
    return tuple(found[1] for found in _DEFAULT.finditer(text) if not found[1].startswith("$"))


def _service(name: str, value: Yaml) -> Service:
    fields = _mapping(value, f"service {name[:40]!a}")
    image = fields.get("image")
    if image is not None and not isinstance(image, str):
        raise ProtocolError("services.type", f"the image of service {name[:40]!a} is not text")
    return Service(
        name=name,
        image=image,
        has_build=fields.get("build") is not None,
        environment=_environment(name, fields.get("environment")),
        has_env_file=fields.get("env_file") is not None,
        has_extends=fields.get("extends") is not None,
        keys=tuple(sorted(fields)),
        ports=_ports(name, fields.get("ports")),
    )


def _environment(name: str, value: Any) -> tuple[tuple[str, str | None], ...]:  # noqa: ANN401 - parsed YAML
    match value:
        case None:
            return ()
        case dict() if all(item is None or isinstance(item, str) for item in value.values()):
            return tuple(value.items())
        case list() if all(isinstance(item, str) for item in value):
            return tuple(_assignment(item) for item in value)
        case _:
            raise ProtocolError(
                "services.type", f"the environment of service {name[:40]!a} is no map and no list of text"
            )


def _ports(name: str, value: Any) -> tuple[str, ...]:  # noqa: ANN401 - parsed YAML
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str | dict) for item in value):
        raise ProtocolError("services.type", f"the ports of service {name[:40]!a} are no list")
    return tuple(item if isinstance(item, str) else _short_port(item) for item in value)


def _short_port(port: dict[str, Any]) -> str:
    protocol = port.get("protocol", "tcp")
    short = f"{port.get('published', port.get('target'))}:{port.get('target')}"
    return short if protocol == "tcp" else f"{short}/{protocol}"


def _assignment(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    return key, value if equals else None


def _mapping(value: Any, what: str) -> dict[str, Any]:  # noqa: ANN401 - parsed YAML
    if not isinstance(value, dict):
        raise ProtocolError("services.type", f"{what} is not a mapping")
    return value

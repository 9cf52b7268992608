"""Login to the registry that the measured `docker_config` names, with a token from the app's environment.

Upstream's guest leaves this to a `docker login` in a script, whose line every process of the guest can read.
Here the token goes through standard input, and what the program keeps of it is in memory.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from enclave.compose.programs import Programs
from shared.compose.model import DockerConfig
from shared.errors import ConfigError, StorageError, UnavailableError

CREDENTIALS: Final = Path("/run/dstack/docker")
"""`DOCKER_CONFIG`: a tmpfs, for root alone."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,255}")


def wants_login(config: DockerConfig | None) -> bool:
    """Tell whether the document names a token; without one images are pulled by anybody."""
    return config is not None and bool(config.token_key)


def login(
    programs: Programs,
    client: str,
    config: DockerConfig,
    secrets: Mapping[str, str],
    *,
    environment: Mapping[str, str],
    credentials: Path = CREDENTIALS,
) -> None:
    """Log in with `client`. `environment` is the program's own, and holds none of `secrets`.

    Raises `ConfigError("compose.login.config")` for a document that does not say who logs in where, or names
    a variable that the environment lacks; `UnavailableError("compose.login")`, `StorageError`.
    """
    token = secrets.get(config.token_key or "", "")
    if not token:
        raise ConfigError(
            "compose.login.config", "docker_config.token_key names a variable that the environment lacks"
        )
    for name, value in (("username", config.username), ("registry", config.registry)):
        # a name that begins with a dash would be an option
        if (value or name == "username") and not _NAME.fullmatch(value or ""):
            raise ConfigError("compose.login.config", f"docker_config.{name} is no name that can log in")
    try:
        credentials.mkdir(mode=0o700, parents=True, exist_ok=True)
        credentials.chmod(0o700)
    except OSError as error:
        raise StorageError("compose.login.keep", f"cannot make {credentials}: {error.strerror}") from error
    registry = (config.registry,) if config.registry else ()
    command = (client, "login", "--username", config.username or "", "--password-stdin", *registry)
    if code := programs.run(command, environment=environment, stdin=token.encode()):
        raise UnavailableError("compose.login", f"{client} login ended with exit code {code}")

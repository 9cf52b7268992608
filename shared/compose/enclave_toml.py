"""What `/etc/dstack/enclave.toml` of an enclave's image says to whoever deploys it.

The enclave reads the whole file, strictly (`enclave.dstack_util.enclave_config`). Outside of it only what the
environment and the progress depend on counts, and what it does not know it leaves alone.
"""

import tomllib
from typing import Annotated, Final

import msgspec

from shared.errors import ConfigError
from shared.keys.epoch import MAX_EPOCH

ENCLAVE_TOML: Final = "etc/dstack/enclave.toml"
"""Its path below the image's root."""

MAX_ENCLAVE_TOML: Final = 64 * 1024  # a real one has about 1 KiB
ENV_PORT: Final = 9100
"""The parent's vsock port that offers the encrypted environment."""

PROGRESS_PORT: Final = 9101
"""The parent's vsock port that offers the URL to which progress is told."""


class EnclaveBoot(msgspec.Struct, frozen=True, kw_only=True):
    """`[boot]`, as far as a deployer needs it; `env_signer` in hex."""

    command: tuple[str, ...] = ()
    allowed_envs: tuple[str, ...] = ()
    env_signer: str = ""
    env_port: int = ENV_PORT
    progress_url: str = ""


class EnclaveToml(msgspec.Struct, frozen=True, kw_only=True):
    """The file, as far as a deployer needs it; `app_id` in hex, with or without `0x`."""

    app_id: str = ""
    key_epoch: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)] = 0
    boot: EnclaveBoot = EnclaveBoot()

    @property
    def is_booted(self) -> bool:
        """Whether our init starts the app: without a command the image boots in a way of its own."""
        return bool(self.boot.command)


def read_enclave_toml(text: str) -> EnclaveToml:
    """Read the file. Raises `ConfigError("plan.enclave_toml")` for what no enclave would boot with."""
    try:
        return msgspec.convert(tomllib.loads(text), EnclaveToml)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        detail = str(error)[:200].encode("ascii", "replace").decode()
        raise ConfigError("plan.enclave_toml", f"the image's /{ENCLAVE_TOML}: {detail}") from error

"""`/etc/dstack/setup.toml` of the OS image: whom a booting guest believes. It need not be there.

[kms]
k256_pubkey = "0x02..."                     # optional: who must have signed the app's k256 key
[trust]                                     # as in enclave.toml

The KMS's root CA is not here: one OS image boots many apps, so each app-compose pins its own in
`key_provider_id`. Without the file the vendors' own roots are believed, and collateral comes from public
services.
"""

import tomllib

import msgspec

from enclave.dstack_util.enclave_config import CONFIG_PATH, Trust, load_enclave_config
from enclave.platform import Platform
from shared.errors import ConfigError
from shared.hex import decode_hex_setting

SETUP_CONFIG_PATH = "/etc/dstack/setup.toml"


class SetupKms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kms]`."""

    k256_pubkey: str = ""

    def pinned_k256(self) -> bytes | None:
        """Return the pinned k256 root key (compressed, 33 bytes), or None."""
        if not self.k256_pubkey:
            return None
        return decode_hex_setting(
            self.k256_pubkey, what="kms.k256_pubkey", length=33, code="image.k256_pubkey"
        )


class SetupConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    kms: SetupKms = SetupKms()
    trust: Trust = Trust()


def load_trust(platform: Platform) -> Trust:
    """Return whom the image of a guest believes: what setup.toml says, else an enclave's enclave.toml.

    Raises as reading either does.
    """
    if not platform.has_measured(SETUP_CONFIG_PATH) and platform.has_measured(CONFIG_PATH):
        return load_enclave_config(platform).trust
    return load_setup_config(platform).trust


def load_setup_config(platform: Platform) -> SetupConfig:
    """Read the file from the measured image. Raises `ConfigError`: `image.config`, `image.oversize`."""
    if not platform.has_measured(SETUP_CONFIG_PATH):
        return SetupConfig()
    text = platform.read_measured(SETUP_CONFIG_PATH)
    try:
        return msgspec.convert(tomllib.loads(text.decode()), SetupConfig)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError("image.config", f"{SETUP_CONFIG_PATH}: {error}") from error

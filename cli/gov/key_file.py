"""The file with the key that pays and signs. Nothing of what it holds is ever shown."""

import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from cli.gov.transaction import address_of
from shared.errors import ConfigError
from shared.hex import decode_hex_setting
from shared.keys.k256 import SigningKey

# 64 digits, 0x, and what an editor puts behind them
_MAX_BYTES: Final = 128
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Account(msgspec.Struct, frozen=True):
    """A key that signs, and its address, 20 bytes."""

    address: bytes
    key: SigningKey


def read_key(path: Path) -> Account:
    """Return the account of a file with 64 hex digits.

    Raises `ConfigError`: `gov.key_file.absent`, `gov.key_file.mode` where others than its owner may read it,
    `gov.key_file.invalid` for anything but a key.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError("gov.key_file.invalid", f"{path} is no regular file")
            if status.st_mode & _OTHERS:
                raise ConfigError(
                    "gov.key_file.mode",
                    f"{path} has mode {stat.S_IMODE(status.st_mode):03o}, expected 600: others may read it",
                )
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError("gov.key_file.absent", f"{path} cannot be read: {error.strerror}") from error
    # whatever is wrong with it, the error must not repeat it
    try:
        private = decode_hex_setting(raw.decode().strip(), what="key", length=32, code="gov.key_file.invalid")
        return Account(address_of(private), SigningKey(private))
    except (UnicodeDecodeError, ConfigError):
        raise ConfigError("gov.key_file.invalid", f"{path} holds no key of 64 hex digits") from None

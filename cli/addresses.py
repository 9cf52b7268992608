"""Addresses as people write them."""

from shared.chain.abi import checksum_address
from shared.errors import ConfigError
from shared.hex import decode_hex_setting


def read_address(text: str, option: str, *, code: str) -> bytes:
    """Return an address, 20 bytes.

    One in mixed case must have the case of EIP-55, which tells of most typing errors. Raises
    `ConfigError(code)`, with `option` in its sentence.
    """
    raw = decode_hex_setting(text, what=option, length=20, code=code)
    digits = text.removeprefix("0x")
    if digits not in {digits.lower(), digits.upper(), checksum_address(raw)[2:]}:
        raise ConfigError(
            code, f"{option} is not in the case of {checksum_address(raw)}: was it copied wrong?"
        )
    return raw

"""Settings of the authorize function, from the environment, checked once at start."""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex


class Settings(msgspec.Struct, frozen=True):
    """Which chain and contract to ask: `kms_contract` is 20 bytes; `chain_id` None takes any chain.

    The URL may hold a secret, so it is not part of the `repr`.
    """

    eth_rpc_url: str
    kms_contract: bytes
    chain_id: int | None = None

    def __repr__(self) -> str:
        return f"Settings(eth_rpc_url={self.public_url!r}, kms_contract=0x{self.kms_contract.hex()})"

    @property
    def public_url(self) -> str:
        """Scheme, host and port of the RPC URL; paths and credentials are where providers put keys."""
        parts = urlsplit(self.eth_rpc_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def settings_from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `ETH_RPC_URL`, `KMS_CONTRACT_ADDR` and the optional `ETH_CHAIN_ID`.

    Raises `ConfigError("authorize.settings.invalid")` naming the variable.
    """
    url = environ.get("ETH_RPC_URL", "")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise _invalid("ETH_RPC_URL must be an http or https url")
    try:
        contract = decode_hex(environ.get("KMS_CONTRACT_ADDR", ""), what="KMS_CONTRACT_ADDR", length=20)
    except ProtocolError as error:
        raise _invalid(error.message) from error
    chain_id = environ.get("ETH_CHAIN_ID", "")
    if chain_id and (not chain_id.isascii() or not chain_id.isdigit() or str(int(chain_id)) != chain_id):
        raise _invalid(f"ETH_CHAIN_ID is {chain_id!r}, expected a decimal number")
    return Settings(url, contract, int(chain_id) if chain_id else None)


def _invalid(message: str) -> ConfigError:
    return ConfigError("authorize.settings.invalid", message)

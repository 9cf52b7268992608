"""Settings of the authorize function, from the environment, checked once at start."""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from shared.chain.agreement import majority
from shared.chain.decision import DEFAULT_MAX_HEAD_AGE
from shared.errors import ConfigError, ProtocolError
from shared.hex import decode_hex
from shared.net.quorum import MAX_ENDPOINTS

# A year: for a development chain that makes a block only when there is something to put into it.
MAX_AGE = 366 * 24 * 3600


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Which chain and contract to ask: `kms_contract` is 20 bytes; `chain_id` None takes any chain.

    `quorum` of the `rpc_urls` must answer. `max_head_age` is in seconds. `policy_file` is empty for none.
    URLs may hold secrets, so the `repr` shows the hosts alone.
    """

    rpc_urls: tuple[str, ...]
    kms_contract: bytes
    chain_id: int | None = None
    quorum: int = 1
    max_head_age: int = DEFAULT_MAX_HEAD_AGE
    policy_file: str = ""

    def __repr__(self) -> str:
        return f"Settings(rpc_urls={self.public_urls!r}, kms_contract=0x{self.kms_contract.hex()})"

    @property
    def public_urls(self) -> tuple[str, ...]:
        """Scheme, host and port of the RPC URLs; paths and credentials are where providers put keys."""
        parts = (urlsplit(url) for url in self.rpc_urls)
        return tuple(f"{one.scheme}://{one.netloc.rpartition('@')[2]}" for one in parts)


def settings_from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `ETH_RPC_URL`, `KMS_CONTRACT_ADDR` and the optional ones that docs/authorize.md lists.

    Raises `ConfigError("authorize.settings.invalid")` naming the variable.
    """
    urls = tuple(environ.get("ETH_RPC_URL", "").split())
    try:
        contract = decode_hex(environ.get("KMS_CONTRACT_ADDR", ""), what="KMS_CONTRACT_ADDR", length=20)
    except ProtocolError as error:
        raise _invalid(error.message) from error
    _check_urls(urls)
    # a majority, and of two both
    quorum = _number(environ, "ETH_RPC_QUORUM", majority(len(urls)), len(urls))
    return Settings(
        rpc_urls=urls,
        kms_contract=contract,
        chain_id=_number(environ, "ETH_CHAIN_ID", 0, 2**64 - 1) or None,
        quorum=quorum,
        max_head_age=_number(environ, "ETH_MAX_HEAD_AGE", DEFAULT_MAX_HEAD_AGE, MAX_AGE),
        policy_file=environ.get("AUTHORIZE_POLICY_FILE", ""),
    )


def _check_urls(urls: tuple[str, ...]) -> None:
    hosts = set()
    for url in urls:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError as error:
            raise _invalid("ETH_RPC_URL is malformed") from error
        if parts.scheme not in {"http", "https"} or not host:
            raise _invalid("ETH_RPC_URL must be http or https urls, separated by spaces")
        hosts.add(host.lower().removesuffix("."))
    if not 1 <= len(urls) <= MAX_ENDPOINTS or len(hosts) != len(urls):
        raise _invalid(
            f"ETH_RPC_URL has {len(urls)} urls of {len(hosts)} hosts, expected 1 to {MAX_ENDPOINTS}, each on "
            "a host of its own"
        )


def _number(environ: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    canonical = text.isascii() and text.isdigit() and len(text) <= 20 and str(int(text)) == text
    if not canonical or not 1 <= int(text) <= most:
        raise _invalid(f"{name} is {text[:40]!r}, expected a decimal number from 1 to {most}")
    return int(text)


def _invalid(message: str) -> ConfigError:
    return ConfigError("authorize.settings.invalid", message)

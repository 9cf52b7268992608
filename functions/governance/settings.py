"""Settings of the governance function, from the environment.

DSTACK_STORE, DSTACK_QUEUE         the deployments' store and the engine's queue, as of the deploy function;
                                   the queue is poll where a runner looks at the store itself (development)
DSTACK_GOVERNANCE_STATE            dynamodb:TABLE | firestore:PROJECT/DATABASE | sqlite:PATH
DSTACK_GOVERNANCE_QUEUE            sqs:URL | tasks:QUEUE|WORKER_URL|SERVICE_ACCOUNT | here (development)
DSTACK_GOVERNANCE_RPC_URLS         endpoints of the chain on distinct hosts, with spaces
DSTACK_GOVERNANCE_QUORUM           how many of them must agree; a majority where unset
DSTACK_GOVERNANCE_MAX_HEAD_AGE     seconds that the agreed head may be old
DSTACK_GOVERNANCE_FIRST_BLOCK      where the first sweep starts; the newest final block where unset
DSTACK_GOVERNANCE_SIMULATED        true takes plain http and one endpoint, for a development chain
DSTACK_GOVERNANCE_NOTIFY_URL       where operators are told, by POST of JSON over https
DSTACK_KMS_CONTRACT, DSTACK_CHAIN_ID
DSTACK_WEBHOOK_SECRETS             PROVIDER=aws:SECRET | gcp:projects/P/secrets/S | env:VARIABLE (development)
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from functions.governance.providers import PROVIDERS
from shared.chain.agreement import majority
from shared.errors import ConfigError
from shared.hex import decode_hex_setting

DEFAULT_MAX_HEAD_AGE: Final = 300
"""25 blocks of mainnet; a revocation is not seen on an older head."""

MAX_AGE: Final = 366 * 24 * 3600
_KINDS: Final = frozenset({"aws", "gcp", "env"})
_INVALID: Final = "governance.settings"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`kms_contract` has 20 bytes. URLs may hold secrets, so the `repr` shows none of them."""

    rpc_urls: tuple[str, ...]
    quorum: int
    kms_contract: bytes
    chain_id: int
    max_head_age: int = DEFAULT_MAX_HEAD_AGE
    first_block: int | None = None
    is_simulated: bool = False
    notify_url: str = ""
    secrets: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Settings(kms_contract=0x{self.kms_contract.hex()}, chain_id={self.chain_id})"


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings. Raises `ConfigError("governance.settings")` naming the variable."""
    urls = tuple(environ.get("DSTACK_GOVERNANCE_RPC_URLS", "").split())
    if not urls:
        raise _invalid("DSTACK_GOVERNANCE_RPC_URLS names no endpoint")
    notify_url = environ.get("DSTACK_GOVERNANCE_NOTIFY_URL", "")
    if notify_url and not notify_url.startswith("https://"):
        raise _invalid("DSTACK_GOVERNANCE_NOTIFY_URL is not https")
    is_simulated = environ.get("DSTACK_GOVERNANCE_SIMULATED", "") == "true"
    return Settings(
        rpc_urls=urls,
        quorum=_number(environ, "DSTACK_GOVERNANCE_QUORUM", len(urls)) or majority(len(urls)),
        kms_contract=decode_hex_setting(
            environ.get("DSTACK_KMS_CONTRACT", ""), what="DSTACK_KMS_CONTRACT", length=20, code=_INVALID
        ),
        chain_id=_required(_number(environ, "DSTACK_CHAIN_ID", 2**63)),
        max_head_age=_number(environ, "DSTACK_GOVERNANCE_MAX_HEAD_AGE", MAX_AGE) or DEFAULT_MAX_HEAD_AGE,
        first_block=_number(environ, "DSTACK_GOVERNANCE_FIRST_BLOCK", 2**63),
        is_simulated=is_simulated,
        notify_url=notify_url,
        secrets=_secrets(environ.get("DSTACK_WEBHOOK_SECRETS", ""), is_simulated=is_simulated),
    )


def _secrets(text: str, *, is_simulated: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in text.split():
        provider, _, place = entry.partition("=")
        kind, _, where = place.partition(":")
        if provider not in PROVIDERS or kind not in _KINDS or not where or provider in found:
            raise _invalid(
                f"DSTACK_WEBHOOK_SECRETS has {provider[:40]!a}, expected PROVIDER=KIND:PLACE of"
                f" {', '.join(sorted(PROVIDERS))} and {', '.join(sorted(_KINDS))}, each provider once"
            )
        if kind == "env" and not is_simulated:
            raise _invalid(
                f"the secret of {provider} is in a variable, which who may look at the function reads:"
                " expected it in the cloud's secret store"
            )
        found[provider] = place
    return found


def _number(environ: Mapping[str, str], name: str, most: int) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20) or not 0 < int(text) <= most:
        raise _invalid(f"{name} is {text[:40]!a}, expected a number from 1 to {most}")
    return int(text)


def _required(chain_id: int | None) -> int:
    if chain_id is None:
        raise _invalid("DSTACK_CHAIN_ID is not set")
    return chain_id


def _invalid(message: str) -> ConfigError:
    return ConfigError(_INVALID, message)

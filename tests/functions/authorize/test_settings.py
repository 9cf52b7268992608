"""Settings are checked at start, and show no secret."""

import pytest

from functions.authorize.settings import settings_from_env
from shared.errors import ConfigError

ENV = {
    "ETH_RPC_URL": "https://user:key@rpc.example:8443/v2/secret?k=1",
    "KMS_CONTRACT_ADDR": "0x" + "9f" * 20,
}


def test_reads_the_environment() -> None:
    settings = settings_from_env({**ENV, "ETH_CHAIN_ID": "8453"})
    assert (settings.kms_contract, settings.chain_id) == (b"\x9f" * 20, 8453)


def test_the_chain_id_is_optional() -> None:
    assert settings_from_env(ENV).chain_id is None


@pytest.mark.parametrize(("count", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_a_majority_is_needed_where_nothing_is_said(count: int, quorum: int) -> None:
    urls = " ".join(f"https://{number}.example" for number in range(count))
    assert settings_from_env({**ENV, "ETH_RPC_URL": urls}).quorum == quorum


def test_reads_the_optional_settings() -> None:
    settings = settings_from_env(
        {
            **ENV,
            "ETH_RPC_URL": "https://a.example https://b.example",
            "ETH_RPC_QUORUM": "1",
            "ETH_MAX_HEAD_AGE": "60",
            "AUTHORIZE_POLICY_FILE": "policy.json",
        }
    )
    assert (len(settings.rpc_urls), settings.quorum, settings.max_head_age) == (2, 1, 60)
    assert settings.policy_file == "policy.json"


def test_n74_shows_scheme_and_host_alone() -> None:
    settings = settings_from_env(ENV)
    assert settings.public_urls == ("https://rpc.example:8443",)
    assert "secret" not in repr(settings)
    assert "key" not in repr(settings)


@pytest.mark.parametrize(
    "change",
    [
        {"ETH_RPC_URL": ""},
        {"ETH_RPC_URL": "rpc.example"},
        {"ETH_RPC_URL": "ws://rpc.example"},
        {"KMS_CONTRACT_ADDR": ""},
        {"KMS_CONTRACT_ADDR": "0x" + "9f" * 19},
        {"KMS_CONTRACT_ADDR": "0xzz"},
        {"ETH_RPC_URL": "https://a.example https://b.example ftp://c.example"},
        {"ETH_RPC_URL": "https://a.example/x https://A.example./y"},
        {"ETH_RPC_URL": "https://[::1"},
        {"ETH_RPC_URL": " ".join(f"https://{number}.example" for number in range(17))},
        {"ETH_RPC_QUORUM": "2"},
        {"ETH_RPC_QUORUM": "0"},
        {"ETH_RPC_QUORUM": "01"},
        {"ETH_MAX_HEAD_AGE": "0"},
        {"ETH_MAX_HEAD_AGE": "9" * 30},
        {"ETH_CHAIN_ID": "0"},
        {"ETH_CHAIN_ID": "0x1"},
        {"ETH_CHAIN_ID": "01"},
        {"ETH_CHAIN_ID": "-1"},
        {"ETH_CHAIN_ID": "1 "},
        {"ETH_CHAIN_ID": "\uff11"},
    ],
)
def test_refuses_malformed_settings(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_from_env({**ENV, **change})
    assert caught.value.code == "authorize.settings.invalid"
    assert next(iter(change)) in caught.value.message

"""Which chain a network's name stands for, as Alchemy, QuickNode and OpenZeppelin Monitor spell it."""

from typing import Final

UNKNOWN: Final = 0
"""The chain of a name that is not known here: no chain has this id, so it is none of ours."""

_CHAINS: Final = {
    ("eth", "ethereum"): {"mainnet": 1, "sepolia": 11155111, "hoodi": 560048},
    ("opt", "optimism"): {"mainnet": 10, "sepolia": 11155420},
    ("matic", "polygon"): {"mainnet": 137, "amoy": 80002},
    ("base",): {"mainnet": 8453, "sepolia": 84532},
    ("arb", "arbitrum"): {"mainnet": 42161, "one": 42161, "sepolia": 421614},
}
_NETWORKS: Final = {
    f"{name}_{network}": chain_id
    for names, networks in _CHAINS.items()
    for name in names
    for network, chain_id in networks.items()
} | {"base": 8453}


def chain_of(network: str) -> int:
    """Return the id of a chain (`ETH_MAINNET`, `ethereum-mainnet`, `ethereum_mainnet`), or `UNKNOWN`."""
    return _NETWORKS.get(network.lower().replace("-", "_"), UNKNOWN)

"""A chain that mines on each transaction, on both engines, and freshly deployed contracts for every test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from web3 import Web3
from web3.contract.contract import ContractFunction
from web3.exceptions import ContractCustomError, ContractLogicError

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, find_anvil, start_chain
from shared.boot_info import BootInfo

DATA = Path(__file__).resolve().parents[1] / "data" / "contracts"


@pytest.fixture(scope="session", params=["py-evm", "anvil"])
def instant_chain(request: pytest.FixtureRequest) -> Iterator[Chain]:
    if request.param == "anvil" and find_anvil() is None:
        pytest.skip("no anvil on this machine: install node and npm, then run make setup")
    with start_chain(request.param, block_time=0) as chain:
        yield chain


@pytest.fixture
def governance(instant_chain: Chain) -> Governance:
    owner = Governance(instant_chain.url, instant_chain.accounts[0])
    owner.deploy()
    return owner


@pytest.fixture
def stranger(instant_chain: Chain, governance: Governance) -> Governance:
    """Somebody who owns nothing, at the same KMS contract."""
    return Governance(
        instant_chain.url, instant_chain.accounts[5], kms=bytes.fromhex(governance.kms.address[2:])
    )


@pytest.fixture(scope="session")
def reference() -> Callable[[str], dict[str, Any]]:
    """Upstream's interface facts, by contract name; `vectors` for the encoded examples."""

    def read(name: str) -> dict[str, Any]:
        path = DATA / ("vectors.json" if name == "vectors" else f"abi/{name}.json")
        return dict(json.loads(path.read_text()))

    return read


@pytest.fixture
def boot() -> Callable[..., BootInfo]:
    """Make boot info that the contracts allow once app, image, compose and device are added."""

    def make(**changes: Any) -> BootInfo:
        fields: dict[str, Any] = {
            "tee_variant": "dstack-nitro-enclave",
            "mr_aggregated": b"m" * 32,
            "os_image_hash": b"o" * 32,
            "mr_system": b"s" * 32,
            "app_id": bytes(20),
            "compose_hash": b"c" * 32,
            "instance_id": b"i" * 20,
            "device_id": b"d" * 32,
            "key_provider_info": b"",
            "tcb_status": "UpToDate",
            "advisory_ids": ("INTEL-SA-00001",),
        }
        return BootInfo(**fields | changes)

    return make


@pytest.fixture
def failure() -> Callable[[ContractFunction, Governance], str]:
    """Call a function as somebody; return why it reverted: a sentence, or a custom error's selector."""

    def why(call: ContractFunction, actor: Governance) -> str:
        with pytest.raises((ContractLogicError, ContractCustomError)) as caught:
            call.call({"from": Web3.to_checksum_address(actor.address)})
        data = str(caught.value.data)
        if not data.startswith("0x08c379a0"):
            return data[:10]
        words = bytes.fromhex(data[10:])
        return words[64 : 64 + int.from_bytes(words[32:64], "big")].decode()

    return why

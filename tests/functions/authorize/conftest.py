"""The service over a real chain in the very state that the goldens were recorded in."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from functions.authorize.service import AuthorizeService
from functions.authorize.settings import MAX_AGE, Settings
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from tests.conftest import CHAIN_ENGINE

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "contracts" / "auth-eth-golden.json"


def word(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture(scope="session")
def golden_chain() -> Iterator[Chain]:
    """A fresh chain whose first transactions are those of the recording: the addresses come out the same."""
    with start_chain(CHAIN_ENGINE, block_time=0) as chain:
        owner = Governance(chain.url, chain.accounts[0])
        owner.deploy()
        owner.settle(owner.add_os_image(word(111)))
        app_id = owner.deploy_app(device_id=word(456), compose_hash=word(789))
        owner.settle(
            owner.send(owner.kms.functions.registerApp(chain.accounts[5].address)),
            owner.add_kms_mr(word(0)),
            owner.add_kms_device(word(456)),
            owner.send(owner.app(app_id).functions.setRequireTcbUpToDate(True)),
        )
        for _ in range(3):
            rpc(chain.url).call("evm_mine")
        yield chain


def rpc(url: str) -> JsonRpc:
    return JsonRpc(url, HttpClient(DirectDialer(), timeout=30))


@pytest.fixture
def settings(golden_chain: Chain) -> Settings:
    return Settings(
        rpc_urls=(golden_chain.url,),
        kms_contract=bytes.fromhex("9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"),
        chain_id=31337,
        max_head_age=MAX_AGE,  # the chain makes no blocks while it is read
    )


@pytest.fixture
def service(settings: Settings) -> AuthorizeService:
    return AuthorizeService(settings, [rpc(settings.rpc_urls[0])])


@pytest.fixture(scope="session")
def goldens() -> dict[str, dict[str, Any]]:
    """The recorded cases by name."""
    return {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}


@pytest.fixture
def allowed_body(goldens: dict[str, dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Make the recorded request that is allowed, with changes."""

    def make(**changes: Any) -> dict[str, Any]:
        return {**goldens["app allowed"]["body"], **changes}

    return make

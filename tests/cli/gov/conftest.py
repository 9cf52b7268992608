"""Chains that mine at once, and commands that run in this process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from cli.gov import status
from functions.deploy import views
from functions.deploy.record import Deployment, Planned, Running, Step, workload
from tests.conftest import CHAIN_ENGINE
from tests.docs.console_page import call
from tests.functions.deploy.memory_cloud import some_deployment

OWNER, OTHER, PAYER = 0, 1, 2
"""Of the chain's funded accounts: who owns the contracts, who does not, and who pays for a Safe."""


class Ran(msgspec.Struct, frozen=True):
    """What came of a command."""

    output: str
    code: int

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output)
        return found


class Listed:
    """Deployments, as the API's documents show them."""

    def __init__(self, *records: Deployment) -> None:
        self._records = {one.name: one for one in records}

    def list_all(self) -> Iterator[dict[str, Any]]:
        return map(views.summary, self._records.values())

    def get(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(msgspec.json.encode(views.whole(self._records[name])))
        return shown


def planned(app_id: str, compose: str, image: str, platform: str = "gcp") -> Planned:
    """Return a plan of an app id and hashes, each with its prefix."""
    return Planned(
        plan_id=f"plan of {compose}",
        app_id=app_id[2:].lower(),
        compose_hash=compose[2:],
        os_image_hash=image[2:],
        platform=platform,
        plan="",
    )


def up(plan: Planned, **running: Any) -> Deployment:
    """Return a deployment that runs what was planned."""
    return some_deployment(
        step=Step.RUNNING,
        planned=plan,
        running=Running(plan_id=plan.plan_id, **running),
        launched=workload(plan),
    )


class Creation:
    """Creation code, in the shape that the sender takes."""

    def __init__(self, code: bytes) -> None:
        self._code = code

    def build_transaction(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return parameters | {"data": f"0x{self._code.hex()}", "value": 0}


class Site:
    """A chain with the contracts, and `gov` against it."""

    def __init__(self, chain: Chain, place: Path) -> None:
        self.chain = chain
        self.place = place
        owner = Governance(chain.url, chain.accounts[OWNER])
        self.deployed = owner.deploy()
        self.kms = owner.kms.address

    @property
    def owner(self) -> Governance:
        """The owner with a wallet of its own, which takes the nonces as they are now."""
        kms = bytes.fromhex(self.kms[2:])
        return Governance(self.chain.url, self.chain.accounts[OWNER], kms=kms)

    def key_file(self, account: int = OWNER) -> Path:
        path = self.place / f"{account}.key"
        path.write_text(self.chain.accounts[account].private_key.hex() + "\n")
        path.chmod(0o600)
        return path

    def gov(self, *words: str, rpc: str | None = None) -> Ran:
        """Run a command that asks this chain about this contract."""
        given = ["--rpc", rpc or self.chain.url]
        if "--kms-contract" not in words:
            given += ["--kms-contract", self.kms]
        return Ran(*call(["gov", *words, *given]))

    def send(self, *words: str, account: int = OWNER) -> Ran:
        return self.gov(*words, "--send", "--key-file", str(self.key_file(account)))

    def address(self, account: int) -> str:
        return self.chain.accounts[account].address

    def contract(self, runtime: str) -> str:
        """Make a contract of code that anybody may write, in hex, and return its address."""
        code = bytes.fromhex(runtime)
        # PUSH2 size, PUSH1 12, PUSH0, CODECOPY, PUSH2 size, PUSH0, RETURN; the code follows
        size = len(code).to_bytes(2, "big")
        head = b"\x61" + size + b"\x60\x0c\x5f\x39\x61" + size + b"\x5f\xf3"
        payer = Governance(self.chain.url, self.chain.accounts[PAYER])
        (made,) = payer.settle(payer.send(Creation(head + code), gas=4_000_000))
        return str(made["contractAddress"])

    def app(self, owner: int = OWNER) -> str:
        """Make an app with the command, and return its id."""
        ran = self.send("app", "deploy", "--owner", self.address(owner), "--owner-is-key", "--json")
        return str(ran.json["transactions"][0]["app_id"])


@pytest.fixture(scope="session")
def instant_chain() -> Iterator[Chain]:
    with start_chain(CHAIN_ENGINE, block_time=0) as running:
        yield running


@pytest.fixture(scope="module")  # the more apps a contract has, the more each look at it costs
def _site(instant_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(instant_chain, tmp_path_factory.mktemp("gov"))


@pytest.fixture
def site(_site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    """The contracts on a chain; what commands keep is the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("DSTACK_CHAIN_ID", str(_site.chain.chain_id))
    for name in ("DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CLOUD_API"):
        monkeypatch.delenv(name, raising=False)
    return _site


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what has `gov status` find these deployments, and no others."""

    def these(*records: Deployment) -> None:
        monkeypatch.setattr(status, "deployments_of", lambda *_: Listed(*records))

    return these


@pytest.fixture
def fresh() -> Callable[[], str]:
    """Return a hash that no test used before."""
    return _fresh


_count = iter(range(1, 1 << 32))


def _fresh() -> str:
    return f"0x{next(_count):064x}"

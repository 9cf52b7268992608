"""A deployment that waits for governance, over a real chain: what counts, what does not, and what it says."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from cli.deploy_output import lines
from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from functions.deploy.engine import Engine
from functions.deploy.planning import ChainSettings, Planner
from functions.deploy.quarantine import Quarantines
from functions.deploy.record import Approved, Step
from functions.deploy.views import whole
from functions.deploy.work import LeasedWork
from functions.plan.model import AppIdentity
from functions.plan.standing import DISAGREEMENT, MISSING, NOT_FINAL, REVOKED, Standing
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.project import GlobalConfig
from shared.net.agreed_reader import AgreedReader
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import Call, JsonRpc
from tests.conftest import CHAIN_ENGINE
from tests.functions.deploy.memory_cloud import (
    MemoryCloud,
    MemoryTools,
    all_events,
    some_deployment,
    some_plan,
)

COMPOSE, IMAGE = bytes.fromhex("33" * 32), bytes.fromhex("44" * 32)


class Node:
    """The chain under a host's name; a liar says yes where the contracts say no."""

    secure = True

    def __init__(self, host: str, rpc: JsonRpc) -> None:
        self.host = host
        self._rpc = rpc
        self.lies = False

    def batch(self, calls: Sequence[Call]) -> list[object]:
        answers = self._rpc.batch(calls)
        if not self.lies:
            return answers
        return [f"0x{1:064x}" if answer == f"0x{0:064x}" else answer for answer in answers]


class Tools(MemoryTools):
    """Asks a chain where the others ask nobody."""

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self._planner = planner

    def ask_approval(self, work: LeasedWork) -> Standing:
        return self._planner.ask_approval(work)


class Site:
    """An app on a chain that makes blocks when it is told to, and an engine with two endpoints of it."""

    def __init__(
        self, chain: Chain, owner: Governance, place: Path, hosts: Sequence[str] = ("a.example", "b.example")
    ) -> None:
        self.owner = owner
        self.rpc = JsonRpc(chain.url, HttpClient(DirectDialer()))
        self.app_id = owner.deploy_app(allow_any_device=True)
        self.go_on()
        self.nodes = [Node(host, self.rpc) for host in hosts]
        self.store = SqliteStore(place / "deployments.sqlite")
        self.cloud = MemoryCloud()
        kms = bytes.fromhex(owner.kms.address[2:])
        reader = AgreedReader(self.nodes, kms, chain_id=chain.chain_id, quorum=len(hosts), max_head_age=10**9)
        planner = Planner(
            GlobalConfig(image_search_paths=()),
            place / "cache",
            ChainSettings(ask=reader.read, kms_contract=kms),
        )
        tools = Tools(planner)
        tools.plan = msgspec.structs.replace(some_plan(), app=AppIdentity(self.app_id.hex(), "app.json"))
        self.now = self.owner.web3.eth.get_block("latest")["timestamp"]
        self.engine = Engine(
            self.store,
            FileBlobs(place / "blobs"),
            {"gcp-tdx": self.cloud},
            tools,
            clock=self.clock,
            holder="one",
        )
        self.store.create(some_deployment())

    def clock(self) -> int:
        return self.now

    def go_on(self) -> None:
        """Have the newest change become final."""
        for _ in range(4):
            self.rpc.call("evm_mine")

    def allow(self) -> None:
        self.owner.settle(self.owner.add_compose_hash(self.app_id, COMPOSE))

    def revoke(self) -> None:
        self.owner.settle(self.owner.remove_compose_hash(self.app_id, COMPOSE))

    def look(self, times: int = 8) -> Step:
        """Have the engine called whenever it is time."""
        for _ in range(times):
            after = self.engine.advance("web")
            if after.seconds is None:
                break
            self.now += after.seconds
        return self.store.get("web").step

    @property
    def approved(self) -> Approved:
        approved = self.store.get("web").approved
        assert approved is not None
        return approved


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with start_chain(CHAIN_ENGINE, block_time=0) as started:
        yield started


@pytest.fixture(scope="module")
def owner(chain: Chain) -> Governance:
    found = Governance(chain.url, chain.accounts[0])
    found.deploy()
    found.settle(found.add_os_image(IMAGE))
    return found


@pytest.fixture
def site(chain: Chain, owner: Governance, tmp_path: Path) -> Site:
    return Site(chain, owner, tmp_path)


def waits(site: Site, code: str) -> None:
    assert site.look() is Step.AWAIT_APPROVAL
    assert site.approved.code == code
    assert site.cloud.made == []


def test_waits_for_a_call_and_says_so(site: Site) -> None:
    waits(site, MISSING)
    assert site.approved.calls == 1


def test_n57_a_grant_at_the_newest_block_alone_waits(site: Site) -> None:
    site.look()
    site.allow()
    waits(site, NOT_FINAL)
    assert site.approved.final_block < site.approved.block_number
    site.go_on()
    assert site.look(20) is Step.RUNNING


def test_n57_a_grant_that_is_not_final_when_it_is_first_asked_for_waits(site: Site) -> None:
    site.allow()
    waits(site, NOT_FINAL)


def test_n57_a_final_grant_that_is_revoked_at_the_newest_block_waits(site: Site) -> None:
    site.look()
    site.allow()
    site.go_on()
    site.revoke()
    waits(site, REVOKED)
    site.go_on()
    waits(site, MISSING)


def test_n57_one_of_two_endpoints_that_lies_has_it_wait(site: Site) -> None:
    site.look()
    site.nodes[1].lies = True
    waits(site, DISAGREEMENT)
    site.allow()
    site.go_on()
    site.nodes[1].lies = False
    assert site.look(20) is Step.RUNNING


def test_n57_governances_hint_is_no_grant(site: Site) -> None:
    site.look()
    site.allow()
    found = site.store.get("web")
    site.now -= 30  # its own next look is still to come
    assert Quarantines(site.store, lambda *_: None, site.clock).resume("web", found.uid)
    assert site.engine.advance("web").step is Step.AWAIT_APPROVAL
    assert site.approved.code == NOT_FINAL


def test_what_it_waits_for_is_shown_and_told_once(site: Site) -> None:
    site.look()
    site.allow()
    site.look()
    shown = whole(site.store.get("web"))
    [line] = [one for one in lines(shown) if NOT_FINAL in one]
    assert "but not at the newest final block" in line
    assert [event.code for event in all_events(site.store)].count(NOT_FINAL) == 1
    assert not any("one endpoint" in one for one in lines(shown))


def test_one_endpoint_is_said_to_be_one(chain: Chain, owner: Governance, tmp_path: Path) -> None:
    site = Site(chain, owner, tmp_path, ["a.example"])
    site.allow()
    site.go_on()
    assert site.look(20) is Step.RUNNING
    assert "  approval       by the word of one endpoint" in lines(whole(site.store.get("web")))

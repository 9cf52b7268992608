"""The whole function over anvil, with blocks that are really replaced."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, find_anvil, start_chain
from functions.deploy.engine import Engine
from functions.deploy.record import Planned, Step, workload
from functions.deploy.record import Running as MachineState
from functions.governance.assembly import service_from_env
from functions.governance.notice import Notice
from functions.governance.service import GovernanceService
from functions.plan.model import AppIdentity
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.chain.abi import MALFORMED, REVERTED
from shared.errors import InvalidEvidence, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from shared.net.json_rpc import fields as fields_of
from tests.functions.deploy.memory_cloud import Clock, MemoryCloud, MemoryTools, some_deployment, some_plan
from tests.functions.governance.site import COMPOSE, DEVICE, IMAGE, SECRET, Site, signed
from tests.shared.refusal import refuses

pytestmark = pytest.mark.skipif(find_anvil() is None, reason="anvil is absent: install node and npm")


@pytest.fixture
def chain() -> Iterator[Chain]:
    with start_chain("anvil", block_time=0) as started:
        yield started


@pytest.fixture
def site(chain: Chain) -> Site:
    owner = Governance(chain.url, chain.accounts[0])
    owner.deploy()
    owner.settle(owner.add_os_image(IMAGE))
    return Site(chain, owner)


@pytest.fixture
def rpc(chain: Chain) -> JsonRpc:
    return JsonRpc(chain.url, HttpClient(DirectDialer()))


class Running:
    """The function on this machine; `queued` are looks that it asked for."""

    def __init__(self, site: Site, directory: Path, monkeypatch: pytest.MonkeyPatch, urls: str = "") -> None:
        self.store = SqliteStore(directory / "deployments.sqlite")
        self.queued: list[str] = []
        self.notices: list[Notice] = []
        environment = site.environment | {
            "DSTACK_STORE": f"sqlite:{directory / 'deployments.sqlite'}",
            "DSTACK_QUEUE": "poll",
            "DSTACK_GOVERNANCE_STATE": f"sqlite:{directory / 'governance.sqlite'}",
            "DSTACK_GOVERNANCE_QUEUE": "sqs:http://unused",
            "DSTACK_WEBHOOK_SECRETS": "plain=env:X",
            "X": SECRET,
        }
        if urls:
            environment["DSTACK_GOVERNANCE_RPC_URLS"] = urls
        monkeypatch.setattr(
            "functions.governance.assembly.open_queue",
            lambda _environ, _variable="": lambda name, _seconds: self.queued.append(name),
        )
        self.service: GovernanceService = service_from_env(environment, self.notices.append)


@pytest.fixture
def running(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    return Running(site, tmp_path, monkeypatch)


def test_a_stop_whose_block_is_orphaned_is_undone(site: Site, running: Running, rpc: JsonRpc) -> None:
    site.deploy(running.store)
    before = rpc.call("evm_snapshot")
    site.remove()
    running.service.reconcile()
    held = running.store.get("web").quarantine
    assert held is not None
    # the block with the removal, and what was built on it, give way to others
    assert rpc.call("evm_revert", [before]) is True
    rpc.call("evm_increaseTime", [5])
    for _ in range(4):
        rpc.call("evm_mine")
    [drift] = running.service.reconcile().drifts
    assert (drift.kind, drift.acted) == ("stopped_what_is_allowed", True)
    assert running.store.get("web").quarantine is None
    assert "its block is orphaned" in running.notices[-2].message


def test_a_grant_that_a_reorganisation_takes_back_resumes_nothing(
    site: Site, running: Running, rpc: JsonRpc
) -> None:
    site.remove()
    site.settle()
    site.deploy(running.store, Step.AWAIT_APPROVAL)
    before = rpc.call("evm_snapshot")
    site.owner.settle(site.owner.add_compose_hash(site.app_id, COMPOSE))
    assert running.service.reconcile().drifts == ()  # at the head alone
    assert rpc.call("evm_revert", [before]) is True
    rpc.call("evm_increaseTime", [5])
    site.settle()
    assert running.service.reconcile().drifts == ()
    again = Governance(site.chain.url, site.chain.accounts[0], kms=bytes.fromhex(site.owner.kms.address[2:]))
    again.settle(again.add_compose_hash(site.app_id, COMPOSE))
    site.settle()
    [drift] = running.service.reconcile().drifts
    assert drift.kind == "waits_for_what_is_allowed"


REGISTER_APP = "0x17a1d80f"
# Runtime code: a loop without end, and a reason of two bytes that are no text (bool, offset, length, bytes).
BURNS_ALL_GAS = "5b5f56"
SAYS_NO_TEXT = "604060205261fffe60f01b606052600260405260805ff3"


def register(rpc: JsonRpc, site: Site, runtime: str) -> str:
    """Deploy a contract of anybody's and register it as an app; return its address."""
    size = len(runtime) // 2
    init = f"60{size:02x}600c60003960{size:02x}6000f3"
    assert len(init) // 2 == 12

    def send(**fields: str) -> str:
        sender = site.chain.accounts[1].address
        sent = rpc.call("eth_sendTransaction", [{"from": sender, "gas": hex(500_000), **fields}])
        rpc.call("evm_mine")
        receipt = fields_of(rpc.call("eth_getTransactionReceipt", [sent]), what="a receipt")
        assert receipt["status"] == "0x1"
        return str(receipt.get("contractAddress"))

    app = send(data=f"0x{init}{runtime}")
    send(to=site.owner.kms.address, data=f"{REGISTER_APP}{app.removeprefix('0x').zfill(64)}")
    return app.removeprefix("0x").lower()


@pytest.mark.parametrize("runtime", [BURNS_ALL_GAS, SAYS_NO_TEXT], ids=["gas", "text"])
def test_n57_an_app_of_anybodys_that_misbehaves_keeps_no_other_from_being_stopped(
    site: Site, running: Running, rpc: JsonRpc, runtime: str
) -> None:
    site.deploy(running.store)
    planned = msgspec.structs.replace(
        running.store.get("web").planned or Planned(), app_id=register(rpc, site, runtime)
    )
    running.store.create(
        some_deployment(
            "hostile",
            step=Step.RUNNING,
            planned=planned,
            running=MachineState(),
            launched=workload(planned),
        )
    )
    site.remove()
    drifts = running.service.reconcile().drifts
    assert {(one.name, one.acted) for one in drifts} == {("hostile", True), ("web", True)}
    held = running.store.get("hostile").quarantine
    assert held is not None
    assert held.reason == (REVERTED if runtime == BURNS_ALL_GAS else MALFORMED)


def test_n57_nodes_of_two_chains_stop_nothing(
    site: Site, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_chain("anvil", block_time=0) as other:
        port = other.url.rpartition(":")[2]
        running = Running(site, tmp_path, monkeypatch, f"{chain.url} http://localhost:{port}")
        site.deploy(running.store)
        site.remove()
        # nodes that started in the same second have their first block in common, where no contract is yet
        for attempt in (running.service.reconcile, lambda: running.service.act("look:all:0")):
            with pytest.raises(UnavailableError) as caught:
                attempt()
            assert caught.value.code in {"quorum.disagreement", "governance.quorum.too_few"}
    assert running.store.get("web").quarantine is None
    assert {one.severity for one in running.notices} == {"alarm"}


def test_n57_a_final_block_that_goes_back_is_told(site: Site, running: Running, rpc: JsonRpc) -> None:
    site.deploy(running.store)
    before = rpc.call("evm_snapshot")
    site.settle()
    running.service.reconcile()
    assert rpc.call("evm_revert", [before]) is True
    with refuses("quorum.finalized.regressed", InvalidEvidence):
        running.service.act("look:all:0")
    assert running.notices[-1].severity == "alarm"


class Machines:
    """The engine over machines in memory, for a deployment of the site's app: it does what a record asks."""

    def __init__(self, site: Site, store: SqliteStore, directory: Path) -> None:
        self.cloud, self.clock, tools = MemoryCloud(), Clock(), MemoryTools()
        plan = some_plan()
        tools.plan = msgspec.structs.replace(
            plan,
            app=AppIdentity(site.app_id.hex(), "app.json"),
            compose=msgspec.structs.replace(plan.compose, compose_hash=COMPOSE.hex()),
            image=msgspec.structs.replace(plan.image, os_image_hash=IMAGE.hex()),
        )
        store.create(some_deployment(settings={"device_id": DEVICE.hex()}))
        blobs = FileBlobs(directory / "blobs")
        self._engine = Engine(store, blobs, {"gcp-tdx": self.cloud}, tools, clock=self.clock, holder="one")

    def settle(self) -> Step:
        """Have the engine go on until nothing is to be done."""
        while (after := self._engine.advance("web")).seconds is not None:
            self.clock.now += after.seconds
        return after.step

    @property
    def status(self) -> object:
        """What the cloud says of the machine."""
        return self.cloud.things["instance", "web-instance"]["status"]


def deliver(running: Running, document: dict[str, object]) -> None:
    """Deliver an event as its provider does, and have the looks made that it asks for."""
    body, headers = signed(document)
    assert running.service.handle("POST", "/webhooks/plain", headers, body.encode()).status == 200
    while running.queued:
        running.service.act(running.queued.pop())


def test_a_stop_is_undone_when_its_revocation_is_reorganised_away(
    site: Site, running: Running, rpc: JsonRpc, tmp_path: Path
) -> None:
    machines = Machines(site, running.store, tmp_path)
    assert machines.settle() is Step.RUNNING
    deliver(running, site.remove())
    assert machines.settle() is Step.STOPPED
    assert (running.store.get("web").status, machines.status) == ("quarantined", "TERMINATED")
    # the newest block gives way to an empty one
    rpc.call("anvil_reorg", [1, []])
    [drift] = running.service.reconcile().drifts
    assert (drift.kind, drift.acted) == ("stopped_what_is_allowed", True)
    assert machines.settle() is Step.RUNNING
    assert (running.store.get("web").quarantine, machines.status) == (None, "RUNNING")


def test_a_grant_that_is_reorganised_away_frees_nothing(
    site: Site, running: Running, rpc: JsonRpc, tmp_path: Path
) -> None:
    machines = Machines(site, running.store, tmp_path)
    machines.settle()
    deliver(running, site.remove())
    machines.settle()
    site.settle()
    [granted] = site.owner.settle(site.owner.add_compose_hash(site.app_id, COMPOSE))
    deliver(running, site.delivery(granted))
    rpc.call("anvil_reorg", [1, []])
    site.settle()
    assert running.service.reconcile().drifts == ()
    assert machines.settle() is Step.STOPPED
    assert (running.store.get("web").status, machines.status) == ("quarantined", "TERMINATED")

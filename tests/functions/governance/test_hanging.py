"""One endpoint that hangs does not keep the function from its work: the sweep has a minute on AWS."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

import pytest

from functions.deploy.record import Planned, Running, Step, workload
from functions.governance.assembly import service_from_env
from functions.governance.delivery import LogHint
from functions.governance.notice import Notice
from functions.governance.reconciler import Report
from functions.governance.service import GovernanceService
from functions.stores.sqlite import SqliteStore
from shared.chain.header import BlockRef
from shared.errors import UnavailableError
from shared.net.json_rpc import Endpoint
from tests.functions.deploy.memory_cloud import some_deployment
from tests.functions.governance.test_chain import NO, decision
from tests.functions.governance.world import APP, KMS, World
from tests.shared.net.hanging import PATIENCE, Asking, Hanging
from tests.shared.net.rpc_stand_ins import CHAIN_ID, ByBlock
from tests.shared.refusal import refuses


class Refusing(ByBlock):
    """A node whose contract refuses everything, and which has no logs."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.time = int(time.time())

    def result(self, block: bytes) -> str:
        del block
        return decision(NO)

    def _answer(self, method: str, params: Sequence[object]) -> object:
        return [] if method == "eth_getLogs" else super()._answer(method, params)


class Site:
    """The function as the environment makes it, over three endpoints of which the third hangs."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: SimpleQueue[str] = SimpleQueue()
        self.hanging = Hanging(Refusing("c"), self.happened)
        endpoints: dict[str, Endpoint] = {"a": Refusing("a"), "b": Refusing("b"), "c": self.hanging}
        monkeypatch.setattr(
            "functions.governance.assembly.JsonRpc", lambda url, _http: endpoints[url.rpartition("/")[2]]
        )
        monkeypatch.setattr(
            "functions.governance.assembly.open_queue", lambda *_: lambda _name, _seconds: None
        )
        self.store = SqliteStore(directory / "deployments.sqlite")
        self.notices: list[Notice] = []
        self.service: GovernanceService = service_from_env(
            {
                "DSTACK_STORE": f"sqlite:{directory / 'deployments.sqlite'}",
                "DSTACK_QUEUE": "poll",
                "DSTACK_GOVERNANCE_STATE": f"sqlite:{directory / 'governance.sqlite'}",
                "DSTACK_GOVERNANCE_QUEUE": "sqs:http://unused",
                "DSTACK_GOVERNANCE_RPC_URLS": "https://a https://b https://c",
                "DSTACK_KMS_CONTRACT": f"0x{KMS.hex()}",
                "DSTACK_CHAIN_ID": str(CHAIN_ID),
                "DSTACK_WEBHOOK_SECRETS": "plain=aws:X",
            },
            self.notices.append,
        )

    def deploy(self, name: str) -> None:
        planned = Planned(
            plan_id="1",
            app_id=APP.hex(),
            compose_hash="33" * 32,
            os_image_hash="44" * 32,
            platform="gcp",
            plan="",
        )
        self.store.create(
            some_deployment(
                name, step=Step.RUNNING, planned=planned, running=Running(), launched=workload(planned)
            )
        )

    def do(self, work: Callable[[], object]) -> Asking:
        return Asking(work, self.happened)

    def next(self) -> str:
        return self.happened.get(timeout=PATIENCE)


def test_n57_an_endpoint_that_hangs_holds_up_a_sweep_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, monkeypatch)
    site.deploy("one")
    site.deploy("two")
    sweep = site.do(site.service.reconcile)
    assert site.next() == "hangs"
    site.hanging.time_out()
    assert site.next() == "done"
    assert isinstance(sweep.result, Report)
    assert [(one.name, one.acted) for one in sweep.result.drifts] == [("one", True), ("two", True)]
    # and a look at what is held, which asks about the block of each
    look = site.do(lambda: site.service.act("look:all:0"))
    assert site.next() == "done"
    assert look.result is None


def test_deployments_are_judged_before_logs_are_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy("33" * 32)
    world.chain.mine()
    seen: list[bool] = []

    def logs(*_: object) -> Sequence[LogHint]:
        seen.append(world.get().quarantine is not None)
        return ()

    monkeypatch.setattr(world.chain, "logs", logs)
    world.reconciler.run()
    assert seen == [True]


def test_a_sweep_asks_once_which_blocks_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy("33" * 32)
    asked: list[int] = []
    blocks = world.chain.blocks

    def count(now: int) -> tuple[BlockRef, BlockRef]:
        asked.append(now)
        return blocks(now)

    monkeypatch.setattr(world.chain, "blocks", count)
    world.reconciler.run()
    assert len(asked) == 1


def test_logs_are_read_where_a_deployment_could_not_be_judged(world: World) -> None:
    world.deploy("33" * 32)
    world.chain.doubt = True
    world.chain.mine(remove="33" * 32)
    with refuses("governance.quorum.disagreement", UnavailableError):
        world.reconciler.run()
    assert "governance.event.missed" in world.codes()

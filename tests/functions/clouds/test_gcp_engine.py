"""The engine's own steps over the gcp-tdx cloud: to `running`, away again, and back from a lie."""

from collections.abc import Iterator

import msgspec
import pytest

from functions.deploy.engine import Engine
from functions.deploy.record import Deployment, Files, Goal, Step
from functions.deploy.steps import Attested
from tests.functions.clouds.gcp_world import CONFIG, NAME, NOW, PROJECT, World, make_plan
from tests.functions.deploy.memory_cloud import MemoryTools

MAX_STEPS = 300


class Tools(MemoryTools):
    """Plans the world's machine."""

    def __init__(self, gcp: World) -> None:
        super().__init__()
        self.plan = make_plan("e5" * 32, **gcp.settings)
        self.evidence_urls: list[str] = []

    def build(self, work):
        return msgspec.structs.replace(super().build(work), config=CONFIG)

    def attest(self, deployment: Deployment, evidence_url: str) -> Attested:
        del deployment
        self.evidence_urls.append(evidence_url)
        return Attested(simulated=True, verdict={})


class Runner:
    """Advances on a clock that jumps to when the next step is due."""

    def __init__(self, gcp: World) -> None:
        self.gcp = gcp
        self.now = NOW + 3600
        self.tools = Tools(gcp)
        self.engine = Engine(
            gcp.store, gcp.blobs, {"gcp-tdx": gcp.cloud}, self.tools, clock=lambda: self.now, holder="tests"
        )

    def run(self) -> Deployment:
        for _ in range(MAX_STEPS):
            following = self.engine.advance(NAME)
            if following.seconds is None:
                return self.gcp.store.get(NAME)
            self.now += following.seconds
        raise AssertionError(f"it never rests: {following}")


@pytest.fixture
def runner(gcp: World) -> Iterator[Runner]:
    app_json = msgspec.json.encode({"name": NAME, "gcp_config": {"project": PROJECT}})
    files = Files(project={"app.json": gcp.blobs.put(app_json)})
    gcp.change(step=Step.PREPARE, files=files, planned=None, lease=None)
    return Runner(gcp)


def test_a_deployment_comes_to_run_stops_starts_and_is_removed(gcp: World, runner: Runner) -> None:
    running = runner.run()
    assert running.step is Step.RUNNING
    assert runner.tools.evidence_urls == ["http://127.0.0.1:8090/evidence"]
    gcp.change(goal=Goal.STOPPED)
    assert runner.run().step is Step.STOPPED
    assert gcp.fake.find("instance", NAME).json["status"] == "TERMINATED"
    gcp.change(goal=Goal.RUNNING)
    assert runner.run().step is Step.RUNNING
    gcp.change(goal=Goal.REMOVED)
    assert runner.run().step is Step.REMOVED
    assert gcp.left() == {}


def test_n80_a_lie_ends_in_a_failure_without_a_machine(gcp: World, runner: Runner) -> None:
    gcp.fake.lie(confidential=None)
    failed = runner.run()
    assert failed.step is Step.FAILED
    assert failed.failure is not None
    assert failed.failure.code == "deploy.machine.confidential"
    assert gcp.left() == {"disk": [f"{NAME}-data"], "firewall": [f"{NAME}-allow-tcp-8090"]}


def test_a_refused_check_fails_before_anything_is_made(gcp: World, runner: Runner) -> None:
    gcp.fake.limits["C3_CPUS"] = 0
    failed = runner.run()
    assert failed.failure is not None
    assert failed.failure.code == "gcp.quota"
    assert gcp.resources() == ()


def test_a_failing_google_is_waited_out(gcp: World, runner: Runner) -> None:
    for method in ("projects.get", "images.insert", "disks.insert", "instances.insert", "instances.get"):
        gcp.rest.fail(f"compute.{method}", 503, times=2)
        gcp.rest.fail(f"compute.{method}", 0, after=True)
    assert runner.run().step is Step.RUNNING
    gcp.change(goal=Goal.REMOVED)
    for method in ("instances.delete", "disks.delete", "images.delete", "images.list"):
        gcp.rest.fail(f"compute.{method}", 500, times=12)
    assert runner.run().step is Step.REMOVED
    assert gcp.left() == {}

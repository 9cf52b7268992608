"""Deployments to simulated machines: real projects, planned and carried forward by the real engine."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from functions.clouds.local import LocalCloud
from functions.deploy.cloud import Cloud, Machine, Wait
from functions.deploy.engine import Engine
from functions.deploy.evidence import Attester, HttpChallenger, Verifier
from functions.deploy.planning import ChainSettings, Planner
from functions.deploy.record import CloudName, Deployment, Files, Goal, Lease, Step
from functions.deploy.runner import run_until_settled
from functions.deploy.steps import STEPS, Attested, BuiltPlan
from functions.deploy.work import LeasedWork
from functions.plan.standing import Standing
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.project import GlobalConfig
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.functions.plan.projects import write_os_image, write_project
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar

CloudT = TypeVar("CloudT", bound=Cloud)

WAIT_SECONDS = 30
_NOBODY = threading.Event()  # is never set


def now() -> int:
    return int(time.time())


def pause(_seconds: float = 0) -> None:
    """Let other processes run between two looks at them."""
    _NOBODY.wait(0.02)


def platform_of(deployment: Deployment) -> str:
    assert deployment.planned is not None
    return deployment.planned.platform


def wait_until(found: Callable[[], Any]) -> Any:
    """Return the first true answer of `found`, which is asked again and again."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (answer := found()):
        assert time.monotonic() < deadline, "waited in vain"
        pause()
    return answer


def write_gcp_project(directory: Path, gcp_config: dict[str, Any] | None = None, **fields: Any) -> Path:
    """Write a project for Google Cloud, whose image lies beside it."""
    config = {"project": "p", "instance_name": "web"} | (gcp_config or {})
    if not (directory.parent / "images").exists():
        write_os_image(directory.parent / "images")
    chosen = {"key_provider": "tpm", "gateway_enabled": False} | fields
    return write_project(directory, gcp_config=config, **chosen)


def write_nitro_project(place: Path, nitro_config: dict[str, Any] | None = None) -> Path:
    """Write a project whose enclave image is built from a layout in it."""
    config = {"image": "layout", "kernel": "kernel", "init": "init", "nsm_ko": "nsm.ko"} | (
        nitro_config or {}
    )
    write_project(place, platform="nitro", os_image=..., nitro_config=config)
    for name in ("kernel", "init", "nsm.ko"):
        (place / name).write_bytes(f"{name} bytes".encode())
    Layout(layer_tar(directory("etc"), file("app", b"#!/bin/sh\n", mode=0o755))).write(place / "layout")
    return place


class World(Generic[CloudT]):
    """A store, an engine and a cloud. What is deployed with it is removed at its end."""

    def __init__(
        self,
        place: Path,
        cloud: CloudT,
        verifier: Callable[[str], Verifier],
        name: CloudName = "local",
    ) -> None:
        self.place = place
        self.cloud = cloud
        self.name = name
        self.verifier = verifier
        self.store = SqliteStore(place / "deployments.db")
        self.blobs = FileBlobs(place / "blobs")
        self.http = HttpClient(DirectDialer())
        config = GlobalConfig(image_search_paths=(str(place / "images"),))
        self._planner = Planner(config, place / "cache", ChainSettings(), local=True)
        self._ahead = 0
        self.engine = Engine(self.store, self.blobs, {name: cloud}, self, clock=self.clock, holder="test")

    def clock(self) -> int:
        return now() + self._ahead

    # ---- StepTools ----

    def build(self, work: LeasedWork) -> BuiltPlan:
        return self._planner.build(work)

    def ask_approval(self, work: LeasedWork) -> Standing:
        return self._planner.ask_approval(work)

    def attest(self, deployment: Deployment, evidence_url: str) -> Attested:
        attester = Attester(self.verifier(platform_of(deployment)), HttpChallenger(self.http))
        return attester.attest(deployment, evidence_url)

    # ---- what tests do ----

    def create(self, project: Path, name: str = "web", **fields: Any) -> Deployment:
        """Store a new deployment of a project."""
        made = Deployment(
            name=name,
            uid=f"{name}-{time.monotonic_ns():x}",
            version=1,
            cloud=self.name,
            goal=Goal.RUNNING,
            step=Step.PREPARE,
            files=Files(project={"app.json": self.blobs.put((project / "app.json").read_bytes())}),
            created_at=now(),
            updated_at=now(),
            since=now(),
            settings={"directory": str(project)},
        )
        made = msgspec.structs.replace(made, **fields)
        self.store.create(made)
        return made

    def settle(self, name: str = "web", goal: Goal | None = None) -> Deployment:
        """Carry a deployment to where it rests."""
        if goal is not None:
            found = self.store.get(name)
            self.store.replace(
                msgspec.structs.replace(found, goal=goal, version=found.version + 1), found.version
            )

        def skip(seconds: float) -> None:
            self._ahead += int(seconds)
            pause()

        run_until_settled(self.engine, name, sleep=skip)
        return self.store.get(name)

    def planned_work(self, project: Path, name: str = "web", **fields: Any) -> LeasedWork:
        """Return a planned deployment in a runner's hands, for calls to the cloud alone."""
        made = self.create(project, name, lease=Lease("test", "token", now() + 3600), **fields)
        work = LeasedWork(self.store, self.blobs, made, self.clock)
        built = self.build(work)
        assert built.plan.outcome != "refused", built.plan.findings
        outcome = STEPS[Step.BUILD](work, self.cloud, self)
        work.save(step=Step.LAUNCH, **outcome.changes)
        return work

    def again(self, work: LeasedWork) -> LeasedWork:
        """Return the work of the next runner, which knows what the store knows."""
        return LeasedWork(self.store, self.blobs, self.store.get(work.deployment.name), self.clock)

    def evidence(self, work: LeasedWork, machine: Machine) -> Attested:
        return self.attest(work.deployment, machine.evidence_url)

    def close(self) -> None:
        for deployment in self.store.list():
            work = LeasedWork(self.store, self.blobs, deployment, self.clock)
            wait_until(lambda work=work: self.cloud.remove(work) is None)
        self.http.close()
        self.store.close()


def until_done(step: Callable[[LeasedWork], Any], work: LeasedWork) -> Any:
    """Call a method of the cloud until it does not ask to be called again."""
    found: list[Any] = []

    def done() -> bool:
        found[:] = [step(work)]
        return not isinstance(found[0], Wait)

    wait_until(done)
    return found[0]


@contextmanager
def world(place: Path, cloud: LocalCloud) -> Iterator[World[LocalCloud]]:
    place.mkdir(exist_ok=True)
    made = World(place, cloud, lambda platform: cloud.verifier(platform, now))
    try:
        yield made
    finally:
        made.close()

"""The runner is killed after every change of the cloud or the record; the next one must end the same way.

What only looks leaves nothing behind, so a kill there is a kill after the change before it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from functions.clouds.gcp_compute import Compute
from functions.clouds.gcp_images import Objects
from functions.clouds.gcp_tdx import GcpTdxCloud
from functions.deploy.cloud import Wait
from functions.deploy.record import Deployment, Event
from functions.google_api.credentials import anonymous_credentials
from functions.stores.sqlite import SqliteStore
from tests.functions.clouds.gcp_world import SHARED_IMAGES, World

READS = ("get", "list", "aggregated_list")
ENOUGH = 500
Method = Callable[[Any], Any]


class KilledError(BaseException):
    """The runner's end; nobody may catch it."""


class Fuse:
    """Kills after so many changes; at 0 it never does."""

    def __init__(self) -> None:
        self.left = 0
        self.seen = 0

    def burn(self) -> None:
        self.seen += 1
        if self.left == 0:
            return
        self.left -= 1
        if self.left == 0:
            raise KilledError


class FusedCompute(Compute):
    def __init__(self, fuse: Fuse, endpoint: str) -> None:
        super().__init__(anonymous_credentials, endpoint)
        self._fuse = fuse

    def call(self, service: str, method: str, what: str, **fields: Any) -> Any:
        answer = super().call(service, method, what, **fields)
        if method not in READS:
            self._fuse.burn()
        return answer


class FusedStore(SqliteStore):
    def __init__(self, fuse: Fuse, path: Path) -> None:
        super().__init__(path)
        self._fuse = fuse

    def replace(self, deployment: Deployment, expected: int, events: Sequence[Event] = ()) -> None:
        super().replace(deployment, expected, events)
        self._fuse.burn()


class FusedBucket:
    def __init__(self, fuse: Fuse, bucket: Objects) -> None:
        self._fuse = fuse
        self._bucket = bucket

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._bucket, name)
        if name in {"exists", "stat"}:
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            answer = method(*arguments, **named)
            self._fuse.burn()
            return answer

        return call


class Chaos:
    def __init__(self, gcp: World, directory: Path) -> None:
        self.gcp = gcp
        self.fuse = Fuse()
        self.compute = FusedCompute(self.fuse, gcp.rest.url)
        gcp.store.close()
        gcp.store = FusedStore(self.fuse, directory / "deployments.db")
        gcp.cloud = GcpTdxCloud(self.compute, self._bucket)

    def begin(self, number: int, keep: Collection[str] = ()) -> str:
        """Return the name of a new deployment in a project with nothing in it but `keep`."""
        for path, item in list(self.gcp.fake.items.items()):
            if item.name not in keep:
                del self.gcp.fake.items[path]
        name = f"app-{number}"
        self.gcp.create(name=name, uid=f"uid-{number}")
        return name

    def killed(self, at: int, method: Method, name: str) -> bool:
        """Call a method until it is done, or killed after `at` changes; then until it is done."""
        self.fuse.left = at
        was_killed = self._run(method, name)
        self.fuse.left = 0
        if was_killed:
            assert not self._run(method, name)
        return was_killed

    def cut(self, at: int, method: Method, name: str) -> bool:
        """Call a method until it is done or killed."""
        self.fuse.left = at
        was_killed = self._run(method, name)
        self.fuse.left = 0
        return was_killed

    def _run(self, method: Method, name: str) -> bool:
        for _ in range(ENOUGH):
            try:
                if not isinstance(method(self.gcp.work(name)), Wait):
                    return False
            except KilledError:
                return True
        raise AssertionError("it never ends")

    def _bucket(self, name: str) -> Any:
        return FusedBucket(self.fuse, self.gcp.bucket(name))


@pytest.fixture
def chaos(gcp: World, tmp_path: Path) -> Iterator[Chaos]:
    made = Chaos(gcp, tmp_path)
    yield made
    made.compute.close()


def whole(name: str) -> dict[str, list[str]]:
    """Return what one running deployment has."""
    return {
        "instance": [name],
        "disk": [name, f"{name}-data", f"{name}-shared"],
        "image": [f"{name}-shared"],
        "firewall": [f"{name}-allow-tcp-8090"],
        "object": [f"deployments/{name.replace('app', 'uid')}"],
    }


def left(gcp: World) -> dict[str, list[str]]:
    found = gcp.left()
    if "object" in found:
        found["object"] = [key.rpartition("/")[0] for key in found["object"]]
    return found


def test_a_launch_and_a_removal_killed_anywhere_end_as_if_they_were_not(chaos: Chaos) -> None:
    for at in range(1, ENOUGH):
        name = chaos.begin(at)
        launch = chaos.killed(at, chaos.gcp.cloud.launch, name)
        assert left(chaos.gcp) == whole(name)
        assert all(one.state == "present" for one in chaos.gcp.resources(name) if one.kind == "instance")
        removal = chaos.killed(at, chaos.gcp.cloud.remove, name)
        assert left(chaos.gcp) == {}
        assert {one.state for one in chaos.gcp.resources(name)} == {"gone"}
        if not launch and not removal:
            break
    assert at > 25  # so many changes make a launch


def test_a_launch_killed_anywhere_can_be_removed_at_once(chaos: Chaos) -> None:
    for at in range(1, ENOUGH):
        name = chaos.begin(at, SHARED_IMAGES)
        killed = chaos.cut(at, chaos.gcp.cloud.launch, name)
        chaos.gcp.until_done(chaos.gcp.cloud.remove, name)
        assert left(chaos.gcp) == {}
        if not killed:
            break


def test_a_redeployment_killed_anywhere_keeps_the_data_and_makes_one_machine(chaos: Chaos) -> None:
    gcp = chaos.gcp
    name = chaos.begin(1)
    gcp.launch(name)
    data = gcp.fake.find("disk", f"{name}-data").json["id"]
    for at in range(1, ENOUGH):
        before = gcp.fake.find("instance", name).json["id"]
        gcp.replan(f"{at:064x}", name)
        retired = chaos.killed(at, gcp.cloud.retire, name)
        assert left(gcp) == {"disk": [f"{name}-data"], "firewall": [f"{name}-allow-tcp-8090"]}
        launched = chaos.killed(at, gcp.cloud.launch, name)
        assert left(gcp) == whole(name)
        assert gcp.fake.find("disk", f"{name}-data").json["id"] == data
        assert gcp.fake.find("instance", name).json["id"] != before
        if not retired and not launched:
            break


def test_a_stop_and_a_start_killed_anywhere_end_stopped_and_started(chaos: Chaos) -> None:
    gcp = chaos.gcp
    name = chaos.begin(1)
    gcp.launch(name)
    for at in range(1, ENOUGH):
        stopped = chaos.killed(at, gcp.cloud.stop, name)
        assert gcp.fake.find("instance", name).json["status"] == "TERMINATED"
        started = chaos.killed(at, gcp.cloud.start, name)
        assert gcp.fake.find("instance", name).json["status"] == "RUNNING"
        if not stopped and not started:
            break
    assert at > 2

"""The runner is killed after every change of the cloud or the record; the next one must end the same way.

What only looks leaves nothing behind, so a kill there is a kill after the change before it. A change that is
made again, as deleting what is gone, kills only the first time: else nobody could ever get past it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.clouds.aws_nitro import GRACE_SECONDS
from functions.deploy.cloud import Wait
from functions.deploy.machine_claims import check_machine
from functions.deploy.record import Deployment, Event
from functions.stores.sqlite import SqliteStore
from tests.fakes.nitro_aws import NitroAws
from tests.functions.clouds.nitro_world import World, world

LOOKS = ("Describe", "Get", "Head", "List")
ENOUGH = 400
ONE_OF_EACH = {"instance": 1, "group": 1, "volume": 1, "object": 2}


class KilledError(BaseException):
    """The runner's end; nobody may catch it."""


class Fuse:
    """Kills the runner after each new change; `kills` says what they were. Unarmed it does nothing."""

    def __init__(self) -> None:
        self.is_armed = False
        self.kills: list[str] = []
        self._seen: set[tuple[str, bytes]] = set()

    def burn(self, change: str, detail: bytes) -> None:
        if self.is_armed and (change, detail) not in self._seen:
            self._seen.add((change, detail))
            self.kills.append(change)
            raise KilledError


class FusedStore(SqliteStore):
    def __init__(self, fuse: Fuse, path: Path) -> None:
        super().__init__(path)
        self._fuse = fuse

    def replace(self, deployment: Deployment, expected: int, events: Sequence[Event] = ()) -> None:
        super().replace(deployment, expected, events)
        self._fuse.burn("record", msgspec.json.encode(deployment.resources))


class Chaos:
    """A world whose store and clients burn the fuse."""

    def __init__(self, nitro: World, path: Path) -> None:
        self.nitro = nitro
        self.fuse = Fuse()
        self._asked = b""
        assert isinstance(nitro.store, SqliteStore)
        nitro.store.close()
        nitro.store = FusedStore(self.fuse, path)
        self._hooks = [
            (client.meta.events, name, hook)
            for client in nitro.clients.values()
            for name, hook in (("before-call", self._note), ("after-call", self._burn))
        ]
        for events, name, hook in self._hooks:
            events.register(name, hook, unique_id=f"chaos-{name}")

    def close(self) -> None:
        for events, name, hook in self._hooks:
            events.unregister(name, hook, unique_id=f"chaos-{name}")

    def _note(self, params: Any, **_: Any) -> None:
        body = params["body"] if isinstance(params["body"], dict | str | bytes) else ""
        self._asked = f"{params['url_path']} {body}".encode()

    def _burn(self, model: Any, http_response: Any, **_: Any) -> None:
        if http_response.status_code < 300 and not model.name.startswith(LOOKS):
            self.fuse.burn(model.name, self._asked)

    def until_done(self, method: Callable[[Any], Any]) -> Any:
        """Call one method until it is done, in a process of its own after each change."""
        for _ in range(ENOUGH):
            self.fuse.is_armed = True
            try:
                answer = method(self.nitro.work())
            except KilledError:
                continue
            finally:
                self.fuse.is_armed = False
            if not isinstance(answer, Wait):
                return answer
            self.nitro.now += answer.seconds
        raise AssertionError("it does not come to an end")


@pytest.fixture
def chaos(tmp_path: Path, nitro_server: NitroAws) -> Iterator[Chaos]:
    with world(tmp_path, nitro_server, ports=("8443:443",)) as nitro:
        nitro_server.pending = nitro_server.offline = nitro_server.slow = 1
        made = Chaos(nitro, tmp_path / "deployments.db")
        try:
            yield made
        finally:
            made.close()


def counts(nitro: World) -> dict[str, int]:
    return {kind: len(names) for kind, names in nitro.left().items()}


def test_a_life_with_a_kill_after_every_change_ends_as_one_without(chaos: Chaos) -> None:
    nitro, cloud = chaos.nitro, chaos.nitro.cloud
    check_machine(nitro.work().plan, chaos.until_done(cloud.launch))
    assert counts(nitro) == ONE_OF_EACH
    assert len(nitro.parent.enclaves()) == 1
    assert chaos.until_done(cloud.stop).status == "STOPPED"
    check_machine(nitro.work().plan, chaos.until_done(cloud.start))
    nitro.replan("d2" * 32, b"another")
    assert chaos.until_done(cloud.retire) is None
    check_machine(nitro.work().plan, chaos.until_done(cloud.launch))
    assert counts(nitro) == ONE_OF_EACH
    assert len(nitro.fake.orders) == 2
    assert chaos.until_done(cloud.remove) is None
    assert nitro.left() == {}
    assert set(nitro.states().values()) == {"gone"}
    assert len(chaos.fuse.kills) > 40
    assert set(chaos.fuse.kills) >= {
        "record",
        "PutObject",
        "CreateSecurityGroup",
        "AuthorizeSecurityGroupIngress",
        "RunInstances",
        "SendCommand",
        "StopInstances",
        "StartInstances",
        "TerminateInstances",
        "DeleteObject",
        "DeleteSecurityGroup",
    }


@pytest.mark.parametrize("kills", [3, 7, 10, 14])
def test_a_launch_that_was_killed_and_is_not_wanted_any_more_leaves_nothing(chaos: Chaos, kills: int) -> None:
    nitro, cloud = chaos.nitro, chaos.nitro.cloud
    while len(chaos.fuse.kills) < kills:
        chaos.fuse.is_armed = True
        with suppress(KilledError):
            assert isinstance(cloud.launch(nitro.work()), Wait)
    chaos.fuse.is_armed = False
    nitro.now += GRACE_SECONDS + 1
    assert chaos.until_done(cloud.remove) is None
    assert nitro.left() == {}
    assert len(nitro.fake.orders) <= 1

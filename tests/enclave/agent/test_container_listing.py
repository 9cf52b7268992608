"""The list of containers is read once for all who ask, and Health follows from it."""

import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from enclave.agent.container_listing import ContainerHealth, ContainerListing, judge
from enclave.agent.docker_engine import COMPOSE_PROJECT, Container, DockerEngine
from enclave.agent.docker_logs import LogMessage
from enclave.agent.log_query import LogRequest
from shared.errors import UnavailableError
from tests.enclave.agent.docker import FakeDocker, container, containers, fake_docker, refusal
from tests.enclave.event_log import PATIENCE
from tests.shared.refusal import refuses


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[FakeDocker]:
    with fake_docker(tmp_path) as daemon:
        yield daemon


def _of_compose(status: str = "Up 3 minutes", **changes: Any) -> Container:
    fields = {"names": ("/web",), "state": "running", "labels": {COMPOSE_PROJECT: "dstack"}, **changes}
    return Container(status=status, **fields)


@pytest.mark.parametrize(
    "found",
    [
        _of_compose(),
        _of_compose("Up 3 minutes (healthy)"),
        _of_compose("Up 3 minutes (Paused)", state="paused"),
        _of_compose("Exited (0) 2 hours ago", state="exited"),
        _of_compose("Exited (1) 2 hours ago", state="exited"),
    ],
)
def test_an_app_whose_checks_pass_is_healthy(found: Container) -> None:
    verdict = judge((found,))
    assert verdict.healthy
    assert not verdict.unhealthy


@pytest.mark.parametrize(
    "found",
    [
        _of_compose("Up 3 minutes (unhealthy)"),
        _of_compose("Up 3 seconds (health: starting)"),
        _of_compose("Restarting (1) 5 seconds ago", state="restarting"),
        _of_compose("Dead", state="dead"),
    ],
)
def test_an_app_with_a_sick_container_is_not(found: Container) -> None:
    verdict = judge((_of_compose(), found))
    assert not verdict.healthy
    assert [(one.name, one.status) for one in verdict.unhealthy] == [("web", found.status)]


def test_a_container_that_compose_did_not_start_is_not_judged() -> None:
    stranger = _of_compose("Up 3 minutes (unhealthy)", labels={})
    assert judge((_of_compose(), stranger)).healthy


def test_an_app_without_containers_is_not_healthy_yet() -> None:
    verdict = judge((_of_compose(labels=None),))
    assert not verdict.healthy
    assert [(one.name, one.status) for one in verdict.unhealthy] == [
        ("<compose>", "no container has been created yet")
    ]


def test_health_asks_the_engine(docker: FakeDocker) -> None:
    docker.answers_list(container(Status="Up 1 second (unhealthy)"))
    verdict = ContainerHealth(ContainerListing(DockerEngine(docker.path)), "docker-compose")()
    assert [one.name for one in verdict.unhealthy] == ["dstack-web-1"]


def test_an_engine_that_does_not_tell_is_not_healthy(docker: FakeDocker) -> None:
    docker.answers["/containers/json"] = refusal("500 Internal Server Error", "no disk")
    verdict = ContainerHealth(ContainerListing(DockerEngine(docker.path)), "docker-compose")()
    assert (verdict.healthy, verdict.error) == (False, "Docker responded with status code 500: no disk")


def test_a_script_is_healthy(docker: FakeDocker) -> None:
    assert ContainerHealth(ContainerListing(DockerEngine(docker.path)), "bash")().healthy
    assert not docker.asked


@pytest.mark.parametrize("runner", ["nerdctl-compose", None])
def test_what_nobody_watches_is_not_healthy(docker: FakeDocker, runner: str | None) -> None:
    verdict = ContainerHealth(ContainerListing(DockerEngine(docker.path)), runner)()
    assert (verdict.healthy, verdict.error) == (False, "no container engine is watched in this guest")


class HeldEngine:
    """Answers when a test says so."""

    def __init__(self) -> None:
        self.count = 0
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.error: UnavailableError | None = None

    async def containers(self) -> tuple[Container, ...]:
        self.count += 1
        self.asked.set()
        assert self.go_on.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return (Container(id=str(self.count)),)

    def logs(self, name: str, request: LogRequest) -> AsyncGenerator[LogMessage]:
        raise NotImplementedError(name, request)


class CountedLock:
    """A lock that tells how many came through it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.passed = threading.Semaphore(0)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()
        self.passed.release()


def _ask_together(listing: ContainerListing, engine: HeldEngine, pool: ThreadPoolExecutor) -> list[Any]:
    """Let five ask while the engine has not answered the first."""
    lock = CountedLock()
    listing._lock = lock  # type: ignore[assignment]
    asking = [pool.submit(listing.read) for _ in range(5)]
    for _ in asking:
        assert lock.passed.acquire(timeout=PATIENCE)
    engine.go_on.set()
    return asking


def test_those_who_ask_at_the_same_time_share_an_answer() -> None:
    engine = HeldEngine()
    listing = ContainerListing(engine)
    with ThreadPoolExecutor(5) as pool:
        answers = [one.result(PATIENCE) for one in _ask_together(listing, engine, pool)]
    assert answers == [(Container(id="1"),)] * 5
    assert listing.read() == (Container(id="2"),)


def test_those_who_ask_at_the_same_time_share_a_failure() -> None:
    engine = HeldEngine()
    engine.error = UnavailableError("docker.timeout", "the container engine did not answer")
    with ThreadPoolExecutor(5) as pool:
        for one in _ask_together(ContainerListing(engine), engine, pool):
            with refuses("docker.timeout", UnavailableError):
                one.result(PATIENCE)
    assert engine.count == 1


def test_a_failure_is_logged_once_where_an_empty_list_stands_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = ContainerListing(DockerEngine(tmp_path / "none.sock"))
    assert [listing.read_or_none() for _ in range(3)] == [None] * 3
    assert capsys.readouterr().out.count('"code": "docker.unreachable"') == 1


def test_a_failure_is_logged_again_once_the_engine_has_answered(
    docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = ContainerListing(DockerEngine(docker.path))
    fails = refusal("500 Internal Server Error", "no disk")
    for how in (fails, containers(), fails):
        docker.answers["/containers/json"] = how
        listing.read_or_none()
    assert capsys.readouterr().out.count('"code": "docker.status"') == 2

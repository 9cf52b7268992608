"""The container engine is asked over its socket, in bounded time and space."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from enclave.agent import docker_engine
from enclave.agent.docker_engine import Container, DockerEngine, is_container_name
from enclave.agent.docker_logs import LogMessage
from enclave.agent.log_query import LogRequest
from shared.errors import DstackError, ProtocolError, UnavailableError
from tests.enclave.agent.docker import (
    RAW,
    FakeDocker,
    answer,
    begin_log,
    container,
    fake_docker,
    frame,
    log,
    refusal,
    send_chunk,
)
from tests.enclave.event_log import PATIENCE
from tests.shared.refusal import refuses


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[FakeDocker]:
    with fake_docker(tmp_path) as daemon:
        yield daemon


def listed(docker: FakeDocker, **options: float) -> tuple[Container, ...]:
    return asyncio.run(DockerEngine(docker.path, **options).containers())


def logged(docker: FakeDocker, name: str = "web", request: LogRequest | None = None) -> list[LogMessage]:
    async def collect() -> list[LogMessage]:
        return [one async for one in DockerEngine(docker.path).logs(name, request or LogRequest())]

    return asyncio.run(collect())


def test_lists_all_containers(docker: FakeDocker) -> None:
    docker.answers_list(container(), container("/job", State="exited", Status="Exited (0) 2 hours ago"))
    web, job = listed(docker)
    assert (web.name, web.image, web.created, web.state, web.is_of_compose) == (
        "dstack-web-1",
        "nginx:1.27",
        1764000000,
        "running",
        True,
    )
    assert (job.name, job.status) == ("job", "Exited (0) 2 hours ago")
    assert docker.asked == ["/containers/json?all=true"]


def test_lists_containers_without_names_or_labels(docker: FakeDocker) -> None:
    docker.answers_list(container(Names=None, Labels=None, Id="abc"))
    (found,) = listed(docker)
    assert (found.name, found.is_of_compose) == ("abc", False)


def test_lists_a_thousand_containers(docker: FakeDocker) -> None:
    docker.answers_list(*(container(f"/web-{number}") for number in range(1000)))
    assert [one.name for one in listed(docker)] == [f"web-{number}" for number in range(1000)]


def test_reads_a_list_that_comes_in_chunks(docker: FakeDocker) -> None:
    docker.answers["/containers/json"] = log(b'[{"Id":', b'"x"}]', kind="application/json")
    assert listed(docker)[0].id == "x"


def test_reads_a_list_that_ends_with_the_connection(docker: FakeDocker) -> None:
    def run(peer: socket.socket) -> None:
        peer.sendall(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n[{"Id":"x"}]')

    docker.answers["/containers/json"] = run
    assert listed(docker)[0].id == "x"


def test_an_engine_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with refuses("docker.unreachable", UnavailableError):
        asyncio.run(DockerEngine(tmp_path / "none.sock").containers())


def test_an_engine_that_answers_nothing_is_given_up(docker: FakeDocker) -> None:
    released = threading.Event()
    docker.answers["/containers/json"] = lambda _peer: released.wait(PATIENCE)
    try:
        with refuses("docker.timeout", UnavailableError):
            listed(docker, seconds=0.05)
    finally:
        released.set()


def test_an_engine_that_never_finishes_is_given_up(docker: FakeDocker) -> None:
    def drip(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:  # until the client leaves
            peer.sendall(b" ")

    docker.answers["/containers/json"] = drip
    with refuses("docker.timeout", UnavailableError):
        listed(docker, seconds=0.05)


def _raw(data: bytes) -> Callable[[socket.socket], None]:
    return lambda peer: peer.sendall(data)


@pytest.mark.parametrize(
    ("how", "code", "kind"),
    [
        (answer(b"[{"), "docker.response.json", ProtocolError),
        (answer(b"{}"), "docker.response.json", ProtocolError),
        (answer(b'[{"Id":5}]'), "docker.response.json", ProtocolError),
        (answer(b'[{"Id":"\\ud800"}]'), "docker.response.json", ProtocolError),
        (answer(b'[{"Id":"\xff"}]'), "docker.response.json", ProtocolError),
        (answer(b'[{"Created":9223372036854775808}]'), "docker.response.json", ProtocolError),
        (answer(b"[" * 100_000), "docker.response.json", ProtocolError),
        (_raw(b"SSH-2.0-OpenSSH\r\n"), "docker.response.malformed", ProtocolError),
        (_raw(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000), "docker.response.head", ProtocolError),
        (_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n["), "docker.response.cut", UnavailableError),
        (
            _raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n["),
            "docker.response.cut",
            UnavailableError,
        ),
        (_raw(b""), "docker.response.cut", UnavailableError),
        (refusal("500 Internal Server Error", "no disk"), "docker.status", UnavailableError),
        (answer(b"oops", status="502 Bad Gateway"), "docker.status", UnavailableError),
    ],
)
def test_refuses_what_is_no_list(
    docker: FakeDocker, how: Callable[[socket.socket], None], code: str, kind: type[DstackError]
) -> None:
    docker.answers["/containers/json"] = how
    with refuses(code, kind):
        listed(docker)


def test_refuses_a_list_that_is_too_large(docker: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "MAX_LIST", 100)
    docker.answers_list(container())
    with refuses("docker.response.size", ProtocolError):
        listed(docker)


def test_asks_for_the_log_that_is_wanted(docker: FakeDocker) -> None:
    docker.answers_log("web", log(frame(b"hi\n")))
    request = LogRequest(since=5, until=9, tail="20", follow=True, timestamps=True, text=True)
    assert logged(docker, request=request) == [LogMessage("stdout", b"hi\n")]
    asked = urlsplit(docker.asked[0])
    assert asked.path == "/containers/web/logs"
    assert {name: one for name, (one,) in parse_qs(asked.query).items()} == {
        "stdout": "true",
        "stderr": "true",
        "since": "5",
        "until": "9",
        "tail": "20",
        "follow": "true",
        "timestamps": "true",
    }


def test_reads_frames_that_chunks_cut(docker: FakeDocker) -> None:
    whole = frame(b"one\n") + frame(b"two\n", 2)
    docker.answers_log("web", log(*(whole[index : index + 1] for index in range(len(whole)))))
    assert logged(docker) == [LogMessage("stdout", b"one\n"), LogMessage("stderr", b"two\n")]


def test_reads_a_terminals_output(docker: FakeDocker) -> None:
    docker.answers_log("web", log(b"$ ls\r\na", b" b\r\n", kind=RAW))
    assert logged(docker) == [LogMessage("console", b"$ ls\r\n"), LogMessage("console", b"a b\r\n")]


def test_reads_the_frames_of_an_older_engine(docker: FakeDocker) -> None:
    docker.answers_log("web", log(frame(b"hi\n", 2), kind=RAW))
    assert logged(docker) == [LogMessage("stderr", b"hi\n")]


def test_a_log_that_the_engine_refuses_is_refused_with_its_words(docker: FakeDocker) -> None:
    docker.answers_log("web", refusal("404 Not Found", "No such container: web"))
    with refuses("docker.status", UnavailableError) as caught:
        logged(docker)
    assert caught.value.message == "Docker responded with status code 404: No such container: web"


@pytest.mark.parametrize(
    "name", ["", "./a", "../images", "a/b", "a?all=true", "a b", "a\r\nX: y", "-a", "ä", "a" * 256, "%2e"]
)
def test_asks_the_engine_for_no_name_that_no_container_has(docker: FakeDocker, name: str) -> None:
    with refuses("docker.status", UnavailableError):
        logged(docker, name)
    assert not is_container_name(name)
    assert not docker.asked


def test_a_log_that_breaks_off_is_told_after_what_came(docker: FakeDocker) -> None:
    def run(peer: socket.socket) -> None:
        begin_log(peer)
        send_chunk(peer, frame(b"hi\n"))

    docker.answers_log("web", run)
    found = []

    async def collect() -> None:
        async with aclosing(DockerEngine(docker.path).logs("web", LogRequest())) as messages:
            async for one in messages:
                found.append(one)  # noqa: PERF401 - it fails in the middle

    with refuses("docker.response.cut", UnavailableError):
        asyncio.run(collect())
    assert found == [LogMessage("stdout", b"hi\n")]


def test_the_time_for_its_beginning_does_not_run_while_a_log_is_read(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout, running = asyncio.timeout, []

    @asynccontextmanager
    async def watched(seconds: float) -> AsyncIterator[None]:
        running.append(seconds)
        async with timeout(seconds):
            yield
        running.remove(seconds)

    monkeypatch.setattr(docker_engine.asyncio, "timeout", watched)
    docker.answers_log("web", log(frame(b"one")))

    async def first() -> tuple[LogMessage, list[float]]:
        async with aclosing(DockerEngine(docker.path).logs("web", LogRequest(follow=True))) as messages:
            return await anext(messages), list(running)

    assert asyncio.run(first()) == (LogMessage("stdout", b"one"), [])


def test_lets_go_of_a_log_that_is_not_read_on(docker: FakeDocker) -> None:
    def run(peer: socket.socket) -> None:
        begin_log(peer)
        while True:  # until the client leaves
            send_chunk(peer, frame(b"more\n"))

    docker.answers_log("web", run)

    async def first() -> LogMessage:
        async with aclosing(DockerEngine(docker.path).logs("web", LogRequest(follow=True))) as messages:
            return await anext(messages)

    assert asyncio.run(first()).message == b"more\n"
    assert docker.left.acquire(timeout=PATIENCE)

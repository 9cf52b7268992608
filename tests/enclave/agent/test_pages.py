"""The external port's pages behind their gates, on a running agent (spec guest-agent section 4)."""

import base64
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from msgspec.structs import replace

from enclave.agent import pages, serving
from enclave.agent.container_listing import ContainerListing
from enclave.agent.dashboard import TCB_IS_PRIVATE
from enclave.agent.docker_engine import DockerEngine
from enclave.agent.network_info import NetworkReader
from enclave.agent.pages import Observed
from enclave.agent.system_info import SystemReader
from tests.enclave.agent.agents import RunningAgent, app_compose, running, tdx_attestor
from tests.enclave.agent.docker import (
    RAW,
    FakeDocker,
    begin_log,
    container,
    fake_docker,
    frame,
    log,
    refusal,
    send_chunk,
)
from tests.enclave.agent.machines import lay_machine, statvfs
from tests.enclave.agent.test_dashboard import HOSTILE, StrictPage
from tests.enclave.agent.test_prometheus import parse
from tests.enclave.event_log import PATIENCE

PUBLIC = {"public_logs": True, "public_sysinfo": True}
UNHURRIED = replace(serving.LIMITS, request_seconds=3600.0, stall_seconds=3600.0)


class Site:
    """A running agent and the daemon that it asks."""

    def __init__(self, agent: RunningAgent, docker: FakeDocker) -> None:
        self.agent, self.docker = agent, docker

    def get(self, path: str) -> httpx.Response:
        return self.agent.client("c").get(path)

    def log(self, query: str, *messages: bytes) -> httpx.Response:
        """Ask for the log of a container that wrote these."""
        self.docker.answers_log("web", log(*map(frame, messages)))
        return self.get(f"/logs/web?{query}")


Open = Callable[..., Site]


@contextmanager
def sites(directory: Path) -> Iterator[Open]:
    """Give a function that runs an agent by its app-compose."""
    with ExitStack() as running_things:

        def start(**changes: Any) -> Site:
            compose = app_compose(**changes)
            docker = running_things.enter_context(fake_docker(directory))
            engine = DockerEngine(docker.path)
            (machine := directory / "machine").mkdir()
            system = SystemReader(["/"], root=lay_machine(machine), statvfs=statvfs)
            network = NetworkReader(root=machine, addresses=lambda: (), wg=str)
            observed = Observed(engine, ContainerListing(engine), system, network)
            attestor = tdx_attestor(directory, compose)
            agent = running_things.enter_context(running(directory, attestor, compose, observed=observed))
            return Site(agent, docker)

        yield start


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Open]:
    with sites(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def public_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with sites(tmp_path_factory.mktemp("public")) as start:
        yield start(**PUBLIC)


@pytest.fixture
def public(public_site: Site) -> Site:
    """An agent whose app opens everything, and a daemon that has not been asked yet."""
    public_site.docker.forget()
    return public_site


def test_an_app_that_opens_nothing_shows_who_it_is_and_its_containers(site: Open) -> None:
    private = site()
    private.docker.answers_list(container("/web"))
    response = private.get("/")
    found = StrictPage(response.text)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert found.row("App name") == "wörld"
    assert found.row("App ID") == "07" * 20
    assert found.row("Cloud vendor") == "Acme"
    assert found.row("web") == "Up 3 minutes"
    assert not found.links


def test_an_app_that_opens_nothing_shows_nothing_of_its_machine(site: Open) -> None:
    assert "Xeon" not in site().get("/").text


def test_an_app_with_public_sysinfo_shows_its_machine(site: Open) -> None:
    found = StrictPage(site(public_sysinfo=True).get("/").text)
    assert found.row("OS") == "dstack 0.5.4"
    assert not found.links


def test_an_app_with_public_logs_links_them(site: Open) -> None:
    public = site(public_logs=True)
    public.docker.answers_list(container("/web"))
    page = public.get("/").text
    assert StrictPage(page).links == ["/logs/web?text&bare&timestamps&follow&tail=20"]
    assert "Xeon" not in page


def test_tcb_info_is_shown_unless_the_app_keeps_it(site: Open) -> None:
    public = site()
    shown = StrictPage(public.get("/").text).area
    assert shown is not None
    assert json.loads(shown) == json.loads(public.agent.guest.tcb_info)


def test_an_app_that_keeps_its_tcb_info_says_so(site: Open) -> None:
    private = site(public_tcbinfo=False)
    found = StrictPage(private.get("/").text)
    assert TCB_IS_PRIVATE in found.text
    assert "rtmr" not in found.text


def test_the_page_of_hostile_containers_is_text(public: Site) -> None:
    public.docker.answers_list(*(container("/" + text, Status=text, Image=text) for text in HOSTILE))
    found = StrictPage(public.get("/").text)
    assert not found.links
    assert [text for text in found.cells if text in HOSTILE] == [text for text in HOSTILE for _ in range(2)]


def test_the_page_shows_a_thousand_containers(public: Site) -> None:
    public.docker.answers_list(*(container(f"/web-{number}") for number in range(1000)))
    assert len(StrictPage(public.get("/").text).links) == 1000


def test_the_page_of_a_guest_whose_engine_fails_has_no_containers(public: Site) -> None:
    public.docker.answers["/containers/json"] = refusal("500 Internal Server Error", "no disk")
    response = public.get("/")
    assert response.status_code == 200
    assert "no disk" not in response.text


def test_a_slow_engine_holds_up_no_other_method(public: Site) -> None:
    go_on = threading.Event()
    public.docker.answers["/containers/json"] = lambda _peer: go_on.wait(PATIENCE)
    with public.agent.connect("c") as waiting:
        waiting.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert public.docker.arrived.acquire(timeout=PATIENCE)
        assert public.agent.call("c", "/prpc/Worker.Version")["version"]
        go_on.set()
        assert waiting.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/", "/metrics", "/logs/web", "/logs/web?since=x"])
def test_every_page_runs_and_loads_nothing(public: Site, path: str) -> None:
    public.docker.answers_log("web", log(frame(b"hi\n")))
    headers = public.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-app-version"]


@pytest.mark.parametrize("path", ["/metrics", "/logs/web", "/logs/web?text&bare"])
def test_n74_a_private_app_has_no_such_page(site: Open, path: str) -> None:
    private = site()
    assert private.get(path).status_code == 404
    assert not private.docker.asked


def test_n74_logs_are_private_where_only_sysinfo_is_public(site: Open) -> None:
    public = site(public_sysinfo=True)
    assert public.get("/metrics").status_code == 200
    assert public.get("/logs/web").status_code == 404


def test_sysinfo_is_private_where_only_logs_are_public(site: Open) -> None:
    public = site(public_logs=True)
    assert public.get("/metrics").status_code == 404
    assert public.log("", b"hi\n").status_code == 200


@pytest.mark.parametrize("path", ["/metrics/", "/logs", "/logs/", "/logs/web/", "/logs/a%2Fb", "/index.html"])
def test_other_paths_are_no_pages(public: Site, path: str) -> None:
    assert public.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/metrics", "/logs/web"])
def test_pages_are_read_only(public: Site, path: str) -> None:
    assert public.agent.client("c").post(path).status_code == 405


def test_a_guest_without_app_compose_opens_nothing(tmp_path: Path, app_enclave) -> None:
    with fake_docker(tmp_path) as docker:
        engine = DockerEngine(docker.path)
        observed = Observed(engine, ContainerListing(engine), SystemReader(["/"]), NetworkReader())
        with running(tmp_path, app_enclave.attestor, b"", vm_config="", observed=observed) as agent:
            site = Site(agent, docker)
            assert StrictPage(site.get("/").text).row("App name") == ""
            assert site.get("/metrics").status_code == site.get("/logs/web").status_code == 404


def test_metrics_are_prometheus_text(public: Site) -> None:
    public.docker.answers_list(container())
    response = public.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    page = parse(response.text)
    assert page.value("system_uptime") == 4125
    assert page.value("dstack_guest_containers", state="running") == 1


def test_metrics_of_a_guest_whose_engine_fails_say_so(public: Site) -> None:
    public.docker.answers["/containers/json"] = refusal("500 Internal Server Error", "no disk")
    assert parse(public.get("/metrics").text).value("dstack_guest_container_engine_up") == 0


def test_a_log_is_lines_of_json(public: Site) -> None:
    response = public.log("", b"one\n", b"two\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert [json.loads(line) for line in response.text.splitlines()] == [
        {"channel": "stdout", "message": base64.b64encode(text).decode()} for text in (b"one\n", b"two\n")
    ]


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("text", b'{"channel":"stdout","message":"\\u001b[1mhi\\u001b[0m\\n"}\n'),
        ("bare", base64.b64encode(b"\x1b[1mhi\x1b[0m\n")),
        ("text&bare", b"hi\n"),
        ("text=true&bare=true&ansi=false", b"hi\n"),
        ("text&bare&ansi", b"\x1b[1mhi\x1b[0m\n"),
        ("bare&ansi", base64.b64encode(b"\x1b[1mhi\x1b[0m\n")),
    ],
)
def test_a_log_comes_in_the_form_that_is_asked_for(public: Site, query: str, body: bytes) -> None:
    assert public.log(query, b"\x1b[1mhi\x1b[0m\n").content == body


def test_a_log_of_markup_is_plain_text(public: Site) -> None:
    response = public.log("text&bare", b"<script>alert(1)</script>\n")
    assert response.text == "<script>alert(1)</script>\n"
    assert response.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"since": "0", "until": "0", "tail": "1000", "follow": "false", "timestamps": "false"}),
        ("since=5&until=9", {"since": "5", "until": "9"}),
        ("since=&until=", {"since": "0", "until": "0"}),
        ("tail=20", {"tail": "20"}),
        ("tail=all", {"tail": "all"}),
        ("tail=1&tail=2", {"tail": "1"}),
        ("follow&timestamps", {"follow": "true", "timestamps": "true"}),
        ("follow=no&timestamps=false", {"follow": "false", "timestamps": "false"}),
        ("stdout=false&details=true", {"stdout": "true"}),
    ],
)
def test_a_log_is_asked_for_as_it_is_wanted(public: Site, query: str, expected: dict[str, str]) -> None:
    public.log(query)
    asked = parse_qs(urlsplit(public.docker.asked[-1]).query)
    assert {name: asked[name][0] for name in expected} == expected
    assert "details" not in asked


def test_a_time_that_is_long_ago_is_counted_from_now(public: Site) -> None:
    public.log("since=1h")
    assert int(parse_qs(urlsplit(public.docker.asked[-1]).query)["since"][0]) > 1_700_000_000


@pytest.mark.parametrize("field", ["since", "until"])
def test_a_bad_time_is_told_as_upstream_tells_it(public: Site, field: str) -> None:
    response = public.get(f"/logs/untimed?{field}=soon")
    assert (response.status_code, response.text) == (200, f'{{"error":"Invalid {field}"}}')
    # a follower that a test before has left may still be asked for
    assert not [path for path in public.docker.asked if "untimed" in path]


def test_a_bad_flag_is_refused(public: Site) -> None:
    response = public.get("/logs/web?follow=2")
    assert (response.status_code, response.text) == (422, '{"error":"Invalid follow"}')


@pytest.mark.parametrize("name", ["gone", "a%20b", "%2e%2e", "a%0d%0aX:y", "a%3Fb", "%3Cb%3E"])
def test_a_container_that_is_not_there_is_told_as_upstream_tells_it(public: Site, name: str) -> None:
    public.docker.answers_log("gone", refusal("404 Not Found", "No such container: gone"))
    response = public.get(f"/logs/{name}")
    assert response.status_code == 200
    assert response.json()["error"].startswith("Docker responded with status code 404: No such container: ")


def test_an_engine_that_is_not_there_is_told(site: Open) -> None:
    public = site(public_logs=True)
    os.rename(public.docker.path, public.docker.path.with_name("moved"))  # noqa: PTH104 - a socket
    assert public.get("/logs/web").json()["error"].startswith("no container engine answers on ")


def test_a_log_that_breaks_off_ends_with_an_error(public: Site) -> None:
    def cut(peer: socket.socket) -> None:
        begin_log(peer)
        send_chunk(peer, frame(b"hi\n"))

    public.docker.answers_log("web", cut)
    assert public.get("/logs/web?text&bare").text == (
        'hi\n{"error":"the peer ended its side in the middle of an answer"}'
    )


def test_a_terminals_log_is_of_the_console(public: Site) -> None:
    public.docker.answers_log("web", log(b"$ ls\r\n", kind=RAW))
    assert public.get("/logs/web?text").json() == {"channel": "console", "message": "$ ls\r\n"}


class Follower:
    """A container that writes when a test says so, and its reader."""

    def __init__(self, site: Site, query: str = "text&bare&follow") -> None:
        self._go_on = threading.Semaphore(0)
        self._pieces: list[bytes] = []
        site.docker.answers_log("web", self._write)
        self.reader = site.agent.connect("c")
        self.reader.sendall(f"GET /logs/web?{query} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        self._read = b""

    def write(self, *pieces: bytes) -> None:
        """Write lines; none ends the log."""
        self._pieces += pieces or (b"",)
        for _ in pieces or (b"",):
            self._go_on.release()

    def read_until(self, text: bytes) -> bytes:
        """Return what came, once `text` is in it."""
        while text not in self._read:
            data = self.reader.recv(1 << 16)
            assert data
            self._read += data
        return self._read

    def forget(self) -> None:
        """Forget what came so far."""
        self._read = b""

    def _write(self, peer: socket.socket) -> None:
        begin_log(peer)
        threading.Thread(target=self._await_end, args=(peer,), daemon=True).start()
        while self._go_on.acquire(timeout=PATIENCE):
            piece = self._pieces.pop(0)
            send_chunk(peer, frame(piece) if piece else b"")
            if not piece:
                return

    def _await_end(self, peer: socket.socket) -> None:
        """End the log when the agent has let go of it."""
        with suppress(OSError):
            peer.recv(1)
        self.write()


def test_a_follower_gets_each_line_when_it_is_written(public: Site) -> None:
    follower = Follower(public)
    with follower.reader:
        follower.write(b"one\n")
        assert b"one\n" in follower.read_until(b"one\n")
        follower.write(b"two\n")
        follower.read_until(b"two\n")
        follower.write()
        follower.read_until(b"\r\n0\r\n\r\n")


def test_a_half_closed_reader_gets_the_whole_log(public: Site) -> None:
    follower = Follower(public, "text&bare")
    with follower.reader:
        follower.read_until(b"\r\n\r\n")
        follower.reader.shutdown(socket.SHUT_WR)
        follower.write(b"one\n")
        follower.read_until(b"one\n")
        follower.write()
        follower.read_until(b"\r\n0\r\n\r\n")
        assert follower.reader.recv(1) == b""


def test_a_follower_that_ended_its_side_waits_for_no_more(public: Site) -> None:
    """A reader that has closed looks no other, until something is written to it."""
    follower = Follower(public)
    with follower.reader:
        follower.write(b"one\n")
        follower.read_until(b"one\n")
        follower.reader.shutdown(socket.SHUT_WR)
        follower.read_until(b"\r\n0\r\n\r\n")
        assert follower.reader.recv(1) == b""
    follower.write()


def test_a_follower_that_ended_its_side_before_the_first_line_waits_for_none(public: Site) -> None:
    follower = Follower(public)
    with follower.reader:
        follower.reader.shutdown(socket.SHUT_WR)
        follower.read_until(b"\r\n0\r\n\r\n")
    follower.write()


def test_a_followed_log_ends_whole_when_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nothing else ends it: no time is granted that this test could wait for
    monkeypatch.setattr(
        serving, "LIMITS", replace(serving.LIMITS, request_seconds=3600.0, stall_seconds=3600.0)
    )
    with sites(tmp_path) as start:
        follower = Follower(start(**PUBLIC))
        follower.write(b"one\n")
        follower.read_until(b"one\n")
    with follower.reader:
        follower.read_until(b"\r\n0\r\n\r\n")
    follower.write()


def test_a_server_that_stops_waits_for_no_follower_that_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        serving, "LIMITS", replace(serving.LIMITS, request_seconds=3600.0, stall_seconds=3600.0)
    )
    with ExitStack() as held, sites(tmp_path) as start:
        public = start(**PUBLIC)
        full = _flood(public)
        reader = held.enter_context(public.agent.connect("c"))
        reader.sendall(b"GET /logs/web?text&bare&follow HTTP/1.1\r\nhost: a\r\n\r\n")
        assert full.acquire(timeout=PATIENCE)
        # the server has ended, or its thread would have been found alive


def test_the_engine_is_let_go_when_its_reader_leaves(public: Site) -> None:
    def write_on(peer: socket.socket) -> None:
        begin_log(peer)
        while True:  # until the agent leaves
            send_chunk(peer, frame(b"more\n"))

    public.docker.answers_log("web", write_on)
    with public.agent.connect("c") as reader:
        reader.sendall(b"GET /logs/web?follow HTTP/1.1\r\nhost: a\r\n\r\n")
        assert public.docker.arrived.acquire(timeout=PATIENCE)
        assert reader.recv(1 << 16)
    assert public.docker.left.acquire(timeout=PATIENCE)


def test_the_engine_is_let_go_when_the_reader_of_a_silent_container_is_cut_off(public: Site) -> None:
    def say_nothing(peer: socket.socket) -> None:
        begin_log(peer)
        assert peer.recv(1) == b""

    public.docker.answers_log("web", say_nothing)
    with public.agent.connect("c") as reader:
        reader.sendall(b"GET /logs/web?follow HTTP/1.1\r\nhost: a\r\n\r\n")
        assert public.docker.arrived.acquire(timeout=PATIENCE)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leave by a reset
    assert public.docker.left.acquire(timeout=PATIENCE)


def _flood(site: Site) -> threading.Semaphore:
    """Have a container write for ever; return what is released when nobody takes it any more."""
    full = threading.Semaphore(0)

    def flood(peer: socket.socket) -> None:
        begin_log(peer)
        peer.settimeout(0.2)
        try:
            while True:
                send_chunk(peer, frame(b"x" * 65536))
        except TimeoutError:
            full.release()
            raise BrokenPipeError from None

    site.docker.answers_log("web", flood)
    return full


def test_a_reader_that_reads_nothing_stops_the_engine_from_sending(public: Site) -> None:
    full = _flood(public)
    with public.agent.connect("c") as reader:
        reader.sendall(b"GET /logs/web?text&bare&follow HTTP/1.1\r\nhost: a\r\n\r\n")
        assert full.acquire(timeout=PATIENCE)


def test_a_log_of_a_silent_container_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pages.page_routes, "__kwdefaults__", {**pages.page_routes.__kwdefaults__, "idle_seconds": 0.05}
    )
    with sites(tmp_path) as start:
        follower = Follower(start(**PUBLIC))
        with follower.reader:
            follower.write(b"one\n")
            follower.read_until(b"\r\n0\r\n\r\n")
        follower.write()


def test_there_are_so_many_logs_at_once_and_no_more(public: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_LOGS", 1)
    follower = Follower(public, "text&bare")  # one that ends by itself
    with follower.reader:
        follower.read_until(b"\r\n\r\n")
        response = public.get("/logs/web")
        assert response.status_code == 503
        assert response.json() == {"error": "1 logs are being read already: try again later"}
        follower.write()
        follower.read_until(b"\r\n0\r\n\r\n")
    assert public.log("text&bare", b"hi\n").text == "hi\n"


def test_the_followed_log_that_is_silent_for_longest_makes_room(
    public: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_LOGS", 2)
    with ExitStack() as readers:
        followers = []
        for _ in range(2):
            followers.append(follower := Follower(public))
            readers.enter_context(follower.reader)
            assert public.docker.arrived.acquire(timeout=PATIENCE)  # it gets this one's container
        first, second = followers
        for follower in (first, second, first):  # the second one is the silent one in the end
            follower.write(b"line\n")
            follower.read_until(b"line\n")
            follower.forget()
        assert public.log("text&bare", b"hi\n").text == "hi\n"
        second.read_until(b"0\r\n\r\n")
        first.write(b"more\n")
        first.read_until(b"more\n")
    first.write()
    second.write()


def test_health_is_that_of_the_containers(public: Site) -> None:
    public.docker.answers_list(container("/web", Status="Up 1 second (health: starting)"))
    assert public.agent.call("c", "/prpc/v1/Worker.Health") == {
        "healthy": False,
        "unhealthy": [{"name": "web", "status": "Up 1 second (health: starting)"}],
        "error": "",
    }


def test_health_does_not_open_what_the_app_keeps(site: Open) -> None:
    private = site()
    private.docker.answers_list(container())
    assert private.agent.call("c", "/prpc/v1/Worker.Health")["healthy"]

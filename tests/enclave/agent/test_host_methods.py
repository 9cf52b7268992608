"""What the host may ask of a guest (spec guest-agent section 2.12)."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave.agent import host_methods
from enclave.agent.container_listing import ContainerListing
from enclave.agent.docker_engine import DockerEngine
from enclave.agent.host_methods import Shutdown, systemd_power_off
from enclave.agent.network_info import Address, NetworkReader
from enclave.agent.pages import Observed
from enclave.agent.system_info import SystemReader
from shared.errors import UnavailableError
from tests.enclave.agent.agents import RunningAgent, app_compose, running, tdx_attestor
from tests.enclave.agent.docker import FakeDocker, container, fake_docker, refusal
from tests.enclave.agent.machines import lay_machine, statvfs
from tests.enclave.event_log import PATIENCE


class Power:
    """A host that is told, and a switch; both keep what came, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.switched = threading.Semaphore(0)
        self.error: UnavailableError | None = None

    def notify(self, event: str, payload: str) -> None:
        self.log.append((event, payload))

    def off(self) -> None:
        self.log.append(("off",))
        self.switched.release()
        if self.error is not None:
            raise self.error


@pytest.fixture
def power() -> Power:
    return Power()


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[FakeDocker]:
    with fake_docker(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def agent(tmp_path: Path, docker: FakeDocker, power: Power) -> Iterator[RunningAgent]:
    compose = app_compose()
    engine = DockerEngine(docker.path)
    (root := tmp_path / "machine").mkdir()
    lay_machine(root)
    observed = Observed(
        engine,
        ContainerListing(engine),
        SystemReader(["/"], root=root, statvfs=statvfs),
        NetworkReader(root=root, addresses=lambda: [Address(2, "10.0.2.15", 24)], wg=lambda: "interface: wg"),
    )
    shutdown = Shutdown(power, power.off)
    attestor = tdx_attestor(tmp_path, compose)
    with running(tmp_path, attestor, compose, observed=observed, shutdown=shutdown) as found:
        yield found


def test_tells_of_its_system_whatever_everybody_may_know(agent: RunningAgent) -> None:
    found = agent.call("d", "/api/SysInfo")
    assert (found["os_name"], found["num_cpus"], found["uptime"], found["loadavg_five"]) == (
        "dstack",
        2,
        4125,
        125,
    )
    assert found["disks"] == [
        {"name": "overlay", "mount_point": "/", "total_size": 4096000, "free_size": 1024000}
    ]


def test_tells_of_its_network(agent: RunningAgent) -> None:
    found = agent.call("d", "/api/NetworkInfo")
    assert found["dns_servers"] == ["10.0.2.3", "fd00::3"]
    assert found["gateways"] == [{"address": "10.0.2.2"}, {"address": "fe80::2"}]
    assert found["wg_info"] == "interface: wg"
    assert found["interfaces"][-1] == {
        "name": "eth0",
        "addresses": [{"address": "10.0.2.15", "prefix": 24}],
        "rx_bytes": 2000,
        "tx_bytes": 2001,
        "rx_errors": 2002,
        "tx_errors": 2003,
    }


def test_tells_of_its_containers(agent: RunningAgent, docker: FakeDocker) -> None:
    docker.answers_list(container())
    assert agent.call("d", "/api/ListContainers") == {
        "containers": [
            {
                "id": "8dfafdbc3a40f1d7b1e9a1b6f0c3e4e5a4b0c1d2e3f405162738495a6b7c8d9e",
                "names": ["/dstack-web-1"],
                "image": "nginx:1.27",
                "image_id": "sha256:" + "ab" * 32,
                "created": 1764000000,
                "state": "running",
                "status": "Up 3 minutes",
            }
        ]
    }


def test_an_engine_that_fails_lists_nothing(agent: RunningAgent, docker: FakeDocker) -> None:
    docker.answers["/containers/json"] = refusal("500 Internal Server Error", "no disk")
    assert agent.call("d", "/api/ListContainers") == {"containers": []}


def test_the_host_gets_no_logs_and_no_pages(agent: RunningAgent) -> None:
    client = agent.client("d")
    assert {client.get(path).status_code for path in ("/", "/metrics", "/logs/web", "/api/logs/web")} == {404}


def test_everybody_else_gets_no_methods_of_the_host(agent: RunningAgent) -> None:
    for mount, path in (
        ("a", "/Shutdown"),
        ("b", "/prpc/Shutdown"),
        ("c", "/prpc/Shutdown"),
        ("c", "/api/Shutdown"),
    ):
        assert agent.client(mount).post(path, json={}).status_code == 404


def test_shutdown_tells_the_host_and_powers_off(agent: RunningAgent, power: Power) -> None:
    response = agent.client("d").post("/api/Shutdown?json", json={})
    assert (response.status_code, response.text) == (200, "null")
    assert power.switched.acquire(timeout=PATIENCE)
    assert power.log == [("shutdown.progress", "powering off"), ("off",)]


def test_shutdown_is_answered_before_it_is_done(agent: RunningAgent, power: Power) -> None:
    go_on = threading.Event()
    notify = power.notify

    def held(event: str, payload: str) -> None:
        assert go_on.wait(PATIENCE)
        notify(event, payload)

    power.notify = held  # type: ignore[method-assign]
    assert agent.client("d").post("/api/Shutdown", json={}).status_code == 200
    assert agent.client("d").post("/api/Shutdown", json={}).status_code == 200
    go_on.set()
    assert power.switched.acquire(timeout=PATIENCE)
    assert power.log == [("shutdown.progress", "powering off"), ("off",)]


def test_a_shutdown_that_failed_is_logged(power: Power, capsys: pytest.CaptureFixture[str]) -> None:
    power.error = UnavailableError("agent.command.failed", "systemctl ended with 1: no words")
    before = set(threading.enumerate())
    Shutdown(power, power.off).begin()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
    assert "agent.command.failed" in capsys.readouterr().out


def test_power_is_systemds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(host_methods, "command_output", lambda *argv, seconds: asked.append((argv, seconds)))
    systemd_power_off()
    assert asked == [(("systemctl", "poweroff"), 10.0)]

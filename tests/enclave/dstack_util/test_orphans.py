"""`remove-orphans` finds what `enclave.compose.orphans` is tested to find, by its options."""

import json
from pathlib import Path

import pytest

from enclave.dstack_util.main import run
from enclave.dstack_util.tools import Tools
from enclave.platform import Platform
from enclave.tee.nitro import NitroTee
from tests.enclave.dstack_util.machine import RecordedMachine

GONE = "b" * 64


class Docker:
    """A docker that lists one container of a service that is gone."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []

    def run(self, command, **_how: object) -> int:
        self.ran.append(tuple(command))
        return 0

    def output(self, command, **_how: object) -> bytes:
        self.ran.append(tuple(command))
        return f"{GONE} old\n".encode()


@pytest.fixture
def compose(tmp_path: Path) -> Path:
    (directory := tmp_path / "Dstack App").mkdir()
    path = directory / "docker-compose.yaml"
    path.write_text("services:\n  web:\n    image: x\n")
    return path


@pytest.fixture
def container(tmp_path: Path) -> Path:
    path = tmp_path / "docker/containers" / GONE
    path.mkdir(parents=True)
    labels = {"com.docker.compose.project": "dstackapp", "com.docker.compose.service": "old"}
    (path / "config.v2.json").write_text(json.dumps({"Config": {"Labels": labels}}))
    return path


def _run(tmp_path: Path, *argv: str) -> tuple[int, Docker]:
    docker = Docker()
    tools = Tools(None, machine=RecordedMachine(tmp_path / "machine"), programs=docker)
    return run(["remove-orphans", *argv], tools), docker


def test_without_dockerd_its_files_are_removed(
    tmp_path: Path, compose: Path, container: Path, capsys
) -> None:
    options = ("-f", str(compose), "--no-dockerd", "-d", str(container.parents[1]))
    code, docker = _run(tmp_path, *options)
    assert (code, docker.ran, container.exists()) == (0, [], False)
    assert json.loads(capsys.readouterr().out)["container"] == GONE


def test_a_dry_run_names_them_and_removes_nothing(
    tmp_path: Path, compose: Path, container: Path, capsys
) -> None:
    options = ("-f", str(compose), "-n", "--no-dockerd", "-d", str(container.parents[1]))
    assert _run(tmp_path, *options)[0] == 0
    assert container.exists()
    told = json.loads(capsys.readouterr().out)
    assert (told["container"], told["removed"]) == (GONE, False)


def test_a_running_docker_is_asked(tmp_path: Path, compose: Path) -> None:
    code, docker = _run(tmp_path, "-f", str(compose))
    assert code == 0
    assert "label=com.docker.compose.project=dstackapp" in docker.ran[0]
    assert docker.ran[1] == ("docker", "rm", "--force", "--volumes", GONE)


def test_a_dry_run_asks_docker_for_its_list_alone(tmp_path: Path, compose: Path) -> None:
    assert len(_run(tmp_path, "-f", str(compose), "-n")[1].ran) == 1


def test_the_docker_of_the_machine_below_a_simulated_guest_is_not_asked(
    tmp_path: Path, compose: Path, capsys
) -> None:
    guest = Platform(tmp_path, tmp_path, NitroTee(None, None))  # type: ignore[arg-type]
    assert run(["remove-orphans", "-f", str(compose)], Tools(guest)) == 1
    assert "[dstack_util.simulated]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"a: 1\n", "services.missing"),
        (b"services: {}\n", "services.missing"),
        (b"name: '--'\nservices: {web: {}}\n", "compose.project"),
        (b"\xff", "compose.project"),
    ],
)
def test_refuses_a_file_that_says_not_what_is_wanted(
    tmp_path: Path, compose: Path, capsys, text: bytes, code: str
) -> None:
    compose.write_bytes(text)
    ended, docker = _run(tmp_path, "-f", str(compose))
    assert (ended, docker.ran) == (1, [])
    assert f"[{code}]" in capsys.readouterr().err

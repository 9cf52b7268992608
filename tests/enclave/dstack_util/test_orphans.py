"""Containers whose service is gone are removed, and no others (spec deploy section 6.1)."""

import io
import json
import shutil
from pathlib import Path

import pytest

from enclave.dstack_util.machine import Completed
from enclave.dstack_util.main import run
from enclave.dstack_util.tools import Tools
from tests.enclave.dstack_util.machine import RecordedMachine

KEPT, GONE, OTHER, FOREIGN = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


@pytest.fixture
def compose(tmp_path: Path) -> Path:
    directory = tmp_path / "Dstack App"
    directory.mkdir()
    path = directory / "docker-compose.yaml"
    path.write_text("services:\n  web:\n    image: x\n")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    containers = tmp_path / "docker/containers"
    for name, labels in {
        KEPT: {"com.docker.compose.project": "dstackapp", "com.docker.compose.service": "web"},
        GONE: {"com.docker.compose.project": "dstackapp", "com.docker.compose.service": "old"},
        OTHER: {"com.docker.compose.project": "other", "com.docker.compose.service": "old"},
        FOREIGN: None,
    }.items():
        (containers / name).mkdir(parents=True)
        (containers / name / "config.v2.json").write_text(json.dumps({"Config": {"Labels": labels}}))
    (containers / "no-container").mkdir()
    return containers.parent


def _run(tmp_path: Path, *argv: str) -> tuple[int, bytes, RecordedMachine]:
    machine, out = RecordedMachine(tmp_path / "machine"), io.BytesIO()
    listed = f"{KEPT} web\n{GONE} old\n{FOREIGN} \nnonsense\n"
    machine.answers["docker", "ps"] = Completed(0, listed.encode())
    code = run(["remove-orphans", *argv], Tools(None, machine=machine, stdout=out))
    return code, out.getvalue(), machine


def _left(root: Path) -> set[str]:
    return {path.name for path in (root / "containers").iterdir()}


def test_removes_the_files_of_a_container_whose_service_is_gone(
    tmp_path: Path, compose: Path, root: Path
) -> None:
    code, out, machine = _run(tmp_path, "-f", str(compose), "--no-dockerd", "-d", str(root))
    assert (code, out) == (0, b"bbbbbbbbbbbb old\n")
    assert _left(root) == {KEPT, OTHER, FOREIGN, "no-container"}
    assert machine.argv == []


def test_a_dry_run_removes_nothing(tmp_path: Path, compose: Path, root: Path) -> None:
    code, out, _machine = _run(tmp_path, "-f", str(compose), "-n", "--no-dockerd", "-d", str(root))
    assert (code, out) == (0, b"bbbbbbbbbbbb old\n")
    assert GONE in _left(root)


def test_follows_no_link_out_of_dockers_directory(tmp_path: Path, compose: Path, root: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (root / "containers" / GONE).rename(elsewhere)
    (root / "containers" / GONE).symlink_to(elsewhere)
    code, out, _machine = _run(tmp_path, "-f", str(compose), "--no-dockerd", "-d", str(root))
    assert (code, out) == (0, b"")
    assert elsewhere.is_dir()


def test_asks_a_running_docker(tmp_path: Path, compose: Path) -> None:
    code, out, machine = _run(tmp_path, "-f", str(compose))
    assert (code, out) == (0, b"bbbbbbbbbbbb old\n")
    assert "label=com.docker.compose.project=dstackapp" in machine.argv[0]
    assert machine.argv[1] == ("docker", "rm", "--force", GONE)


def test_a_container_that_cannot_be_removed_is_said(
    tmp_path: Path, compose: Path, root: Path, capsys, monkeypatch
) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    code, _out, _machine = _run(tmp_path, "-f", str(compose), "--no-dockerd", "-d", str(root))
    assert code == 1
    assert "[remove_orphans.write]" in capsys.readouterr().err


def test_a_machine_that_never_ran_docker_has_no_orphans(tmp_path: Path, compose: Path) -> None:
    code, out, _machine = _run(tmp_path, "-f", str(compose), "--no-dockerd", "-d", str(tmp_path / "none"))
    assert (code, out) == (0, b"")


@pytest.mark.parametrize("text", ["a: 1\n", "services: {}\n", "- a\n", "name: '--'\nservices: {web: {}}\n"])
def test_refuses_a_file_without_services(tmp_path: Path, compose: Path, capsys, text: str) -> None:
    compose.write_text(text)
    code, _out, machine = _run(tmp_path, "-f", str(compose))
    assert code == 1
    assert "[remove_orphans.compose]" in capsys.readouterr().err
    assert machine.argv == []

"""Containers of services that are gone, with and without dockerd."""

import json
import shutil
from pathlib import Path

import pytest

from enclave.compose.orphans import Project, read_project, remove_orphans_offline, remove_orphans_online
from enclave.compose.programs import GuestPrograms
from shared.errors import ConfigError, StorageError, UnavailableError
from tests.enclave.compose.conftest import SERVICES, Guest
from tests.shared.refusal import refuses

PROJECT = Project("dstack", frozenset({"web"}))


class DockerRoot:
    """A docker root with containers as dockerd writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "containers").mkdir(parents=True)

    def add(self, name: str, project: str | None, service: str | None) -> str:
        labels = {"com.docker.compose.project": project, "com.docker.compose.service": service}
        present = {label: value for label, value in labels.items() if value is not None}
        container = name * 64
        self.write(container, json.dumps({"ID": container, "Config": {"Labels": present, "Env": ["A=b"]}}))
        return container

    def write(self, container: str, config: str) -> None:
        directory = self.path / "containers" / container
        directory.mkdir()
        (directory / "config.v2.json").write_text(config)

    @property
    def containers(self) -> set[str]:
        return {path.name for path in (self.path / "containers").iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> DockerRoot:
    return DockerRoot(tmp_path / "docker")


def test_removes_what_the_project_no_longer_has(root: DockerRoot) -> None:
    kept = {root.add("a", "dstack", "web"), root.add("b", "other", "old"), root.add("c", None, None)}
    gone = {root.add("d", "dstack", "old"), root.add("e", "dstack", "older")}
    assert set(remove_orphans_offline(PROJECT, root.path)) == gone
    assert root.containers == kept


def test_a_dry_run_removes_nothing(root: DockerRoot) -> None:
    gone = root.add("d", "dstack", "old")
    assert remove_orphans_offline(PROJECT, root.path, dry_run=True) == (gone,)
    assert root.containers == {gone}


@pytest.mark.parametrize("config", ["", "[]", "{", '{"Config": 5}', '{"Config": {"Labels": ["a"]}}', "{}"])
def test_a_container_that_cannot_be_read_is_left(root: DockerRoot, config: str) -> None:
    root.write("f" * 64, config)
    assert remove_orphans_offline(PROJECT, root.path) == ()
    assert root.containers == {"f" * 64}


def test_a_container_that_names_no_service_is_left(root: DockerRoot) -> None:
    root.add("e", "dstack", None)
    assert remove_orphans_offline(PROJECT, root.path) == ()


def test_a_container_without_labels_is_left(root: DockerRoot) -> None:
    root.write("f" * 64, '{"Config": {"Labels": null}}')
    assert remove_orphans_offline(PROJECT, root.path) == ()


def test_what_is_no_containers_directory_is_left(root: DockerRoot, tmp_path: Path) -> None:
    elsewhere = DockerRoot(tmp_path / "elsewhere")
    gone = elsewhere.add("d", "dstack", "old")
    (root.path / "containers" / ("e" * 64)).symlink_to(elsewhere.path / "containers" / gone)
    (root.path / "containers" / "notes").mkdir()
    assert remove_orphans_offline(PROJECT, root.path) == ()
    assert elsewhere.containers == {gone}


def test_a_new_disk_has_no_containers(tmp_path: Path) -> None:
    assert remove_orphans_offline(PROJECT, tmp_path / "absent") == ()


def test_a_container_that_cannot_be_removed_is_told(
    root: DockerRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(30, "Read-only file system")

    root.add("d", "dstack", "old")
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with refuses("compose.orphans", StorageError):
        remove_orphans_offline(PROJECT, root.path)


def test_a_root_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    (tmp_path / "containers").touch()
    with refuses("compose.orphans", StorageError):
        remove_orphans_offline(PROJECT, tmp_path)


def test_docker_removes_them_with_their_volumes(guest: Guest) -> None:
    (guest.directory / "listing").write_text(
        f"{'a' * 64} web\n{'b' * 64} old\nnonsense\n{'c' * 64} \n{'d' * 64} older\n"
    )
    found = remove_orphans_online(PROJECT, GuestPrograms(), environment=guest.environment)
    assert found == ("b" * 64, "d" * 64)
    assert guest.calls[0].argv[:3] == ["docker", "ps", "--all"]
    assert "label=com.docker.compose.project=dstack" in guest.calls[0].argv
    assert guest.calls[1].argv == ["docker", "rm", "--force", "--volumes", "b" * 64, "d" * 64]


def test_docker_is_asked_to_remove_nothing_where_all_is_wanted(guest: Guest) -> None:
    (guest.directory / "listing").write_text(f"{'a' * 64} web\n")
    remove_orphans_online(PROJECT, GuestPrograms(), environment=guest.environment)
    (guest.directory / "listing").write_text(f"{'b' * 64} old\n")
    remove_orphans_online(PROJECT, GuestPrograms(), environment=guest.environment, dry_run=True)
    assert [call.argv[1] for call in guest.calls] == ["ps", "ps"]


@pytest.mark.parametrize(("word", "code"), [("ps", "compose.program.failed"), ("rm", "compose.orphans")])
def test_a_docker_that_fails_is_told(guest: Guest, word: str, code: str) -> None:
    (guest.directory / "listing").write_text(f"{'b' * 64} old\n")
    guest.fail(word)
    with refuses(code, UnavailableError):
        remove_orphans_online(PROJECT, GuestPrograms(), environment=guest.environment)


@pytest.mark.parametrize(
    ("text", "directory", "name"),
    [
        (SERVICES, "/dstack", "dstack"),
        (SERVICES, "/srv/_My.App-1", "myapp-1"),
        (f"name: shop\n{SERVICES}", "/dstack", "shop"),
    ],
)
def test_the_project_is_named_as_compose_names_it(text: str, directory: str, name: str) -> None:
    assert read_project(text, Path(directory)) == Project(name, frozenset({"web"}))


@pytest.mark.parametrize(
    ("text", "directory"),
    [
        (f"include: [other.yaml]\n{SERVICES}", "/dstack"),
        (f"name: ${{NAME}}\n{SERVICES}", "/dstack"),
        (f"name: Shop\n{SERVICES}", "/dstack"),
        (SERVICES, "/"),
    ],
)
def test_refuses_a_project_whose_services_or_name_are_decided_elsewhere(text: str, directory: str) -> None:
    with refuses("compose.project", ConfigError):
        read_project(text, Path(directory))

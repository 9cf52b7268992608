"""Plans of stored files: what was handed in is planned, and nothing else of the machine that plans."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.builder.blobs import BootBlob
from functions.deploy.planning import OS_IMAGE, ChainSettings, Planner
from functions.deploy.record import Deployment, Files, Lease
from functions.deploy.steps import BuiltPlan
from functions.deploy.work import LeasedWork
from functions.plan.enclave_builder import CachedBuilder
from functions.plan.service import PlanOptions, plan_deployment
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.project import GlobalConfig
from shared.errors import ConfigError, PolicyDenied, UnavailableError
from shared.measurement.eif import measure_eif
from tests.functions.clouds.local_deployments import write_nitro_project
from tests.functions.deploy.memory_cloud import NOW, some_deployment
from tests.functions.plan.projects import PINNED, FakeBuilder, write_os_image, write_project
from tests.shared.net.registry_stand_in import Registry
from tests.shared.refusal import refuses


class Desk:
    """A store with one deployment, whose files are those of a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = SqliteStore(place / "store.sqlite")
        self.blobs = FileBlobs(place / "blobs")

    def work(self, files: dict[str, bytes], **settings: Any) -> LeasedWork:
        stored = {name: self.blobs.put(content) for name, content in files.items()}
        deployment: Deployment = some_deployment(
            files=Files(project=stored), settings=settings, lease=Lease("test", "token", NOW + 60)
        )
        self.store.create(deployment)
        return LeasedWork(self.store, self.blobs, deployment, lambda: NOW)

    def build(self, work: LeasedWork, *, local: bool = False, paths: tuple[str, ...] = ()) -> BuiltPlan:
        config = GlobalConfig(image_search_paths=paths)
        planner = Planner(config, self.place / "cache", ChainSettings(), workspace=self.place, local=local)
        return planner.build(work)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def files_of(directory: Path, *names: str) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in names}


def os_image(place: Path) -> dict[str, bytes]:
    write_os_image(place / "images")
    image = place / "images" / "dstack-0.6.0"
    return {OS_IMAGE + path.name: path.read_bytes() for path in image.iterdir()}


def test_plans_what_was_handed_in_as_the_command_does(desk: Desk, tmp_path: Path) -> None:
    project = write_project(tmp_path / "web")
    files = files_of(project, "app.json", "docker-compose.yaml") | os_image(tmp_path)
    built = desk.build(desk.work(files))
    here = plan_deployment(
        project,
        GlobalConfig(image_search_paths=(str(tmp_path / "images"),)),
        PlanOptions(),
        build_enclave=FakeBuilder(),
    )
    assert msgspec.structs.replace(built.plan, findings=here.findings) == here
    assert built.config["app-compose.json"] == here.compose.text.encode()


def test_names_without_values_give_the_plan_that_the_values_give(desk: Desk, tmp_path: Path) -> None:
    project = write_project(tmp_path / "web")
    files = files_of(project, "app.json", "docker-compose.yaml") | os_image(tmp_path)
    (project / ".env").write_text("TOKEN=secret\n")
    built = desk.build(desk.work(files, env_names=["TOKEN"]))
    here = plan_deployment(
        project,
        GlobalConfig(image_search_paths=(str(tmp_path / "images"),)),
        PlanOptions(),
        build_enclave=FakeBuilder(),
    )
    assert built.plan.plan_id == here.plan_id


def test_an_os_image_on_the_machine_counts_where_none_is_brought(desk: Desk, tmp_path: Path) -> None:
    project = write_project(tmp_path / "web")
    os_image(tmp_path)
    work = desk.work(files_of(project, "app.json", "docker-compose.yaml"))
    assert desk.build(work, paths=(str(tmp_path / "images"),)).plan.image.source == "dstack-0.6.0"


@pytest.mark.parametrize("name", ["../images", "..", ".hidden", "/etc"])
def test_n06_an_os_image_is_not_unpacked_elsewhere(desk: Desk, tmp_path: Path, name: str) -> None:
    project = write_project(tmp_path / "web", os_image=name)
    files = files_of(project, "app.json", "docker-compose.yaml") | os_image(tmp_path)
    with refuses("plan.os_image.name", ConfigError):
        desk.build(desk.work(files))


def test_builds_the_enclave_image_of_a_project_on_this_machine(desk: Desk, tmp_path: Path) -> None:
    project = write_nitro_project(tmp_path / "web")
    files = files_of(project, "app.json", "docker-compose.yaml")
    built = desk.build(desk.work(files, directory=str(project)), local=True)
    with desk.blobs.open(built.image) as image:
        registers = measure_eif(image)
    assert registers.pcr0.hex() == built.plan.image.registers["PCR0"]


def test_a_project_that_changed_since_it_was_handed_in_is_refused(desk: Desk, tmp_path: Path) -> None:
    project = write_nitro_project(tmp_path / "web")
    work = desk.work(files_of(project, "app.json", "docker-compose.yaml"), directory=str(project))
    (project / "docker-compose.yaml").write_text("services: {}\n")
    with refuses("deploy.project.changed", ConfigError):
        desk.build(work, local=True)


def test_a_function_reads_no_directory_of_its_own(desk: Desk, tmp_path: Path) -> None:
    project = write_nitro_project(tmp_path / "web")
    files = files_of(project, "app.json", "docker-compose.yaml")
    work = desk.work(files, directory=str(project))
    with pytest.raises(ConfigError):
        desk.build(work)


def test_n06_a_function_builds_from_no_path_of_its_own(desk: Desk, tmp_path: Path) -> None:
    project = write_nitro_project(tmp_path / "web")
    document = json.loads((project / "app.json").read_text())
    layout = f"{project / 'layout'}@sha256:{'ab' * 32}"
    document["nitro_config"] = {
        name: str(project / file)
        for name, file in (("kernel", "kernel"), ("init", "init"), ("nsm_ko", "nsm.ko"))
    }
    files = {
        "app.json": json.dumps(document).encode(),
        "docker-compose.yaml": f"services:\n  web:\n    image: {layout}\n".encode(),
    }
    with refuses("image.reference.syntax", ConfigError):
        desk.build(desk.work(files))


BUILT = b"services:\n  web:\n    build: {context: /}\n    image: web\n"


def nitro_files(compose: bytes, **settings: str) -> dict[str, bytes]:
    document = {"name": "web", "platform": "nitro", "nitro_config": settings}
    return {"app.json": json.dumps(document).encode(), "docker-compose.yaml": compose}


def test_nothing_is_built_by_docker_for_a_request(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with refuses("deploy.project.build", ConfigError):
        desk.build(desk.work(nitro_files(BUILT)))
    assert not (tmp_path / "ran").exists()


def test_a_compose_file_that_does_not_read_is_the_planners_to_refuse(desk: Desk) -> None:
    with refuses("lint.services.missing", PolicyDenied):
        desk.build(desk.work(nitro_files(b"{}")))


def test_an_image_of_a_request_is_no_directory_where_the_function_runs(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def seen(image: str, *_: object) -> None:
        asked.append(image)
        raise ConfigError("test.seen", "enough was seen")

    monkeypatch.setattr(CachedBuilder, "__call__", lambda _, *given: seen(*given))
    write_nitro_project(tmp_path / "web")
    monkeypatch.chdir(tmp_path / "web")
    image = f"layout@sha256:{'ab' * 32}"
    with refuses("test.seen", ConfigError):
        desk.build(desk.work(nitro_files(f"services:\n  web:\n    image: {image}\n".encode())))
    assert asked == [f"docker.io/library/{image}"]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as found:
        yield found


def named(host: str, *, blob: bool) -> dict[str, bytes]:
    """Return a project that names a host as its registry, or as where its boot files are."""
    digest = "sha256:" + "ab" * 32
    boot = {name: f"https://{host}/{name}@{digest}" for name in ("kernel", "init", "nsm_ko")} if blob else {}
    return nitro_files(f"services:\n  web:\n    image: {host}/web@{digest}\n".encode(), **boot)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1"])
def test_a_request_names_no_host_of_the_functions_own_network(desk: Desk, name: str) -> None:
    with refuses("net.address.private", PolicyDenied):
        desk.build(desk.work(named(f"{name}:9", blob=True)))


def test_a_registry_is_no_host_of_the_functions_own_network_either(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = BootBlob(b"boot", bytes(32))
    monkeypatch.setattr("functions.plan.enclave_builder.load_blob", lambda *_: blob)
    monkeypatch.setattr("functions.plan.enclave_builder._place", lambda *_: "")
    with refuses("net.address.private", PolicyDenied):
        desk.build(desk.work(named("127.0.0.1:9", blob=False)))


def test_hosts_that_the_operator_listed_are_asked(desk: Desk, registry: Registry) -> None:
    place = registry.host.replace("127.0.0.1", "localhost")
    planner = Planner(
        GlobalConfig(image_search_paths=()),
        desk.place / "cache",
        ChainSettings(),
        workspace=desk.place,
        internal={"localhost"},
    )
    # it is reached, and speaks no TLS
    with refuses("net.tls.refused", UnavailableError):
        planner.build(desk.work(named(place, blob=True)))


def test_options_of_a_request_are_the_plans(desk: Desk, tmp_path: Path) -> None:
    project = write_project(tmp_path / "web")
    files = files_of(project, "app.json", "docker-compose.yaml") | os_image(tmp_path)
    assert desk.build(desk.work(files, app_id="44" * 20)).plan.app.app_id == "44" * 20


@pytest.mark.parametrize("settings", [{"app_id": "zz"}, {"may_drop": 7}])
def test_an_option_that_is_none_is_refused(desk: Desk, tmp_path: Path, settings: dict[str, Any]) -> None:
    project = write_project(tmp_path / "web", compose=f"services:\n  web:\n    image: {PINNED}\n")
    files = files_of(project, "app.json", "docker-compose.yaml") | os_image(tmp_path)
    with refuses("deploy.request.option", ConfigError):
        desk.build(desk.work(files, **settings))

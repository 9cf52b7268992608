"""Plans of stored files: what was handed in is planned, and nothing else of the machine that plans."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.deploy.planning import OS_IMAGE, ChainSettings, Planner
from functions.deploy.record import Deployment, Files, Lease
from functions.deploy.steps import BuiltPlan
from functions.deploy.work import LeasedWork
from functions.plan.service import PlanOptions, plan_deployment
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.project import GlobalConfig
from shared.errors import ConfigError
from shared.measurement.eif import measure_eif
from tests.functions.clouds.local_deployments import write_nitro_project
from tests.functions.deploy.memory_cloud import NOW, some_deployment
from tests.functions.plan.projects import PINNED, FakeBuilder, write_os_image, write_project
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

"""Guests of the fake clouds boot from a deployment's own bytes, and their evidence proves the plan."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.deploy.evidence import Attester, HttpChallenger
from functions.deploy.record import Deployment, Planned
from functions.plan.assembly import make_plan
from functions.plan.enclave_builder import CachedBuilder
from functions.plan.model import Plan
from functions.plan.service import PlanOptions, gather_facts
from shared.compose.project import GlobalConfig
from shared.errors import InvalidEvidence, UnavailableError
from shared.measurement.boot_disk import data_disk
from shared.measurement.config_disk import config_disk
from shared.measurement.disk_image import DiskImage
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.fakes.guests import Roots, SimulatedGuests
from tests.fakes.os_images import boot_disk, write_whole_os_image
from tests.functions.clouds.local_deployments import write_gcp_project, write_nitro_project
from tests.functions.deploy.memory_cloud import some_deployment
from tests.functions.plan.projects import APP_ID, FakeBuilder
from tests.shared.measurement.made_disks import make_kernel
from tests.shared.refusal import refuses

CONFIG = """
[[inbound]]
name = "evidence"
listen = "0.0.0.0:8090"
target = "vsock://16:8080"
"""


@pytest.fixture(scope="module")
def roots() -> Iterator[Roots]:
    with Roots() as made:
        yield made


@pytest.fixture
def guests(tmp_path: Path, roots: Roots) -> Iterator[SimulatedGuests]:
    with SimulatedGuests(tmp_path / "guests", roots, app_id=bytes.fromhex(APP_ID)) as made:
        yield made


@pytest.fixture
def attester(roots: Roots) -> Iterator[Attester]:
    http = HttpClient(DirectDialer(), timeout=20)
    yield Attester(roots.verifier(), HttpChallenger(http))
    http.close()


@pytest.fixture
def address() -> str:
    return free_address()


def free_address() -> str:
    """Return an address of this computer's that nothing else of the tests uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"127.77.{port // 256}.{port % 256}"


def raw(disk: DiskImage) -> bytes:
    return b"".join(disk.chunks())


def planned(plan: Plan) -> Deployment:
    return some_deployment(
        planned=Planned(
            plan_id=plan.plan_id,
            app_id=plan.app.app_id,
            compose_hash=plan.compose.compose_hash,
            os_image_hash=plan.image.os_image_hash,
            platform=plan.platform,
            plan="",
        )
    )


class Disks:
    """A planned machine: what its disks hold."""

    def __init__(self, place: Path) -> None:
        write_whole_os_image(place / "images")
        project = write_gcp_project(place / "project")
        config = GlobalConfig(image_search_paths=(str(place / "images"),))
        facts = gather_facts(project, config, PlanOptions(), build_enclave=FakeBuilder())
        assert facts.config_files is not None
        self.deployment = planned(make_plan(facts, None))
        self.boot = raw(boot_disk())
        self.config = raw(config_disk(facts.config_files))
        self.data = raw(data_disk())


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


def url(address: str) -> str:
    return f"http://{address}:8090/evidence"


def test_a_machine_boots_from_its_disks(
    guests: SimulatedGuests, attester: Attester, disks: Disks, address: str
) -> None:
    instance: dict[str, Any] = {
        "name": "vm",
        "networkInterfaces": [{"networkIP": "10.0.0.2", "accessConfigs": [{"natIP": address}]}],
    }
    guests.on_boot(instance, {"boot": disks.boot, "data": disks.data, "shared": disks.config})
    assert guests.failures == {}
    assert attester.attest(disks.deployment, url(address)).simulated
    guests.on_stop(instance)
    assert not guests.is_running("vm")
    with pytest.raises(UnavailableError):
        attester.attest(disks.deployment, url(address))


def test_a_machine_with_another_boot_disk_is_found_out(
    guests: SimulatedGuests, attester: Attester, disks: Disks, address: str
) -> None:
    guests.boot("vm", [disks.config, raw(boot_disk(kernel=make_kernel(limit=1)))], address)
    with refuses("gcp.uki.missing", InvalidEvidence):
        attester.attest(disks.deployment, url(address))


def test_a_machine_with_another_config_is_found_out(
    guests: SimulatedGuests, attester: Attester, disks: Disks, address: str
) -> None:
    """One byte of the app-compose on the disk, which the cloud could change."""
    changed = disks.config.replace(b'"name":"demo"', b'"name":"dema"')
    assert changed != disks.config
    guests.boot("vm", [disks.boot, changed], address)
    with refuses("deploy.evidence.workload", InvalidEvidence):
        attester.attest(disks.deployment, url(address))


def test_a_machine_that_cannot_boot_is_down(guests: SimulatedGuests, disks: Disks, address: str) -> None:
    for given, code in (
        ([disks.boot], "guests.config_disk"),
        ([disks.config, disks.data], "guests.boot_disk"),
        ([disks.config, b"junk"], "guests.boot_disk"),
    ):
        guests.boot("vm", given, address)
        assert guests.failures["vm"].code == code
        assert not guests.is_running("vm")


def test_two_machines_cannot_have_one_address(guests: SimulatedGuests, disks: Disks, address: str) -> None:
    guests.boot("first", [disks.boot, disks.config], address)
    guests.boot("second", [disks.boot, disks.config], address)
    assert guests.failures["second"].code == "tee.listen"


def test_a_boot_disk_may_be_left_out(
    tmp_path: Path, roots: Roots, attester: Attester, disks: Disks, address: str
) -> None:
    with SimulatedGuests(tmp_path / "lax", roots, measures_disks=False) as guests:
        guests.boot("vm", [b"junk", disks.config], address)
        assert attester.attest(disks.deployment, url(address)).simulated


def test_an_enclave_runs_from_its_image(
    tmp_path: Path, guests: SimulatedGuests, attester: Attester, address: str
) -> None:
    output = tmp_path / "image.eif"
    builder = CachedBuilder(tmp_path / "cache", output=output)
    project = write_nitro_project(tmp_path / "project")
    facts = gather_facts(project, GlobalConfig(image_search_paths=()), PlanOptions(), build_enclave=builder)
    deployment = planned(make_plan(facts, None))
    guests.address = lambda _parent: address
    guests.start_forwarder("i-0123", CONFIG)
    guests.run_enclave("i-0123", output, 16)
    assert attester.attest(deployment, url(address)).simulated
    guests.end_enclave("i-0123")
    with pytest.raises(UnavailableError):
        attester.attest(deployment, url(address))
    guests.run_enclave("i-0123", output, 16)
    assert attester.attest(deployment, url(address)).simulated
    guests.stop_forwarder("i-0123")

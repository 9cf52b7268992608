"""From a project to proven machines on the fakes of both clouds: every part is the one of production but the
hardware, which is simulated, and boots from the very bytes that were uploaded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.clouds.aws_nitro import AwsNitroCloud
from functions.clouds.gcp_images import archive_of, boot_object_key
from functions.clouds.gcp_tdx import GcpTdxCloud
from functions.deploy.record import Deployment, Goal, Step
from shared.measurement.disk_image import DiskImage
from tests.fakes.guests import Roots, SimulatedGuests
from tests.fakes.os_images import boot_disk, write_whole_os_image
from tests.fakes.storage import StoredObject
from tests.fakes.test_guests import free_address
from tests.functions.clouds.gcp_world import BUCKET, PROJECT, ZONE
from tests.functions.clouds.gcp_world import World as Gcp
from tests.functions.clouds.local_deployments import World, write_gcp_project, write_nitro_project
from tests.functions.clouds.nitro_world import PROFILE
from tests.functions.clouds.nitro_world import World as Nitro
from tests.functions.plan.projects import APP_ID
from tests.shared.measurement.made_disks import make_kernel


@pytest.fixture(scope="module")
def roots() -> Iterator[Roots]:
    with Roots() as made:
        yield made


@pytest.fixture
def guests(tmp_path: Path, roots: Roots) -> Iterator[SimulatedGuests]:
    with SimulatedGuests(tmp_path / "guests", roots, app_id=bytes.fromhex(APP_ID)) as made:
        yield made


def whole_life(here: World[Any]) -> Deployment:
    """Deploy, stop, start and remove, and return the record as it was when the app ran."""
    running = here.settle()
    assert running.step is Step.RUNNING, running.failure
    assert running.running is not None
    assert running.running.simulated
    assert here.settle(goal=Goal.STOPPED).step is Step.STOPPED
    again = here.settle(goal=Goal.RUNNING)
    assert again.step is Step.RUNNING, again.failure
    removed = here.settle(goal=Goal.REMOVED)
    assert removed.step is Step.REMOVED, removed.failure
    return running


@pytest.fixture
def tdx(tmp_path: Path, gcp: Gcp, guests: SimulatedGuests, roots: Roots) -> Iterator[World[GcpTdxCloud]]:
    """A deployment to a project where machines boot; the bucket has what belongs to its OS image."""
    place = tmp_path / "here"
    put_boot_disk(gcp, write_whole_os_image(place / "images"), boot_disk())
    address = free_address()
    gcp.fake.nat_ip = lambda _name: address
    guests.follow_compute(gcp.fake)
    here = World(place, gcp.cloud, lambda _platform: roots.verifier(), "gcp-tdx")
    here.create(write_gcp_project(place / "project", {"project": PROJECT, "zone": ZONE, "bucket": BUCKET}))
    yield here
    here.http.close()
    here.store.close()


def put_boot_disk(gcp: Gcp, os_image_hash: bytes, disk: DiskImage) -> None:
    key = boot_object_key(os_image_hash.hex())
    gcp.storage.objects[BUCKET, key] = StoredObject(archive_of(disk), 1)


def test_a_tdx_machine_is_proven(tdx: World[GcpTdxCloud], gcp: Gcp, guests: SimulatedGuests) -> None:
    running = whole_life(tdx)
    assert guests.failures == {}
    assert running.running is not None
    assert running.running.external_ip == gcp.fake.nat_ip("web")
    assert not guests.is_running("web")


def test_a_machine_that_boots_another_image_is_taken_away(
    tdx: World[GcpTdxCloud], gcp: Gcp, guests: SimulatedGuests
) -> None:
    """The bucket's boot disk was swapped: the cloud says what was ordered, and the evidence does not."""
    wanted = tdx.place / "images" / "dstack-0.6.0" / "digest.txt"
    put_boot_disk(gcp, bytes.fromhex(wanted.read_text()), boot_disk(kernel=make_kernel(limit=1)))
    failed = tdx.settle()
    assert failed.step is Step.FAILED
    assert failed.failure is not None
    assert failed.failure.code == "gcp.uki.missing"
    assert gcp.fake.names("instance") == []
    assert not guests.is_running("web")


def test_an_enclave_is_proven(tmp_path: Path, nitro: Nitro, guests: SimulatedGuests, roots: Roots) -> None:
    address = free_address()
    (tmp_path / "here").mkdir()
    nitro.fake.public_ip = address
    guests.address = lambda _parent: address
    guests.follow_parents(nitro.fake.hooks)
    project = write_nitro_project(
        tmp_path / "here" / "project", {"bucket": nitro.bucket, "iam_instance_profile": PROFILE}
    )
    here: World[AwsNitroCloud] = World(
        tmp_path / "here", nitro.cloud, lambda _platform: roots.verifier(), "aws-nitro"
    )
    try:
        here.create(project)
        running = whole_life(here)
        assert running.running is not None
        assert running.running.external_ip == address
    finally:
        here.http.close()
        here.store.close()

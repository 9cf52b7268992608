"""Boot images on Google Cloud: from the bucket, from a disk at hand, or named; never another one."""

import io
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.clouds.gcp_images import (
    IMAGE_HASH_LABELS,
    boot_object_key,
    data_ranges,
    sparse_disk,
    upload_boot_disk,
)
from functions.clouds.gcp_tdx import GcpTdxCloud
from functions.deploy.cloud import DeniedError
from shared.errors import CloudError, ConfigError, InvalidEvidence
from shared.measurement.boot_disk import gcp_boot_disk, measure_boot_disk
from shared.measurement.disk_image import MIB
from tests.functions.clouds.gcp_world import BUCKET, OS_IMAGE_HASH, PROJECT, World, make_plan
from tests.shared.measurement.made_disks import make_uki
from tests.shared.refusal import refuses

BOOT_KEY = boot_object_key(OS_IMAGE_HASH)
BOOT_NAME = f"dstack-{OS_IMAGE_HASH[:16]}"
FEATURES = [{"type": one} for one in ("UEFI_COMPATIBLE", "TDX_CAPABLE", "GVNIC")]
LABELS = dict(zip(IMAGE_HASH_LABELS, (OS_IMAGE_HASH[:32], OS_IMAGE_HASH[32:]), strict=True))


@pytest.fixture(scope="module")
def os_image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a directory with a `disk.raw`, and the hash of its kernel."""
    directory = tmp_path_factory.mktemp("images") / "dstack-0.6.0"
    directory.mkdir()
    with (directory / "disk.raw").open("wb+") as file:
        gcp_boot_disk(io.BytesIO(make_uki()), io.BytesIO(b"hsqs" * 1000)).write_to(file)
        return directory, measure_boot_disk(file).uki_auth.hex()


def replan(gcp: World, uki_auth: str) -> None:
    plan = make_plan("d2" * 32)
    image = msgspec.structs.replace(plan.image, registers={"uki_auth": uki_auth})
    planned = gcp.store.get("web").planned
    assert planned is not None
    blob = gcp.blobs.put(msgspec.json.encode(msgspec.structs.replace(plan, image=image)))
    gcp.change(planned=msgspec.structs.replace(planned, plan_id=plan.plan_id, plan=blob))


def test_the_image_of_an_uploaded_boot_disk_is_named_after_what_it_measures(gcp: World) -> None:
    gcp.launch()
    image = gcp.fake.find("image", BOOT_NAME).json
    assert image["guestOsFeatures"] == FEATURES
    assert "".join(image["labels"][label] for label in IMAGE_HASH_LABELS) == OS_IMAGE_HASH
    assert image["rawDisk"]["source"] == f"https://storage.googleapis.com/{BUCKET}/{BOOT_KEY}"


def test_without_a_boot_disk_anywhere_the_command_that_uploads_it_is_named(gcp: World) -> None:
    gcp.storage.objects.clear()
    with refuses("gcp.boot_image.missing", DeniedError) as caught:
        gcp.launch()
    assert isinstance(caught.value, DeniedError)
    assert caught.value.hint == f"dstack-cloud image push dstack-0.6.0 --bucket={BUCKET}"


def test_a_boot_disk_at_hand_is_uploaded(gcp: World, os_image: tuple[Path, str]) -> None:
    directory, uki_auth = os_image
    gcp.storage.objects.clear()
    replan(gcp, uki_auth)
    gcp.cloud = GcpTdxCloud(gcp.compute, gcp.bucket, boot_disks=lambda _: directory / "disk.raw")
    gcp.launch()
    stored = gcp.storage.objects[BUCKET, BOOT_KEY]
    assert stored.metadata == {"dstack-os-image-hash": OS_IMAGE_HASH}
    assert len(stored.data) < 4 * MIB
    with tarfile.open(fileobj=io.BytesIO(stored.data), mode="r|gz") as tar:
        member = tar.next()
        assert member is not None
        assert (member.name, member.size) == ("disk.raw", (directory / "disk.raw").stat().st_size)
        packed = tar.extractfile(member)
        assert packed is not None
        with (directory / "disk.raw").open("rb") as file:
            assert packed.read(4 * MIB) == file.read(4 * MIB)


def test_a_boot_disk_that_measures_otherwise_is_not_uploaded(gcp: World, os_image: tuple[Path, str]) -> None:
    directory, _ = os_image
    gcp.storage.objects.clear()
    gcp.cloud = GcpTdxCloud(gcp.compute, gcp.bucket, boot_disks=lambda _: directory / "disk.raw")
    with refuses("gcp.boot_disk", ConfigError):
        gcp.launch()
    assert not gcp.storage.objects.keys() - {key for key in gcp.storage.objects if "data-images" in key[1]}


def test_a_file_that_is_no_boot_disk_is_not_uploaded(gcp: World, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    with pytest.raises(InvalidEvidence):
        upload_boot_disk(gcp.bucket(BUCKET), tmp_path / "disk.raw", OS_IMAGE_HASH, "33" * 32)
    with refuses("gcp.boot_disk.read", CloudError):
        upload_boot_disk(gcp.bucket(BUCKET), tmp_path / "absent", OS_IMAGE_HASH, "33" * 32)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"labels": {}, "guestOsFeatures": FEATURES}, "gcp.boot_image.other"),
        (
            {"labels": LABELS | {IMAGE_HASH_LABELS[1]: "cd" * 16}, "guestOsFeatures": FEATURES},
            "gcp.boot_image.other",
        ),
        ({"labels": LABELS, "guestOsFeatures": FEATURES[:2]}, "gcp.boot_image.features"),
        ({"labels": LABELS, "guestOsFeatures": FEATURES, "status": "FAILED"}, "gcp.image.failed"),
    ],
)
def test_an_image_that_is_not_the_plans_is_refused(gcp: World, fields: dict[str, Any], code: str) -> None:
    gcp.fake.put("image", BOOT_NAME, **fields)
    with refuses(code, DeniedError):
        gcp.launch()


def test_an_image_that_the_project_names_is_used_as_upstream_made_it(gcp: World) -> None:
    gcp.replan("d2" * 32, boot_image="dstack-0-6-0")
    with refuses("gcp.boot_image.missing", DeniedError):
        gcp.launch()
    archive = gcp.storage.objects[BUCKET, BOOT_KEY].data
    gcp.fake.put("image", "dstack-0-6-0", guestOsFeatures=FEATURES).archive = archive
    gcp.launch()
    assert BOOT_NAME not in gcp.fake.names("image")


def test_an_image_that_the_project_names_and_that_is_labelled_otherwise_is_refused(gcp: World) -> None:
    gcp.replan("d2" * 32, boot_image="named")
    labels = LABELS | {IMAGE_HASH_LABELS[0]: "cd" * 16}
    gcp.fake.put("image", "named", guestOsFeatures=FEATURES, labels=labels)
    with refuses("gcp.boot_image.other", DeniedError):
        gcp.launch()


def test_a_missing_bucket_has_the_command_that_makes_it(gcp: World) -> None:
    gcp.storage.buckets.clear()
    with refuses("gcp.bucket", DeniedError) as caught:
        gcp.launch()
    assert isinstance(caught.value, DeniedError)
    assert caught.value.hint == (
        f"gcloud storage buckets create gs://{BUCKET} --project={PROJECT} --location=us-central1 "
        "--uniform-bucket-level-access"
    )


def test_a_sparse_file_is_packed_with_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(8 * MIB)
        file.write(b"data" * MIB)
    ranges = data_ranges(path)
    assert sum(end - start for start, end in ranges) < 64 * MIB
    with path.open("rb") as file:
        assert b"".join(sparse_disk(file, ranges).chunks()) == path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_dense_file_is_packed_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "dense"
    path.write_bytes(b"x" * size)
    with path.open("rb") as file:
        assert b"".join(sparse_disk(file, data_ranges(path)).chunks()) == b"x" * size

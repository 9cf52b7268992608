"""An OS image's boot disk into a bucket, where functions that have no copy of it make their images from."""

import os
from pathlib import Path

import msgspec

from cli.image_directory import Directory
from cli.places import config_path
from functions.clouds.gcp_images import boot_object_key, upload_boot_disk
from functions.clouds.making import google_bucket
from functions.deploy.cloud import DeniedError
from functions.plan.cloud_image import find_image
from functions.plan.project_files import read_config, read_project
from shared.errors import ConfigError
from shared.measurement.os_image_directory import DISK_NAME, check_image_directory


class Pushed(msgspec.Struct, frozen=True):
    """Where a boot disk lies in its bucket; the hash is raw."""

    key: str
    os_image_hash: bytes
    was_there: bool


def push_image(name: str | None, bucket_name: str, directory: Path) -> Pushed:
    """Upload the boot disk of an image, once its files agree.

    Raises `ConfigError`: `image.push.disk` without a boot disk, `plan.os_image.missing`; `InvalidEvidence`
    for files that disagree; `DeniedError("gcp.bucket")`, and what Cloud Storage raises.
    """
    image = _place(name, directory)
    if not (image / DISK_NAME).is_file():
        raise ConfigError("image.push.disk", f"{image} has no {DISK_NAME}: pull the image again")
    found = check_image_directory(Directory(image))
    if found.boot is None or "gcp" not in found.rebuilt:
        raise ConfigError("image.push.disk", f"{image} has no measurement.gcp.cbor of its {DISK_NAME}")
    bucket = google_bucket(os.environ, bucket_name)
    if not bucket.exists():
        raise DeniedError(
            "gcp.bucket",
            f"there is no bucket {bucket_name}",
            f"gcloud storage buckets create gs://{bucket_name} --uniform-bucket-level-access",
        )
    key = boot_object_key(found.os_image_hash.hex())
    was_there = bucket.stat(key) is not None
    if not was_there:
        upload_boot_disk(bucket, image / DISK_NAME, found.os_image_hash.hex(), found.boot.uki_auth.hex())
    return Pushed(key, found.os_image_hash, was_there)


def _place(name: str | None, directory: Path) -> Path:
    if name and Path(name).is_dir():
        return Path(name)
    config = read_config(config_path(os.environ))
    wanted = name or str(read_project(directory).project.os_image or "")
    return find_image(wanted, config.image_search_paths, directory)

"""The three images of a deployment, and what they are imported from: tar.gz in a bucket (spec deploy 4).

The boot image belongs to an OS image and the data image to nobody, so all deployments of a project share
them. The config image is one deployment's, and is made anew when its files change.
"""

import errno
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from functions.clouds.gcp_resources import SHARED, Resources
from functions.clouds.gcp_settings import CONFIG_LABEL, Site
from functions.deploy.cloud import MANAGED_BY, MANAGER, DeniedError, Wait, Work
from functions.deploy.record import Resource
from functions.plan.model import Plan
from shared.errors import CloudError, ConfigError
from shared.measurement.boot_disk import data_disk, measure_boot_disk
from shared.measurement.config_disk import config_disk
from shared.measurement.disk_image import DiskImage, Extent, FileRange, disk_image, write_disk_archive

IMAGE_HASH_LABELS: Final = ("dstack-os-image-hash-1", "dstack-os-image-hash-2")
"""An OS image's hash has 64 digits, and a label takes 63 characters: half of it in each."""

BOOT_FEATURES: Final = ("UEFI_COMPATIBLE", "TDX_CAPABLE", "GVNIC")
DATA_FEATURES: Final = ("GVNIC",)
OBJECT: Final = "object"
UPLOAD_SECONDS: Final = 1800
"""How long a boot disk of some 500 MB may take to be packed and uploaded from a slow line."""

_STORAGE: Final = "https://storage.googleapis.com"


class Objects(Protocol):
    """What is needed of a bucket; see `functions.google_api.storage.Bucket`."""

    def exists(self) -> bool:
        """Tell whether there is such a bucket."""
        ...

    def stat(self, key: str) -> object | None:
        """Return what is known of an object, None without one."""
        ...

    def upload(
        self,
        key: str,
        reader: BinaryIO | bytes,
        *,
        if_absent: bool = False,
        metadata: Mapping[str, str] = ...,
    ) -> object:
        """Store an object, whole or not at all."""
        ...

    def delete(self, key: str) -> bool:
        """Remove an object; False where there is none."""
        ...


Buckets = Callable[[str], Objects]
"""A bucket by its name."""

BootDisks = Callable[[Plan], Path | None]
"""The `disk.raw` of a plan's OS image, where the image is at hand."""


class Images:
    """Makes one deployment's images."""

    def __init__(
        self, resources: Resources, work: Work, site: Site, buckets: Buckets, boot_disks: BootDisks
    ) -> None:
        self._resources = resources
        self._work = work
        self._site = site
        self._buckets = buckets
        self._boot_disks = boot_disks

    def boot(self) -> Wait | str:
        """Return the boot image's name once it can be used.

        One that `gcp_config.boot_image` names must be there. Raises `DeniedError`: `gcp.boot_image.missing`,
        `gcp.boot_image.other` (its labels name another OS image), `gcp.image.failed`.
        """
        os_image_hash = self._work.plan.image.os_image_hash
        name = boot_image_name(self._site, os_image_hash)
        found = self._ensure(name, lambda: self._boot_body(name), shared=True)
        if isinstance(found, Wait):
            return found
        check_boot_image(found, os_image_hash, self._site)
        return name

    def data(self) -> Wait | str:
        """Return the name of the image that data disks start as."""
        name = str(self._site.settings.data_image)
        found = self._ensure(name, lambda: self._data_body(name), shared=True)
        return found if isinstance(found, Wait) else name

    def config(self) -> Wait | str:
        """Return the name of the image with this deployment's configuration."""
        name = self._site.shared
        found = self._ensure(
            name,
            self._config_body,
            is_current=lambda image: image.labels.get(CONFIG_LABEL) == self._site.config,
        )
        return found if isinstance(found, Wait) else name

    def _ensure(
        self,
        name: str,
        make: Callable[[], dict[str, Any]],
        *,
        shared: bool = False,
        is_current: Callable[[Any], bool] | None = None,
    ) -> Any:  # noqa: ANN401 - Google's types
        found = self._resources.ensure(
            "image", name, self._site.everywhere, make, shared=shared, is_current=is_current
        )
        if isinstance(found, Wait):
            return found
        if str(found.status) == "FAILED":
            raise DeniedError(
                "gcp.image.failed",
                f"image {name} could not be made from its source",
                f"gcloud compute images delete {name} --project={self._site.place.project}",
            )
        return found if str(found.status) == "READY" else Wait(3, f"until image {name} is ready")

    def _boot_body(self, name: str) -> dict[str, Any]:
        plan = self._work.plan
        if self._site.settings.boot_image:
            raise _no_boot_image(self._site, f"image {name}, which gcp_config names, is not there", plan)
        key = boot_object_key(plan.image.os_image_hash)
        bucket = self._bucket()
        resource = self._work.intend(OBJECT, key, self._site.bucket, keep=True, facts={SHARED: "yes"})
        if bucket.stat(key) is None:
            path = self._boot_disks(plan)
            if path is None:
                raise _no_boot_image(
                    self._site, f"neither image {name} nor gs://{self._site.bucket}/{key} is there", plan
                )
            self._work.renew(UPLOAD_SECONDS)
            self._work.say(f"uploading the boot disk of {plan.image.source}")
            upload_boot_disk(bucket, path, plan.image.os_image_hash, plan.image.registers.get("uki_auth", ""))
        if resource.state != "present":
            self._work.present(resource)
        first, second = IMAGE_HASH_LABELS
        os_image_hash = plan.image.os_image_hash
        labels = {MANAGED_BY: MANAGER, first: os_image_hash[:32], second: os_image_hash[32:]}
        return self._body(name, key, BOOT_FEATURES, labels, f"dstack OS image {os_image_hash}")

    def _data_body(self, name: str) -> dict[str, Any]:
        archive = archive_of(data_disk())
        key = f"data-images/{sha256(archive).hexdigest()}.tar.gz"
        self._put(key, archive, shared=True)
        return self._body(name, key, DATA_FEATURES, {MANAGED_BY: MANAGER}, "empty dstack data disk")

    def _config_body(self) -> dict[str, Any]:
        key = self._site.config_key
        self._put(key, archive_of(config_disk(self._work.config_files())), shared=False)
        labels = self._site.labels | {CONFIG_LABEL: self._site.config}
        name = self._site.shared
        return self._body(name, key, DATA_FEATURES, labels, f"configuration of {self._site.name}")

    def _put(self, key: str, archive: bytes, *, shared: bool) -> None:
        bucket = self._bucket()
        facts = {SHARED: "yes"} if shared else {}
        resource = self._work.intend(OBJECT, key, self._site.bucket, keep=shared, facts=facts)
        if bucket.stat(key) is None:
            bucket.upload(key, archive)
        if resource.state != "present":
            self._work.present(resource)

    def _bucket(self) -> Objects:
        bucket = self._buckets(self._site.bucket)
        if not bucket.exists():
            raise DeniedError(
                "gcp.bucket", f"there is no bucket {self._site.bucket}", bucket_command(self._site)
            )
        return bucket

    def _body(
        self, name: str, key: str, features: tuple[str, ...], labels: dict[str, str], description: str
    ) -> dict[str, Any]:
        return {
            "name": name,
            "description": description,
            "labels": labels,
            "raw_disk": {"source": f"{_STORAGE}/{self._site.bucket}/{key}", "container_type": "TAR"},
            "guest_os_features": [{"type_": feature} for feature in features],
        }


def boot_image_name(site: Site, os_image_hash: str) -> str:
    """Return the image that `gcp_config` names, or the one named after the OS image."""
    return str(site.settings.boot_image) or f"dstack-{os_image_hash[:16]}"


def boot_object_key(os_image_hash: str) -> str:
    """Return where a boot disk's archive lies in the bucket: named after what it measures."""
    return f"os-images/{os_image_hash}/disk.raw.tar.gz"


def check_boot_image(image: Any, os_image_hash: str, site: Site) -> None:  # noqa: ANN401 - Google's types
    """Refuse an image that says that it is another, or that no confidential machine boots from.

    Raises `DeniedError`: `gcp.boot_image.other`, `gcp.boot_image.features`. What an image really is, the
    evidence shows.
    """
    halves = [image.labels.get(label, "") for label in IMAGE_HASH_LABELS]
    command = f"gcloud compute images describe {image.name} --project={site.place.project}"
    # an image that upstream made has no labels, and is taken where it is named
    is_named = bool(site.settings.boot_image) and not any(halves)
    if not is_named and "".join(halves) != os_image_hash:
        raise DeniedError(
            "gcp.boot_image.other",
            f"image {image.name} is labelled {''.join(halves) or 'with no hash'}, "
            f"the plan's OS image is {os_image_hash}",
            f"name another boot_image, or remove this one: {command}",
        )
    features = {str(feature.type_) for feature in image.guest_os_features}
    if missing := [feature for feature in BOOT_FEATURES if feature not in features]:
        raise DeniedError(
            "gcp.boot_image.features", f"image {image.name} lacks {', '.join(missing)}", command
        )


def upload_boot_disk(bucket: Objects, disk: Path, os_image_hash: str, uki_auth: str) -> str:
    """Upload a `disk.raw` as the boot disk of an OS image, and return its key.

    `uki_auth` (hex) is what the image's measurement says of its kernel. Raises
    `ConfigError("gcp.boot_disk")` for a disk that measures otherwise, and `InvalidEvidence` for no boot disk.
    """
    key = boot_object_key(os_image_hash)
    try:
        with disk.open("rb") as file, tempfile.TemporaryFile() as archive:
            measured = measure_boot_disk(file).uki_auth.hex()
            if measured != uki_auth:
                raise ConfigError(
                    "gcp.boot_disk",
                    f"the disk boots a kernel with the hash {measured}, the OS image measures {uki_auth}",
                )
            write_disk_archive(sparse_disk(file, data_ranges(disk)), archive.write)
            archive.seek(0)
            bucket.upload(key, archive, metadata={"dstack-os-image-hash": os_image_hash})
    except OSError as error:
        raise CloudError("gcp.boot_disk.read", f"cannot read or pack {disk.name}: {error}") from error
    return key


def sparse_disk(file: BinaryIO, ranges: Sequence[tuple[int, int]]) -> DiskImage:
    """Return a file as a disk: what lies in `ranges` (start, end) is read, the rest are holes."""
    extents = [Extent(start, FileRange(file, start, end - start)) for start, end in ranges]
    return disk_image(file.seek(0, io.SEEK_END), extents)


def data_ranges(path: Path) -> list[tuple[int, int]]:
    """Return (start, end) of what a file holds, leaving out the holes that the file system tells of."""
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, io.SEEK_END)
        if not hasattr(os, "SEEK_DATA"):
            return [(0, size)]
        found = []
        at = 0
        while at < size:
            try:
                start = file.seek(at, os.SEEK_DATA)
                at = file.seek(start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    return [(0, size)]
                break  # nothing but a hole is left
            found.append((start, at))
        return found


def archive_of(disk: DiskImage) -> bytes:
    """Return a small disk's archive. Both disks that are packed here are nearly empty, or the app's text."""
    out = io.BytesIO()
    write_disk_archive(disk, out.write)
    return out.getvalue()


def drop_object(work: Work, resource: Resource, buckets: Buckets) -> None:
    """Remove an object of ours; its key holds our uid, so nobody else's can have it."""
    buckets(resource.place).delete(resource.name)
    work.gone(resource)


def bucket_command(site: Site) -> str:
    """Return the command that makes the bucket."""
    return (
        f"gcloud storage buckets create gs://{site.bucket} --project={site.place.project} "
        f"--location={site.place.region} --uniform-bucket-level-access"
    )


def _no_boot_image(site: Site, message: str, plan: Plan) -> DeniedError:
    return DeniedError(
        "gcp.boot_image.missing",
        message,
        f"dstack-cloud image push {plan.image.source} --bucket={site.bucket}",
    )

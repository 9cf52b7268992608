"""What would stop a launch on Google Cloud, found before anything is made (spec deploy 4, N-80's other side).

Each finding says what is wrong, and the command or the setting that mends it is its detail.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final

from functions.clouds.gcp_compute import Compute, Place
from functions.clouds.gcp_errors import quota_hint
from functions.clouds.gcp_images import (
    Buckets,
    boot_image_name,
    boot_object_key,
    bucket_command,
    check_boot_image,
)
from functions.clouds.gcp_instance import BOOT_GB, CONFIG_GB, data_gb
from functions.clouds.gcp_settings import Site, check_name, is_ours, name_taken
from functions.deploy.cloud import DeniedError, Work
from functions.deploy.record import Step
from shared.compose.findings import Finding, Severity
from shared.errors import ConfigError

TDX_TYPES: Final = re.compile(r"c3-standard-[0-9]+")
"""Google runs TDX on these alone; those with local disks (`-lssd`) or whole hosts (`-metal`) are left out."""

_NOT_PLANNED: Final = frozenset({Step.PREPARE, Step.BUILD})
_WHERE: Final = "gcp_config"


class Check:
    """Looks at one site. What the cloud denies to a check is a finding too."""

    def __init__(self, compute: Compute, buckets: Buckets, work: Work, site: Site) -> None:
        self._compute = compute
        self._buckets = buckets
        self._work = work
        self._site = site

    def findings(self) -> list[Finding]:
        """Return what is wrong, in the order in which it must be mended."""
        settled = list(self._settings())
        if settled:
            return settled
        # without these, all that follows would say the same
        for look in (self._project, self._zone):
            if found := self._tried(look):
                return found
        later = (self._machine_type, self._instance, self._data_zone, self._bucket, self._boot_image)
        return [finding for look in later for finding in self._tried(look)]

    def _tried(self, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
        try:
            return list(look())
        except DeniedError as error:
            return [_finding(error.code, _WHERE, error.message, error.hint)]

    def _settings(self) -> Iterator[Finding]:
        site = self._site
        try:
            check_name(site.name)
        except ConfigError as error:
            yield _finding(
                error.code, "name", error.message, "choose another name: instance_name in gcp_config"
            )
        for field in ("project", "zone", "machine_type"):
            if not getattr(site.settings, field):
                key = {"project": "project", "zone": "compute/zone"}.get(field, "")
                mend = f"set it in app.json: gcloud config get {key}" if key else "set it in app.json"
                yield _finding("gcp.project", f"{_WHERE}.{field}", "is empty", mend)
        if site.settings.scopes and not site.settings.service_account:
            yield _finding(
                "gcp.scopes",
                f"{_WHERE}.scopes",
                "are of no service account, expected service_account beside them",
                "remove scopes, or name a service_account in app.json",
            )

    def _project(self) -> Iterator[Finding]:
        project = self._site.place.project
        if self._compute.find("Projects", f"look at project {project}", project=project) is None:
            yield _finding(
                "gcp.project",
                f"{_WHERE}.project",
                f"is {project}, which is not there or not shown to you",
                "gcloud projects list",
            )

    def _zone(self) -> Iterator[Finding]:
        place = self._site.place
        zone = self._compute.find("Zones", f"look at zone {place.zone}", **place.fields)
        if zone is None or str(zone.status) == "DOWN":
            yield _finding(
                "gcp.zone",
                f"{_WHERE}.zone",
                f"is {place.zone}, which is {'down' if zone is not None else 'not there'}",
                f"gcloud compute zones list --project={place.project}",
            )

    def _machine_type(self) -> Iterator[Finding]:
        place, wanted = self._site.place, str(self._site.settings.machine_type)
        offer = (
            f"gcloud compute machine-types list --project={place.project} --zones={place.zone} "
            "--filter='name~^c3-standard-[0-9]+$'"
        )
        where = f"{_WHERE}.machine_type"
        if not TDX_TYPES.fullmatch(wanted):
            yield _finding(
                "gcp.machine_type.tdx", where, f"is {wanted}, which has no TDX: expected c3-standard-N", offer
            )
            return
        found = self._compute.find(
            "MachineTypes", f"look at machine type {wanted}", **place.fields, machine_type=wanted
        )
        if found is None:
            yield _finding("gcp.machine_type", where, f"is {wanted}, which {place.zone} does not have", offer)
            return
        yield from self._quota(int(found.guest_cpus))

    def _quota(self, cpus: int) -> Iterator[Finding]:
        """Compare what a new machine takes with what its region and project have left."""
        place, settings = self._site.place, self._site.settings
        if self._compute.look("instance", self._site.name, place) is not None:
            return
        region = self._compute.find(
            "Regions", f"look at region {place.region}", project=place.project, region=place.region
        )
        project = self._compute.find("Projects", f"look at {place.project}", project=place.project)
        has_data = self._compute.look("disk", self._site.data, place) is not None
        needs = {
            "C3_CPUS": cpus,
            "INSTANCES": 1,
            "SSD_TOTAL_GB": BOOT_GB + CONFIG_GB + (0 if has_data else data_gb(self._site)),
            "CPUS_ALL_REGIONS": cpus,
        }
        if settings.provisioning_model == "SPOT":
            needs["PREEMPTIBLE_CPUS"] = cpus
        if not settings.no_public_ip:
            needs["IN_USE_ADDRESSES"] = 1
        for held, where in ((region, place.region), (project, place.project)):
            for quota in () if held is None else held.quotas:
                need = needs.get(str(quota.metric), 0)
                # Google's zero limit of a spot quota means that the ordinary one counts
                unused = quota.metric == "PREEMPTIBLE_CPUS" and not quota.limit
                if need and not unused and quota.usage + need > quota.limit:
                    yield _finding(
                        "gcp.quota",
                        f"{where}.{quota.metric}",
                        f"has {quota.usage:g} of {quota.limit:g} in use, and {need} more are needed",
                        quota_hint(place.project),
                    )

    def _instance(self) -> Iterator[Finding]:
        place = self._site.place
        names = (
            ("instance", "instances", self._site.name, place),
            ("disk", "disks", self._site.name, place),
            ("disk", "disks", self._site.data, place),
            ("disk", "disks", self._site.shared, place),
            ("image", "images", self._site.shared, self._site.everywhere),
        )
        for kind, group, name, where in names:
            found = self._compute.look(kind, name, where)
            if found is not None and not is_ours(found.labels, self._site.uid):
                taken = name_taken(kind, group, name, where)
                yield _finding(taken.code, name, taken.message, taken.hint)

    def _data_zone(self) -> Iterator[Finding]:
        for one in self._work.deployment.resources:
            if one.kind == "disk" and one.keep and one.state != "gone" and one.place != self._site.place.path:
                moved = moved_data(one.name, Place.of(one.place), self._site.place)
                yield _finding(moved.code, f"{_WHERE}.zone", moved.message, moved.hint)

    def _bucket(self) -> Iterator[Finding]:
        if not self._buckets(self._site.bucket).exists():
            yield _finding(
                "gcp.bucket",
                f"{_WHERE}.bucket",
                f"is {self._site.bucket}, which is not there",
                bucket_command(self._site),
            )

    def _boot_image(self) -> Iterator[Finding]:
        deployment, site = self._work.deployment, self._site
        planned = deployment.planned if deployment.step not in _NOT_PLANNED else None
        if planned is None and not site.settings.boot_image:
            return  # which image it is, only the plan says
        os_image_hash = planned.os_image_hash if planned is not None else ""
        name = boot_image_name(site, os_image_hash)
        image = self._compute.look("image", name, site.everywhere)
        if image is not None:
            if planned is not None:
                check_boot_image(image, os_image_hash, site)
            return
        key = boot_object_key(os_image_hash)
        if planned is not None and not site.settings.boot_image:
            bucket = self._buckets(site.bucket)
            if bucket.exists() and bucket.stat(key) is not None:
                return
        yield _finding(
            "gcp.boot_image.missing",
            f"{_WHERE}.boot_image",
            f"is {name}, which is neither there nor can be made from the bucket",
            f"dstack-cloud image push --bucket={site.bucket}",
        )


def moved_data(name: str, was: Place, now: Place) -> DeniedError:
    """Return the refusal of a move to another zone that would leave the data behind."""
    return DeniedError(
        "gcp.data.zone",
        f"data disk {name} is in {was.zone}, and the machine would be in {now.zone}",
        f'set "zone": "{was.zone}" in gcp_config, or remove the deployment with its data first',
    )


def _finding(code: str, where: str, message: str, mend: str) -> Finding:
    return Finding(code, Severity.ERROR, where, message, mend)

"""What is to run where: a deployment's settings, and the names of everything that it has (spec deploy 4)."""

import hashlib
import ipaddress
import re
from typing import Any, Final

import msgspec

from functions.clouds.gcp_compute import Place
from functions.deploy.cloud import DEPLOYMENT, MANAGED_BY, MANAGER, DeniedError, Work
from functions.deploy.record import Deployment
from shared.compose.project import (
    MAX_APP_JSON_BYTES,
    GcpConfig,
    GlobalConfig,
    gcp_settings,
    read_app_json,
)
from shared.errors import ConfigError

APP_JSON: Final = "app.json"

PLAN_LABEL: Final = "dstack-plan"
CONFIG_LABEL: Final = "dstack-config"
"""What an instance was made from: the first half of the plan's id, and of the hash of the config disk."""

_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")
"""Google takes 63 characters; `-allow-tcp-65535` is the longest ending that is put behind a name."""

_FORMS: Final = {
    "project": (re.compile(r"[a-z0-9][a-z0-9.:-]{0,99}"), "a project's id"),
    "zone": (re.compile(r"[a-z][-a-z0-9]{0,62}"), "a zone's name, like us-central1-a"),
    "machine_type": (re.compile(r"[a-z][-a-z0-9]{0,62}"), "a machine type's name"),
    "boot_image": (re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"), "the name of an image of the project"),
    "data_image": (re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"), "the name of an image of the project"),
    "bucket": (re.compile(r"(gs://)?[a-z0-9][a-z0-9._-]{1,220}/?"), "a bucket's name"),
    "network": (re.compile(r"[A-Za-z0-9._:/-]{1,300}"), "a network's name or path"),
    "subnet": (re.compile(r"[A-Za-z0-9._:/-]{1,300}"), "a subnet's name or path"),
    "service_account": (re.compile(r"[A-Za-z0-9._:@-]{1,200}"), "a service account's address"),
}
"""What the settings look like that become part of a URL, or of a command that a hint shows."""

MAX_DATA_GB: Final = 65536
"""Google's largest disk."""


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment on Google Cloud: its settings, all of them set, and what follows from them."""

    name: str
    uid: str
    settings: GcpConfig
    config: str = ""

    @property
    def place(self) -> Place:
        """The zone of the machine and its disks."""
        return Place(str(self.settings.project), str(self.settings.zone))

    @property
    def everywhere(self) -> Place:
        """The project, where images are."""
        return Place(str(self.settings.project))

    @property
    def bucket(self) -> str:
        """Where images are uploaded to; upstream's default is `<project>-dstack`."""
        given = str(self.settings.bucket).removeprefix("gs://").rstrip("/")
        return given or f"{self.settings.project}-dstack"

    @property
    def labels(self) -> dict[str, str]:
        """The labels that make a resource this deployment's."""
        return {MANAGED_BY: MANAGER, DEPLOYMENT: self.uid}

    @property
    def tag(self) -> str:
        """The network tag that firewall rules aim at."""
        return firewall_tag(self.name)

    @property
    def shared(self) -> str:
        """The config disk and the image that it is made from."""
        return f"{self.name}-shared"

    @property
    def data(self) -> str:
        """The data disk."""
        return f"{self.name}-data"

    @property
    def config_key(self) -> str:
        """The config image's source in the bucket."""
        return f"deployments/{self.uid}/{self.config}.tar.gz"


def firewall_tag(name: str) -> str:
    """Return upstream's network tag of an instance."""
    return f"fw-{name}"


def planned_site(work: Work) -> Site:
    """Return the site that the plan says.

    Raises `StorageError` without a plan, `ConfigError`: `gcp.settings`, `gcp.settings.<field>`, `gcp.name`,
    `gcp.project`.
    """
    deployment = work.deployment
    settings = read_settings(work.plan.machine)
    check_settings(settings)
    check_name(deployment.name)
    for field in ("project", "zone"):
        if not getattr(settings, field):
            raise ConfigError("gcp.project", f"gcp_config names no {field}")
    return Site(name=deployment.name, uid=deployment.uid, settings=settings, config=config_digest(deployment))


def wanted_site(work: Work, defaults: GcpConfig) -> Site:
    """Return the site that the handed-in project says, before it is planned; fields may be empty.

    Raises `ConfigError` for an app.json or settings that cannot be read or be, and what the blobs raise.
    """
    deployment = work.deployment
    digest = deployment.files.project.get(APP_JSON)
    if digest is not None:
        project = read_app_json(work.blobs.get(digest, MAX_APP_JSON_BYTES))
        settings = gcp_settings(project, GlobalConfig(gcp=defaults))
    elif deployment.planned is not None:
        settings = read_settings(deployment.planned.machine)
    else:
        settings = read_settings({}, defaults)
    check_settings(settings)
    return Site(name=deployment.name, uid=deployment.uid, settings=settings)


def read_settings(machine: dict[str, Any], defaults: GcpConfig | None = None) -> GcpConfig:
    """Read a plan's machine; what it lacks has its default. Raises `ConfigError("gcp.settings")`."""
    # a plan was made from an app.json, so it is merged as one
    try:
        given = msgspec.convert(machine, GcpConfig)
    except msgspec.ValidationError as error:
        raise ConfigError("gcp.settings", f"the plan's machine does not fit gcp_config: {error}") from error
    project = read_app_json(msgspec.json.encode({"gcp_config": msgspec.to_builtins(given)}))
    return gcp_settings(project, GlobalConfig(gcp=defaults or GcpConfig()))


def check_settings(settings: GcpConfig) -> None:
    """Refuse what no resource of Google's is called; what is empty passes: `ConfigError`.

    The code is `gcp.settings.<field>`.
    """
    for field, (form, expected) in _FORMS.items():
        value = str(getattr(settings, field) or "")
        if value and not form.fullmatch(value):
            raise ConfigError(f"gcp.settings.{field}", f"{field} is {value[:80]!a}, expected {expected}")
    if not 0 <= int(settings.data_size or 0) <= MAX_DATA_GB:
        raise ConfigError(
            "gcp.settings.data_size", f"data_size is {settings.data_size}, expected 0 to {MAX_DATA_GB}"
        )
    for cidr in settings.ingress or ():
        try:
            ipaddress.ip_network(cidr)
        except ValueError as error:
            raise ConfigError(
                "gcp.settings.ingress", f"got {cidr[:80]!a}, expected a network like 203.0.113.0/24"
            ) from error


def check_name(name: str) -> None:
    """Refuse a name that Google would not take with what is put behind it: `ConfigError("gcp.name")`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "gcp.name",
            f"a deployment on google cloud cannot be called {name[:80]!a}: "
            "expected up to 47 small letters, digits and dashes, a letter first",
        )


def config_digest(deployment: Deployment) -> str:
    """Return 32 hex digits that stand for the config disk's files, the encrypted env included."""
    planned = deployment.planned
    files = dict(planned.config) if planned is not None else {}
    listed = "\n".join(f"{name} {digest}" for name, digest in sorted(files.items()))
    whole = f"{listed}\n{deployment.files.encrypted_env}"
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def is_ours(labels: Any, uid: str) -> bool:  # noqa: ANN401 - Google's map type
    """Tell whether labels say that a resource is this deployment's."""
    return bool(labels.get(MANAGED_BY) == MANAGER and labels.get(DEPLOYMENT) == uid)


def name_taken(kind: str, group: str, name: str, place: Place) -> DeniedError:
    """Return the refusal of a name that somebody else's resource has."""
    where = f" --zone={place.zone}" if place.zone else ""
    return DeniedError(
        "gcp.name_taken",
        f"{place.path} has a {kind} {name} that is not this deployment's",
        "deploy under another name, or remove what has this one: "
        f"gcloud compute {group} delete {name} --project={place.project}{where}",
    )

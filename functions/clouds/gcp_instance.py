"""The machine: what is asked of Google for it, and what Google says of it (spec deploy 4)."""

from typing import Any, Final

from functions.clouds.gcp_settings import CONFIG_LABEL, PLAN_LABEL, Site
from functions.deploy.cloud import EVIDENCE_PORT, Machine
from shared.errors import ConfigError

TDX: Final = "TDX"
BOOT_GB: Final = 10
CONFIG_GB: Final = 1
_DISK_TYPE: Final = "pd-balanced"  # C3 has no pd-standard
_ALL_SCOPES: Final = "https://www.googleapis.com/auth/cloud-platform"


def instance_body(site: Site, plan_id: str, boot_image: str, config_image: str) -> dict[str, Any]:
    """Return the Instance resource of a confidential VM.

    No service account is attached unless `gcp_config` names one: gcloud, and so upstream, would attach the
    project's default one, whose tokens any program in the guest could fetch. Raises
    `ConfigError("gcp.scopes")` for scopes of no account.
    """
    settings = site.settings
    zone = f"zones/{site.place.zone}"
    body: dict[str, Any] = {
        "name": site.name,
        "machine_type": f"{zone}/machineTypes/{settings.machine_type}",
        "confidential_instance_config": {"confidential_instance_type": TDX},
        "shielded_instance_config": {
            "enable_vtpm": True,  # evidence and `tpm` keys come from it
            "enable_integrity_monitoring": True,
            "enable_secure_boot": False,  # the boot loader is measured, not signed for Google's keys
        },
        "scheduling": _scheduling(site),
        "disks": [
            _new_disk(site, site.name, boot_image, BOOT_GB, is_boot=True),
            {
                "source": f"projects/{site.place.project}/{zone}/disks/{site.data}",
                "device_name": site.data,
                "auto_delete": False,
            },
            _new_disk(site, site.shared, config_image, CONFIG_GB),
        ],
        "network_interfaces": [_network(site)],
        "tags": {"items": sorted({*(settings.tags or ()), site.tag})},
        "labels": instance_labels(site, plan_id),
    }
    if settings.service_account:
        scopes = list(settings.scopes or ()) or [_ALL_SCOPES]
        body["service_accounts"] = [{"email": settings.service_account, "scopes": scopes}]
    elif settings.scopes:
        raise ConfigError("gcp.scopes", "gcp_config has scopes and names no service_account to have them")
    return body


def instance_labels(site: Site, plan_id: str) -> dict[str, str]:
    """Return the user's labels and, over them, ours."""
    ours = site.labels | {PLAN_LABEL: plan_id[:32], CONFIG_LABEL: site.config}
    return dict(site.settings.labels or {}) | ours


def data_disk_body(site: Site, data_image: str) -> dict[str, Any]:
    """Return the Disk resource of the disk that keeps the app's data."""
    return {
        "name": site.data,
        "size_gb": data_gb(site),
        "type_": f"projects/{site.place.project}/zones/{site.place.zone}/diskTypes/{_DISK_TYPE}",
        "source_image": _image(site, data_image),
        "labels": site.labels,
    }


def data_gb(site: Site) -> int:
    """Return the size of the data disk."""
    return max(int(site.settings.data_size or 0), 1)


def machine_of(instance: Any) -> Machine:  # noqa: ANN401 - Google's types
    """Read Google's description. Evidence is asked for at the external address, where there is one."""
    interface = next(iter(instance.network_interfaces), None)
    internal = str(interface.network_i_p) if interface is not None else ""
    access = next(iter(interface.access_configs), None) if interface is not None else None
    external = str(access.nat_i_p) if access is not None else ""
    shielded = instance.shielded_instance_config
    confidential = instance.confidential_instance_config
    kind = str(confidential.confidential_instance_type)
    if not kind and confidential.enable_confidential_compute:
        kind = "SEV"  # what Google means without a type
    address = external or internal
    return Machine(
        status=str(instance.status).upper(),
        machine_type=str(instance.machine_type).rpartition("/")[2],
        confidential=kind,
        external_ip=external,
        internal_ip=internal,
        evidence_url=f"http://{address}:{EVIDENCE_PORT}/evidence" if address else "",
        traits={
            "vtpm": bool(shielded.enable_vtpm),
            "secure_boot": bool(shielded.enable_secure_boot),
            "integrity_monitoring": bool(shielded.enable_integrity_monitoring),
            "on_host_maintenance": str(instance.scheduling.on_host_maintenance),
            "service_accounts": [str(account.email) for account in instance.service_accounts],
        },
    )


def _scheduling(site: Site) -> dict[str, Any]:
    model = site.settings.provisioning_model or "STANDARD"
    if model == "SPOT":
        return {
            "on_host_maintenance": "TERMINATE",
            "automatic_restart": False,
            "provisioning_model": "SPOT",
            "instance_termination_action": "STOP",
        }
    # confidential memory cannot move to another host
    return {
        "on_host_maintenance": "TERMINATE",
        "automatic_restart": True,
        "provisioning_model": "STANDARD",
    }


def _new_disk(site: Site, name: str, image: str, size: int, *, is_boot: bool = False) -> dict[str, Any]:
    disk: dict[str, Any] = {
        "device_name": name,
        "auto_delete": True,
        "initialize_params": {
            "disk_name": name,
            "disk_size_gb": size,
            "disk_type": f"zones/{site.place.zone}/diskTypes/{_DISK_TYPE}",
            "source_image": _image(site, image),
            "labels": site.labels,
        },
    }
    return disk | ({"boot": True} if is_boot else {})


def _network(site: Site) -> dict[str, Any]:
    settings = site.settings
    subnet = str(settings.subnet) or ("default" if settings.private_ip else "")
    network = str(settings.network)
    interface: dict[str, Any] = {"nic_type": "GVNIC"}
    if subnet:
        region = site.place.region
        interface["subnetwork"] = subnet if "/" in subnet else f"regions/{region}/subnetworks/{subnet}"
    # a subnet says which network it is of; the default one would contradict it
    if network and not (subnet and network == "default"):
        interface["network"] = network if "/" in network else f"global/networks/{network}"
    if settings.private_ip:
        interface["network_i_p"] = settings.private_ip
    if not settings.no_public_ip:
        interface["access_configs"] = [{"type_": "ONE_TO_ONE_NAT", "name": "External NAT"}]
    return interface


def _image(site: Site, name: str) -> str:
    return name if "/" in name else f"projects/{site.place.project}/global/images/{name}"

"""What a launch of an enclave takes from the plan, each value checked before it reaches AWS or a shell."""

import ipaddress
import re
from typing import Any, Final

import msgspec

from shared.compose.enclave_network import EgressTarget, ForwardedPort, read_egress, read_ports
from shared.compose.project import NITRO_DEFAULTS, NitroConfig, merged
from shared.errors import ConfigError

ENCLAVE_CID: Final = 16
"""Upstream's; one enclave runs on an instance, so it is always free (deploy 5B.4)."""

ENCLAVE_NAME: Final = "app"
MEMORY_RATIO: Final = 4
"""An enclave needs this many times its image's size (deploy 5B.1)."""

MIN_MEMORY_MIB: Final = 64
MAX_MEMORY_MIB: Final = 1 << 22  # 4 TiB, more than any instance has
MAX_CPUS: Final = 448
MIN_VOLUME_GIB: Final = 8
MAX_VOLUME_GIB: Final = 16384

_PCRS: Final = ("PCR0", "PCR1", "PCR2")
_FORMS: Final = {
    "region": re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]"),
    "instance_type": re.compile(r"[a-z][a-z0-9-]{0,20}\.[a-z0-9-]{1,20}"),
    "bucket": re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "ami_id": re.compile(r"|ami-[0-9a-f]{8,17}"),
    "subnet_id": re.compile(r"|subnet-[0-9a-f]{8,17}"),
    "iam_instance_profile": re.compile(
        r"[A-Za-z0-9+=,.@_-]{1,128}|arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/[A-Za-z0-9+=,.@_/-]{1,128}"
    ),
}
_GROUP: Final = re.compile(r"sg-[0-9a-f]{8,17}")
_MENDING: Final = {
    "iam_instance_profile": "name a profile that has AmazonSSMManagedInstanceCore and may read the bucket",
    "bucket": "name the bucket that the image is handed over in",
}


class NitroSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The checked settings; `pcrs` maps PCR0 to PCR2 to lower-case hex, empty before there is a plan."""

    region: str
    instance_type: str
    arch: str
    cpu_count: int
    memory_mib: int
    bucket: str
    ami_id: str
    subnet_id: str
    security_group_ids: tuple[str, ...]
    iam_instance_profile: str
    volume_size: int
    no_public_ip: bool
    ports: tuple[ForwardedPort, ...]
    ingress: tuple[str, ...]
    egress: tuple[EgressTarget, ...]
    pcrs: dict[str, str] = {}

    @property
    def profile(self) -> dict[str, str]:
        """`IamInstanceProfile`, by name or by ARN."""
        key = "Arn" if self.iam_instance_profile.startswith("arn:") else "Name"
        return {key: self.iam_instance_profile}


def read_settings(machine: dict[str, Any] | NitroConfig, default_bucket: str = "") -> NitroSettings:
    """Return the checked settings of a plan's `machine`, or of a project's `nitro_config`.

    Raises `ConfigError`: `nitro.settings` (not the fields of `nitro_config`), `nitro.settings.<field>`,
    `nitro.ports.*`, `nitro.egress.*`.
    """
    try:
        given = machine if isinstance(machine, NitroConfig) else msgspec.convert(machine, NitroConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(
            "nitro.settings", f"the machine does not fit nitro_config: {str(error)[:200]}"
        ) from error
    fields = msgspec.structs.asdict(merged(given, NitroConfig(bucket=default_bucket), NITRO_DEFAULTS))
    for name, form in _FORMS.items():
        if form.fullmatch(fields[name]) is None:
            mending = _MENDING.get(name, "expected what aws calls it")
            raise ConfigError(f"nitro.settings.{name}", f"{name} is {fields[name][:80]!a}: {mending}")
    for name, least, most in (
        ("cpu_count", 1, MAX_CPUS),
        ("memory_mib", MIN_MEMORY_MIB, MAX_MEMORY_MIB),
        ("volume_size", MIN_VOLUME_GIB, MAX_VOLUME_GIB),
    ):
        if not least <= fields[name] <= most:
            raise ConfigError(
                f"nitro.settings.{name}", f"{name} is {fields[name]}, expected {least} to {most}"
            )
    for group in fields["security_group_ids"]:
        if _GROUP.fullmatch(group) is None:
            raise ConfigError("nitro.settings.security_group_ids", f"got {group[:80]!a}, expected sg-HEX")
    names = set(NitroSettings.__struct_fields__) - {"pcrs", "ports", "egress", "ingress"}
    return NitroSettings(
        **{name: fields[name] for name in names},
        ports=read_ports(fields["ports"]),
        egress=read_egress(fields["egress"]),
        ingress=tuple(_network(cidr) for cidr in fields["ingress"]),
    )


def planned_settings(
    machine: dict[str, Any], registers: dict[str, str], default_bucket: str = ""
) -> NitroSettings:
    """Return the settings of a plan, with the registers that its image must have.

    Raises what `read_settings` does, and `ConfigError("nitro.settings.pcrs")`.
    """
    for name in _PCRS:
        if re.fullmatch(r"[0-9a-f]{96}", registers.get(name, "")) is None:
            raise ConfigError("nitro.settings.pcrs", f"the plan has no {name} of 48 bytes")
    found = read_settings(machine, default_bucket)
    return msgspec.structs.replace(found, pcrs={name: registers[name] for name in _PCRS})


def _network(cidr: str) -> str:
    try:
        return str(ipaddress.ip_network(cidr))
    except ValueError as error:
        raise ConfigError(
            "nitro.settings.ingress", f"got {cidr[:80]!a}, expected a network like 203.0.113.0/24"
        ) from error

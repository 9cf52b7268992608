"""Whether this guest may run this app at all, before anything is recorded (spec deploy 6.3 step 3)."""

import re

from shared.boot_info import TDX
from shared.compose.launch_token import lint_launch_token
from shared.compose.model import AppCompose, Requirements
from shared.compose.os_version import meets_requirement
from shared.errors import ConfigError, PolicyDenied

_NERDCTL_MANIFEST = 3
_VERSION_ID = re.compile(rb"""^VERSION_ID=["']?([^"'\s]*)["']?\s*$""", re.MULTILINE)


def check_launch(compose: AppCompose, *, variant: str, os_release: bytes, user_config: bytes | None) -> None:
    """Refuse an app whose requirements this guest does not meet.

    `variant` is upstream's word for the platform, `os_release` the measured /etc/os-release. Manifest version
    and init scripts were checked when the document was read. `pre_launch_script` is no gate: what must hold
    stands in `requirements` (SECURITY N-72).

    Raises `PolicyDenied`: `setup.platform`, `setup.os_version`, `setup.acpi_tables`, `setup.launch_token`;
    `ConfigError("setup.runner")`; `ProtocolError("os_version.*")`.
    """
    if compose.runner == "nerdctl-compose" and compose.manifest < _NERDCTL_MANIFEST:
        raise ConfigError("setup.runner", "runner nerdctl-compose needs manifest_version '3'")
    if (required := compose.requirements) is None:
        return
    if required.platforms is not None and variant not in required.platforms:
        raise PolicyDenied(
            "setup.platform",
            f"this guest is {variant}, the app allows {', '.join(required.platforms)[:160] or 'no platform'}",
        )
    _check_os_version(required, os_release)
    if required.tdx_measure_acpi_tables and variant != TDX:
        raise PolicyDenied(
            "setup.acpi_tables", f"the app wants measured acpi tables, which a guest of {variant} has not"
        )
    if required.launch_token_hash is not None:
        findings = lint_launch_token(required.launch_token_hash, user_config)
        if findings:
            raise PolicyDenied("setup.launch_token", f".user-config {findings[0].message}")


def _check_os_version(required: Requirements, os_release: bytes) -> None:
    if required.os_version is None:
        return
    found = _VERSION_ID.search(os_release)
    version = found[1].decode("ascii", "replace") if found else ""
    if not meets_requirement(required.os_version, version):
        raise PolicyDenied(
            "setup.os_version", f"the os is version {version}, the app requires {required.os_version[:80]}"
        )

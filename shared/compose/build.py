"""An app-compose from a project: which fields are written, and in what form (spec deploy section 2.1)."""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import UnsetType

from shared.compose.project import AppProject, with_defaults

_MANIFEST_VERSION: Final = 2
_RUNNER: Final = "docker-compose"


def app_compose_document(
    project: AppProject, docker_compose: str, pre_launch_script: str | None, env_names: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the document that upstream's command line writes for a project, its fields in upstream's order.

    `env_names` are merged into allowed_envs, sorted and each once, where upstream's order is random. A
    project without a key provider kms has no gateway, as upstream's `new` says.
    """
    full = with_defaults(project)
    document: dict[str, Any] = {
        "manifest_version": _MANIFEST_VERSION,
        "name": full.name,
        "runner": _RUNNER,
        "docker_compose_file": docker_compose,
        "gateway_enabled": full.gateway_enabled,
        "public_logs": full.public_logs,
        "public_sysinfo": full.public_sysinfo,
        "public_tcbinfo": full.public_tcbinfo,
        "key_provider_id": full.key_provider_id,
        "allowed_envs": sorted({*allowed_envs(full), *env_names}),
        "no_instance_id": full.no_instance_id,
        "secure_time": full.secure_time,
        "key_provider": full.key_provider,
        "storage_fs": full.storage_fs,
    }
    for name in (
        "env_signer",
        "env_min_version",
        "key_epoch",
    ):  # ours, so upstream's documents stay as they are
        if not isinstance(value := getattr(full, name), UnsetType):
            document[name] = value
    if pre_launch_script is not None:
        document["pre_launch_script"] = pre_launch_script
    return document


def allowed_envs(project: AppProject) -> tuple[str, ...]:
    """Return the names that the project itself allows."""
    names = project.allowed_envs
    return () if isinstance(names, UnsetType) else names

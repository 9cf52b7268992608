"""Deployments as the HTTP API shows them: no leases, no idempotency keys, no blobs' places."""

from typing import Any, Final

import msgspec

from functions.deploy.cloud import FirewallRule, Machine
from functions.deploy.record import Deployment, Event, workload
from shared.errors import ProtocolError
from shared.hex import decode_hex

_SETTINGS: Final = ("device_id", "app_owner")
"""What of the request's options the contracts are asked with."""


def summary(deployment: Deployment) -> dict[str, Any]:
    """Return what a list shows of a deployment."""
    return {
        "name": deployment.name,
        "uid": deployment.uid,
        "version": deployment.version,
        "cloud": deployment.cloud,
        "goal": deployment.goal.value,
        "step": deployment.step.value,
        "status": deployment.status,
        "settled": deployment.is_resting,
        "created_at": deployment.created_at,
        "updated_at": deployment.updated_at,
    }


def whole(deployment: Deployment) -> dict[str, Any]:
    """Return what there is to say of one deployment; what does not exist yet is null."""
    planned, running = deployment.planned, deployment.running
    return {
        **summary(deployment),
        "created_by": deployment.created_by,
        "files": deployment.files.project,
        "encrypted_env": deployment.files.encrypted_env,
        "env_names": deployment.settings.get("env_names", []),
        **{name: deployment.settings.get(name, "") for name in _SETTINGS},
        "planned": None
        if planned is None
        else {
            "plan_id": planned.plan_id,
            "platform": planned.platform,
            "app_id": planned.app_id,
            "compose_hash": planned.compose_hash,
            "os_image_hash": planned.os_image_hash,
            "config_disk_sha256": planned.config_disk_sha256,
            "machine": planned.machine,
        },
        "approved": msgspec.to_builtins(deployment.approved),
        "running": msgspec.to_builtins(running),
        "launched": msgspec.to_builtins(deployment.launched),
        "key_server": deployment.key_server,
        "quarantine": msgspec.to_builtins(deployment.quarantine),
        "resources": [
            {
                "kind": one.kind,
                "name": one.name,
                "place": one.place,
                "state": one.state,
                "keep": one.keep,
            }
            for one in deployment.resources
        ],
        "failure": msgspec.to_builtins(deployment.failure),
        "unverified_progress": msgspec.to_builtins(deployment.progress),
    }


def read_whole(shown: dict[str, Any]) -> Deployment:
    """Return the record that `whole` shows, as far as it does: all that governance judges by is there.

    Raises `ProtocolError`: `api.answer` for what is no such view, or another version's, `hex.invalid`.
    """
    try:
        planned = shown["planned"]
        fields = {
            **shown,
            "files": {"project": shown["files"], "encrypted_env": shown["encrypted_env"]},
            "settings": {name: str(shown[name]) for name in _SETTINGS},
            "planned": planned and {**planned, "plan": ""},
            # which may not be missing: a record without them would be judged as one that runs nothing
            "launched": shown["launched"],
            "key_server": shown["key_server"],
        }
        found = msgspec.convert(fields, Deployment)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise ProtocolError("api.answer", f"the answer is no deployment of this version: {error}") from error
    proven = found.running and found.running.proven
    for one in (workload(found.planned), found.launched, proven):
        for name in ("app_id", "compose_hash", "os_image_hash", "mr_aggregated", "device_id"):
            decode_hex(getattr(one, name, ""), what=name, prefix=False)
    for name in _SETTINGS:
        decode_hex(found.settings[name], what=name)
    return found


def event(one: Event) -> dict[str, Any]:
    """Return one thing that happened."""
    shown: dict[str, Any] = msgspec.to_builtins(one)
    del shown["uid"]
    return shown


def machine(one: Machine) -> dict[str, Any]:
    """Return what a cloud says of a machine."""
    shown: dict[str, Any] = msgspec.to_builtins(one)
    return shown


def rule(one: FirewallRule) -> dict[str, Any]:
    """Return one rule of a firewall."""
    shown: dict[str, Any] = msgspec.to_builtins(one)
    return shown


def entity_tag(deployment: Deployment) -> str:
    """Return the ETag of a deployment: another one for each version, and each use of the name."""
    return f'"{deployment.uid}.{deployment.version}"'

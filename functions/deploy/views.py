"""Deployments as the HTTP API shows them: no leases, no idempotency keys, no blobs' places."""

from typing import Any

import msgspec

from functions.deploy.cloud import FirewallRule, Machine
from functions.deploy.record import Deployment, Event


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
        "quarantine": msgspec.to_builtins(deployment.quarantine),
        "resources": [
            {"kind": one.kind, "name": one.name, "place": one.place, "state": one.state}
            for one in deployment.resources
        ],
        "failure": msgspec.to_builtins(deployment.failure),
        "unverified_progress": msgspec.to_builtins(deployment.progress),
    }


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

"""state.json: what a command saw last, in upstream's fields (spec deploy section 1.5)."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from cli.deployments import View
from cli.whole_file import write_whole
from functions.plan.project_files import STATE_JSON
from shared.compose.state import MAX_STATE_BYTES, Deployed, State, read_state, write_state
from shared.errors import StorageError

_STATUS: Final = {
    "running": "RUNNING",
    "stopped": "STOPPED",
    "removed": "REMOVED",
    "failed": "FAILED",
}
"""Where a deployment rests, in upstream's words; the machine's own word counts before it."""


def record_deployment(directory: Path, found: View) -> None:
    """Write what is known of a deployment into the project's state.json, other keys as they were.

    Raises `ConfigError` for a state.json that cannot be read, `StorageError("state.write")`.
    """
    path = directory / STATE_JSON
    try:
        old = read_state(path.read_bytes()[: MAX_STATE_BYTES + 1]) if path.exists() else State()
        write_whole(path, write_state(state_of(found, old)))
    except OSError as error:
        raise StorageError("state.write", f"cannot write {path}: {error.strerror}") from error


def state_of(found: View, old: State) -> State:
    """Return the state of a deployment; `deployed` is what was launched, not what is planned next."""
    planned, running = found["planned"], found["running"]
    machine = {} if planned is None else planned["machine"]
    words = {} if running is None else running
    is_gone = found["step"] == "removed"
    launched = running is not None and planned is not None and running["plan_id"] == planned["plan_id"]
    deployed = old.deployed
    if is_gone:
        deployed = None
    elif launched:
        deployed = Deployed(
            plan_id=planned["plan_id"],
            compose_hash=planned["compose_hash"],
            os_image_hash=planned["os_image_hash"],
            app_id=planned["app_id"],
            config_disk_sha256=planned["config_disk_sha256"],
            extra={} if old.deployed is None else old.deployed.extra,
        )
    resources = {one["kind"]: one["name"] for one in found["resources"] if one["state"] != "gone"}
    return msgspec.structs.replace(
        old,
        platform=planned["platform"] if planned is not None else old.platform,
        instance_name=found["name"],
        project=str(machine.get("project") or old.project),
        zone=str(machine.get("zone") or old.zone),
        region=str(machine.get("region") or old.region),
        external_ip="" if is_gone else str(words.get("external_ip") or ""),
        internal_ip="" if is_gone else str(words.get("internal_ip") or ""),
        status=_status(found),
        created_at=_iso(found["created_at"]),
        updated_at=_iso(found["updated_at"]),
        shared_image=resources.get("shared-image", old.shared_image),
        deployed=deployed,
    )


def _status(found: View) -> str:
    running = found["running"]
    if found["step"] == "removed":
        return "REMOVED"
    if running is None:
        return "NOT_FOUND"
    return str(running["machine_status"] or _STATUS.get(found["step"], "RUNNING"))


def _iso(seconds: int) -> str:
    """Return a time as upstream writes it: ISO, of no zone; ours is UTC."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()

"""state.json: what was deployed, as the last command saw it (spec deploy section 1.5).

The fields are upstream's; ours are in the object `deployed`, so that both tools can read one file. It is a
record, and no proof of what runs.
"""

import json
from typing import Any, Final

import msgspec

from shared.errors import ConfigError, ProtocolError
from shared.strict_json import decode_json

MAX_STATE_BYTES: Final = 256 * 1024  # a real one has about 1 KiB
_SHOWN: Final = 200  # characters of a foreign sentence that an error repeats
GONE: Final = frozenset({"REMOVED", "NOT_FOUND"})


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """What our deploy put there: hashes in lowercase hex, `plan_id` of the plan that was carried out.

    `extra` holds keys that this version does not know.
    """

    plan_id: str = ""
    compose_hash: str = ""
    os_image_hash: str = ""
    app_id: str = ""
    config_disk_sha256: str = ""
    extra: dict[str, Any] = {}


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of state.json; `extra` holds keys that this version does not know."""

    platform: str = ""
    instance_name: str = ""
    project: str = ""
    zone: str = ""
    region: str = ""
    instance_id: str = ""
    ami_id: str = ""
    shared_snapshot: str = ""
    data_snapshot: str = ""
    external_ip: str = ""
    internal_ip: str = ""
    status: str = ""
    created_at: str = ""
    updated_at: str = ""
    boot_image: str = ""
    data_image: str = ""
    shared_image: str = ""
    deployed: Deployed | None = None
    extra: dict[str, Any] = {}

    @property
    def is_live(self) -> bool:
        """Whether something is deployed, as far as the file knows."""
        return self.status not in GONE


_KNOWN: Final = frozenset(State.__struct_fields__) - {"extra"}
_KNOWN_DEPLOYED: Final = frozenset(Deployed.__struct_fields__) - {"extra"}


def read_state(raw: bytes) -> State:
    """Read a state.json; a null counts as absent.

    Raises `ConfigError`: `project.state.size`, `.syntax`, `.duplicate_key`, `.depth`, `.type`, `.field`.
    """
    try:
        document = decode_json(
            raw, what="state.json", code="project.state", max_bytes=MAX_STATE_BYTES, max_depth=16
        )
    except ProtocolError as error:
        raise ConfigError(error.code, error.message) from error
    if not isinstance(document, dict):
        raise ConfigError("project.state.type", "state.json is not a json object")
    known = {key: value for key, value in document.items() if key in _KNOWN and value is not None}
    if isinstance(deployed := known.get("deployed"), dict):
        ours = {key: value for key, value in deployed.items() if key in _KNOWN_DEPLOYED}
        ours["extra"] = {key: value for key, value in deployed.items() if key not in _KNOWN_DEPLOYED}
        known["deployed"] = ours
    try:
        state = msgspec.convert(known, State)
    except ValueError as error:
        detail = str(error)[:_SHOWN].encode("ascii", "replace").decode()
        raise ConfigError("project.state.field", f"state.json does not fit its fields: {detail}") from error
    extra = {key: value for key, value in document.items() if key not in _KNOWN}
    return msgspec.structs.replace(state, extra=extra)


def write_state(state: State) -> bytes:
    """Return the bytes of a state.json, unknown keys as they were; two-space indent."""
    document = msgspec.to_builtins(state)
    document.update(document.pop("extra", {}))
    if "deployed" in document:
        document["deployed"].update(document["deployed"].pop("extra"))
    return json.dumps(document, indent=2).encode() + b"\n"

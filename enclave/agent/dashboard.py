"""`GET /` of the external port: one page for people (spec guest-agent section 4).

Names, images and states of containers, and what the kernel says of the machine, are text that somebody else
wrote: all of it is escaped, and the browser is told to run and to load nothing.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final
from urllib.parse import quote

from enclave.agent.docker_engine import Container, is_container_name
from shared.rpc import agent_pb2 as pb
from shared.rpc import guest_api_pb2 as host_pb

LOG_QUERY: Final = "text&bare&timestamps&follow&tail=20"
TCB_IS_PRIVATE: Final = "TCB info is not public"

SIMULATED: Final = "This guest is simulated: its evidence is signed by nobody's hardware."

_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%;margin-bottom:2rem}"
    "th,td{border-bottom:1px solid #ccc;padding:.3rem .6rem;text-align:left;overflow-wrap:anywhere}"
    "textarea{width:100%;height:24rem;font:13px/1.4 monospace}"
)
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_STEP: Final = 1024


def security_headers() -> dict[str, str]:
    """Return the headers under which the agent's pages run no script, and load nothing."""
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        "default-src 'none'",
        f"style-src 'sha256-{style}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "content-security-policy": "; ".join(policy),
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }


def dashboard_html(
    info: pb.AppInfo,
    containers: Sequence[Container],
    *,
    system: host_pb.SystemInfo | None,
    public_logs: bool,
    public_tcbinfo: bool,
    simulated: bool = False,
) -> str:
    """Return the page. `system` is None where the app keeps it to itself; `simulated` is said at the top."""
    title = _text(info.app_name) or "dstack app"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>',
        f"<body><h1>{title}</h1>",
        *([f"<p>{SIMULATED}</p>"] if simulated else []),
        _table("App", _identity(info)),
    ]
    if system is not None:
        parts.append(_table("System", _machine(system)))
    parts += ["<h2>Containers</h2>", _containers(containers, public_logs=public_logs), "<h2>TCB info</h2>"]
    if public_tcbinfo:
        parts.append(f'<textarea readonly aria-label="TCB info">\n{_text(info.tcb_info)}</textarea>')
    else:
        parts.append(f"<p>{TCB_IS_PRIVATE}</p>")
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def _identity(info: pb.AppInfo) -> Iterable[tuple[str, str]]:
    yield "App name", info.app_name
    yield "App ID", info.app_id.hex()
    yield "Instance ID", info.instance_id.hex()
    yield "Device ID", info.device_id.hex()
    yield "Key provider", info.key_provider_info
    if info.cloud_vendor:
        yield "Cloud vendor", info.cloud_vendor
    if info.cloud_product:
        yield "Cloud product", info.cloud_product


def _machine(system: host_pb.SystemInfo) -> Iterable[tuple[str, str]]:
    yield "OS", f"{system.os_name} {system.os_version}"
    yield "Kernel", system.kernel_version
    yield "CPU", f"{system.num_cpus} x {system.cpu_model}"
    yield "Memory", f"{_size(system.used_memory)} of {_size(system.total_memory)} used"
    yield "Swap", f"{_size(system.used_swap)} of {_size(system.total_swap)} used"
    loads = (system.loadavg_one, system.loadavg_five, system.loadavg_fifteen)
    yield "Load", " ".join(f"{load / 100:.2f}" for load in loads)
    yield "Uptime", f"{system.uptime} s"
    for disk in system.disks:
        yield (
            f"Disk {disk.mount_point}",
            f"{disk.name}: {_size(disk.free_size)} of {_size(disk.total_size)} free",
        )


def _table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>\n" for name, value in rows)
    return f"<h2>{title}</h2>\n<table>{body}</table>"


def _containers(containers: Sequence[Container], *, public_logs: bool) -> str:
    rows = []
    for one in containers:
        logs = ""
        if public_logs and is_container_name(one.name):
            logs = f'<a href="/logs/{quote(one.name, safe="")}?{escape(LOG_QUERY)}">logs</a>'
        rows.append(
            f"<tr><td>{_text(one.name)}</td><td>{_text(one.status)}</td><td>{logs}</td></tr>\n"
            if public_logs
            else f"<tr><td>{_text(one.name)}</td><td>{_text(one.status)}</td></tr>\n"
        )
    last = "<th>Logs</th>" if public_logs else ""
    return f"<table><tr><th>Name</th><th>Status</th>{last}</tr>\n{''.join(rows)}</table>"


def _text(foreign: str) -> str:
    """Return text for an element or an attribute, with a mark for what would not be seen or would reorder."""
    seen = "".join(one if one.isprintable() or one == "\n" else "\ufffd" for one in foreign)
    return escape(seen, quote=True)


def _size(size: int) -> str:
    if size < _STEP:
        return f"{size} B"
    scaled, unit = float(size), ""
    for unit in _UNITS:  # noqa: B007 - the last one is used
        scaled /= _STEP
        if scaled < _STEP:
            break
    return f"{scaled:.2f} {unit}"

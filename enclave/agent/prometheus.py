"""`/metrics` in Prometheus's text format (spec guest-agent section 4).

Upstream's series keep their names and their units: sizes in bytes, loads times 100, percentages. Ours, which
begin with `dstack_guest_`, are in base units as Prometheus's conventions have them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from enclave.agent.docker_engine import Container
from shared.rpc import guest_api_pb2 as pb

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

CONTAINER_STATES: Final = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
"""Those that Docker documents; another one counts as `other`."""

_Sample = tuple[Mapping[str, str], int | float]
_NO_LABELS: Final[Mapping[str, str]] = {}


def metrics_text(system: pb.SystemInfo, containers: Sequence[Container] | None) -> str:
    """Return the page; `containers` is None when the container engine does not answer."""
    return "".join([*_upstream(system), *_ours(system, containers)])


def _upstream(system: pb.SystemInfo) -> Iterable[str]:
    for name, what in (
        ("os_name", "Name of the operating system"),
        ("os_version", "Version of the operating system"),
        ("kernel_version", "Version of the kernel"),
        ("cpu_model", "Model of the processors"),
    ):
        yield _gauge(f"system_{name}", what, [({name: getattr(system, name)}, 1)])
    for name, what, value in (
        ("num_cpus", "Processors", system.num_cpus),
        ("memory_total", "Memory, bytes", system.total_memory),
        ("memory_available", "Memory that programs can still have, bytes", system.available_memory),
        ("memory_used", "Memory less what is available, bytes", system.used_memory),
        ("memory_free", "Memory that nothing uses, bytes", system.free_memory),
        ("swap_total", "Swap, bytes", system.total_swap),
        ("swap_used", "Swap in use, bytes", system.used_swap),
        ("swap_free", "Swap not in use, bytes", system.free_swap),
        ("uptime", "Time since the kernel started, seconds", system.uptime),
        ("load_average_1m", "Load of the last minute, times 100", system.loadavg_one),
        ("load_average_5m", "Load of the last 5 minutes, times 100", system.loadavg_five),
        ("load_average_15m", "Load of the last 15 minutes, times 100", system.loadavg_fifteen),
    ):
        yield _gauge(f"system_{name}", what, [(_NO_LABELS, value)])
    labelled = [({"name": disk.name, "mount_point": disk.mount_point}, disk) for disk in system.disks]
    for name, what, of in (
        ("total_size", "Size of a data disk, bytes", lambda disk: disk.total_size),
        ("free_size", "What programs can still write, bytes", lambda disk: disk.free_size),
        ("used_size", "Size less what is free, bytes", _used),
        ("usage_percentage", "Share of a data disk that is used, percent", lambda disk: _share(disk) * 100),
    ):
        yield _gauge(f"disk_{name}", what, [(labels, of(disk)) for labels, disk in labelled])


def _ours(system: pb.SystemInfo, containers: Sequence[Container] | None) -> Iterable[str]:
    yield _gauge(
        "dstack_guest_load_average",
        "Load, as runnable tasks",
        [
            ({"minutes": "1"}, system.loadavg_one / 100),
            ({"minutes": "5"}, system.loadavg_five / 100),
            ({"minutes": "15"}, system.loadavg_fifteen / 100),
        ],
    )
    yield _gauge(
        "dstack_guest_uptime_seconds", "Time since the kernel started", [(_NO_LABELS, system.uptime)]
    )
    yield _gauge(
        "dstack_guest_memory_bytes",
        "Memory",
        [
            ({"state": "total"}, system.total_memory),
            ({"state": "available"}, system.available_memory),
            ({"state": "free"}, system.free_memory),
        ],
    )
    yield _gauge(
        "dstack_guest_swap_bytes",
        "Swap",
        [({"state": "total"}, system.total_swap), ({"state": "free"}, system.free_swap)],
    )
    points = [({"mount_point": disk.mount_point}, disk) for disk in system.disks]
    yield _gauge(
        "dstack_guest_disk_size_bytes", "Size", [(labels, disk.total_size) for labels, disk in points]
    )
    yield _gauge(
        "dstack_guest_disk_available_bytes",
        "What programs can still write",
        [(labels, disk.free_size) for labels, disk in points],
    )
    yield _gauge(
        "dstack_guest_disk_used_ratio",
        "Share of a data disk that is used, 0 to 1",
        [(labels, _share(disk)) for labels, disk in points],
    )
    yield _gauge(
        "dstack_guest_container_engine_up",
        "Whether the container engine answers",
        [(_NO_LABELS, int(containers is not None))],
    )
    if containers is not None:
        states = Counter(one.state if one.state in CONTAINER_STATES else "other" for one in containers)
        yield _gauge(
            "dstack_guest_containers",
            "Containers by state",
            [({"state": state}, states[state]) for state in (*CONTAINER_STATES, "other")],
        )


def _gauge(name: str, what: str, samples: Sequence[_Sample]) -> str:
    lines = [f"# HELP {name} {what}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inner = ",".join(f'{label}="{escape_label(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")
    return "\n".join(lines) + "\n"


def escape_label(text: str) -> str:
    """Return a label's value as it stands between its quotes."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _used(disk: pb.DiskInfo) -> int:
    return max(disk.total_size - disk.free_size, 0)


def _share(disk: pb.DiskInfo) -> float:
    return _used(disk) / disk.total_size if disk.total_size else 0.0

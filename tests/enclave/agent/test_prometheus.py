"""`/metrics` is what Prometheus reads, whatever the machine is called."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from enclave.agent.docker_engine import Container
from enclave.agent.prometheus import metrics_text
from enclave.agent.system_info import SystemReader
from shared.rpc import guest_api_pb2 as pb
from tests.enclave.agent.machines import lay_machine, statvfs

NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"({NAME})(?:\{{(.*)\}})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')
UNESCAPED = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}

HOSTILE = ['a"} 1\nevil 2\n', "back\\slash", "\\", '"', "\\n", "line\nfeed", "\r\x00\x1b[31m", "ü\u202e", ""]


class Page(NamedTuple):
    types: Mapping[str, str]
    samples: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    def value(self, name: str, /, **labels: str) -> float:
        return self.samples[name, tuple(labels.items())]

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for found, labels in self.samples if found == name]


def parse(text: str) -> Page:
    """Parse the text format strictly: TYPE and HELP before the samples, which stand together, none twice."""
    types: dict[str, str] = {}
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    current = ""
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert current not in types
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            types[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] == current
            assert current in types
            key = (match[1], _labels(match[2] or ""))
            assert key not in samples
            samples[key] = float(match[3])
    return Page(types, samples)


def _labels(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    position = 0
    while position < len(text):
        match = LABEL.match(text, position)
        assert match, text
        found.append((match[1], re.sub(r"\\.", lambda one: UNESCAPED[one[0]], match[2])))
        position = match.end()
    return tuple(found)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    system = SystemReader(["/"], root=lay_machine(tmp_path), statvfs=statvfs).read()
    return parse(metrics_text(system, [Container(state="running"), Container(state="exited"), Container()]))


def test_upstreams_series_have_upstreams_names_and_units(page: Page) -> None:
    kib = 1024
    assert {
        name: page.value(name)
        for name in page.types
        if name.startswith("system_") and not page.labels(name)[0]
    } == {
        "system_num_cpus": 2,
        "system_memory_total": 2027288 * kib,
        "system_memory_available": 1501000 * kib,
        "system_memory_used": 526288 * kib,
        "system_memory_free": 901212 * kib,
        "system_swap_total": 524288 * kib,
        "system_swap_used": 100000 * kib,
        "system_swap_free": 424288 * kib,
        "system_uptime": 4125,
        "system_load_average_1m": 7,
        "system_load_average_5m": 125,
        "system_load_average_15m": 1000,
    }


def test_upstreams_series_name_the_system_in_labels(page: Page) -> None:
    assert page.value("system_os_name", os_name="dstack") == 1
    assert page.value("system_os_version", os_version="0.5.4") == 1
    assert page.value("system_kernel_version", kernel_version="6.9.0-dstack") == 1
    assert page.labels("system_cpu_model") == [
        {"cpu_model": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz @2699 MHz"}
    ]


def test_upstreams_series_have_each_disk(page: Page) -> None:
    disk = {"name": "overlay", "mount_point": "/"}
    assert page.value("disk_total_size", **disk) == 4096000
    assert page.value("disk_free_size", **disk) == 1024000
    assert page.value("disk_used_size", **disk) == 3072000
    assert page.value("disk_usage_percentage", **disk) == 75


def test_ours_are_in_base_units(page: Page) -> None:
    assert page.value("dstack_guest_load_average", minutes="1") == 0.07
    assert page.value("dstack_guest_load_average", minutes="15") == 10
    assert page.value("dstack_guest_uptime_seconds") == 4125
    assert page.value("dstack_guest_memory_bytes", state="available") == 1501000 * 1024
    assert page.value("dstack_guest_swap_bytes", state="free") == 424288 * 1024
    assert page.value("dstack_guest_disk_size_bytes", mount_point="/") == 4096000
    assert page.value("dstack_guest_disk_available_bytes", mount_point="/") == 1024000
    assert page.value("dstack_guest_disk_used_ratio", mount_point="/") == 0.75


def test_containers_are_counted_by_their_state(page: Page) -> None:
    assert page.value("dstack_guest_container_engine_up") == 1
    counted = {
        labels["state"]: page.value("dstack_guest_containers", **labels)
        for labels in page.labels("dstack_guest_containers")
    }
    assert {state: count for state, count in counted.items() if count} == {
        "running": 1,
        "exited": 1,
        "other": 1,
    }


def test_every_series_is_a_gauge(page: Page) -> None:
    assert set(page.types.values()) == {"gauge"}


def test_an_engine_that_does_not_answer_is_down_and_counts_nothing() -> None:
    page = parse(metrics_text(pb.SystemInfo(), None))
    assert page.value("dstack_guest_container_engine_up") == 0
    assert "dstack_guest_containers" not in page.types


def test_a_disk_without_size_is_not_divided_by() -> None:
    page = parse(metrics_text(pb.SystemInfo(disks=[pb.DiskInfo(name="a", mount_point="/")]), ()))
    assert page.value("disk_usage_percentage", name="a", mount_point="/") == 0


def test_a_disk_that_is_freer_than_large_is_not_used() -> None:
    disk = pb.DiskInfo(name="a", mount_point="/", total_size=5, free_size=9)
    page = parse(metrics_text(pb.SystemInfo(disks=[disk]), ()))
    assert page.value("disk_used_size", name="a", mount_point="/") == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_labels_hold_any_text(text: str) -> None:
    system = pb.SystemInfo(
        os_name=text,
        cpu_model=text,
        disks=[pb.DiskInfo(name=text, mount_point=text, total_size=2, free_size=1)],
    )
    page = parse(metrics_text(system, [Container(state=text)]))
    assert page.value("system_os_name", os_name=text) == 1
    assert page.value("system_cpu_model", cpu_model=text) == 1
    assert page.value("disk_total_size", name=text, mount_point=text) == 2
    assert page.value("dstack_guest_disk_used_ratio", mount_point=text) == 0.5
    assert page.value("dstack_guest_containers", state="other") == 1

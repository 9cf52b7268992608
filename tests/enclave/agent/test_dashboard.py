"""The page for people holds what others wrote as text, and nothing that runs or loads."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from enclave.agent.dashboard import SIMULATED, TCB_IS_PRIVATE, dashboard_html, security_headers
from enclave.agent.docker_engine import Container
from shared.rpc import agent_pb2 as pb
from shared.rpc import guest_api_pb2 as host_pb

TAGS = {
    "html": {"lang"},
    "head": set(),
    "meta": {"charset"},
    "title": set(),
    "style": set(),
    "body": set(),
    "h1": set(),
    "h2": set(),
    "table": set(),
    "tr": set(),
    "th": set(),
    "td": set(),
    "p": set(),
    "a": {"href"},
    "textarea": {"readonly", "aria-label"},
}
VOID = {"meta"}

HOSTILE = [
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</textarea><img src=x onerror=alert(1)>",
    '"><a href="javascript:alert(1)">x</a>',
    "' onmouseover='alert(1)",
    "<!-- <b>",
    "]]><b>",
    "&lt;b&gt; &amp;",
    "</td></tr></table><form action=//evil.test>",
]


class StrictPage(HTMLParser):
    """Refuses any tag and attribute that the page has no use for, and tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.cells: list[str] = []
        self.links: list[str] = []
        self.area: str | None = None
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= TAGS[tag]
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "textarea":
            self.area = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.open and self.open[-1] == "textarea":
            self.area = (self.area or "") + data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)

    def row(self, name: str) -> str:
        """Return the cell after the one of this text."""
        return self.cells[self.cells.index(name) + 1]


def page(
    info: pb.AppInfo | None = None,
    *containers: Container,
    system: host_pb.SystemInfo | None = None,
    logs: bool = False,
    tcb: bool = True,
) -> StrictPage:
    html = dashboard_html(
        info or pb.AppInfo(), containers, system=system, public_logs=logs, public_tcbinfo=tcb
    )
    return StrictPage(html)


def web(**changes: Any) -> Container:
    return Container(
        **{"id": "ab", "names": ("/web",), "state": "running", "status": "Up 3 minutes", **changes}
    )


def test_tells_who_the_app_is() -> None:
    info = pb.AppInfo(
        app_name="wörld",
        app_id=b"\1\2",
        instance_id=b"\3",
        device_id=b"\4",
        key_provider_info='{"name":"kms"}',
        cloud_vendor="Google",
        cloud_product="Compute Engine",
    )
    found = page(info)
    rows = ("App name", "App ID", "Instance ID", "Device ID", "Key provider", "Cloud vendor", "Cloud product")
    assert [found.row(name) for name in rows] == [
        "wörld",
        "0102",
        "03",
        "04",
        '{"name":"kms"}',
        "Google",
        "Compute Engine",
    ]


def test_tells_of_no_cloud_where_there_is_none() -> None:
    assert not {"Cloud vendor", "Cloud product"} & set(page().cells)


def test_lists_containers_without_links_where_logs_are_private() -> None:
    found = page(None, web())
    assert found.row("web") == "Up 3 minutes"
    assert not found.links


def test_links_the_logs_where_they_are_public() -> None:
    assert page(None, web(), logs=True).links == ["/logs/web?text&bare&timestamps&follow&tail=20"]


def test_links_no_name_that_no_container_has() -> None:
    assert not page(None, web(names=("/a/../b",)), web(names=("javascript:x",)), logs=True).links


def test_tells_of_the_machine_where_it_is_public() -> None:
    gib = 1 << 30
    system = host_pb.SystemInfo(
        os_name="dstack",
        os_version="0.5.4",
        kernel_version="6.9",
        cpu_model="Xeon",
        num_cpus=2,
        total_memory=4 * gib,
        used_memory=gib + gib // 2,
        loadavg_one=7,
        uptime=5,
        disks=[host_pb.DiskInfo(name="/dev/vdb", mount_point="/data", total_size=1000, free_size=3 * gib)],
    )
    found = page(system=system)
    assert found.row("OS") == "dstack 0.5.4"
    assert found.row("CPU") == "2 x Xeon"
    assert found.row("Memory") == "1.50 GiB of 4.00 GiB used"
    assert found.row("Load") == "0.07 0.00 0.00"
    assert found.row("Disk /data") == "/dev/vdb: 3.00 GiB of 1000 B free"


def test_tells_nothing_of_the_machine_where_it_is_private() -> None:
    assert not {"OS", "CPU", "Memory", "Kernel", "Uptime"} & set(page().cells)


def test_shows_the_tcb_info_where_it_is_public() -> None:
    found = page(pb.AppInfo(tcb_info='\n{\n  "mrtd": "00"\n}'))
    assert found.area == '\n\n{\n  "mrtd": "00"\n}'
    assert TCB_IS_PRIVATE not in found.text


def test_says_that_the_tcb_info_is_private_where_it_is() -> None:
    found = page(pb.AppInfo(tcb_info="secret"), tcb=False)
    assert found.area is None
    assert TCB_IS_PRIVATE in found.text
    assert "secret" not in found.text


@pytest.mark.parametrize("text", HOSTILE)
def test_all_foreign_text_is_text(text: str) -> None:
    info = pb.AppInfo(
        app_name=text, key_provider_info=text, cloud_vendor=text, cloud_product=text, tcb_info=text
    )
    system = host_pb.SystemInfo(
        os_name=text,
        os_version=text,
        kernel_version=text,
        cpu_model=text,
        disks=[host_pb.DiskInfo(name=text, mount_point=text)],
    )
    found = page(info, web(names=("/" + text,), status=text, state=text), system=system, logs=True)
    assert found.row("App name") == text
    assert found.row("Cloud vendor") == text
    assert found.cells[-3:] == [text, text, ""]  # the container's name, its status, and no link
    assert found.area == "\n" + text
    assert not found.links


@pytest.mark.parametrize("mark", ["\x00", "\x1b", "\u202e", "\u2066", "\ufeff", "\u200b", "\x85", "\ue000"])
def test_marks_what_would_not_be_seen(mark: str) -> None:
    assert page(None, web(names=(f"/a{mark}b",))).row("a\ufffdb") == "Up 3 minutes"


def test_a_container_without_a_name_goes_by_its_id() -> None:
    assert page(None, web(names=None)).row("ab") == "Up 3 minutes"


def test_shows_a_thousand_containers() -> None:
    found = page(None, *(web(names=(f"/web-{number}",)) for number in range(1000)), logs=True)
    assert len(found.links) == 1000


def test_the_page_of_a_simulated_guest_says_so() -> None:
    html = dashboard_html(
        pb.AppInfo(), (), system=None, public_logs=False, public_tcbinfo=True, simulated=True
    )
    assert SIMULATED in StrictPage(html).text
    assert SIMULATED not in page().text


def test_the_policy_allows_the_pages_own_style_and_nothing_else() -> None:
    policy = security_headers()["content-security-policy"]
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/=]{44}'; base-uri 'none'; form-action 'none'; "
        r"frame-ancestors 'none'",
        policy,
    )

import io
import stat

import pytest

from shared.measurement.cpio import MAX_PATH, CpioEntry, read_cpio
from shared.measurement.enclave_ramdisks import (
    LINUXKIT_MTIME,
    MOUNT_POINTS,
    DataSource,
    Node,
    bootstrap_entries,
    customer_entries,
    file_node,
    no_data,
    write_ramdisk,
)
from tests.shared.measurement.made_eif import APP, BOOT
from tests.shared.refusal import refuses

DIRECTORY = stat.S_IFDIR | 0o755
ARGV, ENV = ["/bin/hello"], ["PATH=/bin"]
HELLO: list[Node] = [
    (CpioEntry(b"bin/sh", stat.S_IFLNK | 0o777, size=5), lambda: [b"hello"]),
    file_node(b"bin/hello", b"hi\n", mode=stat.S_IFREG | 0o755),
    (CpioEntry(b"bin", DIRECTORY, mtime=99), no_data),
]


def content(data: bytes) -> tuple[int, DataSource]:
    return len(data), lambda: (data,)


def customer(
    nodes: list[Node], *, argv: list[str] | None = None, env: list[str] | None = None, mtime: int = 0
) -> bytes:
    out = bytearray()
    entries = customer_entries(
        nodes, argv=ARGV if argv is None else argv, env=ENV if env is None else env, mtime=mtime
    )
    assert write_ramdisk(entries, out.extend) == len(out)
    return bytes(out)


def contents(raw: bytes) -> dict[bytes, bytes]:
    return {entry.path: b"".join(data) for entry, data in read_cpio(io.BytesIO(raw))}


def entries_of(raw: bytes) -> list[CpioEntry]:
    return [entry for entry, _ in read_cpio(io.BytesIO(raw))]


def directory(path: bytes, mode: int = 0o755) -> Node:
    return CpioEntry(path, stat.S_IFDIR | mode), no_data


def test_the_bootstrap_is_the_specs_to_the_byte() -> None:
    out = bytearray()
    write_ramdisk(bootstrap_entries(content(b"#!init\n"), content(b"nsm"), mtime=0), out.extend)
    assert out == BOOT


def test_the_bootstrap_has_linuxkits_time_unless_told_otherwise() -> None:
    out = bytearray()
    write_ramdisk(bootstrap_entries(content(b"i"), content(b"n")), out.extend)
    assert {entry.mtime for entry in entries_of(bytes(out))} == {LINUXKIT_MTIME}


def test_the_customer_ramdisk_is_the_specs_to_the_byte() -> None:
    assert customer(HELLO) == APP


def test_the_order_in_which_files_were_found_does_not_matter() -> None:
    nodes = [*HELLO, *(directory(b"bin/%d" % number) for number in range(20)), file_node(b"bin-x", b"")]
    expected = customer(nodes)
    for found in (nodes[::-1], nodes[3:] + nodes[:3], sorted(nodes, key=lambda node: node[0].path[::-1])):
        assert customer(found) == expected


def test_times_are_replaced_and_owners_kept() -> None:
    node = CpioEntry(b"f", stat.S_IFREG | 0o4755, 1000, 1001, 123456), no_data
    entries = {entry.path: entry for entry in entries_of(customer([node], mtime=7))}
    assert {entry.mtime for entry in entries.values()} == {7}
    kept = entries[b"rootfs/f"]
    assert (kept.uid, kept.gid, kept.mode) == (1000, 1001, stat.S_IFREG | 0o4755)


def test_a_mount_point_of_the_image_keeps_its_mode_and_occurs_once() -> None:
    entries = entries_of(customer([directory(b"tmp", 0o1777), file_node(b"tmp/x", b"")]))
    assert [entry.mode for entry in entries if entry.path == b"rootfs/tmp"] == [stat.S_IFDIR | 0o1777]
    assert {entry.path for entry in entries} >= {b"rootfs/" + path for path in MOUNT_POINTS}


def test_cmd_and_env_are_at_the_archives_root_one_text_a_line() -> None:
    found = contents(customer([], argv=["/bin/sh", "-c", "", "é"], env=["A=1", "B=", "C=x=y"]))
    assert found[b"cmd"] == "/bin/sh\n-c\n\né\n".encode()
    assert found[b"env"] == b"A=1\nB=\nC=x=y\n"
    assert contents(customer([], env=[]))[b"env"] == b""


def test_data_is_opened_only_when_its_turn_comes() -> None:
    opened = []

    def source() -> list[bytes]:
        opened.append(1)
        return [b"x"]

    for entry, _ in customer_entries([(CpioEntry(b"f", stat.S_IFREG, size=1), source)], argv=ARGV, env=ENV):
        assert entry.path
    assert not opened


def test_a_path_that_occurs_twice_is_refused() -> None:
    with refuses("ramdisk.duplicate"):
        customer([*HELLO, directory(b"bin")])


@pytest.mark.parametrize(
    "nodes",
    [
        [file_node(b"a/b", b"")],
        [file_node(b"a", b""), file_node(b"a/b", b"")],
        [(CpioEntry(b"a", stat.S_IFLNK | 0o777, size=4), lambda: [b"/etc"]), file_node(b"a/b", b"")],
    ],
)
def test_a_file_below_what_is_no_directory_is_refused(nodes: list[Node]) -> None:
    with refuses("ramdisk.parent"):
        customer(nodes)


@pytest.mark.parametrize("path", sorted(MOUNT_POINTS))
def test_a_mount_point_that_is_no_directory_is_refused(path: bytes) -> None:
    with refuses("ramdisk.mount_point"):
        customer([file_node(path, b"")])


def test_var_may_be_a_link_for_nothing_is_mounted_there() -> None:
    link: Node = (CpioEntry(b"var", stat.S_IFLNK | 0o777, size=3), lambda: [b"tmp"])
    paths = [entry.path for entry in entries_of(customer([link]))]
    assert paths.count(b"rootfs/var") == 1


@pytest.mark.parametrize(
    "path", [b"../a", b"/a", b"", b"a\0", b"a" * 256, b"/".join([b"a" * 200] * 21)[:MAX_PATH]]
)
def test_n06_a_path_that_leads_out_of_the_root_is_refused(path: bytes) -> None:
    parents = [directory(path[:at]) for at in range(200, len(path), 201)] if len(path) == MAX_PATH else []
    with refuses("cpio.path"):
        customer([*parents, file_node(path, b"")])


@pytest.mark.parametrize("argv", [[], [""], ["a\n"], ["a", "b\0"], ["\ud800"]])
def test_n06_a_command_that_cannot_be_passed_is_refused(argv: list[str]) -> None:
    with refuses("ramdisk.argv"):
        customer([], argv=argv)


@pytest.mark.parametrize("variable", ["A", "=1", "A=1\nB=2", "A=\0", "\ud800=1", ""])
def test_n06_a_variable_that_cannot_be_passed_is_refused(variable: str) -> None:
    with refuses("ramdisk.env"):
        customer([], env=[variable])


def test_a_variable_that_is_set_twice_is_refused() -> None:
    with refuses("ramdisk.env"):
        customer([], env=["A=1", "A=2"])

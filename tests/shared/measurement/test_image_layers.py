"""Layers to a tree: the rules of spec measurement 3.2, and what hostile layers get."""

import gzip
import hashlib
import io
import tarfile

import pytest

from shared.errors import ProtocolError
from shared.measurement import image_layers, image_tree
from shared.measurement.image_layers import Layer, MergedImage, Unpacking, apply_layers, normal_path
from shared.measurement.image_tree import ImageTree, Node
from tests.shared.measurement.image_making import (
    Entry,
    directory,
    file,
    hard_link,
    layer_tar,
    special,
    symlink,
)


def merge(*layers: list[Entry]) -> MergedImage:
    return apply_layers([io.BytesIO(layer_tar(*entries)) for entries in layers])


def listing(*layers: list[Entry]) -> dict[str, str]:
    """Return path -> mode and owner of the merged tree."""
    return {
        path.decode(): f"{node.mode:o} {node.uid}:{node.gid}" for path, node in merge(*layers).tree.entries()
    }


def paths(*layers: list[Entry]) -> list[str]:
    return list(listing(*layers))


def refused(*layers: list[Entry]) -> str:
    with pytest.raises(ProtocolError) as caught:
        merge(*layers).tree.entries()
    return caught.value.code


def node_at(merged: MergedImage, path: bytes) -> Node:
    node = merged.tree.get(path)
    assert node is not None
    return node


def test_names_are_normalised() -> None:
    assert paths([directory("./"), file("./a//b/./c")]) == ["a", "a/b", "a/b/c"]


def test_modes_and_owners_are_kept() -> None:
    found = listing([directory("d", mode=0o1777, uid=1), file("d/f", mode=0o6755, uid=7, gid=8)])
    assert found == {"d": "41777 1:0", "d/f": "106755 7:8"}


def test_missing_parents_are_root_s_with_0755() -> None:
    assert listing([file("a/b", uid=5)]) == {"a": "40755 0:0", "a/b": "100644 5:0"}


def test_entries_come_sorted_by_their_bytes_parents_first() -> None:
    assert paths([file("a-b"), file("a/c"), directory("a"), file("B"), file("é")]) == [
        "B",
        "a",
        "a-b",
        "a/c",
        "é",
    ]


def test_case_counts() -> None:
    assert paths([file("a"), file("A")]) == ["A", "a"]


def test_data_are_where_the_layer_has_them() -> None:
    layers = [layer_tar(file("a", b"lower")), layer_tar(file("x"), file("b", b"upper!"))]
    merged = apply_layers([io.BytesIO(layer) for layer in layers])
    for path, data in ((b"a", b"lower"), (b"b", b"upper!")):
        node = node_at(merged, path)
        assert layers[node.layer][node.offset : node.offset + node.size] == data
        assert node.is_file


def test_a_whiteout_removes_a_file_of_a_lower_layer() -> None:
    assert paths([file("d/a"), file("d/b")], [file("d/.wh.a")]) == ["d", "d/b"]


def test_a_whiteout_at_the_root_removes_a_subtree() -> None:
    assert paths([file("d/a/b"), file("e")], [file(".wh.d")]) == ["e"]


def test_an_opaque_whiteout_empties_a_directory_and_keeps_it() -> None:
    assert listing([directory("d", uid=3), file("d/a/b")], [file("d/.wh..wh..opq"), file("d/c")]) == {
        "d": "40755 3:0",
        "d/c": "100644 0:0",
    }


def test_an_opaque_whiteout_at_the_root_empties_the_image() -> None:
    assert paths([file("a"), file("b/c")], [file(".wh..wh..opq"), file("d")]) == ["d"]


@pytest.mark.parametrize("hidden", ["d/.wh.a", "d/.wh..wh..opq"])
def test_a_whiteout_acts_on_lower_layers_only(hidden: str) -> None:
    assert paths([file("d/a")], [file("d/a", b"new"), file(hidden)]) == ["d", "d/a"]


def test_the_order_of_a_layer_s_whiteouts_does_not_count() -> None:
    lower = [directory("a"), directory("a/b"), file("a/b/c")]
    upper = [file("a/.wh.b"), file("a/b/.wh..wh..opq")]
    assert paths(lower, upper) == paths(lower, upper[::-1]) == ["a"]
    lower = [file("a")]
    upper = [file(".wh.a"), file("a/.wh.b")]
    assert paths(lower, upper) == paths(lower, upper[::-1]) == []


@pytest.mark.parametrize("lower", [symlink("run", "/x"), file("run"), directory("run", mode=0o700)])
def test_a_new_directory_that_is_marked_opaque_replaces_what_was_there(lower: Entry) -> None:
    found = listing([lower], [directory("run"), file("run/.wh..wh..opq"), file("run/a")])
    assert found == {"run": "40755 0:0", "run/a": "100644 0:0"}


@pytest.mark.parametrize("name", [".wh.a", "d/.wh..wh..opq"])
def test_a_whiteout_twice_in_one_layer_is_refused(name: str) -> None:
    assert refused([file(name), file("./" + name)]) == "image.layer.duplicate"


def test_a_whiteout_of_nothing_is_no_error_and_makes_no_parents() -> None:
    assert paths([file("a")], [file("x/y/.wh.z"), file("x/.wh..wh..opq")]) == ["a"]


def test_a_directory_over_a_directory_keeps_the_children_and_takes_the_new_metadata() -> None:
    assert listing([file("d/a")], [directory("d", mode=0o700, uid=9)]) == {
        "d": "40700 9:0",
        "d/a": "100644 0:0",
    }


def test_a_file_over_a_directory_removes_the_subtree() -> None:
    assert paths([file("d/a"), file("d/b/c")], [file("d")]) == ["d"]


def test_a_directory_over_a_file_replaces_it() -> None:
    assert paths([file("d")], [directory("d"), file("d/a")]) == ["d", "d/a"]


def test_the_root_s_own_metadata_is_taken() -> None:
    assert node_at(merge([directory("./", mode=0o700)]), b"").mode == 0o040700


def test_a_symbolic_link_is_kept_as_it_was_written() -> None:
    merged = merge([symlink("a", "../../../../etc/shadow"), symlink("b", "/x", mode=0o600)])
    assert node_at(merged, b"a").target == b"../../../../etc/shadow"
    assert node_at(merged, b"b").mode == 0o120777
    assert node_at(merged, b"b").is_symlink


def test_a_hard_link_is_its_target_s_node() -> None:
    merged = merge([file("a", b"data", mode=0o600, uid=4)], [file("b", b"x"), hard_link("c/d", "./a")])
    assert node_at(merged, b"c/d") == node_at(merged, b"a")
    assert merged.hard_links == 1


def test_a_hard_link_to_a_symbolic_link_is_one_too() -> None:
    assert node_at(merge([symlink("a", "t"), hard_link("b", "a")]), b"b").target == b"t"


def test_a_hard_link_to_what_its_layer_replaced_is_the_new_file() -> None:
    merged = merge([file("a", b"old")], [file("a", b"newer"), hard_link("b", "a")])
    assert node_at(merged, b"b").size == 5


def test_a_pipe_is_kept() -> None:
    assert node_at(merge([special("p", tarfile.FIFOTYPE)]), b"p").is_fifo


def test_extended_attributes_are_counted_and_left_out() -> None:
    headers = {"SCHILY.xattr.security.capability": "x"}
    assert merge([file("a", pax_headers=headers), file("b")]).attributes == 1


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a/..", ""])
def test_n06_a_path_out_of_the_root_is_refused(name: str) -> None:
    assert refused([file(name)]) == "image.layer.path"


def test_n06_a_hard_link_out_of_the_root_is_refused() -> None:
    assert refused([hard_link("a", "../../etc/shadow")]) == "image.layer.path"


@pytest.mark.parametrize("name", ["x" * 256, "x/" * 513, ("x" * 200 + "/") * 21])
def test_n06_a_path_that_no_kernel_takes_is_refused(name: str) -> None:
    assert refused([directory(name)]) == "image.layer.path"


def test_the_longest_path_is_taken() -> None:
    path = b"/".join([b"x" * 200] * 20)[: image_tree.MAX_PATH]
    assert normal_path(path) == path


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_a_device_node_is_refused(kind: bytes) -> None:
    assert refused([special("dev/sda", kind)]) == "image.layer.device"


@pytest.mark.parametrize("kind", [b"7", b"S", b"Z", b"V"])
def test_an_unknown_kind_of_entry_is_refused(kind: bytes) -> None:
    assert refused([special("a", kind)]) == "image.layer.entry"


@pytest.mark.parametrize(
    "entries",
    [
        [file("a"), file("a")],
        [file("a"), file("./a")],
        [directory("a"), directory("a/")],
        [file("a"), directory("a")],
        [file("a/b"), file("a")],
        [directory("a"), file("a/b"), symlink("c", "x"), hard_link("a", "c")],
    ],
)
def test_a_name_twice_in_one_layer_is_refused(entries: list[Entry]) -> None:
    assert refused(entries) == "image.layer.duplicate"


@pytest.mark.parametrize("parent", [symlink("d", "/etc"), symlink("d", "e"), file("d")])
@pytest.mark.parametrize("entry", [file("d/x"), directory("d/x/y"), file("d/.wh.x"), file("d/.wh..wh..opq")])
def test_nothing_is_written_or_removed_through_a_link_or_file(parent: Entry, entry: Entry) -> None:
    assert refused([parent], [entry]) == "image.layer.parent"


def test_a_whiteout_below_a_file_s_name_is_refused() -> None:
    assert refused([file("d")], [file("d/e/.wh.x")]) == "image.layer.parent"


def test_a_link_and_what_is_below_it_in_one_layer_are_refused() -> None:
    assert refused([symlink("d", "/etc"), file("d/x")]) == "image.layer.parent"


@pytest.mark.parametrize(
    "entries",
    [
        [hard_link("a", "missing")],
        [directory("d"), hard_link("a", "d")],
        [hard_link("a", ".")],
        [hard_link("a", "a")],
        [hard_link("a", "b"), file("b")],
        [file("f"), hard_link("a", "f/b")],
    ],
)
def test_a_hard_link_to_no_file_before_it_is_refused(entries: list[Entry]) -> None:
    assert refused(entries) == "image.layer.link"


def test_a_hard_link_to_what_its_layer_replaces_later_is_refused() -> None:
    assert refused([file("b", b"old")], [hard_link("a", "b"), file("b", b"new")]) == "image.layer.link"


@pytest.mark.parametrize(
    "entry",
    [
        directory(".wh.a"),
        file(".wh.a", b"data"),
        file(".wh."),
        file(".wh.."),
        file(".wh..."),
        file(".wh..wh.plnk"),
        symlink("a", ""),
        file("a/", b"x"),
        symlink("a/", "x"),
        hard_link(".", "a"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entry: Entry) -> None:
    assert refused([entry]) == "image.layer.entry"


def test_a_path_below_a_whiteout_is_refused() -> None:
    assert refused([file(".wh.a/b")]) == "image.layer.path"


def test_a_target_that_the_kernel_would_drop_is_refused() -> None:
    assert refused([symlink("a", "x" * 4096)]) == "image.layer.entry"


def test_an_owner_beyond_32_bits_is_refused() -> None:
    assert refused([file("a", uid=1 << 32)]) == "image.layer.entry"


@pytest.mark.parametrize("kind", [b"2", b"5"])
def test_data_of_what_has_none_are_refused(kind: bytes) -> None:
    odd = file("a", b"x" * 600)
    odd.type = tarfile.REGTYPE
    raw = bytearray(layer_tar(odd, kind=tarfile.USTAR_FORMAT))
    raw[156:157] = kind
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    with pytest.raises(ProtocolError) as caught:
        apply_layers([io.BytesIO(raw)])
    assert caught.value.code == "image.layer.entry"


def test_a_file_too_large_for_a_ramdisk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "MAX_FILE_BYTES", 3)
    assert refused([file("a", b"1234")]) == "image.layer.entry"


def test_n03_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tree, "MAX_ENTRIES", 3)
    assert len(paths([file("a"), file("b"), file("c")])) == 3
    assert refused([file("a"), file("b")], [file("c"), file("d")]) == "image.layer.entries"


def test_n03_parents_that_are_made_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tree, "MAX_ENTRIES", 3)
    assert refused([file("a/b/c/d")]) == "image.layer.entries"


def test_n03_too_many_headers_of_one_layer_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "MAX_ENTRIES", 1)
    assert refused([file(str(number)) for number in range(5)]) == "image.layer.entries"


def test_n03_headers_of_all_layers_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "MAX_ENTRIES", 1)
    assert paths(*[[directory("d")]] * 4) == ["d"]
    assert refused(*[[directory("d")]] * 5) == "image.layer.entries"


def test_n03_entries_of_one_layer_are_refused_before_they_fill_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_layers, "MAX_ENTRIES", 2)
    assert paths([file(".wh.a"), file(".wh..wh..opq")]) == []
    assert refused([file("a"), file(".wh.b"), file(".wh..wh..opq")]) == "image.layer.entries"


def test_n03_names_that_would_fill_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "MAX_PATH_BYTES", 100)
    assert refused([file("x" * 60), symlink("b", "y" * 60)]) == "image.layer.entries"
    monkeypatch.undo()
    monkeypatch.setattr(image_tree, "MAX_PATH_BYTES", 100)
    assert refused([directory("x/" * 20)]) == "image.layer.entries"


def test_hard_links_that_repeat_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tree, "MAX_TREE_BYTES", 10)
    assert refused([file("a", b"12345"), hard_link("b", "a"), hard_link("c", "a")]) == "image.layer.size"


def test_what_is_replaced_does_not_count_as_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tree, "MAX_TREE_BYTES", 10)
    assert paths([file("a", b"123456")], [file("a", b"123456")]) == ["a"]


def test_a_look_below_a_file_finds_nothing() -> None:
    tree = ImageTree()
    tree.put(b"a", Node(0o100644, 0, 0))
    assert tree.get(b"a/b/c") is None


TAR = layer_tar(file("a", b"x" * 5000))
ID = hashlib.sha256(TAR).digest()


def unpack(blob: bytes, layer: Layer, limit: int = 1 << 30, *, size: int | None = None) -> bytes:
    out = bytearray()
    taken = Unpacking(limit).unpack_layer(
        io.BytesIO(blob), len(blob) if size is None else size, layer, out.extend
    )
    assert taken == len(out)
    return bytes(out)


def refused_layer(blob: bytes, layer: Layer, limit: int = 1 << 30, *, size: int | None = None) -> str:
    with pytest.raises(ProtocolError) as caught:
        unpack(blob, layer, limit, size=size)
    return caught.value.code


def test_a_layer_unpacks_to_its_diff_id() -> None:
    assert unpack(TAR, Layer("none", ID)) == TAR
    assert unpack(gzip.compress(TAR), Layer("gzip", ID)) == TAR


def test_a_layer_with_another_diff_id_is_refused() -> None:
    assert refused_layer(TAR, Layer("none", bytes(32))) == "image.layer.diff_id"
    assert refused_layer(gzip.compress(TAR), Layer("gzip", bytes(32))) == "image.layer.diff_id"


def test_a_damaged_layer_is_refused() -> None:
    assert refused_layer(gzip.compress(TAR)[:-3], Layer("gzip", ID)) == "image.layer.gzip"


def test_a_bomb_is_stopped_by_its_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_layers, "RATIO_SLACK", 1 << 20)
    bomb = gzip.compress(bytes(16 << 20))
    assert refused_layer(bomb, Layer("gzip", bytes(32))) == "image.layer.bomb"


def test_a_layer_that_is_longer_than_announced_is_refused() -> None:
    assert refused_layer(TAR, Layer("none", ID), size=100) == "image.layer.bomb"


def test_layers_share_one_limit() -> None:
    unpacking = Unpacking(len(TAR) + 10)
    layer = Layer("gzip", ID)
    unpacking.unpack_layer(io.BytesIO(gzip.compress(TAR)), 100, layer, bytearray().extend)
    with pytest.raises(ProtocolError) as caught:
        unpacking.unpack_layer(io.BytesIO(gzip.compress(TAR)), 100, layer, bytearray().extend)
    assert caught.value.code == "image.layer.bomb"

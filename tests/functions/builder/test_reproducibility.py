"""Equal inputs give equal bytes, wherever, when and by whom they are built, and however they are packed."""

import copy
import itertools
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.functions.builder.building import BOOT, build_layers, ramdisk
from tests.shared.measurement.image_making import (
    SMALL_LAYERS,
    Entry,
    Layout,
    directory,
    file,
    hard_link,
    layer_tar,
    symlink,
)

PROGRAM = """
import os, sys
from pathlib import Path
from cli.image_build import BuildRequest, run_build
import functions.builder.nitro_image
inputs, work, user = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if user:
    os.setgroups([])
    os.setegid(user)
    os.seteuid(user)
run_build(BuildRequest(
    source=str(inputs / "layout"), kernel=str(inputs / "kernel"), init=str(inputs / "init"),
    nsm_ko=str(inputs / "nsm.ko"), cmdline=None, output=work / "image.eif", arch="x86_64", argv_mode="oci",
    epoch=0, name="enclave", cache=work / "cache", user=None, password=None, plain_loopback=False,
))
"""
NOBODY = 65534


@pytest.fixture
def inputs() -> Iterator[Path]:
    # not below pytest's own directory, which no other user may enter
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        Layout(*SMALL_LAYERS).write(place / "layout")
        for blob, path in ((BOOT.kernel, "kernel"), (BOOT.init, "init"), (BOOT.nsm_ko, "nsm.ko")):
            (place / path).write_bytes(blob.content)
        yield place


def build_elsewhere(inputs: Path, name: str, *, python: str = sys.executable, **how: Any) -> bytes:
    """Build in a process and a directory of its own; `how` are `env`, `umask`, and `user`."""
    work = inputs / name
    work.mkdir()
    user = how.get("user", 0)
    if user:
        os.chown(work, user, user)
    subprocess.run(
        [python, "-c", PROGRAM, str(inputs), str(work), str(user)],
        check=True,
        capture_output=True,
        cwd=work,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
        | how.get("env", {}),
        umask=how.get("umask", 0o022),
    )
    return (work / "image.eif").read_bytes()


@pytest.fixture
def expected(inputs: Path) -> bytes:
    return build_elsewhere(inputs, "expected")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("another-directory", {}),
        ("umask-077", {"umask": 0o077}),
        ("umask-000", {"umask": 0}),
        ("time-zone", {"env": {"TZ": "Asia/Kathmandu"}}),
        ("locale", {"env": {"LC_ALL": "C", "LANG": "tr_TR.UTF-8"}}),
        ("hash-seed", {"env": {"PYTHONHASHSEED": "1"}}),
        ("source-date-epoch", {"env": {"SOURCE_DATE_EPOCH": "1700000000"}}),
        ("optimised", {"env": {"PYTHONOPTIMIZE": "2"}}),
    ],
)
def test_where_and_when_it_is_built_does_not_count(
    inputs: Path, expected: bytes, name: str, how: dict[str, Any]
) -> None:
    assert build_elsewhere(inputs, name, **how) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_builds_it_does_not_count(inputs: Path, expected: bytes) -> None:
    assert build_elsewhere(inputs, "nobody", user=NOBODY) == expected


def test_another_python_builds_the_same(inputs: Path, expected: bytes) -> None:
    python = _second_python()
    if python is None:
        pytest.skip("no second Python 3.12+ with msgspec here; SECOND_PYTHON may name one")
    assert build_elsewhere(inputs, "second-python", python=python) == expected


def _second_python() -> str | None:
    names = [os.environ.get("SECOND_PYTHON", ""), "python3.12", "python3.13", "python3.14"]
    for place in filter(None, map(shutil.which, filter(None, names))):
        probe = "import msgspec, sys; sys.exit(sys.version_info[:2] == tuple(map(int, sys.argv[1:])))"
        version = [str(number) for number in sys.version_info[:2]]
        if subprocess.run([place, "-c", probe, *version], capture_output=True, check=False).returncode == 0:
            return place
    return None


FILES = [
    directory("usr"),
    directory("usr/bin"),
    file("usr/bin/app", b"app" * 5000, mode=0o755),
    symlink("usr/bin/alias", "app"),
    directory("var", mode=0o711),
    file("var/state", b"state", uid=5, gid=6),
    hard_link("usr/state", "var/state"),
]


def registers(work: Path, *layers: bytes, level: int | None = 6) -> tuple[bytes, bytes, bytes]:
    measurement = build_layers(work, *layers, level=level).measurement
    return measurement.pcr0, measurement.pcr1, measurement.pcr2


@pytest.fixture
def plain(tmp_path: Path) -> tuple[bytes, bytes, bytes]:
    return registers(tmp_path / "plain", layer_tar(*FILES))


def changed(one: Entry, **fields: Any) -> Entry:
    other = copy.copy(one)
    for key, value in fields.items():
        setattr(other, key, value)
    return other


def test_the_order_of_a_layer_s_entries_does_not_count(
    tmp_path: Path, plain: tuple[bytes, bytes, bytes]
) -> None:
    order = random.Random(7)  # noqa: S311 - the same orders in each run
    for number in range(5):
        shuffled = FILES[:-1]
        order.shuffle(shuffled)
        # a hard link follows its target, as in every tar
        assert registers(tmp_path / str(number), layer_tar(*shuffled, FILES[-1])) == plain


def test_times_and_names_of_owners_do_not_count(tmp_path: Path, plain: tuple[bytes, bytes, bytes]) -> None:
    other = [changed(one, mtime=one.mtime + number, uname="me") for number, one in enumerate(FILES)]
    assert registers(tmp_path / "w", layer_tar(*other)) == plain


@pytest.mark.parametrize("level", [None, 0, 1, 9])
def test_how_a_layer_is_compressed_does_not_count(
    tmp_path: Path, plain: tuple[bytes, bytes, bytes], level: int | None
) -> None:
    assert registers(tmp_path / "w", layer_tar(*FILES), level=level) == plain


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_the_form_of_the_tar_does_not_count(
    tmp_path: Path, plain: tuple[bytes, bytes, bytes], kind: int
) -> None:
    assert registers(tmp_path / "w", layer_tar(*FILES, kind=kind)) == plain


def test_extended_attributes_do_not_count(tmp_path: Path, plain: tuple[bytes, bytes, bytes]) -> None:
    other = [changed(one, pax_headers={"SCHILY.xattr.user.a": "b"}) for one in FILES]
    assert registers(tmp_path / "w", layer_tar(*other)) == plain


def test_how_names_are_spelled_does_not_count(tmp_path: Path, plain: tuple[bytes, bytes, bytes]) -> None:
    other = [changed(one, name=f"./{one.name}") for one in FILES]
    assert registers(tmp_path / "w", layer_tar(directory("./"), *other)) == plain


def test_how_files_are_spread_over_layers_does_not_count(
    tmp_path: Path, plain: tuple[bytes, bytes, bytes]
) -> None:
    for number in range(1, len(FILES)):
        layers = (layer_tar(*FILES[:number]), layer_tar(*FILES[number:]))
        assert registers(tmp_path / str(number), *layers) == plain


def test_what_a_later_layer_removed_does_not_count(tmp_path: Path, plain: tuple[bytes, bytes, bytes]) -> None:
    layers = (layer_tar(*FILES, file("usr/old", b"x")), layer_tar(file("usr/.wh.old")))
    assert registers(tmp_path / "w", *layers) == plain


def test_a_hard_link_counts_as_its_data(tmp_path: Path, plain: tuple[bytes, bytes, bytes]) -> None:
    copy = file("usr/state", b"state", uid=5, gid=6)
    assert registers(tmp_path / "w", layer_tar(*FILES[:-1], copy)) == plain


@pytest.mark.parametrize(
    "change",
    [{"mode": 0o700}, {"uid": 9}, {"gid": 9}, {"name": "usr/bin/App"}, {"data": b"apq" * 5000}],
    ids=str,
)
def test_what_a_program_can_see_counts(
    tmp_path: Path, plain: tuple[bytes, bytes, bytes], change: dict[str, Any]
) -> None:
    other = [changed(one, **change) if one.name == "usr/bin/app" else one for one in FILES]
    assert registers(tmp_path / "w", layer_tar(*other)) != plain


def test_a_ramdisk_lists_its_entries_in_one_order(tmp_path: Path) -> None:
    found = list(ramdisk(build_layers(tmp_path, *SMALL_LAYERS).path))
    image = [path for path in found if path.startswith("rootfs/")]
    own = list(itertools.takewhile(lambda path: path != "rootfs/dev", image))
    assert own == sorted(own, key=str.encode)

import hashlib
import os
from pathlib import Path

import pytest

from enclave.simulator.image import measure_image
from shared.errors import ConfigError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small root file system."""
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "config").write_bytes(b"app_id = 1\n")
    (root / "init").write_bytes(b"#!/bin/sh\n")
    (root / "init").chmod(0o755)
    (root / "link").symlink_to("init")
    return root


def test_measures_three_registers(image: Path) -> None:
    pcrs = measure_image(image)
    assert sorted(pcrs) == [0, 1, 2]
    assert all(len(value) == 48 and any(value) for value in pcrs.values())


def test_the_register_rule_is_the_real_one(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert measure_image(empty)[2] == hashlib.sha384(bytes(48) + hashlib.sha384(b"").digest()).digest()


def test_equal_content_measures_equal_wherever_it_lies(image: Path, tmp_path: Path) -> None:
    before = measure_image(image)
    moved = image.rename(tmp_path / "moved")
    os.utime(moved / "init", (0, 0))
    assert measure_image(moved) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "etc" / "config").write_bytes(b"app_id = 2\n"),
        lambda root: (root / "etc" / "config").rename(root / "etc" / "other"),
        lambda root: (root / "init").chmod(0o644),
        lambda root: (root / "extra").mkdir(),
        lambda root: (root / "link").unlink(),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("etc")),
    ],
)
def test_every_change_of_the_application_changes_pcr0_and_pcr2(change: object, image: Path) -> None:
    before = measure_image(image)
    assert callable(change)
    change(image)
    after = measure_image(image)
    assert before[0] != after[0]
    assert before[1] == after[1]
    assert before[2] != after[2]


def test_moving_bytes_from_one_file_to_the_next_is_seen(tmp_path: Path) -> None:
    measured = []
    for number, (first, second) in enumerate(((b"ab", b"c"), (b"a", b"bc"))):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "a").write_bytes(first)
        (root / "b").write_bytes(second)
        measured.append(measure_image(root)[2])
    assert measured[0] != measured[1]


def test_refuses_an_image_that_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        measure_image(tmp_path / "absent")
    assert caught.value.code == "simulator.image.missing"


def test_refuses_devices_and_pipes(image: Path) -> None:
    os.mkfifo(image / "pipe")
    with pytest.raises(ConfigError) as caught:
        measure_image(image)
    assert caught.value.code == "simulator.image.entry"

"""A listing of a directory tells all of it apart that a boot measures."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from enclave.simulator.image import serialised
from shared.errors import ConfigError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A small directory."""
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "config").write_bytes(b"app_id = 1\n")
    (root / "init").write_bytes(b"#!/bin/sh\n")
    (root / "init").chmod(0o755)
    (root / "link").symlink_to("init")
    return root


def _listing(directory: Path) -> bytes:
    return b"".join(serialised(directory))


def test_equal_content_lists_equal_wherever_it_lies(image: Path, tmp_path: Path) -> None:
    before = _listing(image)
    moved = image.rename(tmp_path / "moved")
    os.utime(moved / "init", (0, 0))
    assert _listing(moved) == before


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
def test_every_change_is_another_listing(change: Callable[[Path], object], image: Path) -> None:
    before = _listing(image)
    change(image)
    assert _listing(image) != before


def test_moving_bytes_from_one_file_to_the_next_is_seen(tmp_path: Path) -> None:
    listed = []
    for number, (first, second) in enumerate(((b"ab", b"c"), (b"a", b"bc"))):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "a").write_bytes(first)
        (root / "b").write_bytes(second)
        listed.append(_listing(root))
    assert listed[0] != listed[1]


def test_refuses_an_image_that_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _listing(tmp_path / "absent")
    assert caught.value.code == "simulator.image.missing"


def test_refuses_devices_and_pipes(image: Path) -> None:
    os.mkfifo(image / "pipe")
    with pytest.raises(ConfigError) as caught:
        _listing(image)
    assert caught.value.code == "simulator.image.entry"

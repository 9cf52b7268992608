"""An enclave image measured for a plan: from a layout or a saved tar, by the real builder, cached."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.builder import nitro_image
from functions.plan.enclave_builder import CachedBuilder
from shared.compose.project import GlobalConfig, NitroConfig, nitro_settings, read_app_json
from shared.errors import ConfigError
from shared.measurement.eif_registers import image_hash
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar, save_tar
from tests.shared.refusal import refuses


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project's directory with boot files, a layout and a saved tar of one image."""
    for name in ("kernel", "init", "nsm.ko"):
        (tmp_path / name).write_bytes(f"{name} bytes".encode())
    layer = layer_tar(directory("etc"), file("app", b"#!/bin/sh\n", mode=0o755))
    Layout(layer).write(tmp_path / "layout")
    (tmp_path / "saved.tar").write_bytes(save_tar(layer))
    return tmp_path


def settings(**fields: Any) -> NitroConfig:
    given = NitroConfig(kernel="kernel", init="init", nsm_ko="nsm.ko", **fields)
    empty = read_app_json(b"{}")
    return nitro_settings(msgspec.structs.replace(empty, nitro_config=given), GlobalConfig())


@pytest.mark.parametrize("image", ["layout", "saved.tar"])
def test_measures_a_local_image(place: Path, image: str) -> None:
    facts = CachedBuilder(place / "cache")(str(place / image), settings(), place)
    pcrs = [facts.registers[f"PCR{n}"] for n in range(3)]
    assert facts.os_image_hash == image_hash(pcrs[0], pcrs[1], pcrs[2])
    assert facts.inputs["kernel"].startswith("sha256:")
    assert not [one for one in (place / "cache" / "work").iterdir() if one.name != ".lock"]


def test_a_second_plan_takes_it_from_the_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = CachedBuilder(place / "cache")
    first = build(str(place / "layout"), settings(), place)

    def refuse(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(nitro_image, "_build", refuse)
    monkeypatch.setattr(nitro_image, "copy_file", refuse)
    assert build(str(place / "layout"), settings(), place) == first


@pytest.mark.parametrize(
    "fields", [{"cmdline": "quiet"}, {"argv": "nitro-cli"}, {"epoch": 1}], ids=["cmdline", "argv", "epoch"]
)
def test_each_setting_is_measured(place: Path, fields: dict[str, Any]) -> None:
    build = CachedBuilder(place / "cache")
    plain = build(str(place / "layout"), settings(), place)
    assert build(str(place / "layout"), settings(**fields), place).os_image_hash != plain.os_image_hash


def test_an_enclave_needs_its_boot_files(place: Path) -> None:
    missing = nitro_settings(read_app_json(b"{}"), GlobalConfig())
    with refuses("plan.nitro.blob", ConfigError):
        CachedBuilder(place / "cache")(str(place / "layout"), missing, place)


def test_a_boot_file_on_the_network_needs_a_digest(place: Path) -> None:
    remote = NitroConfig(kernel="https://example.com/kernel", init="init", nsm_ko="nsm.ko")
    with refuses("blob.unpinned", ConfigError):
        CachedBuilder(place / "cache")(str(place / "layout"), remote, place)


def test_a_command_line_is_ascii(place: Path) -> None:
    with refuses("plan.nitro.cmdline", ConfigError):
        CachedBuilder(place / "cache")(str(place / "layout"), settings(cmdline="é"), place)

"""The forwarder's bundle: unpacked and run as a parent does it."""

import io
import json
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import msgspec
import pytest

from functions.clouds.nitro_bundle import make_forwarder, read_forwarder
from shared.errors import ConfigError
from tests.shared.refusal import refuses


def test_equal_sources_give_equal_bytes(tmp_path: Path) -> None:
    made = make_forwarder()
    assert made == make_forwarder()
    place = tmp_path / "forwarder.tar.gz"
    place.write_bytes(made.content)
    assert read_forwarder(place) == made


def test_the_bundle_holds_the_forwarder_and_nothing_else_of_ours() -> None:
    with tarfile.open(fileobj=io.BytesIO(make_forwarder().content)) as archive:
        names = archive.getnames()
        assert all(entry.mtime == 0 and entry.uid == 0 for entry in archive.getmembers())
    ours = {name for name in names if not name.startswith("msgspec/")}
    assert {"__main__.py", "enclave/vsock/forwarder.py", "shared/errors.py"} <= ours
    assert {name.rsplit("/", 1)[0] for name in ours} == {"__main__.py", "enclave", "enclave/vsock", "shared"}


def test_a_parent_runs_it_without_anything_installed(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(make_forwarder().content)) as archive:
        archive.extractall(tmp_path / "forwarder", filter="data")
    vsock = tmp_path / "v"
    vsock.mkdir()
    config = tmp_path / "forwarder.toml"
    config.write_text(
        f'transport = "unix"\ndirectory = "{vsock}"\ncid = 3\n'
        '[[inbound]]\nname = "evidence"\nlisten = "127.0.0.1:0"\ntarget = "vsock://16:8080"\n'
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", tmp_path / "forwarder", "--config", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as running:
        try:
            assert running.stdout is not None
            ready = json.loads(running.stdout.readline())
            assert ready["event"] == "ready"
            host, port = ready["listeners"]["evidence"].split(":")
            with socket.create_connection((host, int(port)), timeout=10):
                pass
            assert json.loads(running.stdout.readline())["rule"] == "evidence"
        finally:
            running.terminate()
        assert running.wait(20) == 0


def test_a_wheel_takes_the_place_of_what_is_installed(tmp_path: Path) -> None:
    package = Path(msgspec.__file__).parent
    wheel = tmp_path / "msgspec.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(package / "__init__.py", "msgspec/__init__.py")
        archive.writestr("msgspec/_core.cpython-312-aarch64-linux-gnu.so", b"another machine's")
        archive.writestr("msgspec-1.dist-info/METADATA", b"")
    made = make_forwarder(wheel)
    assert (made.python, made.arch) == ("python3.12", "aarch64")
    with tarfile.open(fileobj=io.BytesIO(made.content)) as archive:
        assert "msgspec/_core.cpython-312-aarch64-linux-gnu.so" in archive.getnames()
        assert not any("dist-info" in name for name in archive.getnames())


@pytest.mark.parametrize(
    "core", ["_core.cp311-win_amd64.pyd", "_core.cpython-39-x86_64-linux-gnu.so", "README"]
)
def test_a_wheel_for_another_system_is_refused(tmp_path: Path, core: str) -> None:
    wheel = tmp_path / "msgspec.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"msgspec/{core}", b"")
    with refuses("nitro.forwarder.wheel", ConfigError):
        make_forwarder(wheel)


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "msgspec.whl").write_bytes(b"no")
    with refuses("nitro.forwarder.wheel", ConfigError):
        make_forwarder(tmp_path / "msgspec.whl")


def test_sources_that_are_not_there_are_missed(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).resolve().parents[3] / "shared", tmp_path / "shared")
    with refuses("nitro.forwarder.source", ConfigError):
        make_forwarder(source=tmp_path)


def test_a_file_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with refuses("nitro.forwarder.missing", ConfigError):
        read_forwarder(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"no tar")
    with refuses("nitro.forwarder.form", ConfigError):
        read_forwarder(tmp_path / "bad")
    with tarfile.open(tmp_path / "empty", "w:gz"):
        pass
    with refuses("nitro.forwarder.form", ConfigError):
        read_forwarder(tmp_path / "empty")

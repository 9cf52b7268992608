"""`dstack-cloud image build`: options, outputs, exit codes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import cli
from shared.errors import ConfigError, ProtocolError
from shared.measurement.eif import measure_eif
from tests.shared.measurement.image_making import SMALL_LAYERS, Layout, save_tar
from tests.shared.net.registry_stand_in import REPOSITORY, serving


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("kernel", "init", "nsm.ko"):
        (tmp_path / name).write_bytes(name.encode() * 50)
    Layout(*SMALL_LAYERS, User="app").write(tmp_path / "layout")
    return tmp_path


def run(work: Path, source: str, *options: str, password: str = "") -> Result:
    places = [
        part
        for name in ("kernel", "init", "nsm.ko")
        for part in (f"--{name.replace('.', '-')}", str(work / name))
    ]
    environment = {"DSTACK_REGISTRY_PASSWORD": password or None, "XDG_CACHE_HOME": str(work / "xdg")}
    arguments = ["image", "build", source, *places, "--output", str(work / "image.eif"), *options]
    return CliRunner().invoke(cli, arguments, env=environment)


def built(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    report: dict[str, object] = json.loads(result.stdout)
    return report


def test_prints_what_was_built(work: Path) -> None:
    result = run(work, str(work / "layout"))
    assert result.exit_code == 0
    with (work / "image.eif").open("rb") as image:
        measured = measure_eif(image)
    assert f"OS_IMAGE_HASH  0x{measured.os_image_hash.hex()}" in result.output
    assert f"PCR2           {measured.pcr2.hex()}" in result.output
    assert "PCR1 is not one of the kernels" in result.output
    assert "argv           /app serve" in result.output
    assert "warning: User 'app' is ignored" in result.output


def test_prints_json(work: Path) -> None:
    report = built(run(work, str(work / "layout"), "--json"))
    with (work / "image.eif").open("rb") as image:
        assert report["os_image_hash"] == f"0x{measure_eif(image).os_image_hash.hex()}"
    assert report["cached"] is False
    assert report["argv"] == ["/app", "serve"]
    assert report["inputs"]["image"].startswith("x86_64 sha256:")  # type: ignore[index]  # it is an object


def test_builds_once(work: Path) -> None:
    assert built(run(work, str(work / "layout"), "--json"))["cached"] is False
    assert built(run(work, str(work / "layout"), "--json"))["cached"] is True
    assert "cached" in run(work, str(work / "layout")).output
    assert (work / "xdg/dstack-cloud/images/builds").is_dir()


def test_the_cache_may_lie_elsewhere(work: Path) -> None:
    run(work, str(work / "layout"), "--cache", str(work / "own"))
    assert (work / "own" / "builds").is_dir()


def test_the_options_reach_the_builder(work: Path) -> None:
    options = ["--argv", "nitro-cli", "--epoch", "7", "--name", "shop", "--cmdline", "console=ttyS0"]
    report = built(run(work, str(work / "layout"), *options, "--json"))
    inputs = report["inputs"]
    assert isinstance(inputs, dict)
    assert (inputs["argv_mode"], inputs["epoch"], inputs["name"]) == ("nitro-cli", 7, "shop")
    assert (inputs["cmdline"], report["argv"]) == ("console=ttyS0", ["serve"])


def test_builds_what_docker_saved(work: Path) -> None:
    (work / "save.tar").write_bytes(save_tar(*SMALL_LAYERS))
    assert built(run(work, str(work / "save.tar"), "--json"))["warnings"] == []


def test_pulls_from_a_registry_with_credentials(work: Path) -> None:
    made = Layout(*SMALL_LAYERS)
    with serving({made.root: made.manifest}, made.blobs, user="me:secret") as registry:
        source = f"{registry.host}/{REPOSITORY}@{made.root}"
        result = run(work, source, "--user", "me", "--plain-loopback", "--json", password="secret")
    assert built(result)["cached"] is False


def test_a_user_without_a_password_is_refused(work: Path) -> None:
    result = run(work, "debian@sha256:" + "00" * 32, "--user", "me")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "image.credentials"


def test_n73_a_tag_is_refused(work: Path) -> None:
    result = run(work, "debian:12")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "image.reference.unpinned"


def test_a_command_line_that_is_not_ascii_is_refused(work: Path) -> None:
    result = run(work, str(work / "layout"), "--cmdline", "é")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.code == "image.cmdline"


def test_a_damaged_image_leaves_no_output(work: Path) -> None:
    (work / "layout" / "oci-layout").write_bytes(b"{}")
    result = run(work, str(work / "layout"))
    assert isinstance(result.exception, ProtocolError)
    assert not (work / "image.eif").exists()


def test_texts_of_the_image_cannot_command_a_terminal(work: Path) -> None:
    Layout(*SMALL_LAYERS, Cmd=["\x1b[2Jx"]).write(work / "evil")
    result = run(work, str(work / "evil"))
    assert result.exit_code == 0
    assert "\x1b" not in result.output


def test_the_help_names_all_sources() -> None:
    result = CliRunner().invoke(cli, ["image", "build", "--help"])
    assert all(word in result.output for word in ("OCI layout", "docker save", "sha256"))

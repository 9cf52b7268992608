"""`dstack-cloud new`, `prepare` and `config-edit`: a project's files before anything is deployed."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.main import cli, main
from functions.plan.project_files import read_project
from shared.compose.app_compose import compose_hash
from shared.compose.project import gcp_settings, read_global_config
from shared.errors import ConfigError, DstackError
from tests.functions.plan.projects import write_os_image
from tests.shared.refusal import refuses


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    if isinstance(result.exception, DstackError):
        raise result.exception
    return result


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "config.json"))
    return tmp_path


def app(place: Path, name: str = "web") -> dict[str, Any]:
    document = json.loads((place / name / "app.json").read_text())
    assert isinstance(document, dict)
    return document


# ---- new ----


def test_a_new_project_can_be_read(place: Path) -> None:
    run("new", "web")
    files = read_project(place / "web")
    assert files.project.platform == "gcp"
    assert files.env is not None
    assert len(bytes.fromhex(files.project.app_id or "")) == 20
    assert len(bytes.fromhex(files.project.instance_id_seed or "")) == 20
    assert (place / "web" / "shared").is_dir()


def test_ids_are_drawn_anew_for_each_project(place: Path) -> None:
    run("new", "one")
    run("new", "two")
    assert app(place, "one")["app_id"] != app(place, "two")["app_id"]
    assert app(place, "one")["instance_id_seed"] != app(place, "two")["instance_id_seed"]


def test_n74_logs_are_private_unless_somebody_asks(place: Path) -> None:
    run("new", "web")
    assert app(place)["public_logs"] is False


def test_the_env_file_is_its_owners_alone(place: Path) -> None:
    run("new", "web")
    assert stat.S_IMODE((place / "web" / ".env").stat().st_mode) == 0o600


def test_what_nobody_chose_is_left_to_the_operators_own_settings(place: Path) -> None:
    (place / "config.json").write_text(json.dumps({"gcp": {"zone": "europe-west4-a"}}))
    run("new", "web", "-p", "my-project")
    config = read_global_config((place / "config.json").read_bytes())
    settings = gcp_settings(read_project(place / "web").project, config)
    assert (settings.project, settings.zone, settings.instance_name) == (
        "my-project",
        "europe-west4-a",
        "dstack-web",
    )


@pytest.mark.parametrize("provider", ["tpm", "none", "local"])
def test_without_a_kms_there_is_no_gateway_and_no_env(place: Path, provider: str) -> None:
    run("new", "web", "--kp", provider)
    made = app(place)
    assert (made["gateway_enabled"], made["no_instance_id"], made["env_file"]) == (False, True, "")
    assert not (place / "web" / ".env").exists()


def test_an_instance_id_can_be_had_without_a_kms(place: Path) -> None:
    run("new", "web", "--kp", "tpm", "--instance-id")
    assert app(place)["no_instance_id"] is False


def test_an_enclave_project_has_an_enclaves_files(place: Path) -> None:
    run("new", "web", "--platform", "nitro", "--region", "eu-west-1", "-m", "m6i.xlarge")
    made = app(place)
    assert made["nitro_config"] == {
        "region": "eu-west-1",
        "instance_name": "dstack-web",
        "instance_type": "m6i.xlarge",
    }
    assert made["app_id"] == ""
    assert not (place / "web" / ".env").exists()


def test_a_nitrotpm_project_keeps_its_machine_type(place: Path) -> None:
    run("new", "web", "--platform", "aws", "-m", "m7i.large", "--data-size", "50")
    assert app(place)["aws_config"] == {
        "instance_name": "dstack-web",
        "instance_type": "m7i.large",
        "data_size": 50,
    }


def test_a_directory_that_exists_is_left_alone(place: Path) -> None:
    (place / "web").mkdir()
    with refuses("new.exists", ConfigError):
        run("new", "web")
    assert list((place / "web").iterdir()) == []


@pytest.mark.parametrize("name", ["Web", "a_b", "x-", "a" * 80])
def test_a_name_that_no_machine_can_have_is_refused(place: Path, name: str) -> None:
    with refuses("new.name", ConfigError):
        run("new", "--", name)
    assert not (place / name).exists()


def test_a_directory_that_cannot_be_made_is_said_to_be(place: Path) -> None:
    with refuses("new.directory", ConfigError):
        run("new", "missing/web", "--instance-name", "web")
    assert not (place / "missing").exists()


def test_an_app_id_must_be_an_address(place: Path) -> None:
    with refuses("new.option", ConfigError):
        run("new", "web", "--app-id", "abc")
    assert not (place / "web").exists()


# ---- prepare ----


@pytest.fixture
def project(place: Path) -> Path:
    run("new", "web")
    (place / "web" / "docker-compose.yaml").write_text(
        "services:\n  web:\n    image: nginx@sha256:" + "ab" * 32 + "\n"
    )
    (place / "config.json").write_text(json.dumps({"image_search_paths": ["images"]}))
    return place / "web"


def test_prepare_writes_what_the_disk_will_hold(project: Path) -> None:
    write_os_image(project / "images")
    result = run("-C", str(project), "prepare")
    assert result.exit_code == 0
    names = {path.name for path in (project / "shared").iterdir()}
    assert names == {"app-compose.json", ".sys-config.json", ".instance_info", ".user-config"}
    plan = json.loads(run("plan", "-C", str(project), "--json").stdout)
    shipped = (project / "shared" / "app-compose.json").read_bytes()
    assert compose_hash(shipped).hex() == plan["compose"]["compose_hash"]


def test_prepare_without_the_image_warns_and_goes_on(project: Path) -> None:
    (project / "shared" / ".sys-config.json").write_text("old")
    result = run("prepare", "-C", str(project))
    assert result.exit_code == 0
    assert "warning: no image" in result.stderr
    assert not (project / "shared" / ".sys-config.json").exists()
    assert (project / "shared" / "app-compose.json").exists()


def test_prepare_says_what_the_linter_refuses(project: Path) -> None:
    (project / "docker-compose.yaml").write_text("services:\n  web:\n    image: nginx\n")
    result = run("prepare", "-C", str(project))
    assert result.exit_code == 3
    assert "lint.image.digest" in result.stderr


def test_an_enclave_has_nothing_to_prepare(place: Path) -> None:
    run("new", "web", "--platform", "nitro")
    with refuses("prepare.nitro", ConfigError):
        run("-C", str(place / "web"), "prepare")


# ---- config-edit ----


def test_config_edit_makes_a_template_that_can_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "true")
    assert run("config-edit").exit_code == 0
    config = read_global_config((place / "config.json").read_bytes())
    assert config.image_search_paths == ("~/.dstack/images",)


def test_config_edit_keeps_what_is_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "config.json").write_text("{}")
    monkeypatch.setenv("EDITOR", "true")
    run("config-edit")
    assert (place / "config.json").read_text() == "{}"


def test_config_edit_reads_what_was_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "config.json").write_text('{"services": 7}')
    monkeypatch.setenv("EDITOR", "true")
    with refuses("project.config.field", ConfigError):
        run("config-edit")


def test_an_editor_that_is_not_there_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", str(place / "no-editor"))
    with refuses("config.editor", ConfigError):
        run("config-edit")


def test_an_editor_that_fails_is_a_failure(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "false")
    assert run("config-edit").exit_code == 1
    assert (place / "config.json").exists()


# ---- --json ----


def told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str]:
    """Run the command as a process would; returns its exit code and what it printed."""
    monkeypatch.setattr("sys.argv", ["dstack-cloud", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_a_refusal_is_an_object_where_json_is_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out = told(capsys, monkeypatch, "new", "Web", "--json")
    document = json.loads(out)
    assert (code, document["exit_code"], document["code"]) == (2, 2, "new.name")
    assert told(capsys, monkeypatch, "new", "Web") == (2, "")


@pytest.mark.usefixtures("place")
def test_what_was_made_is_an_object_where_json_is_wanted() -> None:
    document = json.loads(run("new", "web", "--json").stdout)
    assert document["app"]["name"] == "web"
    written = json.loads(run("prepare", "-C", "web", "--json").stdout)
    assert "web/shared/app-compose.json" in written["written"]
    assert written["findings"][0]["code"] == "lint.image.digest"

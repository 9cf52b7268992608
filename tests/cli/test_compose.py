"""`dstack-cloud compose` over the click runner: outputs and exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import compose as module
from cli.compose import compose, visible
from shared.errors import ConfigError, DstackError

DATA = Path(__file__).resolve().parents[1] / "data" / "deploy"
VECTORS = json.loads((DATA / "vectors.json").read_text())["compose_hash"]
CLI, CANONICAL = (str(DATA / f"app-compose.{form}.json") for form in ("cli", "canonical"))


def run(*arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(compose, arguments, **more)


def test_prints_the_hash_of_the_bytes() -> None:
    assert run("hash", CLI).output == VECTORS["app-compose.cli.json"] + "\n"
    digest = VECTORS["app-compose.canonical.json"]
    assert json.loads(run("hash", "--json", CANONICAL).output) == {
        "compose_hash": digest,
        "app_id": digest[:40],
    }
    assert run("hash", "-", input=Path(CLI).read_bytes()).output == VECTORS["app-compose.cli.json"] + "\n"


def test_writes_the_canonical_form(tmp_path: Path) -> None:
    expected = Path(CANONICAL).read_bytes()
    assert run("canonical", CLI).stdout_bytes == expected
    assert run("canonical", CLI, "-o", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out").read_bytes() == expected


def test_refuses_to_write_what_tools_differ_on(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a":null}')
    error = run("canonical", str(tmp_path / "x")).exception
    assert isinstance(error, DstackError)
    assert error.code == "compose.null"


def test_lint_exits_by_its_errors(tmp_path: Path) -> None:
    result = run("lint", CLI)
    assert result.exit_code == 3
    assert result.output.splitlines()[0] == (
        "error    services.nginx: has the image 'nginx:alpine', "
        "expected NAME@sha256:DIGEST [lint.image.digest]"
    )
    assert "         | #!/bin/sh" in result.output
    clean = tmp_path / "clean.json"
    clean.write_text(Path(CANONICAL).read_text().replace("nginx:alpine", "nginx@sha256:" + "ab" * 32))
    found = run("lint", "--json", str(clean))
    assert found.exit_code == 0
    assert [one["severity"] for one in json.loads(found.output)["findings"]] == ["warning", "note"]


def test_n75_diff_refuses_what_changes_nothing_or_drops_a_field(tmp_path: Path) -> None:
    assert run("diff", CLI, CLI, "--json").exit_code == 3
    same = json.loads(run("diff", CLI, CANONICAL, "--json").output)
    assert same["refused"]["code"] == "compose.diff.form_only"
    document = json.loads(Path(CLI).read_text())
    del document["pre_launch_script"]
    document["name"] = "other\x1b[31m"
    (tmp_path / "new.json").write_text(json.dumps(document))
    refused = run("diff", CLI, str(tmp_path / "new.json"))
    assert isinstance(refused.exception, DstackError)
    assert refused.exception.code == "compose.diff.dropped"
    assert '~ name: "demo" -> "other' in refused.output
    assert "\x1b" not in refused.output
    allowed = run("diff", CLI, str(tmp_path / "new.json"), "--allow-drop", "pre_launch_script", "--json")
    assert allowed.exit_code == 0
    assert json.loads(allowed.output)["dropped"] == ["pre_launch_script"]


def test_diff_shows_the_lines_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "new.json").write_text(Path(CLI).read_text().replace("80:80", "81:80"))
    result = run("diff", CLI, str(tmp_path / "new.json"))
    assert result.exit_code == 0
    assert '    +      - "81:80"' in result.output


def test_an_oversize_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COMPOSE_BYTES", 10)
    error = run("hash", CLI).exception
    assert isinstance(error, ConfigError)
    assert error.code == "compose.size"


def test_control_characters_show() -> None:
    assert visible("a\x1b[31m\u202e é") == "a\\x1b[31m\\u202e é"


def test_an_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    error = run("canonical", CLI, "-o", str(tmp_path / "gone" / "out")).exception
    assert isinstance(error, DstackError)
    assert (error.code, error.exit_code) == ("compose.output", 1)

"""docs/deploy-api.md and the workflow beside it say what the code does."""

import json
import re
from typing import Any, get_args

import pytest
import yaml
from click.testing import CliRunner

from cli.main import cli
from functions.deploy.grants import GITHUB_EVENTS, GITLAB_EVENTS, Grant, Verb, parse_grants
from functions.deploy.record import MAX_REQUESTS
from functions.deploy.request import MAX_BODY_BYTES
from tests.docs.references import REPOSITORY, is_error_code
from tests.functions.deploy.uploads import github_claims, gitlab_claims

PAGE = (REPOSITORY / "docs" / "deploy-api.md").read_text()
WORKFLOW = REPOSITORY / "docs" / "examples" / "github-deploy.yml"
BLOCKS = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
    return loaded


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_grants_of_the_page_are_grants() -> None:
    (block,) = BLOCKS
    grants = parse_grants(block.encode())
    github = github_claims(repository_id="1296269", repository_owner_id="583231")
    gitlab = gitlab_claims(iss="https://gitlab.com", project_id="278964")
    assert grants.decide(github, "deploy", "web-1").allowed
    assert not grants.decide(github, "remove", "web").allowed
    by_hand = github | {"environment": "production", "event_name": "workflow_dispatch"}
    assert grants.decide(by_hand, "remove", "web").allowed
    assert grants.decide(gitlab, "deploy", "api").allowed
    assert not grants.decide(gitlab, "deploy", "web").allowed


def test_the_page_has_every_field_verb_and_event_of_a_grant() -> None:
    spans = set(re.findall(r"`([^`\n]+)`", PAGE))
    assert set(Grant.__struct_fields__) | {"audience"} <= spans
    assert set(get_args(Verb)) | set(GITHUB_EVENTS) | set(GITLAB_EVENTS) <= spans


def test_the_page_names_codes_that_are_raised() -> None:
    codes = set(re.findall(r"`((?:deploy|lambda)\.[a-z_.]+)`", PAGE))
    assert len(codes) > 10
    # a code that is put together is found by its pattern, and its ending must stand somewhere
    sources = "".join(path.read_text() for path in (REPOSITORY / "functions").rglob("*.py"))
    for code in codes:
        assert is_error_code(code), code
        assert f'"{code}"' in sources or f'"{code.rpartition(".")[2]}"' in sources, code


def test_the_page_gives_the_limits() -> None:
    assert f"{MAX_BODY_BYTES:,} bytes" in PAGE
    assert f"newest {MAX_REQUESTS} keys" in PAGE


def test_the_workflow_may_ask_for_a_token_and_little_else(workflow: dict[Any, Any]) -> None:
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert job["permissions"] == {"contents": "read", "id-token": "write"}


def test_the_workflow_runs_for_no_pull_request(workflow: dict[Any, Any]) -> None:
    # YAML 1.1, which this reader speaks, takes `on` for true
    assert set(workflow[True]) <= set(GITHUB_EVENTS)


def test_the_workflow_uses_actions_by_their_commits(workflow: dict[Any, Any]) -> None:
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", one) for one in used)


def test_the_workflow_puts_nothing_of_the_event_into_a_shell(workflow: dict[Any, Any]) -> None:
    assert all("${{" not in step.get("run", "") for step in steps(workflow))


def test_the_workflows_commands_have_the_options_that_they_are_given(workflow: dict[Any, Any]) -> None:
    ran = [
        words for step in steps(workflow) if (words := step.get("run", "").split())[:1] == ["dstack-cloud"]
    ]
    assert [words[1] for words in ran] == ["pull", "deploy", "status"]
    for _, command, *arguments in ran:
        shown = CliRunner().invoke(cli, [command, "--help"]).output
        options = [word for word in arguments if word.startswith("--")]
        assert all(f"{option} " in shown or f"{option}\n" in shown for option in options), command


def test_the_workflows_variables_are_those_that_the_command_reads(workflow: dict[Any, Any]) -> None:
    (job,) = workflow["jobs"].values()
    source = (REPOSITORY / "cli" / "remote.py").read_text()
    assert job["env"].keys() == {"DSTACK_CLOUD_API", "DSTACK_CLOUD_AUDIENCE"}
    assert all(f'"{name}"' in source for name in job["env"])
    assert json.dumps(job["env"]).count("vars.") == 2

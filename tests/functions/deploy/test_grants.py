"""Nothing is allowed that no grant allows, and claims are compared exactly."""

import json
from typing import Any

import pytest

from functions.deploy.grants import Verb, caller, parse_grants
from shared.errors import ConfigError
from tests.functions.deploy.uploads import (
    AUDIENCE,
    github_claims,
    github_grant,
    gitlab_claims,
    gitlab_grant,
    grants_file,
)
from tests.shared.refusal import refuses

GRANTS = parse_grants(grants_file(github_grant(), gitlab_grant()))


@pytest.mark.parametrize("claims", [github_claims(), gitlab_claims(), github_claims(aud=[AUDIENCE])])
def test_allows_what_a_grant_names(claims: dict[str, Any]) -> None:
    assert GRANTS.decide(claims, "deploy", "web").allowed
    assert GRANTS.knows(claims)


def test_says_which_grant_allowed_it() -> None:
    assert GRANTS.decide(gitlab_claims(), "deploy", "web").why == "grant 1"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        # a fork, or whoever took the name over: the ids are others
        ({"repository_id": "9999"}, "repository_id"),
        ({"repository_owner_id": "9999"}, "repository_owner_id"),
        ({"repository_id": 1001}, "repository_id"),
        ({"repository_id": " 1001"}, "repository_id"),
        ({"repository_id": ["1001"]}, "repository_id"),
        ({"repository_id": None}, "repository_id"),
        ({"ref": "refs/heads/main2"}, "ref"),
        ({"ref": "refs/heads/Main"}, "ref"),
        ({"ref": "refs/tags/main"}, "ref"),
        ({"ref": "main"}, "ref"),
        ({"iss": "https://token.actions.githubusercontent.com/"}, "iss"),
        ({"iss": "https://evil.example.com"}, "iss"),
        ({"aud": "https://other.example.com"}, "aud"),
        ({"aud": f"{AUDIENCE}/"}, "aud"),
        ({"aud": [AUDIENCE, "https://other.example.com"]}, "aud"),
        ({"aud": f"[{AUDIENCE}]"}, "aud"),
        ({"aud": None}, "aud"),
        ({"event_name": "pull_request"}, "event_name"),
        ({"event_name": "pull_request_target"}, "event_name"),
        ({"event_name": "pull_request_review"}, "event_name"),
        ({"event_name": "workflow_run"}, "event_name"),
        ({"event_name": "issue_comment"}, "event_name"),
        ({"event_name": None}, "event_name"),
        ({"pipeline_source": "merge_request_event"}, "pipeline_source"),
    ],
)
def test_refuses_other_claims_of_github(changes: dict[str, Any], why: str) -> None:
    claims = github_claims(**changes)
    decision = GRANTS.decide(claims, "deploy", "web")
    assert not decision.allowed
    assert why in decision.why
    assert not GRANTS.knows(claims)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"project_id": "43"}, "project_id"),
        ({"project_id": 42}, "project_id"),
        ({"ref_protected": "false"}, "ref_protected"),
        ({"ref_protected": True}, "ref_protected"),
        ({"ref_path": "refs/tags/main"}, "ref_path"),
        ({"ref_path": "refs/merge-requests/1/head"}, "ref_path"),
        ({"ref_path": None}, "ref_path"),
        ({"pipeline_source": "merge_request_event"}, "pipeline_source"),
        ({"pipeline_source": "external_pull_request_event"}, "pipeline_source"),
        ({"pipeline_source": "trigger"}, "pipeline_source"),
    ],
)
def test_refuses_other_claims_of_gitlab(changes: dict[str, Any], why: str) -> None:
    decision = GRANTS.decide(gitlab_claims(**changes), "deploy", "web")
    assert not decision.allowed
    assert why in decision.why


def test_missing_claims_match_nothing() -> None:
    for claims in (github_claims(), gitlab_claims()):
        for name in set(claims) - {"repository", "repository_owner", "project_path", "run_id"}:
            less = {key: value for key, value in claims.items() if key != name}
            if (name, "project_id" in claims) == ("ref", True):
                continue  # GitLab's short ref is not looked at
            assert not GRANTS.decide(less, "deploy", "web").allowed, name
    assert not GRANTS.decide({}, "read", "web").allowed


@pytest.mark.parametrize("verb", ["logs", "stop", "start", "remove", "firewall"])
def test_a_verb_is_a_right_of_its_own(verb: Verb) -> None:
    assert not GRANTS.decide(github_claims(), verb, "web").allowed
    widened = parse_grants(grants_file(github_grant(verbs=[verb])))
    assert widened.decide(github_claims(), verb, "web").allowed
    assert not widened.decide(github_claims(), "deploy", "web").allowed
    assert not widened.decide(github_claims(), "read", "web").allowed


@pytest.mark.parametrize(
    ("app", "allowed"),
    [
        ("web", True),
        ("web-1", True),
        ("web-", True),
        ("webx", False),
        ("we", False),
        ("db", False),
        ("", False),
    ],
)
def test_apps_are_names_or_prefixes(app: str, allowed: bool) -> None:  # noqa: FBT001 - a parameter
    assert GRANTS.decide(github_claims(), "deploy", app).allowed is allowed


def test_a_star_is_every_app() -> None:
    assert parse_grants(grants_file(github_grant(apps=["*"]))).decide(github_claims(), "read", "db").allowed


def test_grants_do_not_add_up_to_one_that_nobody_made() -> None:
    grants = parse_grants(
        grants_file(github_grant(apps=["web"], verbs=["read"]), github_grant(apps=["db"], verbs=["remove"]))
    )
    assert grants.decide(github_claims(), "remove", "db").allowed
    assert not grants.decide(github_claims(), "remove", "web").allowed


def test_ref_and_environment_must_both_match() -> None:
    grants = parse_grants(grants_file(github_grant(environment="production")))
    assert not grants.decide(github_claims(), "deploy", "web").allowed
    assert not grants.decide(github_claims(environment="Production"), "deploy", "web").allowed
    assert grants.decide(github_claims(environment="production"), "deploy", "web").allowed


def test_an_environment_alone_does_not_let_pull_requests_in() -> None:
    grants = parse_grants(grants_file(github_grant(ref="", environment="production")))
    claims = github_claims(environment="production", ref="refs/pull/1/merge")
    assert grants.decide(claims, "deploy", "web").allowed
    assert not grants.decide(claims | {"event_name": "pull_request_target"}, "deploy", "web").allowed


def test_events_can_be_named() -> None:
    grants = parse_grants(grants_file(github_grant(events=["workflow_run"])))
    assert grants.decide(github_claims(event_name="workflow_run"), "deploy", "web").allowed
    assert not grants.decide(github_claims(), "deploy", "web").allowed


def test_no_grants_allow_nothing() -> None:
    assert not parse_grants(grants_file()).decide(github_claims(), "read", "web").allowed


def test_a_github_grant_is_not_met_by_gitlabs_claims_of_the_same_numbers() -> None:
    claims = gitlab_claims(repository_id="1001", repository_owner_id="2002")
    assert not parse_grants(grants_file(github_grant())).decide(claims, "deploy", "web").allowed


@pytest.mark.parametrize(
    ("grant", "code"),
    [
        (github_grant(ref=""), "where"),
        (gitlab_grant(ref=""), "where"),
        (gitlab_grant(ref_protected=False), "where"),
        (github_grant(ref_protected=True), "where"),
        (github_grant(ref="main"), "where"),
        (github_grant(ref="refs/pull/1/merge"), "where"),
        (github_grant(ref="refs/heads/a b"), "where"),
        (github_grant(repository_id=""), "identity"),
        (github_grant(repository_owner_id=""), "identity"),
        (github_grant(repository_id="acme/web"), "identity"),
        (github_grant(project_id="42"), "identity"),
        (gitlab_grant(project_id="acme"), "identity"),
        (github_grant(repository_id="", repository_owner_id=""), "identity"),
        (github_grant(repository="acme/web"), "field"),
        (github_grant(repository_id=1001), "field"),
        (github_grant(verbs=["admin"]), "field"),
        (github_grant(verbs=[]), "verbs"),
        (github_grant(apps=[]), "apps"),
        (github_grant(apps=["Web"]), "apps"),
        (github_grant(apps=["w*b"]), "apps"),
        (github_grant(apps=["web*\n"]), "apps"),
        (github_grant(events=["pull_request"]), "events"),
        (github_grant(events=["pull_request_target"]), "events"),
        (gitlab_grant(events=["merge_request_event"]), "events"),
        (github_grant(events=[""]), "events"),
        (github_grant(issuer="http://token.actions.githubusercontent.com"), "issuer"),
        (github_grant(issuer="https://"), "issuer"),
        (github_grant(issuer="https://user@example.com"), "issuer"),
        (github_grant(issuer="https://[half"), "issuer"),
        (github_grant(issuer=""), "issuer"),
    ],
)
def test_refuses_grants_that_are_too_wide_or_name_nobody(grant: dict[str, Any], code: str) -> None:
    with refuses(f"deploy.grants.{code}", ConfigError):
        parse_grants(grants_file(grant))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "json.syntax"),
        (b'{"audience": "a", "audience": "b", "grants": []}', "json.duplicate_key"),
        (b"[]", "field"),
        (b'{"grants": []}', "field"),
        (b'{"audience": "a"}', "field"),
        (b'{"audience": "", "grants": []}', "audience"),
        (b'{"audience": "a b", "grants": []}', "audience"),
        (b" " * (256 * 1024 + 1), "json.size"),
        (json.dumps({"audience": "a", "grants": [github_grant()] * 257}).encode(), "field"),
    ],
)
def test_refuses_files_that_are_no_grants(raw: bytes, code: str) -> None:
    with refuses(f"deploy.grants.{code}", ConfigError):
        parse_grants(raw)


def test_names_a_caller_by_ids_and_in_ascii() -> None:
    who = caller(github_claims(actor="octocat", email="o@example.com", environment="prod\nFAKE lögline"))
    assert who.isascii()
    assert "\n" not in who
    assert "repository_id='1001'" in who
    assert "octocat" not in who
    assert "example.com" not in who

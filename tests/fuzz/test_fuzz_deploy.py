"""Deploy: what callers hand in, what grants it, and the tokens that they show."""

import json
from typing import Any

from functions.deploy.grants import parse_grants
from functions.deploy.oidc import TokenVerifier
from functions.deploy.request import read_rule, read_upload
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.functions.deploy.uploads import (
    AUDIENCE,
    GITHUB,
    NOW,
    body,
    github_claims,
    github_grant,
    gitlab_grant,
    grants_file,
)
from tests.fuzz.budget import fuzz, mutated, outcome

UPLOADS = [
    body(encrypted_env="AAECAwQFBgcICQ==", env_names=["A"], replace=True, options={"app_id": "11" * 20}),
    body(cloud="local", wait_for_approval=False),
]
RULES = [json.dumps({"action": "allow", "port": 443, "sources": ["192.0.2.0/24"], "anywhere": True}).encode()]
GRANTS = [
    grants_file(github_grant(), gitlab_grant()),
    grants_file(github_grant(environment="x", events=["push"])),
]
TOKENS = [
    b"eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJpc3MiOiJodHRwczovL3Rva2VuLmFjdGlvbnMifQ.c2ln",
    b"eyJhbGciOiJub25lIn0.e30.",
]


class _Nobody(DirectDialer):
    def dial(self, host: str, port: int, timeout: float) -> Any:
        raise AssertionError(f"{host}:{port} was asked in {timeout} s")


@fuzz(mutated(UPLOADS))
def test_upload(raw: bytes) -> None:
    outcome(read_upload, raw)


@fuzz(mutated(RULES))
def test_rule(raw: bytes) -> None:
    outcome(read_rule, raw)


@fuzz(mutated(GRANTS))
def test_grants(raw: bytes) -> None:
    grants = outcome(parse_grants, raw)
    if grants is not None:
        # whatever became of the grants, pull requests are let in by none
        assert not grants.decide(github_claims(event_name="pull_request"), "deploy", "web").allowed


@fuzz(mutated(TOKENS))
def test_token(raw: bytes) -> None:
    verifier = TokenVerifier([GITHUB], AUDIENCE, HttpClient(_Nobody()))
    assert outcome(verifier.verify, raw.decode("latin-1"), NOW) is None

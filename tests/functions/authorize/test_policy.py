"""The policy file may only take away, and a file that cannot be read in full takes away everything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.authorize.policy import MAX_POLICY_BYTES, read_policy
from functions.authorize.service import Answer, AuthorizeService
from functions.authorize.settings import Settings
from shared.errors import ConfigError
from tests.functions.authorize.conftest import rpc
from tests.shared.refusal import refuses

Body = Callable[..., dict[str, Any]]


class Governed:
    """A service with a policy file that a test may rewrite, and what it reported."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self.path = path
        self.codes: list[str] = []
        changed = msgspec.structs.replace(settings, policy_file=str(path))
        self.service = AuthorizeService(
            changed, [rpc(settings.rpc_urls[0])], lambda code, _: self.codes.append(code)
        )

    def write(self, policy: object) -> None:
        self.path.write_text(policy if isinstance(policy, str) else json.dumps(policy))

    def app(self, body: dict[str, Any], query: str = "") -> Answer:
        headers = {"content-type": "application/json"}
        return self.service.handle("POST", "/bootAuth/app", query, headers, json.dumps(body).encode())


@pytest.fixture
def governed(settings: Settings, tmp_path: Path) -> Governed:
    return Governed(settings, tmp_path / "policy.json")


@pytest.mark.parametrize(
    ("policy", "changes", "reason", "code"),
    [
        ({"allowedTeeVariants": ["dstack-tdx"]}, {}, "", ""),
        (
            {"allowedTeeVariants": ["dstack-nitro-enclave"]},
            {},
            "TEE variant is not allowed",
            "authorize.policy.tee_variant",
        ),
        ({"allowedTeeVariants": []}, {}, "TEE variant is not allowed", "authorize.policy.tee_variant"),
        ({"allowedAdvisoryIds": ["A-1", "A-2"]}, {"advisoryIds": ["A-2"]}, "", ""),
        ({"allowedAdvisoryIds": []}, {"advisoryIds": []}, "", ""),
        (
            {"allowedAdvisoryIds": ["A-1"]},
            {"advisoryIds": ["A-1", "A-2"]},
            "advisory ID is not allowed",
            "authorize.policy.advisory",
        ),
        (
            {"allowedAdvisoryIds": ["A-1"]},
            {"advisoryIds": ["a-1"]},
            "advisory ID is not allowed",
            "authorize.policy.advisory",
        ),
        ({"allowedAdvisoryIds": [], "allowedTeeVariants": ["dstack-tdx"]}, {"advisoryIds": []}, "", ""),
    ],
)
def test_takes_away_what_it_does_not_list(
    governed: Governed,
    allowed_body: Body,
    policy: dict[str, Any],
    changes: dict[str, Any],
    reason: str,
    code: str,
) -> None:
    governed.write(policy)
    body = governed.app(allowed_body(**changes)).body
    assert (body["isAllowed"], body["reason"]) == (not reason, reason)
    assert governed.codes == ([code] if code else [])


@pytest.mark.parametrize("variant", [None, 5, ["dstack-tdx"], "", "DSTACK-TDX"])
def test_a_variant_that_is_not_named_plainly_is_none_of_those_allowed(
    governed: Governed, allowed_body: Body, variant: object
) -> None:
    governed.write({"allowedTeeVariants": ["dstack-tdx"]})
    assert governed.app(allowed_body(teeVariant=variant)).body["isAllowed"] is False


def test_allows_nothing_that_the_contract_refuses(governed: Governed, allowed_body: Body) -> None:
    governed.write({"allowedTeeVariants": ["dstack-tdx"]})
    body = governed.app(allowed_body(composeHash="cc" * 32)).body
    assert (body["isAllowed"], body["reason"]) == (False, "Compose hash not allowed")


def test_a_change_counts_at_once(governed: Governed, allowed_body: Body) -> None:
    governed.write({"allowedTeeVariants": ["dstack-tdx"]})
    assert governed.app(allowed_body()).body["isAllowed"] is True
    governed.write({"allowedTeeVariants": ["dstack-nitro-enclave"]})
    assert governed.app(allowed_body()).body["isAllowed"] is False


def test_a_denial_tells_its_code_to_who_wants_a_proof(governed: Governed, allowed_body: Body) -> None:
    governed.write({"allowedTeeVariants": []})
    assert governed.app(allowed_body(), "proof=1").body == {
        "isAllowed": False,
        "reason": "TEE variant is not allowed",
        "gatewayAppId": "",
        "code": "authorize.policy.tee_variant",
    }


BROKEN = [
    "",
    "{",
    "[]",
    "null",
    "{}",
    '{"allowedTeeVariants": null}',
    '{"allowedTeeVariants": "dstack-tdx"}',
    '{"allowedTeeVariants": ["dstack-tdxx"]}',
    '{"allowedTeeVariants": ["dstack-tdx"], "allowedTcbStatuses": []}',
    '{"allowedteevariants": ["dstack-tdx"]}',
    '{"allowedAdvisoryIds": [1]}',
    '{"allowedAdvisoryIds": [], "allowedAdvisoryIds": ["A-1"]}',
    '{"allowedAdvisoryIds": [' + '"A-1",' * MAX_POLICY_BYTES + '"A-1"]}',
    "[" * 5000,
]


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_n57_a_malformed_policy_denies_everything(governed: Governed, allowed_body: Body, text: str) -> None:
    governed.write(text)
    body = governed.app(allowed_body()).body
    assert (body["isAllowed"], body["reason"]) == (False, "authorization backend unavailable")
    assert governed.codes == ["authorize.policy.invalid"]


def test_n57_a_policy_that_is_not_there_denies_everything(governed: Governed, allowed_body: Body) -> None:
    assert governed.app(allowed_body()).body["isAllowed"] is False
    assert governed.codes == ["authorize.policy.unreadable"]


def test_n57_a_policy_that_cannot_be_read_denies_everything(
    settings: Settings, tmp_path: Path, allowed_body: Body
) -> None:
    governed = Governed(settings, tmp_path)  # a directory
    assert governed.app(allowed_body()).body["isAllowed"] is False
    assert governed.codes == ["authorize.policy.unreadable"]


def test_a_malformed_path_is_refused() -> None:
    with refuses("authorize.policy.unreadable", ConfigError):
        read_policy("policy\0.json")


def test_the_info_page_tells_the_policy(governed: Governed) -> None:
    governed.write({"allowedTeeVariants": ["dstack-tdx"], "allowedAdvisoryIds": ["A-1"]})
    answer = governed.service.handle("GET", "/", "", {}, b"")
    assert json.loads(answer.encode())["policy"] == {
        "allowedTeeVariants": ["dstack-tdx"],
        "allowedAdvisoryIds": ["A-1"],
    }


def test_the_info_page_tells_of_no_policy_where_there_is_none(settings: Settings) -> None:
    answer = AuthorizeService(settings, [rpc(settings.rpc_urls[0])]).handle("GET", "/", "", {}, b"")
    assert "policy" not in answer.body


def test_n57_the_info_page_fails_with_a_broken_policy(governed: Governed) -> None:
    assert governed.service.handle("GET", "/", "", {}, b"").status == 500
    assert governed.codes == ["authorize.policy.unreadable"]

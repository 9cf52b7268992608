"""What the linter says of an app-compose."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.compose import lint
from shared.compose.app_compose import canonical_bytes
from shared.compose.findings import Finding, Severity, has_errors
from shared.compose.lint import lint_app_compose
from shared.compose.secrets import is_secret_name, is_secret_value

DATA = Path(__file__).parents[2] / "data" / "deploy"
PINNED = "nginx@sha256:" + "ab" * 32
CLEAN: dict[str, Any] = {
    "manifest_version": 2,
    "name": "demo",
    "runner": "docker-compose",
    "docker_compose_file": f"services:\n  web:\n    image: {PINNED}\n",
    "key_provider": "kms",
    "secure_time": True,
    "public_tcbinfo": True,
}


def findings(**fields: Any) -> tuple[Finding, ...]:
    document = {name: value for name, value in (CLEAN | fields).items() if value is not ...}
    return lint_app_compose(
        json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


def codes(*severities: Severity, **fields: Any) -> list[str]:
    wanted = severities or tuple(Severity)
    return [found.code for found in findings(**fields) if found.severity in wanted]


def compose(body: str) -> str:
    return f"services:\n  web:\n{body}"


def test_has_nothing_to_say_about_a_clean_document() -> None:
    assert findings() == ()


def test_errors_come_first_and_refuse() -> None:
    found = lint_app_compose((DATA / "app-compose.cli.json").read_bytes())
    assert found[0].code == "lint.image.digest"
    assert has_errors(found)
    assert not has_errors(found[1:])


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "compose.syntax"),
        (b'{"a":1,"a":2}', "compose.duplicate_key"),
        (b"[]", "compose.type"),
        (b'{"manifest_version":3}', "compose.manifest_version"),
    ],
)
def test_what_the_guest_refuses_is_one_error(raw: bytes, code: str) -> None:
    found = [one for one in lint_app_compose(raw) if one.severity is Severity.ERROR]
    assert [one.code for one in found] == [code]


# ---- form ----


def test_flags_a_form_that_other_tools_would_not_write() -> None:
    raw = canonical_bytes(CLEAN)
    assert lint_app_compose(raw) == ()
    for other in (raw + b"\n", json.dumps(CLEAN, indent=2).encode()):
        assert [found.code for found in lint_app_compose(other)] == ["lint.canonical"]


def test_flags_nulls_and_fractions_where_they_are() -> None:
    found = {one.where: one.code for one in findings(bash_script=None, x={"y": [1.5]})}
    assert found["app-compose.bash_script"] == "lint.null"
    assert found["app-compose.x.y[0]"] == "lint.number"
    assert found["app-compose"] == "lint.canonical"


def test_a_flood_of_nulls_is_bounded_and_hides_no_error() -> None:
    found = findings(x=[None] * 200_000, docker_compose_file=compose("    image: nginx\n"))
    assert len(found) < 2 * lint.MAX_FINDINGS
    assert found[0].code == "lint.image.digest"


def test_says_where_it_stopped_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint, "_MAX_WALK", 10)
    assert "lint.size" in codes(x=[0] * 20)


# ---- fields ----


@pytest.mark.parametrize(
    ("fields", "code", "severity"),
    [
        ({"run_me": "x"}, "lint.unknown", Severity.WARNING),
        ({"features": ["kms"]}, "lint.deprecated", Severity.WARNING),
        ({"tproxy_enabled": True}, "lint.deprecated", Severity.WARNING),
        ({"docker_config": {"username": "u"}}, "lint.deprecated", Severity.WARNING),
        ({"launch_token_hash": "ab" * 32}, "lint.deprecated", Severity.WARNING),
        ({"kms_enabled": True}, "lint.deprecated", Severity.WARNING),
        ({"secure_time": ...}, "lint.default", Severity.NOTE),
        ({"public_tcbinfo": ...}, "lint.default", Severity.NOTE),
        ({"public_logs": True}, "lint.public_logs", Severity.WARNING),
        ({"allowed_envs": ["B", "A"]}, "lint.allowed_envs", Severity.WARNING),
        ({"allowed_envs": ["A", "A"]}, "lint.allowed_envs", Severity.WARNING),
        ({"allowed_envs": ["A"], "key_provider": "tpm"}, "lint.allowed_envs", Severity.ERROR),
        ({"key_provider": ..., "kms_enabled": True}, "lint.key_provider", Severity.NOTE),
        ({"key_provider": "none"}, "lint.key_provider", Severity.WARNING),
        ({"key_provider": "tpm", "gateway_enabled": True}, "lint.gateway", Severity.ERROR),
        ({"docker_compose_file": ...}, "lint.runner", Severity.ERROR),
        ({"runner": "bash"}, "lint.runner", Severity.ERROR),
        ({"runner": "nerdctl-compose"}, "lint.runner", Severity.ERROR),
        ({"snapshotter": "stargz"}, "lint.runner", Severity.WARNING),
        ({"manifest_version": "3", "requirements": {"platforms": []}}, "lint.platforms", Severity.ERROR),
        ({"manifest_version": "3", "requirements": {"platforms": ["x"]}}, "lint.platforms", Severity.WARNING),
    ],
)
def test_flags_a_field(fields: dict[str, Any], code: str, severity: Severity) -> None:
    assert code in codes(severity, **fields)


SIGNED = {"env_signer": "d7" * 32}
TOKEN = {"manifest_version": "3", "requirements": {"launch_token_hash": "ab" * 32}}


def test_tells_who_may_choose_the_variables() -> None:
    used = {"allowed_envs": ["A"], "docker_compose_file": compose(f"    image: {PINNED}\n    command: $A\n")}
    assert codes(**used) == ["lint.env_signer.absent"]
    assert codes(**used, **TOKEN) == []
    assert codes(**used, **SIGNED) == ["lint.env_signer.guest"]
    assert codes() == []


def test_an_env_signer_without_a_kms_or_a_version_without_a_signer_is_an_error() -> None:
    assert codes(Severity.ERROR, **SIGNED, key_provider="tpm") == ["lint.env_signer.key_provider"]
    assert codes(Severity.ERROR, env_min_version=3) == ["lint.env_signer.version"]
    assert codes(Severity.ERROR, **SIGNED, env_min_version=3) == []


def test_a_key_epoch_needs_a_kms_and_says_what_it_leaves_behind() -> None:
    assert codes(key_epoch=2) == ["lint.key_epoch.guest"]
    assert codes(Severity.ERROR, key_epoch=2, key_provider="tpm") == ["lint.key_epoch.key_provider"]


def test_platforms_that_exist_are_fine() -> None:
    assert codes(manifest_version="3", requirements={"platforms": ["dstack-gcp-tdx"]}) == []
    assert codes(manifest_version="3", requirements={}, runner="nerdctl-compose", snapshotter="stargz") == []


def test_n05_code_that_runs_is_shown() -> None:
    found = {one.where: one for one in findings(init_script="rm -rf /\n", pre_launch_script="true")}
    assert found["init_script[0]"].detail == "rm -rf /\n"
    assert "sha256" in found["init_script[0]"].message
    assert found["init_script[0]"].code == "lint.init_script"
    assert found["pre_launch_script"].code == "lint.pre_launch_script"
    shell = findings(runner="bash", bash_script="run", docker_compose_file=...)
    assert [(one.code, one.detail) for one in shell] == [("lint.bash_script", "run")]


# ---- containers ----


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("    image: nginx:alpine\n", "lint.image.digest"),
        ("    image: nginx\n", "lint.image.digest"),
        ("    image: ${IMAGE}\n", "lint.image.variable"),
        (f"    image: ${{REGISTRY}}/{PINNED}\n", "lint.image.variable"),
        ("    build: .\n", "lint.image.build"),
        (f"    image: {PINNED}\n    build: .\n", "lint.image.build"),
        (f"    image: {PINNED}\n    extends: {{file: other.yaml, service: x}}\n", "lint.extends"),
        ("    restart: always\n", "lint.image.missing"),
    ],
)
def test_n73_an_image_that_the_hash_does_not_fix_is_an_error(body: str, code: str) -> None:
    assert codes(Severity.ERROR, docker_compose_file=compose(body)) == [code]


def test_n73_a_pinned_image_passes() -> None:
    assert codes(docker_compose_file=compose(f"    image: {PINNED}\n")) == []
    extended = compose("    extends: {file: other.yaml}\n")
    assert codes(Severity.ERROR, docker_compose_file=extended) == ["lint.extends"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("services: [", "lint.yaml.syntax"),
        ("a: b", "lint.services.missing"),
        (f"include: [x]\nservices: {{a: {{image: '{PINNED}'}}}}", "lint.include"),
    ],
)
def test_flags_a_compose_file_that_cannot_run(text: str, code: str) -> None:
    assert codes(Severity.ERROR, docker_compose_file=text) == [code]


def test_flags_an_env_file_that_no_guest_has() -> None:
    text = compose(f"    image: {PINNED}\n    env_file: .env\n")
    assert codes(docker_compose_file=text) == ["lint.env_file"]


def test_compares_variables_with_allowed_envs() -> None:
    text = compose(f"    image: {PINNED}\n    environment: [A, 'B=$C', 'D=$$E']\n")
    found = {one.where: one.code for one in findings(docker_compose_file=text, allowed_envs=["A", "Z"])}
    assert found == {
        "C": "lint.env.undeclared",
        "Z": "lint.env.unused",
        "allowed_envs": "lint.env_signer.absent",
    }


# ---- secrets ----


@pytest.mark.parametrize(
    "value",
    [
        "-----BEGIN EC PRIVATE KEY-----",
        "AKIA" + "A" * 16,
        "ghp_" + "a" * 36,
        "github_pat_" + "a" * 60,
        "xoxb-" + "1" * 12,
        "sk-" + "a" * 30,
        "AIza" + "a" * 35,
        "postgres://user:hunter2@db/x",
        "redis://:hunter2@cache",
    ],
)
def test_knows_the_forms_of_secrets(value: str) -> None:
    assert is_secret_value(f"X={value}")
    assert codes(Severity.ERROR, pre_launch_script=f"X={value}") == ["lint.secret"]
    assert value not in repr([one.message for one in findings(init_script=value)])


@pytest.mark.parametrize("value", ["", "hello", "https://example.com/a:b@c", "postgres://user:$PASS@db"])
def test_takes_plain_values_for_what_they_are(value: str) -> None:
    assert not is_secret_value(value)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("DB_PASSWORD", True),
        ("api_key", True),
        ("TOKEN", True),
        ("MNEMONIC", True),
        ("PUBLIC_KEY", False),
        ("TOKENIZER", False),
        ("PASSWORD_FILE", False),
        ("TOKEN_URL", False),
        ("COMPASS", False),
        ("PGPASSWORD", True),
        ("MYSQL_PWD", True),
        ("PWD", False),
        ("TOKEN_ADDRESS", False),
    ],
)
def test_knows_the_names_of_secrets(name: str, secret: bool) -> None:  # noqa: FBT001 - parametrised
    assert is_secret_name(name) is secret


def test_a_secret_in_plain_environment_is_an_error() -> None:
    text = compose(
        f"    image: {PINNED}\n    environment: {{DB_PASSWORD: hunter2, TOKEN: $T, API_KEY: ''}}\n"
    )
    found = findings(docker_compose_file=text, allowed_envs=["T"])
    assert [(one.code, one.where) for one in found] == [
        ("lint.secret", "services.web.DB_PASSWORD"),
        ("lint.env_signer.absent", "allowed_envs"),
    ]
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("yes", False),
        ("$DB_PASSWORD", False),
        ("${DB_PASSWORD:?set it}", False),
        ("${DB_PASSWORD:-}", False),
        ("${DB_PASSWORD:-${OTHER}}", False),
        ("${DB_PASSWORD:-hunter2}", True),
        ("${DB_PASSWORD-hunter2}", True),
        ("pa$$word", True),
    ],
)
def test_a_default_is_as_plain_as_a_value_and_a_switch_is_no_secret(value: str, plain: bool) -> None:  # noqa: FBT001 - parametrised
    text = compose(f"    image: {PINNED}\n    environment: {{DB_PASSWORD: '{value}'}}\n")
    found = findings(docker_compose_file=text, allowed_envs=["DB_PASSWORD", "OTHER"])
    assert ("lint.secret" in [one.code for one in found]) is plain


@given(st.binary(max_size=80) | st.text('{}[]":,0123456789aeu\\.- nulltrefs', max_size=80).map(str.encode))
def test_any_bytes_can_be_linted(raw: bytes) -> None:
    assert isinstance(lint_app_compose(raw), tuple)

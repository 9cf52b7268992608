"""YAML that only carries data, and the services of a compose file."""

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.compose import yaml_document
from shared.compose.services import MAX_SERVICES, is_pinned, read_compose_file, variables
from shared.compose.yaml_document import read_yaml
from shared.errors import ProtocolError
from tests.shared.refusal import refuses

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: yes\nb: 0o17\nc: 1.0", {"a": "yes", "b": "0o17", "c": "1.0"}),
        ("a:\nb: ~\nc: null\nd: 'null'", {"a": None, "b": None, "c": None, "d": "null"}),
        ("- 1\n- [a, {b: c}]", ["1", ["a", {"b": "c"}]]),
        ("x: &a {k: v}\ny: *a", {"x": {"k": "v"}, "y": {"k": "v"}}),
        ("x: &a {k: v, l: w}\ny: {<<: *a, k: own}", {"x": {"k": "v", "l": "w"}, "y": {"k": "own", "l": "w"}}),
        ("x: {<<: [{a: 1}, {a: 2, b: 3}]}", {"x": {"a": "1", "b": "3"}}),
        ("a: !!str null\nc: !!seq [!!map {}]", {"a": "null", "c": [{}]}),
        ("text", "text"),
    ],
)
def test_reads_data_and_makes_no_objects(text: str, value: object) -> None:
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: [", "yaml.syntax"),
        ("a: *b", "yaml.syntax"),
        ("a: &a [*a]", "yaml.syntax"),
        ("a: \x00", "yaml.syntax"),
        ("a: \ud800", "yaml.syntax"),
        ("", "yaml.documents"),
        ("a: 1\n---\nb: 2", "yaml.documents"),
        ("{a: 1}: 2", "yaml.key"),
        ("? ~\n: 2", "yaml.key"),
        ("a: 1\na: 2", "yaml.duplicate_key"),
        ("a: {<<: [x]}", "yaml.merge"),
        ("a: {<<: {b: c}, <<: {b: d}}", "yaml.duplicate_key"),
        ("!!python/object/apply:os.system [id]", "yaml.tag"),
        ("a: !reset null", "yaml.tag"),
        ("image: pinned\n!!binary aW1hZ2U=: another", "yaml.tag"),
        ("a: !!null x", "yaml.tag"),
        ("a: ! null", "yaml.tag"),
        ("[" * 40 + "]" * 40, "yaml.depth"),
        ("a: " + "x" * yaml_document.MAX_YAML_BYTES, "yaml.size"),
    ],
)
def test_refuses_what_is_no_plain_document(text: str, code: str) -> None:
    with refuses(code, ProtocolError):
        read_yaml(text)


def test_aliases_cannot_multiply() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with refuses("yaml.size", ProtocolError):
        read_yaml("\n".join(lines))


def test_an_error_does_not_repeat_the_document() -> None:
    with refuses("yaml.syntax", ProtocolError) as caught:
        read_yaml("password: hunter2: hunter2")
    assert "hunter2" not in caught.value.message


def test_the_pure_python_parser_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert read_yaml("x: &a {k: v}\ny: *a") == {"x": {"k": "v"}, "y": {"k": "v"}}
    with refuses("yaml.syntax", ProtocolError):
        read_yaml("a: [")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[" * 500_000, "yaml.syntax"),
        ("? " * 500_000, "yaml.depth"),
        ("a: &x b\n" + "- *x\n" * 200_000, "yaml.syntax"),
        ("&a " * 300_000, "yaml.syntax"),
    ],
    ids=["lists", "keys", "aliases", "anchors"],
)
def test_hostile_text_is_refused(text: str, code: str) -> None:
    with refuses(code, ProtocolError):
        read_yaml(text)


@given(st.text(max_size=60) | st.text("[]{}:,&*a-? \n<|>'\"#!%@~", max_size=60))
def test_any_text_gives_data_or_an_error_of_ours(text: str) -> None:
    with contextlib.suppress(ProtocolError):
        read_yaml(text)


# ---- services ----


def service(body: str) -> Any:
    return read_compose_file(f"services:\n  web:\n{body}").services[0]


def test_reads_what_decides_what_runs() -> None:
    one = service(
        f"    image: nginx@{DIGEST}\n    environment: {{A: x, B: }}\n    env_file: .env\n    extends: y\n"
    )
    assert (one.name, one.image, one.has_build) == ("web", f"nginx@{DIGEST}", False)
    assert one.environment == (("A", "x"), ("B", None))
    assert (one.has_env_file, one.has_extends) == (True, True)
    assert one.keys == ("env_file", "environment", "extends", "image")


def test_reads_an_environment_that_is_a_list() -> None:
    assert service("    environment: [A=x=y, B]\n").environment == (("A", "x=y"), ("B", None))
    assert service("    image: a\n").environment == ()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: b", "services.missing"),
        ("- a", "services.missing"),
        ("services:", "services.missing"),
        ("services: [a]", "services.type"),
        ("services: {a: b}", "services.type"),
        ("services: {a: {image: [x]}}", "services.type"),
        ("services: {a: {environment: x}}", "services.type"),
        ("services: {a: {environment: {A: [x]}}}", "services.type"),
        ("services: {a: {environment: [[x]]}}", "services.type"),
        ("services: {" + ", ".join(f"s{n}: {{}}" for n in range(MAX_SERVICES + 1)) + "}", "services.count"),
    ],
)
def test_refuses_what_is_no_compose_file(text: str, code: str) -> None:
    with refuses(code, ProtocolError):
        read_compose_file(text)


def test_says_whether_other_files_are_included() -> None:
    file = read_compose_file("include: [other.yaml]\nservices: {a: {build: .}}")
    assert file.has_include
    assert file.services[0].has_build


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        (f"nginx@{DIGEST}", True),
        (f"host:5000/a/b:tag@{DIGEST}", True),
        ("nginx", False),
        ("nginx:1.27", False),
        (f"@{DIGEST}", False),
        (f"nginx@{DIGEST[:-1]}", False),
        (f"nginx@{DIGEST.upper()}", False),
        (f"nginx@{DIGEST}\n", False),
    ],
)
def test_an_image_is_pinned_by_a_digest_alone(image: str, pinned: bool) -> None:  # noqa: FBT001 - parametrised
    assert is_pinned(image) is pinned


def test_finds_the_variables_that_compose_replaces() -> None:
    assert variables("$A ${B} ${C:-default} $$D ${E?gone} $1 ${}") == ("A", "B", "C", "E")

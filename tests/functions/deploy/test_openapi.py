"""openapi.yaml describes the router as it is: every path, method and schema, and examples that are valid."""

import json
from pathlib import Path
from typing import Any, get_args

import openapi_spec_validator
import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from functions.deploy.api import _ROOT, LOG_PAGE, DeployApi
from functions.deploy.record import CloudName, Goal, ResourceState, Step
from functions.deploy.request import (
    MAX_ENV_NAMES,
    MAX_FILES,
    MAX_SOURCES,
    Options,
    RuleBody,
    _Body,
    check_rule,
    read_rule,
    read_upload,
)
from functions.deploy.service import MAX_CURSOR, MAX_KEY, MAX_PAGE

FILE = Path(__file__).resolve().parents[3] / "functions" / "deploy" / "openapi.yaml"
METHODS = {"get", "put", "post", "delete"}
PROGRESS = f"{_ROOT}/{{name}}/progress/{{token}}"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def schema(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"][name]
    return found


def validator(document: dict[str, Any], pointer: str) -> Draft202012Validator:
    registry: Any = Registry().with_resource(
        "urn:api",
        Resource.from_contents(document | {"$schema": "https://json-schema.org/draft/2020-12/schema"}),
    )
    return Draft202012Validator({"$ref": f"urn:api#{pointer}"}, registry=registry)


def test_is_an_openapi_document(document: dict[str, Any]) -> None:
    openapi_spec_validator.validate(document)


def test_has_every_route_of_the_router_and_no_other(document: dict[str, Any]) -> None:
    described = {
        (path, method.upper())
        for path, item in document["paths"].items()
        for method in item
        if method in METHODS
    }
    routed = {(_ROOT + path, method) for path, methods in DeployApi.ROUTES.items() for method in methods}
    assert described == routed | {(PROGRESS, "POST")}


def test_says_which_verb_each_route_needs(document: dict[str, Any]) -> None:
    for path, methods in DeployApi.ROUTES.items():
        for method, (verb, _) in methods.items():
            description = document["paths"][_ROOT + path][method.lower()]["description"]
            assert f"`{verb}`" in description, (path, method)


def test_every_operation_needs_a_token_and_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    operations = [
        operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS and path != PROGRESS
    ]
    assert document["security"] == [{"oidc": []}]
    assert not any("security" in operation for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert {"401", "403", "405", "429", "503"} <= operation["responses"].keys()


def test_schemas_have_the_fields_that_are_read(document: dict[str, Any]) -> None:
    assert schema(document, "Upload")["properties"].keys() == set(_Body.__struct_fields__)
    options = schema(document, "Upload")["properties"]["options"]
    assert options["properties"].keys() == set(Options.__struct_fields__)
    assert schema(document, "FirewallRequest")["properties"].keys() == set(RuleBody.__struct_fields__)


def test_enumerations_and_limits_are_the_codes(document: dict[str, Any]) -> None:
    deployment = schema(document, "Deployment")["properties"]
    assert set(schema(document, "Cloud")["enum"]) == set(get_args(CloudName))
    assert set(schema(document, "Step")["enum"]) == {step.value for step in Step}
    assert set(deployment["goal"]["enum"]) == {goal.value for goal in Goal}
    state = deployment["resources"]["items"]["properties"]["state"]
    assert set(state["enum"]) == set(get_args(ResourceState))
    upload = schema(document, "Upload")["properties"]
    assert upload["files"]["maxProperties"] == MAX_FILES
    assert upload["env_names"]["maxItems"] == MAX_ENV_NAMES
    assert schema(document, "FirewallRule")["properties"]["sources"]["maxItems"] == MAX_SOURCES
    parameters = document["components"]["parameters"]
    assert parameters["Limit"]["schema"]["maximum"] == MAX_PAGE
    assert parameters["IdempotencyKey"]["schema"]["maxLength"] == MAX_KEY
    cursor, limit = document["paths"][f"{_ROOT}/{{name}}/logs"]["get"]["parameters"]
    assert cursor["schema"]["maxLength"] == MAX_CURSOR
    assert limit["schema"]["maximum"] == LOG_PAGE


def test_every_example_is_valid(document: dict[str, Any]) -> None:
    checked = 0
    for pointer, media in _media(document, ""):
        for example in media["examples"].values():
            value = document["components"]["examples"][example["$ref"].rpartition("/")[2]]["value"]
            validator(document, f"{pointer}/schema").validate(value)
            checked += 1
    assert checked > 20


def _media(node: Any, pointer: str) -> list[tuple[str, Any]]:
    found = []
    if isinstance(node, dict):
        if "application/json" in node:
            found.append((f"{pointer}/application~1json", node["application/json"]))
        for key, value in node.items():
            found += _media(value, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            found += _media(value, f"{pointer}/{number}")
    return found


def test_examples_of_requests_are_requests(document: dict[str, Any]) -> None:

    examples = document["components"]["examples"]
    assert read_upload(json.dumps(examples["UploadGcp"]["value"]).encode()).name == "web"
    check_rule(read_rule(json.dumps(examples["OpenHttps"]["value"]).encode()))


def test_a_schema_refuses_what_the_code_refuses(document: dict[str, Any]) -> None:
    check = validator(document, "/components/schemas/Upload")
    assert not check.is_valid({"files": {}, "env": {"A": "1"}})
    assert not check.is_valid({"files": {}, "name": "Web"})
    assert not check.is_valid({"name": "web"})

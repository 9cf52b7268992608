"""template.yaml: sound by the linters, and at one with the code that it deploys."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from functions.authorize.service import _ROUTES
from functions.governance.service import LAST_TRY, WEBHOOKS
from functions.packaging.own_code import REPOSITORY
from functions.packaging.targets import AWS_FUNCTIONS, AWS_SERVICES, MB, PYTHONS
from tests.packaging.conftest import Artefacts

TEMPLATE = REPOSITORY / "template.yaml"
CLOUD_CODE = (*(REPOSITORY / "functions" / "clouds").glob("*.py"), REPOSITORY / "functions" / "aws_api.py")
PUBLIC = ("VerifyFunction", "AuthorizeFunction", "DeployFunction", "GovernanceFunction")
DEPLOY_APIS = ("GitHubDeployApi", "GitLabDeployApi")
GUESTS = "POST /v1/deployments/{name}/progress/{token}"
METHODS = {"get", "put", "post", "delete", "patch"}
# IAM needs these for what other calls do on the way
ALONG_THE_WAY = {"ec2:CreateTags"}


class _Loader(yaml.SafeLoader):
    """Reads `!Ref x` as `{"Ref": "x"}`."""


def _intrinsic(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _intrinsic)


def read_template() -> dict[str, Any]:
    """Return the template as it is written."""
    read: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Loader)  # noqa: S506 - a safe loader
    return read


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    """The template as it is written."""
    return read_template()


@pytest.fixture(scope="module")
def resources(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its resources by name."""
    found: dict[str, dict[str, Any]] = template["Resources"]
    return found


def test_cfn_lint_finds_nothing() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("cfn-lint")), "--format", "parseable", str(TEMPLATE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_sam_validate_finds_nothing(tmp_path: Path) -> None:
    sam = REPOSITORY / "build" / "sam" / "bin" / "sam"
    found = str(sam) if sam.is_file() else shutil.which("sam")
    if found is None:
        pytest.skip("aws-sam-cli is neither in build/sam nor on PATH")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SAM_CLI_TELEMETRY": "0",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    done = subprocess.run(
        [found, "validate", "--lint", "--template", str(TEMPLATE)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def functions(resources: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: one["Properties"]
        for name, one in resources.items()
        if one["Type"] == "AWS::Serverless::Function"
    }


def routes(resources: dict[str, dict[str, Any]], api: str) -> dict[str, str]:
    """Return the function behind each route of an API."""
    return {
        f"{event['Properties']['Method']} {event['Properties']['Path']}": name
        for name, function in functions(resources).items()
        for event in function["Events"].values()
        if event["Type"] == "HttpApi" and event["Properties"]["ApiId"] == {"Ref": api}
    }


def statements(resources: dict[str, dict[str, Any]], role: str) -> list[dict[str, Any]]:
    return [
        statement
        for policy in resources[role]["Properties"]["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    ]


def actions(statement: dict[str, Any]) -> set[str]:
    allowed = statement["Action"]
    return {allowed} if isinstance(allowed, str) else set(allowed)


def allowed_actions(resources: dict[str, dict[str, Any]], role: str) -> set[str]:
    return set().union(*map(actions, statements(resources, role)))


class TestFunctions:
    def test_each_handler_is_in_its_package(
        self, resources: dict[str, dict[str, Any]], artefacts: Artefacts
    ) -> None:
        for name, function in functions(resources).items():
            code = re.fullmatch(r"build/aws/([a-z]+)\.zip", function["CodeUri"])
            assert code is not None
            module, _, attribute = function["Handler"].rpartition(".")
            path = f"{module.replace('.', '/')}.py"
            with zipfile.ZipFile(artefacts.zip(code[1])[1]) as archive:
                assert f"def {attribute}(" in archive.read(path).decode(), name

    def test_runtimes_are_those_that_packages_are_built_for(self, template: dict[str, Any]) -> None:
        runtime = template["Parameters"]["Runtime"]
        assert runtime["AllowedValues"] == ["python{}.{}".format(*version) for version in PYTHONS]
        assert template["Globals"]["Function"]["Runtime"] == {"Ref": "Runtime"}
        assert not [one for one in functions(template["Resources"]).values() if "Runtime" in one]

    def test_public_functions_have_reserved_concurrency(self, resources: dict[str, dict[str, Any]]) -> None:
        for name in PUBLIC:
            reserved = functions(resources)[name]["ReservedConcurrentExecutions"]
            assert reserved == {"Ref": "PublicConcurrency"}

    def test_each_has_its_own_role_and_a_log_that_is_not_kept_for_ever(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        roles = [function["Role"]["Fn::GetAtt"] for function in functions(resources).values()]
        assert len(set(roles)) == len(roles)
        for function in functions(resources).values():
            log = resources[function["LoggingConfig"]["LogGroup"]["Ref"]]
            assert log["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}

    def test_every_variable_is_read_by_the_code(
        self, template: dict[str, Any], resources: dict[str, dict[str, Any]]
    ) -> None:
        code = "".join(path.read_text() for path in (REPOSITORY / "functions").rglob("*.py"))
        shared = template["Globals"]["Function"]["Environment"]["Variables"]
        for function in (*functions(resources).values(), {"Environment": {"Variables": shared}}):
            for name in function.get("Environment", {}).get("Variables", {}):
                read = "DSTACK_VERIFIER_" if name.startswith("DSTACK_VERIFIER_") else name
                assert f'"{read}"' in code, name

    def test_a_step_ends_before_its_message_comes_again_and_that_before_the_sweep(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        from functions.deploy.reconcile import OVERDUE_SECONDS  # noqa: PLC0415 - of this test alone

        visible_again = resources["Queue"]["Properties"]["VisibilityTimeout"]
        assert functions(resources)["WorkerFunction"]["Timeout"] < visible_again < OVERDUE_SECONDS

    def test_the_worker_gets_one_message_and_tells_which_failed(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        event = functions(resources)["WorkerFunction"]["Events"]["Queue"]["Properties"]
        assert (event["BatchSize"], event["FunctionResponseTypes"]) == (1, ["ReportBatchItemFailures"])


class TestRoutes:
    def test_deployments_have_the_routes_that_are_documented_behind_an_authorizer(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        document = yaml.safe_load((REPOSITORY / "functions" / "deploy" / "openapi.yaml").read_text())
        wanted = {
            f"{method.upper()} {path}"
            for path, item in document["paths"].items()
            for method in METHODS & set(item)
            if f"{method.upper()} {path}" != GUESTS
        }
        for api in DEPLOY_APIS:
            assert routes(resources, api) == dict.fromkeys(wanted, "DeployFunction")
            auth = resources[api]["Properties"]["Auth"]
            issuer = api.replace("DeployApi", "Issuer")
            assert auth["DefaultAuthorizer"] == "Oidc"
            assert auth["Authorizers"]["Oidc"]["JwtConfiguration"] == {
                "issuer": {"Ref": issuer},
                "audience": [{"Ref": "Audience"}],
            }

    def test_no_route_of_a_deployment_opts_out_of_its_authorizer(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        events = functions(resources)["DeployFunction"]["Events"].values()
        assert {tuple(sorted(event["Properties"])) for event in events} == {("ApiId", "Method", "Path")}

    def test_public_routes_are_those_that_the_services_answer(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        found = routes(resources, "PublicApi")
        authorize = {f"{method} {path}" for method, path in _ROUTES}
        assert {one for one, function in found.items() if function == "AuthorizeFunction"} == authorize
        verify = {one for one, function in found.items() if function == "VerifyFunction"}
        assert verify == {"GET /health", "POST /verify"}
        deploy = {one for one, function in found.items() if function == "DeployFunction"}
        assert deploy == {GUESTS}
        assert set(found.values()) == {"AuthorizeFunction", "VerifyFunction", "DeployFunction"}

    def test_webhooks_have_the_routes_that_the_function_answers(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        found = routes(resources, "WebhookApi")
        path = f"{WEBHOOKS}{{provider}}"
        assert found == {f"GET {path}": "GovernanceFunction", f"POST {path}": "GovernanceFunction"}

    @pytest.mark.parametrize("api", ["PublicApi", "WebhookApi", *DEPLOY_APIS])
    def test_each_route_has_a_throttle(self, resources: dict[str, dict[str, Any]], api: str) -> None:
        properties = resources[api]["Properties"]
        assert set(properties["RouteSettings"]) == set(routes(resources, api))
        for settings in (*properties["RouteSettings"].values(), properties["DefaultRouteSettings"]):
            assert 0 < settings["ThrottlingRateLimit"] <= settings["ThrottlingBurstLimit"] <= 50


class TestRights:
    def test_what_needs_no_rights_has_none(self, resources: dict[str, dict[str, Any]]) -> None:
        for role in ("VerifyRole", "AuthorizeRole"):
            assert [one["Sid"] for one in statements(resources, role)] == ["Log", "Trace"]

    def test_governance_may_change_records_and_no_machine(self, resources: dict[str, dict[str, Any]]) -> None:
        beside = {"logs", "xray"}
        found = {
            role: {
                (one.partition(":")[0], str(statement["Resource"]))
                for statement in statements(resources, role)
                for one in actions(statement)
                if one.partition(":")[0] not in beside
            }
            for role in ("GovernanceRole", "LookRole", "GovernanceSweepRole")
        }
        services = {service for pairs in found.values() for service, _ in pairs}
        assert services == {"dynamodb", "sqs", "secretsmanager"}
        assert "dynamodb:PutItem" not in {
            one
            for statement in statements(resources, "GovernanceRole")
            if statement["Resource"] == {"Fn::GetAtt": "Table.Arn"}
            for one in actions(statement)
        }
        [secrets] = [one for one in statements(resources, "GovernanceRole") if one["Sid"] == "Secrets"]
        assert str(secrets["Resource"]).endswith("secret:dstack/webhooks/*'}")

    def test_no_role_has_a_wildcard_for_actions_or_a_managed_policy(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        roles = {name: one for name, one in resources.items() if one["Type"] == "AWS::IAM::Role"}
        assert set(roles) >= {"VerifyRole", "AuthorizeRole", "DeployRole", "WorkerRole", "SweepRole"}
        for name, role in roles.items():
            assert not [one for one in allowed_actions(resources, name) if "*" in one]
            if name != "ParentRole":
                assert "ManagedPolicyArns" not in role["Properties"]

    def test_only_what_changes_nothing_may_have_any_resource(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        for role in ("DeployRole", "WorkerRole", "SweepRole"):
            for statement in statements(resources, role):
                if statement["Resource"] == "*":
                    verbs = {one.partition(":")[2] for one in actions(statement)}
                    assert all(verb.startswith(("Describe", "GetCommandInvocation", "Put")) for verb in verbs)
                    assert statement["Sid"] in {"Trace", "Look", "ResultsOfCommands"}

    def test_what_changes_machines_needs_the_tag(self, resources: dict[str, dict[str, Any]]) -> None:
        unconditional = set()
        for role in ("DeployRole", "WorkerRole"):
            for statement in statements(resources, role):
                changing = {
                    one
                    for one in actions(statement)
                    if one.startswith("ec2:") and not one.startswith("ec2:Describe")
                }
                if not changing:
                    continue
                condition = str(statement.get("Condition", ""))
                held = r"aws:(Request|Resource)Tag/dstack-managed-by|ec2:CreateAction|ec2:Owner"
                if not re.search(held, condition):
                    unconditional.add(statement["Sid"])
        # what they use is not ours to tag; what they make is held to its tag by a statement of its own
        assert unconditional == {"RunInstancesInAnySubnet", "CreateSecurityGroupsInAnyNetwork"}

    def test_projects_run_neither_strangers_images_nor_in_groups_that_nobody_offered(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        found = {}
        for statement in statements(resources, "WorkerRole"):
            if actions(statement) == {"ec2:RunInstances"}:
                for kind in re.findall(r":([a-z-]+)/\*", str(statement["Resource"])):
                    found[kind] = statement.get("Condition", {}).get("StringEquals", {})
        assert found == {
            "image": {"ec2:Owner": ["amazon", {"Ref": "AWS::AccountId"}]},
            "instance": {"aws:RequestTag/dstack-managed-by": "dstack-cloud"},
            "network-interface": {},
            "security-group": {"aws:ResourceTag/dstack-managed-by": "dstack-cloud"},
            "subnet": {},
            "volume": {"aws:RequestTag/dstack-managed-by": "dstack-cloud"},
        }

    def test_the_worker_may_do_what_the_code_calls_and_no_more(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        code = "".join(path.read_text() for path in CLOUD_CODE)
        called = set()
        for service, method in re.findall(r"(?<!nitro\.)\b(ec2|ssm)\.([a-z]\w+)", code):
            if method == "get_paginator":
                continue
            called.add(f"{service}:{_camel(method)}")
        called |= {f"ec2:{_camel(name)}" for name in re.findall(r'get_paginator\("(describe_\w+)"\)', code)}
        allowed = {
            one for one in allowed_actions(resources, "WorkerRole") if one.startswith(("ec2:", "ssm:"))
        }
        assert allowed == called | ALONG_THE_WAY

    def test_boto3_keeps_the_services_that_the_code_makes_clients_of(self) -> None:
        code = "".join(path.read_text() for path in (REPOSITORY / "functions").rglob("*.py"))
        made = set(re.findall(r"\b_?(?:aws_)?clients?\(\s*\"([a-z0-9-]+)\"", code))
        assert made == AWS_SERVICES


def _camel(method: str) -> str:
    return "".join(part.capitalize() for part in method.split("_"))


class TestData:
    def test_data_outlives_the_stack(self, resources: dict[str, dict[str, Any]]) -> None:
        for name in ("Table", "Bucket"):
            assert (resources[name]["DeletionPolicy"], resources[name]["UpdateReplacePolicy"]) == (
                "Retain",
                "Retain",
            )
        table = resources["Table"]["Properties"]
        assert table["DeletionProtectionEnabled"] is True
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert table["SSESpecification"] == {"SSEEnabled": True}
        assert "TimeToLiveSpecification" not in table

    def test_the_bucket_is_nobody_elses(self, resources: dict[str, dict[str, Any]]) -> None:
        bucket = resources["Bucket"]["Properties"]
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert len(bucket["PublicAccessBlockConfiguration"]) == 4
        denied = resources["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        assert {"Bool": {"aws:SecureTransport": False}} in [one["Condition"] for one in denied]
        assert {one["Effect"] for one in denied} == {"Deny"}

    def test_a_look_ends_before_its_message_comes_again_and_is_never_lost(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        looks = resources["Looks"]["Properties"]
        assert functions(resources)["LookFunction"]["Timeout"] < looks["VisibilityTimeout"]
        assert looks["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": "LookDeadLetters.Arn"}
        assert looks["RedrivePolicy"]["maxReceiveCount"] == LAST_TRY
        event = functions(resources)["LookFunction"]["Events"]["Looks"]["Properties"]
        assert event["FunctionResponseTypes"] == ["ReportBatchItemFailures"]

    def test_a_look_may_queue_itself_anew(self, resources: dict[str, dict[str, Any]]) -> None:
        [looks] = [one for one in statements(resources, "LookRole") if one["Sid"] == "Looks"]
        assert looks["Resource"] == {"Fn::GetAtt": "Looks.Arn"}
        assert "sqs:SendMessage" in actions(looks)
        variables = functions(resources)["LookFunction"]["Environment"]["Variables"]
        assert variables["DSTACK_GOVERNANCE_QUEUE"] == {"Fn::Sub": "sqs:${Looks}"}

    def test_what_governance_saw_expires(self, resources: dict[str, dict[str, Any]]) -> None:
        table = resources["GovernanceTable"]["Properties"]
        assert table["TimeToLiveSpecification"] == {"AttributeName": "expiration", "Enabled": True}

    def test_governance_is_there_with_several_endpoints_alone(
        self, resources: dict[str, dict[str, Any]]
    ) -> None:
        """One endpoint is no quorum, and every sweep would fail."""
        named = re.compile(r"Governance|Look|Webhook")
        conditions = {name: one.get("Condition") for name, one in resources.items() if named.search(name)}
        assert set(conditions.values()) == {"HasQuorum"}

    def test_failed_messages_are_kept_and_told_of(self, resources: dict[str, dict[str, Any]]) -> None:
        redrive = resources["Queue"]["Properties"]["RedrivePolicy"]
        assert redrive["deadLetterTargetArn"] == {"Fn::GetAtt": "DeadLetters.Arn"}
        alarms = [one["Properties"] for one in resources.values() if one["Type"] == "AWS::CloudWatch::Alarm"]
        watched = {(one["MetricName"], str(one["Dimensions"])) for one in alarms}
        assert ("ApproximateNumberOfMessagesVisible", "DeadLetters") in {
            (metric, "DeadLetters" if "DeadLetters" in dimensions else "") for metric, dimensions in watched
        }
        for name in functions(resources):
            assert [metric for metric, dimensions in watched if metric == "Errors" and name in dimensions]
        for name in (*PUBLIC, "WorkerFunction"):
            assert [metric for metric, dimensions in watched if metric == "Throttles" and name in dimensions]
        assert {metric for metric, _ in watched} >= {"ApproximateAgeOfOldestMessage", "5xx"}


class TestPage:
    """docs/deploy-functions.md."""

    PAGE = (REPOSITORY / "docs" / "deploy-functions.md").read_text()

    def test_its_command_gives_each_parameter_that_has_no_default(self, template: dict[str, Any]) -> None:
        command = re.search(r"sam deploy .*?```", self.PAGE, re.DOTALL)
        assert command is not None
        _, _, overrides = command[0].partition("--parameter-overrides")
        given = dict(re.findall(r"(\w+)=(\S+)", overrides))
        parameters = template["Parameters"]
        assert {name for name, one in parameters.items() if "Default" not in one} <= set(given)
        for name, value in given.items():
            assert value in parameters[name].get("AllowedValues", [value])
            assert re.fullmatch(parameters[name].get("AllowedPattern", ".*"), value), name

    def test_its_outputs_are_those_of_the_stack(self, template: dict[str, Any]) -> None:
        _, _, table = self.PAGE.partition("| Output |")
        named = set(re.findall(r"`(\w+)`[,|]? ?(?=[^|]*\|)", table.partition("\n\n")[0]))
        assert {"PublicUrl", "GitHubDeployUrl", "GitLabDeployUrl", "BucketName"} <= named
        assert {name for name in named if name[0].isupper()} <= set(template["Outputs"])

    def test_its_budgets_are_those_that_are_enforced(self) -> None:
        said = dict(re.findall(r"\| `(\w+)\.zip` \| \d+ MB \| (\d+) MB \|", self.PAGE))
        assert {name: int(budget) for name, budget in said.items()} == {
            function.name: function.budget // MB for function in AWS_FUNCTIONS
        }

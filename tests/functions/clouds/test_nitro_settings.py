"""Which settings of a machine reach AWS."""

from typing import Any

import msgspec
import pytest

from functions.clouds.nitro_settings import planned_settings, read_settings
from shared.compose.project import NITRO_DEFAULTS
from shared.errors import ConfigError
from tests.shared.refusal import refuses

GIVEN = msgspec.to_builtins(NITRO_DEFAULTS) | {"bucket": "a-bucket", "iam_instance_profile": "parent"}
ARN = "arn:aws:iam::123456789012:instance-profile/dstack/parent"


def test_defaults_are_complete_but_for_bucket_and_profile() -> None:
    found = read_settings(GIVEN)
    assert (found.region, found.instance_type, found.volume_size) == ("us-east-1", "c5.xlarge", 20)
    assert found.ingress == ("0.0.0.0/0",)


def test_a_project_without_a_bucket_gets_the_services_own() -> None:
    assert read_settings(GIVEN | {"bucket": ""}, "shared-bucket").bucket == "shared-bucket"
    assert read_settings(GIVEN, "shared-bucket").bucket == "a-bucket"


def test_a_profile_is_named_or_given_by_its_arn() -> None:
    assert read_settings(GIVEN).profile == {"Name": "parent"}
    assert read_settings(GIVEN | {"iam_instance_profile": ARN}).profile == {"Arn": ARN}


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("region", "us-east-1;", "nitro.settings.region"),
        ("region", "", None),
        ("instance_type", "c5.xlarge $(id)", "nitro.settings.instance_type"),
        ("bucket", "UPPER", "nitro.settings.bucket"),
        ("bucket", "a/b", "nitro.settings.bucket"),
        ("ami_id", "ami-xyz", "nitro.settings.ami_id"),
        ("subnet_id", "subnet", "nitro.settings.subnet_id"),
        ("security_group_ids", ["default"], "nitro.settings.security_group_ids"),
        ("iam_instance_profile", "a b", "nitro.settings.iam_instance_profile"),
        ("cpu_count", 0, "nitro.settings.cpu_count"),
        ("memory_mib", 32, "nitro.settings.memory_mib"),
        ("volume_size", 4, "nitro.settings.volume_size"),
        ("ingress", ["10.0.0.1/8"], "nitro.settings.ingress"),
        ("ingress", ["everybody"], "nitro.settings.ingress"),
        ("ports", ["8090:1"], "nitro.ports.reserved"),
        ("egress", ["*.example.com:443"], "nitro.egress.form"),
        ("cpu_count", "two", "nitro.settings"),
    ],
)
def test_a_value_that_aws_or_a_shell_would_misread_is_refused(
    field: str, value: Any, code: str | None
) -> None:
    if code is None:
        assert read_settings(GIVEN | {field: value}).region == "us-east-1"
        return
    with refuses(code, ConfigError):
        read_settings(GIVEN | {field: value})


@pytest.mark.parametrize(
    "registers", [{}, {"PCR0": "00" * 48}, {f"PCR{n}": "0" * 95 + "G" for n in range(3)}]
)
def test_a_plan_without_registers_is_refused(registers: dict[str, str]) -> None:
    with refuses("nitro.settings.pcrs", ConfigError):
        planned_settings(GIVEN, registers)

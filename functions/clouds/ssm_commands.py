"""Shell commands on an instance, through Systems Manager: sent, and asked for later by their ids."""

from typing import Final

import msgspec

from functions.aws_api import AwsClient, aws_errors, error_code
from functions.clouds.nitro_commands import MAX_OUTPUT
from functions.deploy.cloud import TransientCloudError

DOCUMENT: Final = "AWS-RunShellScript"
DELIVERY_SECONDS: Final = 60
"""How long a command may wait for the instance's agent; AWS takes no less than 30."""

EXECUTION_SECONDS: Final = 600  # starting an enclave copies its whole image into memory

_UNDER_WAY: Final = frozenset({"Pending", "InProgress", "Delayed", "Cancelling"})


class Invocation(msgspec.Struct, frozen=True, kw_only=True):
    """A command that ended: its exit code, and the first 24,000 characters of what it printed."""

    exit_code: int
    output: str
    error: str


def is_online(ssm: AwsClient, instance_id: str) -> bool:
    """Tell whether the instance's agent answers."""
    with aws_errors("asking systems manager for the instance"):
        found = ssm.describe_instance_information(
            Filters=[{"Key": "InstanceIds", "Values": [instance_id]}]
        ).get("InstanceInformationList", [])
    return any(one.get("InstanceId") == instance_id and one.get("PingStatus") == "Online" for one in found)


def send_command(ssm: AwsClient, instance_id: str, script: str, what: str) -> str:
    """Send a shell script, and return the command's id.

    Raises `TransientCloudError("nitro.ssm.offline")` where the agent is not registered (any more).
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    with aws_errors(f"sending the command to {what}"):
        try:
            sent = ssm.send_command(
                DocumentName=DOCUMENT,
                InstanceIds=[instance_id],
                Comment=f"dstack: {what}"[:100],
                TimeoutSeconds=DELIVERY_SECONDS,
                Parameters={"commands": [script], "executionTimeout": [str(EXECUTION_SECONDS)]},
            )
        except ClientError as error:
            if error_code(error) == "InvalidInstanceId":
                raise TransientCloudError(
                    "nitro.ssm.offline", f"systems manager does not reach {instance_id}"
                ) from error
            raise
    return str(sent["Command"]["CommandId"])


def command_result(ssm: AwsClient, instance_id: str, command_id: str) -> Invocation | None:
    """Return how a command ended, None while it has not.

    Raises `TransientCloudError("nitro.ssm.undelivered")` for one that never ran, or was cut short.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    with aws_errors("asking for a command's result"):
        try:
            found = ssm.get_command_invocation(CommandId=command_id, InstanceId=instance_id)
        except ClientError as error:
            if error_code(error) == "InvocationDoesNotExist":  # it takes a moment to show
                return None
            raise
    status = found["Status"]
    if status in _UNDER_WAY:
        return None
    if status not in {"Success", "Failed"} or found.get("ResponseCode", -1) < 0:
        raise TransientCloudError("nitro.ssm.undelivered", f"a command on {instance_id} ended as {status}")
    return Invocation(
        exit_code=found["ResponseCode"],
        output=found.get("StandardOutputContent", "")[:MAX_OUTPUT],
        error=found.get("StandardErrorContent", "")[:MAX_OUTPUT],
    )

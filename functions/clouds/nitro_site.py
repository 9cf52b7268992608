"""One deployment's settings and its clients of AWS, and how its instance is asked for something."""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from functions.aws_api import AwsClient
from functions.clouds.ec2_instances import Instance, find_instances
from functions.clouds.nitro_commands import ParentStatus, enclave_failure, read_status
from functions.clouds.nitro_settings import NitroSettings
from functions.clouds.ssm_commands import Invocation, command_result, send_command
from functions.deploy.cloud import TransientCloudError, Work
from functions.deploy.record import Resource
from shared.errors import CloudError

ANSWER_SECONDS: Final = 20
"""How long a look at the machine, or at its log, waits for the instance's agent."""

_POLL: Final = 0.5

Purpose = Literal["status_command", "run_command", "terminate_command"]
"""What a command is for; its id is kept under this name until its result was read."""


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Settings, clients of the settings' region, and the time."""

    settings: NitroSettings
    ec2: AwsClient
    ssm: AwsClient
    s3: AwsClient
    clock: Callable[[], int]
    sleep: Callable[[float], None]

    def instance(self, work: Work) -> Instance | None:
        """Return the deployment's instance, never one that is ending."""
        found = find_instances(self.ec2, work.deployment.uid)
        return next((one for one in found if one.state != "shutting-down"), None)

    def waited(self, resource: Resource) -> int:
        """Return for how many seconds the instance has been started."""
        return self.clock() - int(resource.facts.get("since") or self.clock())

    def ask(self, work: Work, found: Instance, purpose: Purpose, script: str) -> Invocation | None:
        """Send a command, or look for the result of the one that was sent; None while there is none."""
        resource = recorded_instance(work)
        command = resource.facts.get(purpose, "")
        if not command:
            command = send_command(self.ssm, found.instance_id, script, purpose)
            resource = work.present(resource, **{purpose: command})
        try:
            done = command_result(self.ssm, found.instance_id, command)
        except TransientCloudError as error:
            if error.code == "nitro.ssm.undelivered":
                work.present(resource, **{purpose: ""})
            raise
        if done is not None:
            work.present(resource, **{purpose: ""})
        return done

    def ask_now(self, found: Instance, script: str) -> Invocation:
        """Send a command and wait for it, for `ANSWER_SECONDS` at most; nothing is recorded.

        Raises `TransientCloudError("nitro.ssm.slow")`.
        """
        command = send_command(self.ssm, found.instance_id, script, "look")
        for _ in range(int(ANSWER_SECONDS / _POLL)):
            done = command_result(self.ssm, found.instance_id, command)
            if done is not None:
                return done
            self.sleep(_POLL)
        raise TransientCloudError(
            "nitro.ssm.slow", f"{found.instance_id} did not answer within {ANSWER_SECONDS} s"
        )

    def status(self, done: Invocation) -> ParentStatus:
        """Read the answer to `status_command`; a failure of nitro-cli is raised as `enclave_failure` says."""
        if done.exit_code != 0:
            error = " ".join(done.error.split())[-200:]
            raise enclave_failure(done.exit_code, error, self.settings.memory_mib)
        return read_status(done.output)


def recorded_instance(work: Work) -> Resource:
    """Return the recorded instance. Raises `CloudError("nitro.instance.unrecorded")`."""
    resource = work.deployment.resource("instance")
    if resource is None:
        raise CloudError("nitro.instance.unrecorded", "the record names no instance to ask")
    return resource

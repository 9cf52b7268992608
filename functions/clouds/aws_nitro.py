"""An app in a Nitro Enclave: an EC2 instance of ours as its parent, run over Systems Manager (deploy 5B).

What a deployment has: an image, the forwarder's bundle and the app's ciphertext in a bucket (`image`,
`forwarder`, `env`), a security group unless the project names its own (`group`, kept over redeploys), the
parent `instance`, and on it the `enclave`. The instance profile is the operator's, and needs no more than
`AmazonSSMManagedInstanceCore` and `s3:GetObject` on `eif/*` of the bucket.

The parent's word decides when something is done and what is asked for next. That the enclave is the planned
one is proved by its evidence, afterwards and by the engine.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from functions.aws_api import AwsClient, aws_client
from functions.clouds import ec2_group, ec2_instances, nitro_commands, s3_handover, ssm_commands
from functions.clouds.ec2_instances import Instance
from functions.clouds.nitro_bring_up import bring_up, claimed_machine, is_ordered
from functions.clouds.nitro_bundle import ForwarderBundle
from functions.clouds.nitro_checks import check_launch
from functions.clouds.nitro_launch import SHOW_SECONDS, ensure_groups, hand_over, plan_tag, run_parent
from functions.clouds.nitro_settings import planned_settings
from functions.clouds.nitro_site import Site
from functions.deploy.cloud import DeniedError, FirewallRule, LogPage, Machine, Wait, Work
from functions.deploy.record import Resource
from shared.compose.findings import Finding
from shared.compose.project import NitroConfig
from shared.errors import CloudError, ProtocolError

GRACE_SECONDS: Final = 60
"""How long a removal waits for an instance that was asked for, and of which nobody knows the id."""

_FILES: Final = frozenset({"image", "forwarder", "env"})

AwsClients = Callable[[str, str], AwsClient]
"""From a service's name and a region to a client."""


def default_clients(service: str, region: str) -> AwsClient:
    """Return a client with the credentials that boto3 finds."""
    return aws_client(service, region=region)


class AwsNitroCloud:
    """See `functions.deploy.cloud.Cloud`.

    `bucket` is where images are handed over when a project names none. `forwarder` gives the bundle that
    parents run, and is called at a launch. `describe` and `logs` ask the instance and wait for its answer,
    for `nitro_site.ANSWER_SECONDS` at most; every other method asks and returns.
    """

    def __init__(
        self,
        forwarder: Callable[[], ForwarderBundle],
        *,
        bucket: str = "",
        defaults: NitroConfig | None = None,
        clients: AwsClients = default_clients,
        clock: Callable[[], int] = lambda: int(time.time()),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._forwarder = forwarder
        self._bucket = bucket
        self._defaults = defaults or NitroConfig()
        self._clients = clients
        self._clock = clock
        self._sleep = sleep
        self._made: dict[tuple[str, str], AwsClient] = {}

    def check(self, work: Work) -> Sequence[Finding]:
        """See `Cloud`. Before there is a plan, the project's own app.json is read."""
        return check_launch(work, self._bucket, self._client, self._forwarder, self._defaults)

    def launch(self, work: Work) -> Wait | Machine:
        """See `Cloud`."""
        site = self._site(work)
        found = site.instance(work)
        if found is not None and found.plan != plan_tag(work):
            ec2_instances.terminate_instance(site.ec2, found.instance_id)
            return Wait(10, "the instance of another plan to end")
        instance = work.deployment.resource("instance")
        if found is not None and instance and instance.facts.get("instance_id") == found.instance_id:
            return bring_up(work, site, found)
        files = hand_over(work, site, self._forwarder())
        groups = ensure_groups(work, site)
        work.intend("enclave", work.deployment.name, site.settings.region)
        started = run_parent(work, site, found, groups, files)
        return started if isinstance(started, Wait) else bring_up(work, site, started)

    def start(self, work: Work) -> Wait | Machine:
        """See `Cloud`. The instance's own unit starts the enclave, from the disk."""
        site = self._site(work)
        found = site.instance(work)
        if found is None:
            raise DeniedError(
                "nitro.instance.missing",
                "the instance is gone, and with it the disk that it starts from",
                "deploy again: `dstack-cloud deploy`",
            )
        work.intend("enclave", work.deployment.name, site.settings.region)
        return bring_up(work, site, found)

    def stop(self, work: Work) -> Wait | Machine:
        """See `Cloud`. The enclave ends first; where the agent is silent, its unit ends it in shutdown."""
        site = self._site(work)
        found = site.instance(work)
        if found is None:
            return Machine(status="NOT_FOUND")
        if found.state == "running":
            if not _enclave_ended(work, site, found):
                return Wait(2, "the enclave to end")
            ec2_instances.stop_instance(site.ec2, found.instance_id)
        if found.state != "stopped":
            return Wait(5, "the instance to stop")
        if (enclave := work.deployment.resource("enclave")) is not None:
            work.gone(enclave)
        return claimed_machine(found)

    def retire(self, work: Work) -> Wait | None:
        """See `Cloud`. The security group stays, with the rules that were made by hand."""
        uid = work.deployment.uid
        for region in _regions(work):
            ec2 = self._client("ec2", region)
            found = ec2_instances.find_instances(ec2, uid)
            for one in found:
                if one.state != "shutting-down":
                    ec2_instances.terminate_instance(ec2, one.instance_id)
            if found:
                return Wait(10, "the instance to end")
        instance = work.deployment.resource("instance")
        if instance is not None and not self._is_surely_gone(work, instance):
            return Wait(5, "the instance, which may not be listed yet")
        for made in [one for one in work.deployment.resources if one.state != "gone" and not one.keep]:
            if made.kind in _FILES:
                s3_handover.take_away(self._client("s3", made.facts["region"]), made.place, made.name)
            work.gone(made)
        return None

    def remove(self, work: Work) -> Wait | None:
        """See `Cloud`. Looks by tag in every region and bucket that the record ever named."""
        if (waiting := self.retire(work)) is not None:
            return waiting
        uid = work.deployment.uid
        for region in _regions(work):
            ec2 = self._client("ec2", region)
            for group in ec2_group.find_groups(ec2, uid):
                if not ec2_group.delete_group(ec2, group["GroupId"]):
                    return Wait(10, "the security group to be free")
            if not ec2_instances.delete_volumes(ec2, uid):
                return Wait(10, "the instance's disk to be deleted")
            if ec2_group.find_groups(ec2, uid):
                return Wait(5, "the security group to be deleted")
        for bucket, region in _buckets(work):
            s3_handover.take_all_away(self._client("s3", region), bucket, uid)
        for left in [one for one in work.deployment.resources if one.state != "gone"]:
            work.gone(left)
        return None

    def describe(self, work: Work) -> Machine:
        """See `Cloud`. `ENCLAVE_DOWN` is an instance that runs while its enclave does not."""
        site = self._site(work)
        found = site.instance(work)
        if found is None:
            return Machine(status="NOT_FOUND")
        if found.state != "running" or not is_ordered(site.settings, found):
            return claimed_machine(found)
        done = site.ask_now(found, nitro_commands.status_command())
        return claimed_machine(found, site.status(done), site.settings.pcrs)

    def logs(self, work: Work, cursor: str = "", limit: int = 1 << 20) -> LogPage:
        """See `Cloud`. The journal of the parent's units: a production enclave has no console for anybody.

        A page has at most `nitro_commands.LOG_PAGE` bytes, whatever `limit` allows.
        """
        site = self._site(work)
        command = nitro_commands.journal_command(cursor, limit)
        found = site.instance(work)
        if found is None or found.state != "running":
            raise DeniedError(
                "nitro.logs.stopped",
                f"the instance is {'gone' if found is None else found.state}, so its journal cannot be read",
                "start it first: `dstack-cloud start`",
            )
        done = site.ask_now(found, command)
        if done.exit_code != 0:
            raise CloudError("nitro.logs", f"reading the journal ended with {done.exit_code}")
        page = nitro_commands.read_journal(done.output)
        return LogPage("".join(f"{line}\n" for line in page.lines), page.cursor)

    def firewall(self, work: Work) -> Sequence[FirewallRule]:
        """See `Cloud`. Rules of groups that the project brought are not this deployment's."""
        group, _ = self._group(work)
        return [] if group is None else ec2_group.group_rules(group)

    def set_firewall(self, work: Work, rule: FirewallRule) -> None:
        """See `Cloud`. Raises `DeniedError`: `nitro.firewall.deny`, `nitro.firewall.foreign`."""
        if rule.action == "deny":
            raise DeniedError(
                "nitro.firewall.deny",
                "a security group has no deny rules: what is not allowed is denied",
                f"take the rule away that allows it: `dstack-cloud fw remove {rule.protocol}:{rule.port}`",
            )
        group, ec2 = self._group(work)
        if group is None:
            raise DeniedError(
                "nitro.firewall.foreign",
                "this deployment has no security group of its own",
                "change the groups of nitro_config.security_group_ids, or leave them out",
            )
        ec2_group.set_rule(ec2, group, rule)

    def clear_firewall(self, work: Work, protocol: str, port: int) -> bool:
        """See `Cloud`."""
        group, ec2 = self._group(work)
        rules = [] if group is None else ec2_group.group_rules(group)
        for rule in rules:
            if group is not None and (rule.protocol, rule.port) == (protocol, port):
                ec2_group.set_rule(ec2, group, msgspec.structs.replace(rule, sources=()))
                return True
        return False

    def _site(self, work: Work) -> Site:
        """Return the site of the instance that is there, or of the plan."""
        plan = work.plan
        settings = planned_settings(plan.machine, plan.image.registers, self._bucket)
        if (instance := work.deployment.resource("instance")) is not None:
            # a new plan may name another region before the instance of the old one is retired
            settings = msgspec.structs.replace(settings, region=instance.place)
        return Site(
            settings=settings,
            ec2=self._client("ec2", settings.region),
            ssm=self._client("ssm", settings.region),
            s3=self._client("s3", settings.region),
            clock=self._clock,
            sleep=self._sleep,
        )

    def _client(self, service: str, region: str) -> AwsClient:
        if (service, region) not in self._made:
            self._made[service, region] = self._clients(service, region)
        return self._made[service, region]

    def _group(self, work: Work) -> tuple[dict[str, Any] | None, AwsClient]:
        made = [one for one in work.deployment.resources if one.kind == "group" and one.state != "gone"]
        if not made:
            return None, None
        # a move to another region leaves the earlier one's until the removal
        instance = work.deployment.resource("instance")
        resource = next((one for one in made if instance and one.place == instance.place), made[-1])
        ec2 = self._client("ec2", resource.place)
        # and so does one to another VPC
        groups = ec2_group.find_groups(ec2, work.deployment.uid)
        current = resource.facts.get("group_id")
        return next((one for one in groups if current in {None, one["GroupId"]}), None), ec2

    def _is_surely_gone(self, work: Work, instance: Resource) -> bool:
        """Tell whether a recorded instance that is not listed will not be listed later either."""
        since = int(instance.facts.get("since", "0"))
        if not (instance_id := instance.facts.get("instance_id")):
            # it may have been ordered again, and the answer lost, until the present step began
            return self._clock() - max(since, work.deployment.since) > GRACE_SECONDS
        ec2 = self._client("ec2", instance.place)
        found = ec2_instances.find_instance(ec2, instance_id)
        if found is not None and ec2_instances.is_alive(found):
            # its tags do not show yet, or somebody took them off
            ec2_instances.terminate_instance(ec2, instance_id)
            return False
        # one that EC2 does not know may still be on its way
        return found is not None or self._clock() - since > SHOW_SECONDS


def _enclave_ended(work: Work, site: Site, found: Instance) -> bool:
    """Have the enclave ended; False while the instance is at it. A failure is said, and stops nothing."""
    if not ssm_commands.is_online(site.ssm, found.instance_id):
        return True
    try:
        done = site.ask(work, found, "terminate_command", nitro_commands.terminate_command())
        if done is None:
            return False
        nitro_commands.read_terminated(done.output)
    except (CloudError, ProtocolError) as error:
        work.say(f"the enclave ends with its instance: {error.message}", code=error.code)
    return True


def _regions(work: Work) -> Sequence[str]:
    kinds = {"instance", "group", "enclave"}
    named = {one.place for one in work.deployment.resources if one.kind in kinds}
    return sorted(named | {region for _, region in _buckets(work)})


def _buckets(work: Work) -> Sequence[tuple[str, str]]:
    files = (one for one in work.deployment.resources if one.kind in _FILES)
    return sorted({(one.place, one.facts["region"]) for one in files})

"""What a launch makes, in this order: the handed-over files, the security group, the instance.

Each part is recorded before it is made, and is found again by its name, its tags or its token.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from functions.clouds import ec2_group, ec2_instances, nitro_parent, s3_handover
from functions.clouds.ec2_instances import Instance
from functions.clouds.nitro_bundle import ForwarderBundle
from functions.clouds.nitro_commands import memory_needed
from functions.clouds.nitro_parent import Download
from functions.clouds.nitro_settings import NitroSettings
from functions.clouds.nitro_site import Site
from functions.deploy.cloud import EVIDENCE_PORT, DeniedError, FirewallRule, TransientCloudError, Wait, Work
from functions.deploy.record import Resource
from shared.compose.env_envelope import MAX_CIPHERTEXT_BYTES
from shared.errors import ConfigError

SHOW_SECONDS: Final = 300
"""How long a new instance may take to be listed; EC2 promises nothing, and needs a few seconds."""

UPLOAD_SECONDS: Final = 600
"""How long an image may take into the bucket; a worker on Lambda has less."""


class Files(msgspec.Struct, frozen=True):
    """What the parent fetches, and the Python that the forwarder is for; `env` is the app's ciphertext."""

    image: Download
    forwarder: Download
    python: str
    env: Download | None = None


def hand_over(work: Work, site: Site, bundle: ForwarderBundle) -> Files:
    """Put the enclave's image, the forwarder and the app's encrypted environment into the bucket.

    Raises `ConfigError`: `nitro.image.missing`, `nitro.forwarder.arch`; `DeniedError("nitro.memory")` where
    the image is too large for the enclave.
    """
    planned, settings = work.deployment.planned, site.settings
    if planned is None or not planned.image:
        raise ConfigError("nitro.image.missing", "the plan names no enclave image")
    if bundle.arch != settings.arch:
        raise ConfigError(
            "nitro.forwarder.arch",
            f"the forwarder's bundle is for {bundle.arch}, the instance has {settings.arch}",
        )
    folder = s3_handover.prefix(work.deployment.uid)
    image = Download(settings.bucket, f"{folder}{planned.image}.eif", planned.image)
    forwarder = Download(settings.bucket, f"{folder}forwarder-{bundle.sha256}.tar.gz", bundle.sha256)
    facts = {"region": settings.region}
    resource = work.intend("image", image.key, image.bucket, facts=facts)
    if resource.state != "present":
        work.renew(UPLOAD_SECONDS)
        with work.blobs.open(planned.image) as blob:
            size = s3_handover.hand_over(site.s3, image.bucket, image.key, image.sha256, blob)
        resource = work.present(resource, size=str(size))
    _check_memory(settings, int(resource.facts["size"]))
    resource = work.intend("forwarder", forwarder.key, forwarder.bucket, facts=facts)
    if resource.state != "present":
        s3_handover.hand_over_bytes(
            site.s3, forwarder.bucket, forwarder.key, forwarder.sha256, bundle.content
        )
        work.present(resource)
    return Files(image, forwarder, bundle.python, _hand_over_env(work, site))


def _hand_over_env(work: Work, site: Site) -> Download | None:
    digest = work.deployment.files.encrypted_env
    if not digest:
        return None
    settings = site.settings
    env = Download(settings.bucket, f"{s3_handover.prefix(work.deployment.uid)}env-{digest}", digest)
    resource = work.intend("env", env.key, env.bucket, facts={"region": settings.region})
    if resource.state != "present":
        content = work.blobs.get(digest, MAX_CIPHERTEXT_BYTES)
        s3_handover.hand_over_bytes(site.s3, env.bucket, env.key, env.sha256, content)
        work.present(resource)
    return env


def ensure_groups(work: Work, site: Site) -> tuple[str, ...]:
    """Return the project's security groups, or the deployment's own, open where the plan says."""
    settings, deployment = site.settings, work.deployment
    if settings.security_group_ids:
        return settings.security_group_ids
    label = ec2_group.group_name(deployment.name, deployment.uid)
    resource = work.intend("group", label, settings.region, keep=True)
    group_id = ec2_group.ensure_group(site.ec2, deployment.name, deployment.uid, settings.subnet_id)
    if resource.facts.get("group_id") != group_id:  # nothing is open in it yet
        resource = work.present(resource, group_id=group_id, open="", ports="")
    ports = [EVIDENCE_PORT, *(port.listen for port in settings.ports)]
    wanted = f"{','.join(map(str, ports))} from {','.join(settings.ingress)}"
    if resource.facts.get("open") != wanted:
        _open(site, deployment.uid, resource, ports)
        work.present(resource, open=wanted, ports=",".join(map(str, ports)))
    return (group_id,)


def run_parent(
    work: Work, site: Site, found: Instance | None, groups: tuple[str, ...], files: Files
) -> Instance | Wait:
    """Return the parent instance: the one that was found, or a new one."""
    resource = work.deployment.resource("instance")
    if found is not None:
        resource = resource or _intend(work, site)
        if resource.facts.get("instance_id") != found.instance_id:
            work.present(resource, instance_id=found.instance_id, since=str(site.clock()))
        return found
    if resource is not None and resource.facts.get("instance_id"):
        if site.waited(resource) < SHOW_SECONDS:
            return Wait(5, "the instance to show")
        work.say(f"instance {resource.facts['instance_id']} is gone, another one takes its place")
        work.gone(resource)
        return Wait(0, "another instance to be ordered")
    resource = resource or _intend(work, site)
    order = ec2_instances.Order(
        name=work.deployment.name,
        uid=work.deployment.uid,
        plan=plan_tag(work),
        token=resource.facts["token"],
        ami_id=resource.facts["ami_id"],
        groups=groups,
        user_data=nitro_parent.user_data(
            site.settings,
            files.image,
            files.forwarder,
            files.python,
            env=files.env,
            progress_url=work.progress_url,
        ),
    )
    started = ec2_instances.run_instance(site.ec2, site.settings, order)
    work.present(resource, instance_id=started.instance_id, since=str(site.clock()))
    work.say(f"instance {started.instance_id} is starting", ami_id=order.ami_id)
    return started


def plan_tag(work: Work) -> str:
    """Return what an instance's tag says of the plan, and of the environment, that it was launched by."""
    return _launched(work)[:32]


def _launched(work: Work) -> str:
    """Return what a launch is of: another environment of the same plan is another launch."""
    plan_id, env = work.plan.plan_id, work.deployment.files.encrypted_env
    return hashlib.sha256(f"{plan_id}/{env}".encode()).hexdigest() if env else plan_id


def _intend(work: Work, site: Site) -> Resource:
    settings, deployment = site.settings, work.deployment
    ami = settings.ami_id or ec2_instances.newest_ami(site.ssm, settings.arch)
    # the record's version makes another token after an instance that ended: EC2 remembers tokens for a day
    seed = f"{deployment.uid}/{_launched(work)}/{deployment.version}"
    token = hashlib.sha256(seed.encode()).hexdigest()
    facts = {"token": token, "ami_id": ami, "since": str(site.clock())}
    return work.intend("instance", deployment.name, settings.region, facts=facts)


def _open(site: Site, uid: str, resource: Resource, ports: Sequence[int]) -> None:
    """Open what the plan names and close what an earlier one named; rules made by hand stay."""
    groups = ec2_group.find_groups(site.ec2, uid)
    group = next((one for one in groups if one["GroupId"] == resource.facts["group_id"]), None)
    if group is None:
        raise TransientCloudError("nitro.group", "the security group does not show yet")
    earlier = [int(port) for port in resource.facts.get("ports", "").split(",") if port]
    for port in sorted({*ports, *earlier}):
        sources = site.settings.ingress if port in ports else ()
        rule = FirewallRule(action="allow", protocol="tcp", port=port, sources=sources)
        ec2_group.set_rule(site.ec2, group, rule)


def _check_memory(settings: NitroSettings, size: int) -> None:
    needed = memory_needed(size)
    if settings.memory_mib < needed:
        raise DeniedError(
            "nitro.memory",
            f"the image has {size} bytes, so the enclave needs {needed} MiB, and gets {settings.memory_mib}",
            f"set nitro_config.memory_mib to {needed} or more",
        )

"""What would stop the launch of an enclave, found before anything is built (`Cloud.check`)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from functions.aws_api import AwsClient, aws_errors, error_code
from functions.clouds import ec2_group, ec2_instances, s3_handover
from functions.clouds.nitro_bundle import ForwarderBundle
from functions.clouds.nitro_settings import NitroSettings, read_settings
from functions.deploy.cloud import DeniedError, Work
from shared.compose.findings import Finding, error, note
from shared.compose.project import GlobalConfig, NitroConfig, nitro_settings, read_app_json
from shared.errors import ConfigError, DstackError

APP_JSON: Final = "app.json"
MAX_APP_JSON: Final = 256 * 1024
_WORLD: Final = frozenset({"0.0.0.0/0", "::/0"})

GetClient = Callable[[str, str], AwsClient]


def check_launch(
    work: Work,
    default_bucket: str,
    client: GetClient,
    forwarder: Callable[[], ForwarderBundle],
    defaults: NitroConfig,
) -> Sequence[Finding]:
    """Return the findings; a refusal of AWS is one, an outage is raised as `TransientCloudError`.

    `defaults` are the operator's settings for projects that do not say otherwise.
    """
    try:
        settings = _settings(work, default_bucket, defaults)
        bundle = forwarder()
    except ConfigError as problem:
        return [_finding("nitro_config", problem)]
    if bundle.arch != settings.arch:
        return [
            error("nitro.forwarder.arch", "nitro_config.arch", f"has no forwarder: that is {bundle.arch}'s")
        ]
    try:
        return [*_exposure(settings), *_look(work, settings, client)]
    except DeniedError as problem:
        return [_finding(f"aws {settings.region}", problem)]


def _settings(work: Work, default_bucket: str, defaults: NitroConfig) -> NitroSettings:
    digest = work.deployment.files.project.get(APP_JSON)
    if digest is not None:  # it may be newer than the plan
        project = read_app_json(work.blobs.get(digest, MAX_APP_JSON))
        return read_settings(nitro_settings(project, GlobalConfig(nitro=defaults)), default_bucket)
    if work.deployment.planned is not None:
        return read_settings(work.plan.machine, default_bucket)
    raise ConfigError("nitro.settings", "the project has no app.json")


def _exposure(settings: NitroSettings) -> Iterator[Finding]:
    if not settings.security_group_ids and not _WORLD.isdisjoint(settings.ingress):
        ports = ", ".join(str(port.listen) for port in settings.ports) or "what the compose file publishes"
        yield note(
            "nitro.ingress", "nitro_config.ingress", f"lets everybody reach the evidence port and {ports}"
        )


def _look(work: Work, settings: NitroSettings, client: GetClient) -> Iterator[Finding]:
    ec2, uid = client("ec2", settings.region), work.deployment.uid
    ec2_instances.find_instances(ec2, uid)  # the credential, and the permission to look
    yield from _instance_type(ec2, settings)
    problem = s3_handover.bucket_problem(client("s3", settings.region), settings.bucket)
    if problem:
        yield error("nitro.bucket", f"bucket {settings.bucket}", problem)
    if not settings.ami_id:
        try:
            ec2_instances.newest_ami(client("ssm", settings.region), settings.arch)
        except DstackError as missing:
            if isinstance(missing, DeniedError) or missing.code != "aws.request":
                raise
            yield error("nitro.ami", "nitro_config.ami_id", "must be set: the region has no public parameter")
    label = ec2_group.group_name(work.deployment.name, uid)
    with aws_errors("looking for the security group's name"):
        found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [label]}])
    ours = {group["GroupId"] for group in ec2_group.find_groups(ec2, uid)}
    if any(group["GroupId"] not in ours for group in found.get("SecurityGroups", [])):
        yield error("nitro.name_taken", f"security group {label}", "is there already and has no tag of ours")


def _instance_type(ec2: AwsClient, settings: NitroSettings) -> Iterator[Finding]:
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    where = "nitro_config.instance_type"
    with aws_errors("asking for the instance type"):
        try:
            found = ec2.describe_instance_types(InstanceTypes=[settings.instance_type])["InstanceTypes"]
        except ClientError as problem:
            if error_code(problem) != "InvalidInstanceType":
                raise
            found = []
    if not found:
        yield error("nitro.instance_type", where, f"{settings.instance_type} is no type of {settings.region}")
        return
    if found[0].get("NitroEnclavesSupport") == "unsupported":
        yield error("nitro.instance_type", where, f"{settings.instance_type} cannot have enclaves")
    cpus = found[0].get("VCpuInfo", {}).get("DefaultVCpus", 0)
    threads = found[0].get("VCpuInfo", {}).get("DefaultThreadsPerCore", 1)
    memory = found[0].get("MemoryInfo", {}).get("SizeInMiB", 0)
    if settings.cpu_count > cpus - threads:
        yield error(
            "nitro.cpu_count",
            "nitro_config.cpu_count",
            f"is {settings.cpu_count}, {settings.instance_type} has {cpus - threads} beside its first core",
        )
    if settings.cpu_count % threads:
        yield error(
            "nitro.cpu_count",
            "nitro_config.cpu_count",
            f"is {settings.cpu_count}, expected a multiple of {threads}: an enclave gets whole cores",
        )
    if settings.memory_mib >= memory:
        yield error(
            "nitro.memory_mib",
            "nitro_config.memory_mib",
            f"is {settings.memory_mib}, and {settings.instance_type} has {memory}",
        )


def _finding(where: str, problem: DstackError) -> Finding:
    hint = f": {problem.hint}" if isinstance(problem, DeniedError) else ""
    return error(problem.code, where, f"{problem.message}{hint}")

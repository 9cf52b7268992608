"""EC2 instances of a deployment: found by tag, run once, started, stopped and ended."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from functions.aws_api import AwsClient, aws_errors, error_code
from functions.clouds.nitro_settings import NitroSettings
from functions.deploy.cloud import DEPLOYMENT, MANAGED_BY, MANAGER, DeniedError

PLAN_TAG: Final = "dstack-plan"
"""The id of the plan that an instance was launched by."""

LATEST_AMI: Final = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{}"
"""The public parameter with the newest Amazon Linux 2023."""

ROOT_DEVICE: Final = "/dev/xvda"

_AMI_ARCH: Final = {"x86_64": "x86_64", "aarch64": "arm64"}
_ALIVE: Final = ["pending", "running", "stopping", "stopped", "shutting-down"]
_QUOTA: Final = frozenset({"InstanceLimitExceeded", "VcpuLimitExceeded"})
_CAPACITY: Final = frozenset({"InsufficientInstanceCapacity", "InsufficientHostCapacity", "Unsupported"})


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance as EC2 describes it; `state` is EC2's word, `plan` the plan's id by its tag."""

    instance_id: str
    state: str
    instance_type: str
    enclave: bool
    public_ip: str
    private_ip: str
    plan: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What RunInstances is given beside the settings. `token` makes sure that it happens once."""

    name: str
    uid: str
    plan: str
    token: str
    ami_id: str
    groups: tuple[str, ...]
    user_data: str


def tags(uid: str, name: str, plan: str = "") -> list[dict[str, str]]:
    """Return the tags of every resource of a deployment."""
    values = {"Name": name, MANAGED_BY: MANAGER, DEPLOYMENT: uid} | ({PLAN_TAG: plan} if plan else {})
    return [{"Key": key, "Value": value} for key, value in values.items()]


def tag_filters(uid: str) -> list[dict[str, Any]]:
    """Return the filters that find a deployment's resources, and no other."""
    return [
        {"Name": f"tag:{MANAGED_BY}", "Values": [MANAGER]},
        {"Name": f"tag:{DEPLOYMENT}", "Values": [uid]},
    ]


def find_instances(ec2: AwsClient, uid: str) -> Sequence[Instance]:
    """Return a deployment's instances, those that are ending too."""
    filters = [*tag_filters(uid), {"Name": "instance-state-name", "Values": _ALIVE}]
    with aws_errors("looking for the instance"):
        pages = list(ec2.get_paginator("describe_instances").paginate(Filters=filters))
    return [
        _instance(found)
        for page in pages
        for reservation in page.get("Reservations", [])
        for found in reservation.get("Instances", [])
    ]


def find_instance(ec2: AwsClient, instance_id: str) -> Instance | None:
    """Return an instance by its id, one that ended too; None for one that EC2 does not show (any more)."""
    with aws_errors("looking for the instance"):
        found = ec2.describe_instances(Filters=[{"Name": "instance-id", "Values": [instance_id]}])
    listed = [one for reservation in found["Reservations"] for one in reservation["Instances"]]
    return _instance(listed[0]) if listed else None


def newest_ami(ssm: AwsClient, arch: str) -> str:
    """Return the id of the newest Amazon Linux 2023."""
    with aws_errors("looking for the newest Amazon Linux 2023"):
        found = ssm.get_parameter(Name=LATEST_AMI.format(_AMI_ARCH[arch]))
    return str(found["Parameter"]["Value"])


def run_instance(ec2: AwsClient, settings: NitroSettings, order: Order) -> Instance:
    """Run the parent instance; the same order again returns the same instance.

    Raises `DeniedError`: `aws.quota`, `aws.capacity`; and what `aws_errors` does.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    labels = tags(order.uid, order.name, order.plan)
    with aws_errors("running the instance"):
        try:
            answer = ec2.run_instances(
                ImageId=order.ami_id,
                InstanceType=settings.instance_type,
                MinCount=1,
                MaxCount=1,
                ClientToken=order.token,
                EnclaveOptions={"Enabled": True},
                IamInstanceProfile=settings.profile,
                InstanceInitiatedShutdownBehavior="stop",
                MetadataOptions={
                    "HttpEndpoint": "enabled",
                    "HttpTokens": "required",
                    "HttpPutResponseHopLimit": 1,
                },
                BlockDeviceMappings=[
                    {
                        "DeviceName": ROOT_DEVICE,
                        "Ebs": {
                            "VolumeSize": settings.volume_size,
                            "VolumeType": "gp3",
                            "Encrypted": True,
                            "DeleteOnTermination": True,
                        },
                    }
                ],
                TagSpecifications=[{"ResourceType": kind, "Tags": labels} for kind in ("instance", "volume")],
                UserData=order.user_data,
                **_network(settings, order.groups),
            )
        except ClientError as error:
            raise _refusal(error, settings) from error
    return _instance(answer["Instances"][0])


def start_instance(ec2: AwsClient, instance_id: str) -> None:
    """Start a stopped instance."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    with aws_errors("starting the instance"):
        try:
            ec2.start_instances(InstanceIds=[instance_id])
        except ClientError as error:
            if error_code(error) in _CAPACITY:
                raise DeniedError(
                    "aws.capacity",
                    "aws has no room for the instance at the moment",
                    "start it again later, or remove the deployment and launch it in another subnet",
                ) from error
            raise


def stop_instance(ec2: AwsClient, instance_id: str) -> None:
    """Stop a running instance."""
    with aws_errors("stopping the instance"):
        ec2.stop_instances(InstanceIds=[instance_id])


def terminate_instance(ec2: AwsClient, instance_id: str) -> bool:
    """End an instance; False for one that EC2 does not know: not yet, or not any more."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    with aws_errors("ending the instance"):
        try:
            ec2.terminate_instances(InstanceIds=[instance_id])
        except ClientError as error:
            if is_forbidden(error) and not is_alive(find_instance(ec2, instance_id)):
                return False
            if error_code(error) != "InvalidInstanceID.NotFound":
                raise
            return False
    return True


def is_alive(instance: Instance | None) -> bool:
    """Tell whether an instance is there, or on its way out."""
    return instance is not None and instance.state in _ALIVE


def is_forbidden(error: Exception) -> bool:
    """Tell whether EC2 refused a call, which it also does to a role that may only touch what has its tag.

    What is gone has no tags, so the caller looks whether it is.
    """
    return error_code(error) == "UnauthorizedOperation"


def delete_volumes(ec2: AwsClient, uid: str) -> bool:
    """Delete volumes that an instance left behind; False while there are any that are still in use."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    left = False
    with aws_errors("looking for volumes"):
        pages = list(ec2.get_paginator("describe_volumes").paginate(Filters=tag_filters(uid)))
    for volume in (one for page in pages for one in page.get("Volumes", [])):
        if volume["State"] in {"deleting", "deleted"}:
            continue
        if volume["State"] != "available":
            left = True
            continue
        with aws_errors("deleting a volume"):
            try:
                ec2.delete_volume(VolumeId=volume["VolumeId"])
            except ClientError as error:
                if error_code(error) == "InvalidVolume.NotFound":
                    continue
                named = [{"Name": "volume-id", "Values": [volume["VolumeId"]]}]
                if not is_forbidden(error) or ec2.describe_volumes(Filters=named)["Volumes"]:
                    raise
    return not left


def _network(settings: NitroSettings, groups: tuple[str, ...]) -> dict[str, Any]:
    subnet = {"SubnetId": settings.subnet_id} if settings.subnet_id else {}
    if not settings.no_public_ip:
        return {"SecurityGroupIds": list(groups), **subnet}
    interface = {"DeviceIndex": 0, "AssociatePublicIpAddress": False, "Groups": list(groups), **subnet}
    return {"NetworkInterfaces": [interface]}


def _instance(found: dict[str, Any]) -> Instance:
    labels = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
    return Instance(
        instance_id=found["InstanceId"],
        state=found["State"]["Name"],
        instance_type=found.get("InstanceType", ""),
        enclave=found.get("EnclaveOptions", {}).get("Enabled") is True,
        public_ip=found.get("PublicIpAddress", ""),
        private_ip=found.get("PrivateIpAddress", ""),
        plan=labels.get(PLAN_TAG, ""),
    )


def _refusal(error: Exception, settings: NitroSettings) -> Exception:
    code = error_code(error)
    if code in _QUOTA:
        return DeniedError(
            "aws.quota",
            f"the quota leaves no room for a {settings.instance_type} in {settings.region} ({code})",
            "end other instances, or `aws service-quotas request-service-quota-increase --service-code ec2 "
            f"--quota-code L-1216C47A --desired-value N --region {settings.region}`",
        )
    if code in _CAPACITY:
        return DeniedError(
            "aws.capacity",
            f"aws has no {settings.instance_type} to give in this zone of {settings.region} ({code})",
            "set nitro_config.subnet_id to one of another zone, or another nitro_config.instance_type",
        )
    return error

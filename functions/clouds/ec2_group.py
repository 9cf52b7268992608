"""The security group of a deployment: made by us, named after it, and open where its rules say."""

import ipaddress
from typing import Any, Final

from functions.aws_api import AwsClient, aws_errors, error_code
from functions.clouds.ec2_instances import is_forbidden, tag_filters, tags
from functions.deploy.cloud import (
    DEPLOYMENT,
    MANAGED_BY,
    MANAGER,
    DeniedError,
    FirewallRule,
    TransientCloudError,
)
from shared.errors import CloudError

MAX_NAME: Final = 255  # EC2's limit


def group_name(name: str, uid: str) -> str:
    """Return the group's name: the deployment's, and enough of its uid to be nobody else's."""
    return f"dstack-{name[:200]}-{uid[:12]}"


def find_groups(ec2: AwsClient, uid: str) -> list[dict[str, Any]]:
    """Return the deployment's groups as EC2 describes them."""
    with aws_errors("looking for the security group"):
        pages = list(ec2.get_paginator("describe_security_groups").paginate(Filters=tag_filters(uid)))
    return [group for page in pages for group in page.get("SecurityGroups", [])]


def ensure_group(ec2: AwsClient, name: str, uid: str, subnet_id: str) -> str:
    """Return the id of the deployment's group, made where there is none.

    Raises `DeniedError`: `nitro.vpc` (no default VPC, and no subnet given), `nitro.name_taken`;
    `TransientCloudError("nitro.group")` while one that was made does not show.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    vpc = _vpc(ec2, subnet_id)
    for found in find_groups(ec2, uid):
        if found.get("VpcId") == vpc:
            return str(found["GroupId"])
    label = group_name(name, uid)
    with aws_errors("making the security group"):
        try:
            made = ec2.create_security_group(
                GroupName=label,
                Description="dstack-cloud: an app in an enclave, its ports and its evidence",
                VpcId=vpc,
                TagSpecifications=[{"ResourceType": "security-group", "Tags": tags(uid, name)}],
            )
        except ClientError as error:
            if error_code(error) == "InvalidGroup.Duplicate":
                raise _duplicate(ec2, label, vpc, uid) from error
            raise
    return str(made["GroupId"])


def delete_group(ec2: AwsClient, group_id: str) -> bool:
    """Delete a group; False while an instance still has it."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    with aws_errors("deleting the security group"):
        try:
            ec2.delete_security_group(GroupId=group_id)
        except ClientError as error:
            if error_code(error) == "DependencyViolation":
                return False
            if error_code(error) in {"InvalidGroup.NotFound", "InvalidGroupId.NotFound"}:
                return True
            if not is_forbidden(error) or _described(ec2, "group-id", group_id):
                raise
    return True


def group_rules(group: dict[str, Any]) -> list[FirewallRule]:
    """Return the rules of single ports; a range, which we never make, is left out."""
    rules = []
    for permission in group.get("IpPermissions", []):
        protocol, port = permission.get("IpProtocol"), permission.get("FromPort")
        sources = _sources(permission)
        if protocol in {"tcp", "udp"} and port == permission.get("ToPort") and sources:
            rules.append(FirewallRule(action="allow", protocol=protocol, port=port, sources=sources))
    return sorted(rules, key=lambda rule: (rule.port, rule.protocol))


def set_rule(ec2: AwsClient, group: dict[str, Any], rule: FirewallRule) -> None:
    """Let exactly the rule's sources reach its port. What is new is opened before what is old is closed."""
    known = {
        source
        for one in group_rules(group)
        if (one.protocol, one.port) == (rule.protocol, rule.port)
        for source in one.sources
    }
    # as EC2 spells them: another spelling of the same network would be opened and then closed
    wanted = {str(ipaddress.ip_network(source)) for source in rule.sources}
    _change(ec2.authorize_security_group_ingress, group, rule, wanted - known, "InvalidPermission.Duplicate")
    _change(ec2.revoke_security_group_ingress, group, rule, known - wanted, "InvalidPermission.NotFound")


def _change(call: Any, group: dict[str, Any], rule: FirewallRule, sources: set[str], harmless: str) -> None:  # noqa: ANN401 - a method of boto3
    from botocore.exceptions import ClientError  # noqa: PLC0415 - loaded by the client already

    # one source at a time: a duplicate among several would refuse them all
    for source in sorted(sources):
        ranges = (
            {"Ipv6Ranges": [{"CidrIpv6": source}]} if ":" in source else {"IpRanges": [{"CidrIp": source}]}
        )
        permission = {"IpProtocol": rule.protocol, "FromPort": rule.port, "ToPort": rule.port, **ranges}
        with aws_errors(f"changing who may reach port {rule.port}"):
            try:
                call(GroupId=group["GroupId"], IpPermissions=[permission])
            except ClientError as error:
                if error_code(error) != harmless:
                    raise


def _sources(permission: dict[str, Any]) -> tuple[str, ...]:
    four = [one["CidrIp"] for one in permission.get("IpRanges", [])]
    six = [one["CidrIpv6"] for one in permission.get("Ipv6Ranges", [])]
    return tuple(sorted(four) + sorted(six))


def _duplicate(ec2: AwsClient, label: str, vpc: str, uid: str) -> CloudError:
    """Return the error for a name that a group has already: somebody else's, or ours, which shows late."""
    ours = {(MANAGED_BY, MANAGER), (DEPLOYMENT, uid)}
    for group in _described(ec2, "group-name", label):
        labels = {(tag["Key"], tag["Value"]) for tag in group.get("Tags", [])}
        if group.get("VpcId") == vpc and not ours <= labels:
            return DeniedError(
                "nitro.name_taken",
                f"there is a security group {label} without the tag {DEPLOYMENT}={uid}",
                "deploy under another name, or "
                f"`aws ec2 delete-security-group --group-id {group['GroupId']}`",
            )
    return TransientCloudError("nitro.group", f"the security group {label} does not show yet")


def _described(ec2: AwsClient, name: str, value: str) -> list[dict[str, Any]]:
    found = ec2.describe_security_groups(Filters=[{"Name": name, "Values": [value]}])
    groups: list[dict[str, Any]] = found.get("SecurityGroups", [])
    return groups


def _vpc(ec2: AwsClient, subnet_id: str) -> str:
    if subnet_id:
        with aws_errors("looking for the subnet"):
            found = ec2.describe_subnets(SubnetIds=[subnet_id]).get("Subnets", [])
        if not found:
            raise CloudError("nitro.vpc", f"aws knows no subnet {subnet_id}")
        return str(found[0]["VpcId"])
    with aws_errors("looking for the default VPC"):
        found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}]).get("Vpcs", [])
    if not found:
        raise DeniedError(
            "nitro.vpc",
            "the account has no default VPC in this region",
            "set nitro_config.subnet_id, or `aws ec2 create-default-vpc`",
        )
    return str(found[0]["VpcId"])

"""What is built: for each cloud the functions, their entries, their locks, and how large they may become.

How the services of Google Cloud are deployed is in `gcp_services`.
"""

from typing import Final

import msgspec

from functions.packaging import gcp_services
from functions.packaging.gcp_services import GcpService

MB: Final = 10**6

PYTHONS: Final = {
    # Lambda's 3.11 runs on Amazon Linux 2 (glibc 2.26), those after it on Amazon Linux 2023 (2.34)
    (3, 11): "manylinux2014",
    (3, 12): "manylinux_2_28",
    (3, 13): "manylinux_2_28",
}
"""Versions of Python that functions run on, with the wheels that their Lambda runtimes can load."""

ARCHITECTURES: Final = {"x86_64": "x86_64", "arm64": "aarch64"}
"""Lambda's names of its architectures, and those of wheels."""

AWS_SERVICES: Final = frozenset({"dynamodb", "ec2", "s3", "secretsmanager", "sqs", "ssm"})
"""The APIs that our code makes boto3 clients for. botocore describes 400, in 25 MB."""


class AwsFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One zip. `entries` are modules; what they import of ours goes in, and the packages of the lock.

    `budget` is in bytes, unzipped. With `forwarder`, what parents of enclaves run goes in as
    `forwarder.tar.gz`, for the package's own version of Python and architecture.
    """

    name: str
    entries: tuple[str, ...]
    budget: int
    forwarder: bool = False

    @property
    def lock(self) -> str:
        """Path of the lock below the repository."""
        return f"locks/{self.name}-aws.txt"


class GcpFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One source directory, and the services that run from it. `entry` is the module of their targets.

    `budget` is in bytes and is of our own code: the packages are installed by the buildpack.
    """

    name: str
    entry: str
    budget: int
    services: tuple[GcpService, ...]

    @property
    def lock(self) -> str:
        """Path of the lock below the repository."""
        return f"locks/{self.name}-gcp.txt"


AWS_FUNCTIONS: Final = (
    AwsFunction(name="verify", entries=("functions.verify.aws",), budget=35 * MB),
    AwsFunction(name="authorize", entries=("functions.authorize.aws",), budget=12 * MB),
    AwsFunction(
        name="deploy",
        entries=("functions.deploy.aws", "functions.deploy.aws_worker"),
        budget=60 * MB,
        forwarder=True,
    ),
    AwsFunction(name="governance", entries=("functions.governance.aws",), budget=30 * MB),
)

GCP_FUNCTIONS: Final = (
    GcpFunction(name="verify", entry="functions.verify.gcp", budget=2 * MB, services=(gcp_services.VERIFY,)),
    GcpFunction(
        name="authorize", entry="functions.authorize.gcp", budget=1 * MB, services=(gcp_services.AUTHORIZE,)
    ),
    GcpFunction(
        name="deploy",
        entry="functions.deploy.gcp",
        budget=6 * MB,
        services=(gcp_services.DEPLOY_WORKER, gcp_services.DEPLOY),
    ),
    GcpFunction(
        name="governance",
        entry="functions.governance.gcp",
        budget=3 * MB,
        services=(gcp_services.GOVERNANCE,),
    ),
)

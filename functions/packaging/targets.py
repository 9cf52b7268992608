"""What is built: for each cloud the functions, their entries, their locks, and how large they may become."""

from typing import Final

import msgspec

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

AWS_SERVICES: Final = frozenset({"dynamodb", "ec2", "s3", "sqs", "ssm", "sts"})
"""The APIs that our code makes boto3 clients for. botocore describes 400, in 25 MB."""


class AwsFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One zip. `entries` are modules; what they import of ours goes in, and the packages of the lock.

    `budget` is in bytes, unzipped. `data` are files that code opens beside itself.
    """

    name: str
    entries: tuple[str, ...]
    budget: int
    data: tuple[str, ...] = ()

    @property
    def lock(self) -> str:
        """Path of the lock below the repository."""
        return f"locks/{self.name}-aws.txt"


class Setting(msgspec.Struct, frozen=True):
    """A variable of a function's environment, taken from that of `deploy.sh`.

    `default` may name other variables, as in `firestore:$PROJECT/dstack`; None makes the variable required.
    """

    name: str
    what: str
    default: str | None = None


class GcpService(msgspec.Struct, frozen=True, kw_only=True):
    """One function as it is deployed. `target` is what functions-framework serves of `main.py`.

    A `public` one is called without a Google identity. `roles` and `permissions` are of its service account,
    in the project; `secrets` are settings whose variable names a secret of Secret Manager.
    """

    name: str
    target: str
    public: bool
    memory: str
    seconds: int
    concurrency: int
    instances: int
    settings: tuple[Setting, ...] = ()
    secrets: tuple[Setting, ...] = ()
    roles: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()


class GcpFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One source directory, and the services that run from it. `entry` is the module of their targets.

    `budget` is in bytes and is of our own code: the packages are installed by the buildpack.
    """

    name: str
    entry: str
    budget: int
    services: tuple[GcpService, ...]
    data: tuple[str, ...] = ()

    @property
    def lock(self) -> str:
        """Path of the lock below the repository."""
        return f"locks/{self.name}-gcp.txt"


AWS_FUNCTIONS: Final = (
    AwsFunction(name="verify", entries=("functions.verify.aws",), budget=35 * MB),
    AwsFunction(name="authorize", entries=("functions.authorize.aws",), budget=15 * MB),
)

_RPC_URL: Final = Setting(
    "ETH_RPC_URL", "name of the secret that holds the URL of the chain's JSON-RPC endpoint"
)

GCP_FUNCTIONS: Final = (
    GcpFunction(
        name="verify",
        entry="functions.verify.gcp",
        budget=3 * MB,
        services=(
            GcpService(
                name="dstack-verify",
                target="verify",
                public=True,
                memory="512Mi",
                seconds=300,
                concurrency=8,
                instances=10,
                settings=(
                    Setting(
                        "DSTACK_VERIFIER_ATTESTATION__URLS__PCCS", "URL of a PCCS, Intel's where empty", ""
                    ),
                ),
            ),
        ),
    ),
    GcpFunction(
        name="authorize",
        entry="functions.authorize.gcp",
        budget=1 * MB,
        services=(
            GcpService(
                name="dstack-authorize",
                target="authorize",
                public=True,
                memory="512Mi",
                seconds=30,
                concurrency=16,
                instances=10,
                settings=(
                    Setting("KMS_CONTRACT_ADDR", "address of the DstackKms contract, in hex"),
                    Setting("ETH_CHAIN_ID", "id of the chain, refused where the endpoint says another"),
                ),
                secrets=(_RPC_URL,),
            ),
        ),
    ),
)

"""An enclave's project on the AWS stand-in, one deployment in a store, and the cloud between them."""

import hashlib
import io
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from functions.clouds.aws_nitro import AwsNitroCloud
from functions.clouds.ec2_group import find_groups
from functions.clouds.ec2_instances import find_instances, tag_filters
from functions.clouds.nitro_bundle import ForwarderBundle, make_forwarder
from functions.clouds.s3_handover import prefix
from functions.deploy.cloud import Machine, Wait
from functions.deploy.record import Deployment, Files, Goal, Lease, Planned, Resource, Step
from functions.deploy.store import DeploymentStore
from functions.deploy.work import LeasedWork
from functions.plan.model import AppIdentity, ApprovalPlan, ComposePlan, ImagePlan, Plan
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.project import NITRO_DEFAULTS
from shared.measurement.eif import write_eif
from shared.measurement.eif_metadata import BuildMetadata, EifMetadata
from tests.fakes.aws import REGION
from tests.fakes.nitro_aws import NitroAws
from tests.fakes.nitro_parent import ParentInstance

NAME = "web"
NOW = 1_790_000_000
PROFILE = "dstack-parent"
MAX_CALLS = 100

Plans = tuple[bytes, dict[str, str]]


@cache
def bundle() -> ForwarderBundle:
    return make_forwarder()


@cache
def image(content: bytes = b"rootfs") -> Plans:
    """Return a small but real enclave image, and what it measures."""
    metadata = EifMetadata(
        image_name="app",
        image_version="1",
        build_metadata=BuildMetadata(
            build_time="1970-01-01T00:00:00+00:00",
            build_tool="tests",
            build_tool_version="1",
            operating_system="linux",
            kernel_version="6.1",
        ),
        docker_info=None,
        custom_metadata=None,
    )
    sink = io.BytesIO()
    found = write_eif(
        sink,
        kernel=io.BytesIO(b"kernel" * 100),
        cmdline=b"reboot=k",
        ramdisks=[io.BytesIO(b"boot" * 10), io.BytesIO(content.ljust(64, b"\0"))],
        metadata=metadata,
        arch="x86_64",
    )
    pcrs = {"PCR0": found.pcr0.hex(), "PCR1": found.pcr1.hex(), "PCR2": found.pcr2.hex()}
    return sink.getvalue(), pcrs


class World:
    """`settings` are nitro_config of the plan. Every call of the cloud has its own hold on the record."""

    def __init__(self, directory: Path, fake: NitroAws, **settings: Any) -> None:
        self.fake = fake
        self.now = NOW
        self.uid = secrets.token_hex(8)
        self.bucket = f"artifacts-{self.uid}"
        self.store: DeploymentStore = SqliteStore(directory / "deployments.db")
        self.blobs = FileBlobs(directory / "blobs")
        self.clients = {service: fake.lasting_client(service) for service in ("ec2", "s3", "ssm")}
        self.ec2, self.s3 = self.clients["ec2"], self.clients["s3"]
        self.s3.create_bucket(Bucket=self.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        iam = fake.lasting_client("iam")
        profiles = iam.list_instance_profiles()["InstanceProfiles"]
        if PROFILE not in [one["InstanceProfileName"] for one in profiles]:
            iam.create_instance_profile(InstanceProfileName=PROFILE)
        self.cloud = self.new_cloud()
        self.settings: dict[str, Any] = {"bucket": self.bucket, "iam_instance_profile": PROFILE} | settings
        self.create()

    def new_cloud(self) -> AwsNitroCloud:
        return AwsNitroCloud(
            bundle,
            clients=lambda service, _: self.clients[service],
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    def create(self, plan_id: str = "c1" * 32, content: bytes = b"rootfs") -> None:
        planned = self._planned(plan_id, content)
        self.store.create(
            Deployment(
                name=NAME,
                uid=self.uid,
                version=1,
                cloud="aws-nitro",
                goal=Goal.RUNNING,
                step=Step.LAUNCH,
                files=Files(project={}),
                created_at=NOW,
                updated_at=NOW,
                planned=planned,
                lease=Lease("tests", "token", NOW + 600),
            )
        )

    def replan(self, plan_id: str, content: bytes = b"rootfs", **settings: Any) -> None:
        self.settings |= settings
        self.change(planned=self._planned(plan_id, content))

    def change(self, **changes: Any) -> None:
        """Rewrite fields of the record, as the engine and the service would."""
        found = self.store.get(NAME)
        self.store.replace(
            msgspec.structs.replace(found, version=found.version + 1, **changes), found.version
        )

    def work(self) -> LeasedWork:
        return LeasedWork(self.store, self.blobs, self.store.get(NAME), lambda: self.now)

    def until_done(self, method: Callable[[LeasedWork], Any]) -> Any:
        """Call one method, each time from the record alone, until it has no `Wait` any more."""
        for _ in range(MAX_CALLS):
            answer = method(self.work())
            if not isinstance(answer, Wait):
                return answer
            self.now += answer.seconds
        raise AssertionError(f"still waiting: {answer.what}")

    def launch(self) -> Machine:
        machine = self.until_done(self.cloud.launch)
        assert isinstance(machine, Machine)
        return machine

    def resources(self) -> tuple[Resource, ...]:
        return self.store.get(NAME).resources

    def states(self) -> dict[str, str]:
        return {one.kind: one.state for one in self.resources()}

    @property
    def parent(self) -> ParentInstance:
        """The machine that is there; there must be one."""
        (found,) = find_instances(self.ec2, self.uid)
        return self.fake.parents[found.instance_id]

    def order(self) -> dict[str, str]:
        """The newest order of an instance."""
        return self.fake.orders[-1]

    def left(self) -> dict[str, list[str]]:
        """Return all that is in the cloud of this deployment, or of its bucket."""
        volumes = self.ec2.describe_volumes(Filters=tag_filters(self.uid))["Volumes"]
        uploads = self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        objects = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix(self.uid)).get("Contents", [])
        found = {
            "instance": [one.instance_id for one in find_instances(self.ec2, self.uid)],
            "group": [one["GroupId"] for one in find_groups(self.ec2, self.uid)],
            "volume": [one["VolumeId"] for one in volumes],
            "object": [one["Key"] for one in [*objects, *uploads]],
        }
        return {kind: names for kind, names in found.items() if names}

    def _planned(self, plan_id: str, content: bytes) -> Planned:
        eif, pcrs = image(content)
        self.fake.measured[hashlib.sha256(eif).hexdigest()] = pcrs
        plan = make_plan(plan_id, pcrs, **self.settings)
        return Planned(
            plan_id=plan_id,
            app_id="11" * 20,
            compose_hash="22" * 32,
            os_image_hash="22" * 32,
            platform="nitro",
            plan=self.blobs.put(msgspec.json.encode(plan)),
            image=self.blobs.put(eif),
            machine=plan.machine,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += max(1, int(seconds))


@contextmanager
def world(directory: Path, fake: NitroAws, *, quick: bool = True, **settings: Any) -> Iterator[World]:
    """With `quick` the machines run no scripts."""
    fake.reset(directory / "parents")
    fake.is_quick = quick
    made = World(directory, fake, **settings)
    try:
        yield made
    finally:
        assert isinstance(made.store, SqliteStore)
        made.store.close()


def make_plan(plan_id: str, registers: dict[str, str], **settings: Any) -> Plan:
    machine = msgspec.to_builtins(NITRO_DEFAULTS) | {"region": REGION} | settings
    return Plan(
        plan_id=plan_id,
        name=NAME,
        platform="nitro",
        outcome="changes",
        app=AppIdentity("11" * 20, "app.json"),
        compose=ComposePlan(compose_hash="22" * 32, form="image", size=0, text=""),
        image=ImagePlan(os_image_hash="22" * 32, source="app", registers=registers),
        events=(),
        config_disk=None,
        machine=msgspec.json.decode(msgspec.json.encode(machine)),
        findings=(),
        deployed=None,
        changes=(),
        chain=None,
        approval=ApprovalPlan(checked=False, calls=(), blocked=(), notes=(), new_app_id=""),
    )

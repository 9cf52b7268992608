"""A project on the Compute and Storage fakes, one deployment in a store, and the cloud between them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
from urllib3 import PoolManager

from functions.clouds.gcp_compute import Compute
from functions.clouds.gcp_images import Objects, archive_of, boot_object_key
from functions.clouds.gcp_tdx import GcpTdxCloud
from functions.deploy.cloud import Machine, Wait
from functions.deploy.record import Deployment, Files, Goal, Lease, Planned, Resource, Step
from functions.deploy.store import BlobStore, DeploymentStore
from functions.deploy.work import LeasedWork
from functions.google_api.credentials import anonymous_credentials
from functions.google_api.rest import GoogleSession
from functions.google_api.storage import Bucket
from functions.plan.model import AppIdentity, ApprovalPlan, ComposePlan, ImagePlan, Plan
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.project import GCP_DEFAULTS
from shared.measurement.disk_image import MIB, Extent, disk_image
from tests.fakes.compute import ComputeFake
from tests.fakes.google_rest import GoogleRest
from tests.fakes.storage import Storage, StoredObject

PROJECT, ZONE, BUCKET = "project", "us-central1-a", "project-dstack"
OS_IMAGE_HASH = "ab" * 32
NAME, UID = "web", "0123456789abcdef"
NOW = 1_790_000_000
BOOT_MARK = b"boot disk"
CONFIG = {"app-compose.json": b'{"name":"web"}', ".sys-config.json": b"{}"}
MAX_CALLS = 200


class Google:
    """The server and the clients, which take longer to make than most tests run: one for all of them."""

    def __init__(self) -> None:
        self.rest = GoogleRest(["compute.v1", "storage.v1"])
        self.compute = Compute(anonymous_credentials, self.rest.url)
        self.http = PoolManager()
        self.session = GoogleSession(anonymous_credentials(), http=self.http)

    def __enter__(self) -> Self:
        self.rest.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.compute.close()
        self.http.clear()
        self.rest.__exit__()

    def forget(self) -> None:
        """Begin a test as if nothing had been called."""
        self.rest.calls.clear()
        self.rest.violations.clear()
        self.rest._faults.clear()
        self.rest.hook = None


class World:
    """`settings` are gcp_config of the plan. Every call of the cloud is a new process's, with a new hold."""

    def __init__(self, directory: Path, google: Google, **settings: Any) -> None:
        self.rest = rest = google.rest
        self.storage = Storage(rest, [BUCKET])
        self.fake = ComputeFake(rest, self._object, project=PROJECT)
        self.storage.objects[BUCKET, boot_object_key(OS_IMAGE_HASH)] = StoredObject(boot_archive(), 1)
        self.store: DeploymentStore = SqliteStore(directory / "deployments.db")
        self.blobs: BlobStore = FileBlobs(directory / "blobs")
        self.compute = google.compute
        self.session = google.session
        self.cloud = GcpTdxCloud(self.compute, self.bucket)
        self.settings = settings
        self.now = NOW
        self.create()

    def create(self, *, name: str = NAME, uid: str = UID, plan_id: str = "c1" * 32) -> None:
        plan = make_plan(plan_id, **self.settings)
        planned = Planned(
            plan_id=plan_id,
            app_id="11" * 20,
            compose_hash="22" * 32,
            os_image_hash=OS_IMAGE_HASH,
            platform="gcp",
            plan=self.blobs.put(msgspec.json.encode(plan)),
            config={file: self.blobs.put(content) for file, content in CONFIG.items()},
            machine=plan.machine,
        )
        self.store.create(
            Deployment(
                name=name,
                uid=uid,
                version=1,
                cloud="gcp-tdx",
                goal=Goal.RUNNING,
                step=Step.LAUNCH,
                files=Files(project={}),
                created_at=NOW,
                updated_at=NOW,
                planned=planned,
                lease=Lease("tests", "token", NOW + 600),
            )
        )

    def change(self, name: str = NAME, **changes: Any) -> None:
        """Rewrite fields of the record, as the engine and the service would."""
        found = self.store.get(name)
        self.store.replace(
            msgspec.structs.replace(found, version=found.version + 1, **changes), found.version
        )

    def replan(self, plan_id: str, name: str = NAME, **settings: Any) -> None:
        planned = self.store.get(name).planned
        assert planned is not None
        self.settings |= settings
        plan = make_plan(plan_id, **self.settings)
        blob = self.blobs.put(msgspec.json.encode(plan))
        self.change(
            name,
            planned=msgspec.structs.replace(planned, plan_id=plan_id, plan=blob, machine=plan.machine),
        )

    def work(self, name: str = NAME) -> LeasedWork:
        return LeasedWork(self.store, self.blobs, self.store.get(name), lambda: self.now)

    def bucket(self, name: str) -> Objects:
        return Bucket(self.session, name, self.rest.url, pause=lambda _: None)

    def until_done(self, method: Callable[[LeasedWork], Any], name: str = NAME) -> Any:
        """Call one method, each time from the record alone, until it has no `Wait` any more."""
        for _ in range(MAX_CALLS):
            answer = method(self.work(name))
            if not isinstance(answer, Wait):
                return answer
            self.now += answer.seconds
        raise AssertionError(f"still waiting: {answer.what}")

    def launch(self, name: str = NAME) -> Machine:
        machine = self.until_done(self.cloud.launch, name)
        assert isinstance(machine, Machine)
        return machine

    def resources(self, name: str = NAME) -> tuple[Resource, ...]:
        return self.store.get(name).resources

    def left(self) -> dict[str, list[str]]:
        """Return all that costs money, but for what deployments share."""
        found = {kind: self.fake.names(kind) for kind in ("instance", "disk", "image", "firewall")}
        found["image"] = [one for one in found["image"] if one not in SHARED_IMAGES]
        found["object"] = [key for _, key in self.storage.objects if key.startswith("deployments/")]
        return {kind: names for kind, names in found.items() if names}

    def _object(self, bucket: str, key: str) -> bytes | None:
        found = self.storage.objects.get((bucket, key))
        return None if found is None else found.data


SHARED_IMAGES = {f"dstack-{OS_IMAGE_HASH[:16]}", "dstack-data-disk"}


@contextmanager
def world(directory: Path, google: Google, **settings: Any) -> Iterator[World]:
    google.forget()
    made = World(directory, google, **settings)
    try:
        yield made
        assert not google.rest.violations
    finally:
        assert isinstance(made.store, SqliteStore)
        made.store.close()


def make_plan(plan_id: str, **settings: Any) -> Plan:
    machine = msgspec.to_builtins(GCP_DEFAULTS) | {"project": PROJECT, "zone": ZONE} | settings
    return Plan(
        plan_id=plan_id,
        name=NAME,
        platform="gcp",
        outcome="changes",
        app=AppIdentity("11" * 20, "app.json"),
        compose=ComposePlan(compose_hash="22" * 32, form="canonical", size=2, text="{}"),
        image=ImagePlan(
            os_image_hash=OS_IMAGE_HASH, source="dstack-0.6.0", registers={"uki_auth": "33" * 32}
        ),
        events=(),
        config_disk=None,
        machine=machine,
        findings=(),
        deployed=None,
        changes=(),
        chain=None,
        approval=ApprovalPlan(checked=False, calls=(), blocked=(), notes=(), new_app_id=""),
    )


def boot_archive() -> bytes:
    return archive_of(disk_image(MIB, [Extent(0, BOOT_MARK)]))

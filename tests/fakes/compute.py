"""Compute Engine with state: machines, disks, images, firewall rules, operations that take their time.

Images are made from what lies in the fake bucket, disks from images; a machine that starts is handed to
`on_boot` with the bytes of its disks. Requests that Google would refuse are refused here.
"""

import base64
import hashlib
import io
import itertools
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from tests.fakes.google_rest import Answer, ApiRequest, GoogleRest, Refusal

API = "https://www.googleapis.com/compute/v1"
SERIAL_BYTES = 1 << 20
_CREATED = "2026-01-01T00:00:00.000-08:00"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"[a-z][-_a-z0-9]{0,62}")
_LABEL_VALUE = re.compile(r"[-_a-z0-9]{0,63}")
_SOURCE = re.compile(r"https://storage\.googleapis\.com/([^/]+)/(.+)")
_LABEL_FILTER = re.compile(r"labels\.([-_a-z0-9]+)\s*=\s*\"?([-_a-z0-9]*)\"?")
_NAME_FILTER = re.compile(r"name eq \"?([^\"]+)\"?")
_GROUPS = {"instance": "instances", "disk": "disks", "image": "images", "firewall": "firewalls"}
_MADE = {"instance": "RUNNING", "disk": "READY", "image": "READY", "firewall": ""}
_MAKING = {"instance": "PROVISIONING", "disk": "CREATING", "image": "PENDING", "firewall": ""}

Boot = Callable[[dict[str, Any], "Mapping[str, bytes]"], object]


class Item(msgspec.Struct):
    """One resource: its JSON, and what is not in it. `archive` is the tar.gz of a disk or image."""

    kind: str
    project: str
    zone: str
    json: dict[str, Any]
    archive: bytes = b""
    operation: str = ""
    console: bytearray = msgspec.field(default_factory=bytearray)
    dropped: int = 0

    @property
    def name(self) -> str:
        return str(self.json["name"])

    @property
    def path(self) -> str:
        place = f"zones/{self.zone}" if self.zone else "global"
        return f"projects/{self.project}/{place}/{_GROUPS[self.kind]}/{self.name}"


class Operation(msgspec.Struct):
    json: dict[str, Any]
    left: int
    finish: Callable[[], None]
    undo: Callable[[], None]
    failure: tuple[str, str] | None = None


class DiskContents(Mapping[str, bytes]):
    """The disks of a machine by their device names; each is unpacked when it is asked for."""

    def __init__(self, archives: Mapping[str, bytes]) -> None:
        self._archives = archives

    def __getitem__(self, name: str) -> bytes:
        return disk_raw(self._archives[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._archives)

    def __len__(self) -> int:
        return len(self._archives)


class ComputeFake:
    """Serves one region on `rest`; `objects` finds an object's bytes by bucket and key.

    An operation is done after it, or its resource, was looked at `polls` times. `on_boot(instance, disks)`
    and `on_stop(instance)` are called when a machine starts or goes. `nat_ip` gives its external address.
    """

    def __init__(
        self, rest: GoogleRest, objects: Callable[[str, str], bytes | None], *, project: str = "project"
    ) -> None:
        self.rest = rest
        self.project = project
        self.zones = {"us-central1-a": "UP", "us-central1-b": "UP"}
        self.region = "us-central1"
        self.machine_types = {"c3-standard-4": 4, "c3-standard-8": 8, "n2-standard-4": 4}
        self.limits = {"C3_CPUS": 24, "INSTANCES": 10, "SSD_TOTAL_GB": 500, "IN_USE_ADDRESSES": 8}
        self.networks = {"default", "private"}
        self.items: dict[str, Item] = {}
        self.operations: dict[str, Operation] = {}
        self.polls = 1
        self.page_size = 500
        self.late = False
        """Whether a resource can be seen only when its creation is done."""
        self.unreachable: set[str] = set()
        self.on_boot: Boot = lambda _instance, _disks: None
        self.on_stop: Callable[[dict[str, Any]], object] = lambda _instance: None
        self.nat_ip: Callable[[str], str] = lambda _name: "127.0.0.1"
        self._objects = objects
        self._numbers = itertools.count(1001)
        self._lies: dict[str, Any] = {}
        self._failures: dict[str, list[tuple[str, str]]] = {}
        self._requests: dict[str, str] = {}
        self._register()

    # ---- for tests ----

    def names(self, kind: str) -> list[str]:
        return sorted(item.name for item in self.items.values() if item.kind == kind)

    def find(self, kind: str, name: str) -> Item:
        return next(one for one in self.items.values() if one.kind == kind and one.name == name)

    def lie(self, **claims: Any) -> None:
        """Describe machines falsely: `confidential` (None: not at all), `machine_type`, `vtpm`."""
        self._lies = claims

    def fail_operation(self, method_id: str, code: str, message: str = "it failed", times: int = 1) -> None:
        """Let the next operations of a method end in an error, without their effect."""
        self._failures.setdefault(method_id, []).extend([(code, message)] * times)

    def put(self, kind: str, name: str, *, zone: str = "", **fields: Any) -> Item:
        """Place a resource that somebody else made."""
        status = {"status": _MADE[kind]} if _MADE[kind] else {}
        item = self._new(kind, zone, {"name": name, **status, **fields})
        self.items[item.path] = item
        return item

    def write_console(self, name: str, data: bytes) -> None:
        """Add to a machine's serial port, which keeps the last MiB."""
        item = self.find("instance", name)
        item.console += data
        excess = len(item.console) - SERIAL_BYTES
        if excess > 0:
            del item.console[:excess]
            item.dropped += excess

    def power_off(self, name: str) -> None:
        """End a machine as its guest would."""
        item = self.find("instance", name)
        item.json["status"] = "TERMINATED"
        self.on_stop(item.json)

    def usage(self, metric: str) -> float:
        instances = [one for one in self.items.values() if one.kind == "instance"]
        if metric in {"C3_CPUS", "CPUS_ALL_REGIONS"}:
            return sum(self.machine_types[_last(one.json["machineType"])] for one in instances)
        if metric == "SSD_TOTAL_GB":
            return sum(int(one.json["sizeGb"]) for one in self.items.values() if one.kind == "disk")
        return len(instances)

    # ---- methods ----

    def _register(self) -> None:
        handlers: dict[str, Callable[[ApiRequest], Answer]] = {
            "projects.get": self._get_project,
            "zones.get": self._get_zone,
            "regions.get": self._get_region,
            "machineTypes.get": self._get_machine_type,
            "zoneOperations.get": self._get_operation,
            "globalOperations.get": self._get_operation,
            "instances.insert": self._insert_instance,
            "instances.start": self._start,
            "instances.stop": self._stop,
            "instances.setTags": self._set_tags,
            "instances.getSerialPortOutput": self._console,
            "disks.insert": self._insert_disk,
            "disks.resize": self._resize,
            "images.insert": self._insert_image,
            "firewalls.insert": self._insert_firewall,
            "firewalls.patch": self._patch_firewall,
        }
        for kind, group in _GROUPS.items():
            handlers[f"{group}.get"] = self._getter(kind)
            handlers[f"{group}.delete"] = self._deleter(kind)
            if kind in {"image", "firewall"}:
                handlers[f"{group}.list"] = self._lister(kind)
            else:
                handlers[f"{group}.aggregatedList"] = self._aggregated(kind)
        for name, handler in handlers.items():
            self.rest.handle(f"compute.{name}")(self._once(handler))

    def _once(self, handler: Callable[[ApiRequest], Answer]) -> Callable[[ApiRequest], Answer]:
        """Answer a repeated request id with the operation of the first."""

        def answer(request: ApiRequest) -> Answer:
            known = self._requests.get(request.query.get("requestId", ""))
            return handler(request) if known is None else Answer(200, dict(self.operations[known].json))

        return answer

    def _get_project(self, request: ApiRequest) -> Answer:
        self._check_place(request)
        return Answer(200, {"name": self.project, "quotas": self._quotas({"CPUS_ALL_REGIONS"})})

    def _get_region(self, request: ApiRequest) -> Answer:
        self._check_place(request)
        if request.params["region"] != self.region:
            raise _missing(f"projects/{self.project}/regions/{request.params['region']}")
        metrics = set(self.limits) - {"CPUS_ALL_REGIONS"}
        return Answer(200, {"name": self.region, "status": "UP", "quotas": self._quotas(metrics)})

    def _quotas(self, metrics: set[str]) -> list[dict[str, Any]]:
        return [
            {"metric": name, "limit": float(limit), "usage": float(self.usage(name))}
            for name, limit in self.limits.items()
            if name in metrics
        ]

    def _get_zone(self, request: ApiRequest) -> Answer:
        self._check_place(request)
        return Answer(200, {"name": request.params["zone"], "status": self.zones[request.params["zone"]]})

    def _get_machine_type(self, request: ApiRequest) -> Answer:
        self._check_place(request)
        name = request.params["machineType"]
        if name not in self.machine_types:
            raise _missing(f"projects/{self.project}/zones/{request.params['zone']}/machineTypes/{name}")
        return Answer(200, {"name": name, "guestCpus": self.machine_types[name], "memoryMb": 16384})

    def _get_operation(self, request: ApiRequest) -> Answer:
        self._check_place(request)
        found = self.operations.get(request.params["operation"])
        if found is None or found.json.get("zone", "").rpartition("/")[2] != request.params.get("zone", ""):
            raise _missing(f"operations/{request.params['operation']}")
        self._advance(found)
        return Answer(200, dict(found.json))

    def _getter(self, kind: str) -> Callable[[ApiRequest], Answer]:
        def get(request: ApiRequest) -> Answer:
            item = self._item(kind, request)
            self._progress(item)
            return Answer(200, self._shown(self._item(kind, request)))

        return get

    def _lister(self, kind: str) -> Callable[[ApiRequest], Answer]:
        def listed(request: ApiRequest) -> Answer:
            self._check_place(request)
            matching, token = self._page(kind, request)
            body: dict[str, Any] = {"items": [self._shown(one) for one in matching]} if matching else {}
            return Answer(200, body | ({"nextPageToken": token} if token else {}))

        return listed

    def _aggregated(self, kind: str) -> Callable[[ApiRequest], Answer]:
        def listed(request: ApiRequest) -> Answer:
            self._check_place(request)
            matching, token = self._page(kind, request)
            scopes: dict[str, Any] = {}
            for zone in self.zones:
                found = [self._shown(one) for one in matching if one.zone == zone]
                warning = {"code": "NO_RESULTS_ON_PAGE", "message": f"There are no results for zone {zone}"}
                if zone in self.unreachable:
                    found, warning = [], {"code": "UNREACHABLE", "message": f"{zone} is unreachable"}
                scopes[f"zones/{zone}"] = {_GROUPS[kind]: found} if found else {"warning": warning}
            return Answer(200, {"items": scopes} | ({"nextPageToken": token} if token else {}))

        return listed

    def _page(self, kind: str, request: ApiRequest) -> tuple[list[Item], str]:
        wanted = _filter(request.query.get("filter", ""))
        for item in list(self.items.values()):
            if item.kind == kind:
                self._progress(item)
        shown = [one for _, one in sorted(self.items.items()) if not self._is_hidden(one)]
        matching = [one for one in shown if one.kind == kind and wanted(one.json)]
        start = int(request.query.get("pageToken") or 0)
        end = start + min(self.page_size, int(request.query.get("maxResults", 500)))
        return matching[start:end], str(end) if end < len(matching) else ""

    def _deleter(self, kind: str) -> Callable[[ApiRequest], Answer]:
        def delete(request: ApiRequest) -> Answer:
            item = self._item(kind, request)
            self._check_idle(item)
            if users := item.json.get("users"):
                raise Refusal(
                    400,
                    f"The {kind} resource '{item.path}' is already being used by '{users[0]}'",
                    "resourceInUseByAnotherResource",
                )
            before = item.json.get("status", "")
            if kind == "instance":
                item.json["status"] = "STOPPING"
            elif before:
                item.json["status"] = "DELETING"

            def undo() -> None:
                if before:
                    item.json["status"] = before

            return self._operate(request, item, "delete", lambda: self._vanish(item), undo)

        return delete

    def _vanish(self, item: Item) -> None:
        del self.items[item.path]
        if item.kind != "instance":
            return
        if item.json["status"] != "TERMINATED":
            self.on_stop(item.json)
        for attached in item.json["disks"]:
            disk = self.items[attached["source"].removeprefix(f"{API}/")]
            disk.json["users"] = []
            if attached.get("autoDelete"):
                del self.items[disk.path]

    def _insert_instance(self, request: ApiRequest) -> Answer:
        item = self._begin("instance", request)
        body = item.json
        project, zone = item.project, item.zone
        machine_type = _last(body["machineType"])
        if machine_type not in self.machine_types:
            raise _invalid("machineType", body["machineType"])
        body["machineType"] = f"{API}/projects/{project}/zones/{zone}/machineTypes/{machine_type}"
        made = [self._attach(item, number, disk) for number, disk in enumerate(body["disks"])]
        self._check_tdx(body, self._image_of(request.body["disks"][0]))
        for number, interface in enumerate(body.get("networkInterfaces", [])):
            self._connect(body["name"], number, interface, zone)
        body["tags"] = {"items": [], **body.get("tags", {})}
        body["tags"]["fingerprint"] = _fingerprint(body["tags"]["items"])
        body["labelFingerprint"] = _fingerprint(body.get("labels", {}))
        failure = None
        for metric in ("C3_CPUS", "INSTANCES"):
            need = self.machine_types[machine_type] if metric == "C3_CPUS" else 1
            if metric in self.limits and self.usage(metric) + need > self.limits[metric]:
                message = (
                    f"Quota '{metric}' exceeded. Limit: {self.limits[metric]:.1f} in region us-central1."
                )
                failure = ("QUOTA_EXCEEDED", message)
        created = [disk for disk, is_new in made if is_new]
        for disk, _ in made:
            disk.json["users"] = [f"{API}/{item.path}"]
            self.items[disk.path] = disk

        def undo() -> None:
            self.items.pop(item.path, None)
            for disk, _ in made:
                disk.json["users"] = []
            for disk in created:
                self.items.pop(disk.path, None)

        self.items[item.path] = item
        return self._operate(request, item, "insert", lambda: self._boot(item), undo, failure)

    def _attach(self, instance: Item, number: int, disk: dict[str, Any]) -> tuple[Item, bool]:
        params = disk.pop("initializeParams", None)
        disk.setdefault("deviceName", f"persistent-disk-{number}")
        disk |= {"index": number, "type": "PERSISTENT", "mode": "READ_WRITE", "interface": "NVME"}
        if params is None:
            found = self.items.get(disk["source"].removeprefix(f"{API}/"))
            if found is None or found.kind != "disk":
                raise _missing(disk["source"])
            self._progress(found)
            self._check_idle(found)
            if found.json.get("users"):
                raise Refusal(400, f"{found.path} is in use", "resourceInUseByAnotherResource")
            disk["source"] = f"{API}/{found.path}"
            return found, False
        image = self._ready_image(params["sourceImage"])
        made = self._new(
            "disk",
            instance.zone,
            {
                "name": params.get("diskName", instance.name),
                "sizeGb": str(params.get("diskSizeGb", image.json["diskSizeGb"])),
                "labels": params.get("labels", {}),
                "type": f"{API}/projects/{instance.project}/{params['diskType']}",
                "sourceImage": f"{API}/{image.path}",
                "status": "READY",
            },
            image.archive,
        )
        if made.path in self.items:
            raise _taken(made.path)
        if int(made.json["sizeGb"]) < int(image.json["diskSizeGb"]):
            raise _invalid("diskSizeGb", made.json["sizeGb"])
        disk["source"] = f"{API}/{made.path}"
        return made, True

    def _image_of(self, disk: dict[str, Any]) -> Item:
        return self._ready_image(disk["initializeParams"]["sourceImage"])

    def _check_tdx(self, body: dict[str, Any], image: Item) -> None:
        confidential = body.get("confidentialInstanceConfig", {}).get("confidentialInstanceType")
        scheduling = body.get("scheduling", {})
        if scheduling.get("provisioningModel") == "SPOT" and scheduling.get("automaticRestart", True):
            raise Refusal(400, "Automatic restart is not supported for Spot VMs", "invalid")
        if confidential != "TDX":
            return
        if not _last(body["machineType"]).startswith("c3-"):
            raise Refusal(400, f"{_last(body['machineType'])} does not support TDX", "badRequest")
        if scheduling.get("onHostMaintenance") != "TERMINATE":
            raise Refusal(400, "Confidential VMs with TDX need onHostMaintenance TERMINATE", "badRequest")
        features = {one["type"] for one in image.json.get("guestOsFeatures", [])}
        if not {"TDX_CAPABLE", "UEFI_COMPATIBLE", "GVNIC"} <= features:
            raise Refusal(400, f"Image {image.name} does not support TDX: {sorted(features)}", "badRequest")

    def _connect(self, name: str, number: int, interface: dict[str, Any], zone: str) -> None:
        network = _last(interface.get("network", "global/networks/default"))
        if network not in self.networks:
            raise _missing(f"projects/{self.project}/global/networks/{network}")
        interface["network"] = f"{API}/projects/{self.project}/global/networks/{network}"
        region = zone.rpartition("-")[0]
        subnet = _last(interface.get("subnetwork", network))
        interface["subnetwork"] = f"{API}/projects/{self.project}/regions/{region}/subnetworks/{subnet}"
        interface.setdefault("networkIP", f"10.128.0.{next(self._numbers) % 250 + 2}")
        interface["name"] = f"nic{number}"
        for access in interface.get("accessConfigs", []):
            access.setdefault("natIP", self.nat_ip(name))

    def _boot(self, item: Item) -> None:
        item.json["status"] = "RUNNING"
        item.console.clear()
        item.dropped = 0
        archives = {
            disk["deviceName"]: self.items[disk["source"].removeprefix(f"{API}/")].archive
            for disk in item.json["disks"]
        }
        self.on_boot(item.json, DiskContents(archives))

    def _start(self, request: ApiRequest) -> Answer:
        item = self._item("instance", request)
        self._check_idle(item)
        if item.json["status"] != "TERMINATED":
            return self._operate(request, item, "start", _nothing, _nothing)

        def undo() -> None:
            item.json["status"] = "TERMINATED"

        item.json["status"] = "STAGING"
        return self._operate(request, item, "start", lambda: self._boot(item), undo)

    def _stop(self, request: ApiRequest) -> Answer:
        item = self._item("instance", request)
        self._check_idle(item)
        before = item.json["status"]

        def finish() -> None:
            if before == "RUNNING":
                self.power_off(item.name)

        def undo() -> None:
            item.json["status"] = before

        if before == "RUNNING":
            item.json["status"] = "STOPPING"
        return self._operate(request, item, "stop", finish, undo)

    def _set_tags(self, request: ApiRequest) -> Answer:
        item = self._item("instance", request)
        if request.body.get("fingerprint") != item.json["tags"]["fingerprint"]:
            raise Refusal(412, "Supplied fingerprint does not match current tags fingerprint.")
        items = request.body.get("items", [])
        item.json["tags"] = {"items": items, "fingerprint": _fingerprint(items)}
        return self._operate(request, item, "setTags", _nothing, _nothing)

    def _console(self, request: ApiRequest) -> Answer:
        item = self._item("instance", request)
        end = item.dropped + len(item.console)
        start = min(max(int(request.query.get("start", 0)), item.dropped), end)
        text = bytes(item.console[start - item.dropped :]).decode(errors="replace")
        return Answer(
            200,
            {
                "kind": "compute#serialPortOutput",
                "contents": text,
                "start": str(start),
                "next": str(end),
                "selfLink": f"{API}/{item.path}/serialPort",
            },
        )

    def _insert_disk(self, request: ApiRequest) -> Answer:
        item = self._begin("disk", request)
        image = self._ready_image(item.json["sourceImage"])
        item.archive = image.archive
        if int(item.json.get("sizeGb", 0)) < int(image.json["diskSizeGb"]):
            raise _invalid("sizeGb", item.json.get("sizeGb"))
        item.json["sizeGb"] = str(item.json["sizeGb"])
        return self._add(request, item)

    def _resize(self, request: ApiRequest) -> Answer:
        item = self._item("disk", request)
        size = int(request.body["sizeGb"])
        if size < int(item.json["sizeGb"]):
            raise _invalid("sizeGb", str(size))

        def finish() -> None:
            item.json["sizeGb"] = str(size)

        return self._operate(request, item, "resizeDisk", finish, _nothing)

    def _insert_image(self, request: ApiRequest) -> Answer:
        item = self._begin("image", request)
        source = _SOURCE.fullmatch(item.json["rawDisk"]["source"])
        archive = self._objects(source[1], source[2]) if source else None
        if archive is None:
            raise _invalid("rawDisk.source", item.json["rawDisk"]["source"])
        item.archive = archive
        failure = None
        if not _is_disk_archive(archive):
            failure = ("IMAGE_INVALID", "The tar archive is not a valid image.")
        item.json |= {"diskSizeGb": "1", "archiveSizeBytes": str(len(archive)), "sourceType": "RAW"}
        return self._add(request, item, failure)

    def _insert_firewall(self, request: ApiRequest) -> Answer:
        item = self._begin("firewall", request)
        self._check_firewall(item.json)
        return self._add(request, item)

    def _patch_firewall(self, request: ApiRequest) -> Answer:
        item = self._item("firewall", request)
        changed = item.json | request.body
        self._check_firewall(changed)

        def finish() -> None:
            item.json |= request.body

        return self._operate(request, item, "patch", finish, _nothing)

    def _check_firewall(self, rule: dict[str, Any]) -> None:
        if _last(rule.get("network", "default")) not in self.networks:
            raise _missing(str(rule["network"]))
        if ("allowed" in rule) == ("denied" in rule):
            raise _invalid("allowed", "exactly one of allowed and denied must be set")

    def _add(self, request: ApiRequest, item: Item, failure: tuple[str, str] | None = None) -> Answer:
        def finish() -> None:
            if _MADE[item.kind]:
                item.json["status"] = _MADE[item.kind]

        self.items[item.path] = item
        return self._operate(
            request, item, "insert", finish, lambda: self.items.pop(item.path, None), failure
        )

    # ---- resources ----

    def _begin(self, kind: str, request: ApiRequest) -> Item:
        """Start what an insert makes, unless its name is taken."""
        self._check_place(request)
        body = msgspec.json.decode(msgspec.json.encode(request.body))
        if not _NAME.fullmatch(body.get("name", "")):
            raise _invalid("name", body.get("name"))
        for key, value in body.get("labels", {}).items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                raise _invalid("labels", f"{key}={value}")
        item = self._new(kind, request.params.get("zone", ""), body)
        if item.path in self.items:
            raise _taken(item.path)
        if _MAKING[kind]:
            item.json["status"] = _MAKING[kind]
        return item

    def _new(self, kind: str, zone: str, body: dict[str, Any], archive: bytes = b"") -> Item:
        item = Item(kind, self.project, zone, dict(body), archive)
        item.json |= {
            "kind": f"compute#{kind}",
            "id": str(next(self._numbers)),
            "creationTimestamp": _CREATED,
            "selfLink": f"{API}/{item.path}",
        }
        if zone:
            item.json["zone"] = f"{API}/projects/{self.project}/zones/{zone}"
        if kind == "image":
            item.json.setdefault("diskSizeGb", "1")
        if kind == "instance":
            item.json.setdefault("disks", [])
        return item

    def _ready_image(self, reference: str) -> Item:
        found = self.items.get(reference.removeprefix(f"{API}/"))
        if found is None or found.kind != "image":
            raise _missing(reference)
        self._progress(found)
        if found.json["status"] != "READY":
            raise _not_ready(found.path)
        return found

    def _item(self, kind: str, request: ApiRequest) -> Item:
        self._check_place(request)
        zone = request.params.get("zone", "")
        name = request.params.get("resourceId") or request.params.get(kind) or ""
        place = f"zones/{zone}" if zone else "global"
        path = f"projects/{request.params['project']}/{place}/{_GROUPS[kind]}/{name}"
        found = self.items.get(path)
        if found is None:
            raise _missing(path)
        if self._is_hidden(found):
            self._progress(found)
            raise _missing(path)
        return found

    def _is_hidden(self, item: Item) -> bool:
        if not self.late or not item.operation:
            return False
        operation = self.operations[item.operation].json
        return bool(operation["operationType"] == "insert" and operation["status"] != "DONE")

    def _shown(self, item: Item) -> dict[str, Any]:
        shown: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(item.json))
        if item.kind != "instance" or not self._lies:
            return shown
        if "confidential" in self._lies:
            shown.pop("confidentialInstanceConfig", None)
            if self._lies["confidential"]:
                shown["confidentialInstanceConfig"] = {"confidentialInstanceType": self._lies["confidential"]}
        if "machine_type" in self._lies:
            place = shown["machineType"].rpartition("/")[0]
            shown["machineType"] = f"{place}/{self._lies['machine_type']}"
        if "vtpm" in self._lies:
            shown["shieldedInstanceConfig"]["enableVtpm"] = self._lies["vtpm"]
        return shown

    def _check_place(self, request: ApiRequest) -> None:
        if request.params["project"] != self.project:
            raise _missing(f"projects/{request.params['project']}")
        zone = request.params.get("zone")
        if zone is not None and zone not in self.zones:
            raise _missing(f"projects/{self.project}/zones/{zone}")

    # ---- operations ----

    def _operate(
        self,
        request: ApiRequest,
        item: Item,
        what: str,
        finish: Callable[[], None],
        undo: Callable[[], object],
        failure: tuple[str, str] | None = None,
    ) -> Answer:
        waiting = self._failures.get(request.method_id)
        if waiting:
            failure = waiting.pop(0)
        name = f"operation-{next(self._numbers)}"
        place = f"zones/{item.zone}" if item.zone else "global"
        json: dict[str, Any] = {
            "kind": "compute#operation",
            "id": str(next(self._numbers)),
            "name": name,
            "operationType": what,
            "status": "RUNNING",
            "progress": 0,
            "insertTime": _CREATED,
            "targetLink": f"{API}/{item.path}",
            "targetId": item.json["id"],
            "selfLink": f"{API}/projects/{self.project}/{place}/operations/{name}",
        }
        if item.zone:
            json["zone"] = f"{API}/projects/{self.project}/zones/{item.zone}"
        operation = Operation(json, self.polls, finish, lambda: undo() and None, failure)
        self.operations[name] = operation
        item.operation = name
        if request_id := request.query.get("requestId", ""):
            self._requests[request_id] = name
        if self.polls <= 0:
            self._advance(operation)
        return Answer(200, dict(json))

    def _advance(self, operation: Operation) -> None:
        if operation.json["status"] == "DONE":
            return
        operation.left -= 1
        if operation.left > 0:
            return
        operation.json |= {"status": "DONE", "progress": 100, "endTime": _CREATED}
        if operation.failure is None:
            operation.finish()
            return
        code, message = operation.failure
        operation.json["error"] = {"errors": [{"code": code, "message": message}]}
        operation.json |= {"httpErrorStatusCode": 400, "httpErrorMessage": "BAD REQUEST"}
        operation.undo()

    def _progress(self, item: Item) -> None:
        """Let time pass for whoever looks at a resource instead of at its operation."""
        if item.operation:
            self._advance(self.operations[item.operation])

    def _check_idle(self, item: Item) -> None:
        if item.operation and self.operations[item.operation].json["status"] != "DONE":
            raise _not_ready(item.path)


def disk_raw(archive: bytes) -> bytes:
    """Return the disk in a tar.gz as images are imported from."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = tar.extractfile("disk.raw")
        assert member is not None
        return member.read()


@lru_cache(maxsize=16)  # lives that are killed at every step bring the same two archives each time
def _is_disk_archive(archive: bytes) -> bool:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r|gz") as tar:
            first = tar.next()
            return first is not None and first.name == "disk.raw" and first.size % 512 == 0
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return False


def _filter(text: str) -> Callable[[dict[str, Any]], bool]:
    if not text:
        return lambda _: True
    if found := _LABEL_FILTER.fullmatch(text):
        key, value = found[1], found[2]
        return lambda json: json.get("labels", {}).get(key) == value
    if found := _NAME_FILTER.fullmatch(text):
        pattern = re.compile(found[1])
        return lambda json: pattern.fullmatch(json["name"]) is not None
    raise Refusal(
        400, f"Invalid value for field 'filter': '{text}'. Invalid list filter expression.", "invalid"
    )


def _fingerprint(value: object) -> str:
    digest = hashlib.sha256(msgspec.json.encode(value, order="deterministic")).digest()
    return base64.b64encode(digest[:8]).decode()


def _last(url: str) -> str:
    return url.rpartition("/")[2]


def _nothing() -> None:
    return None


def _missing(path: str) -> Refusal:
    return Refusal(404, f"The resource '{path}' was not found", "notFound")


def _taken(path: str) -> Refusal:
    return Refusal(409, f"The resource '{path}' already exists", "alreadyExists")


def _not_ready(path: str) -> Refusal:
    return Refusal(400, f"The resource '{path}' is not ready", "resourceNotReady")


def _invalid(field: str, value: object) -> Refusal:
    return Refusal(400, f"Invalid value for field 'resource.{field}': '{value}'.", "invalid")

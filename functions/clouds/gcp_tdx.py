"""Confidential VMs on Google Cloud: TDX machines with a vTPM, over the Compute API (spec deploy 4).

Every method looks, does what is missing and returns; long-running operations are polled by later calls. The
parts: `gcp_resources` makes and removes, `gcp_images` and `gcp_instance` say what, `gcp_firewall` and
`gcp_check` are what their names say, `gcp_compute` is the one way to Google.
"""

from collections.abc import Sequence
from typing import Any, Final

from functions.clouds.gcp_check import Check, moved_data
from functions.clouds.gcp_compute import KINDS, Compute, Place
from functions.clouds.gcp_firewall import Firewall, no_instance
from functions.clouds.gcp_images import OBJECT, BootDisks, Buckets, Images, drop_object
from functions.clouds.gcp_instance import data_disk_body, data_gb, instance_body, machine_of
from functions.clouds.gcp_limits import Limits
from functions.clouds.gcp_resources import POLL, SHARED, Resources
from functions.clouds.gcp_settings import (
    CONFIG_LABEL,
    PLAN_LABEL,
    Site,
    is_ours,
    planned_site,
    wanted_site,
)
from functions.deploy.cloud import (
    DEPLOYMENT,
    EVIDENCE_PORT,
    FirewallRule,
    LogPage,
    Machine,
    Wait,
    Work,
)
from functions.deploy.record import Resource
from functions.deploy.store import NotFoundError
from shared.compose.findings import Finding, Severity, error
from shared.compose.project import GcpConfig
from shared.errors import ConfigError, StorageError

NOT_FOUND: Final = "NOT_FOUND"
_UP: Final = "RUNNING"
_DOWN: Final = frozenset({"TERMINATED", "STOPPED"})


class GcpTdxCloud:
    """See `functions.deploy.cloud.Cloud`.

    `buckets` opens a bucket by its name, `boot_disks` finds the boot disk of a plan's OS image where one is
    at hand, and `defaults` are the operator's settings for projects that do not say otherwise. `limits` hold
    for projects that somebody else handed in; None takes what a project says.
    """

    def __init__(
        self,
        compute: Compute,
        buckets: Buckets,
        *,
        boot_disks: BootDisks = lambda _: None,
        defaults: GcpConfig | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits
        self._compute = compute
        self._buckets = buckets
        self._boot_disks = boot_disks
        self._defaults = defaults or GcpConfig()

    def check(self, work: Work) -> Sequence[Finding]:
        """See `Cloud`. Each finding's detail is the command that mends it."""
        try:
            site = wanted_site(work, self._defaults)
        except ConfigError as problem:
            return [error(problem.code, "app.json", problem.message)]
        if self._limits is not None and (denied := list(self._limits.refusals(site))):
            return [
                Finding(one.code, Severity.ERROR, f"gcp_config.{field}", one.message, one.hint)
                for field, one in denied
            ]
        return Check(self._compute, self._buckets, work, site).findings()

    def launch(self, work: Work) -> Wait | Machine:
        """See `Cloud`.

        1. The images: boot, data, config. 2. The data disk, which outlives machines. 3. The instance; one of
        ours that was made from another plan or configuration is replaced. 4. Where no rule is about the
        evidence port, it is opened to `ingress`. Nothing beyond the limits.
        """
        site = planned_site(work)
        if self._limits is not None:
            self._limits.check(site)
        _check_data_zone(work, site)
        resources = Resources(self._compute, work)
        images = Images(resources, work, site, self._buckets, self._boot_disks)
        boot, data, config = images.boot(), images.data(), images.config()
        for image in (boot, data, config):
            if isinstance(image, Wait):
                return image
        if (waiting := _data_disk(resources, work, site, str(data))) is not None:
            return waiting
        answer = self._instance(resources, work, site, str(boot), str(config))
        if isinstance(answer, Machine):
            self._open_evidence_port(work, site)
        return answer

    def start(self, work: Work) -> Wait | Machine:
        """See `Cloud`. Raises `DeniedError("gcp.instance.missing")`."""
        resources = Resources(self._compute, work)
        settled = resources.settle(self._recorded(work, self._place(work)))
        if isinstance(settled, Wait):
            return settled
        found = self._look(work)
        if found is None:
            raise no_instance(work.deployment.name)
        return _up(resources, settled, found)

    def stop(self, work: Work) -> Wait | Machine:
        """See `Cloud`. Where there is no machine, there is none to stop."""
        resources = Resources(self._compute, work)
        settled = resources.settle(self._recorded(work, self._place(work)))
        if isinstance(settled, Wait):
            return settled
        found = self._look(work)
        if found is None:
            return Machine(status=NOT_FOUND)
        if found.status in _DOWN:
            return machine_of(found)
        if found.status != _UP:
            return Wait(POLL, f"until instance {settled.name} is no longer {found.status}")
        return resources.act(settled, "stop_unary", "stop")

    def retire(self, work: Work) -> Wait | None:
        """See `Cloud`. The data disk and the firewall rules stay."""
        return self._drop(work, [one for one in _live(work) if not one.keep])

    def remove(self, work: Work) -> Wait | None:
        """See `Cloud`. Images that other deployments share are left, and an event says so."""
        if not work.deployment.resources:
            return None  # whatever is made is recorded first, and rules need an instance
        if (waiting := self._drop(work, _live(work))) is not None:
            return waiting
        strays = False
        for project in sorted(self._projects(work)):
            rules = Firewall(self._compute, work.deployment.name, work.deployment.uid, Place(project))
            strays = rules.remove_all() or self._record_strays(work, project) or strays
        return Wait(POLL, "until what was found by its label is gone") if strays else None

    def describe(self, work: Work) -> Machine:
        """See `Cloud`."""
        found = self._look(work)
        return Machine(status=NOT_FOUND) if found is None else machine_of(found)

    def logs(self, work: Work, cursor: str = "", limit: int = 1 << 20) -> LogPage:
        """See `Cloud`: the first serial port. Google keeps its last MiB; what is lost before that is told.

        A cursor is the instance's id and a position. Raises `ConfigError("gcp.logs.cursor")`,
        `DeniedError("gcp.instance.missing")`.
        """
        place = self._place(work)
        resource = self._recorded(work, place)
        if self._look(work) is None:
            raise no_instance(resource.name)
        identity = resource.facts.get("id", "")
        position = _position(cursor, identity)
        output = self._serial(resource, place, position)
        notice = ""
        if int(output.next_) < position:
            notice, position = "[the machine started anew]\n", 0
            output = self._serial(resource, place, 0)
        begin = int(output.start)
        if begin > position:
            notice += f"[{begin - position} bytes of console output are lost]\n"
        text, length = _first_bytes(str(output.contents), limit)
        return LogPage(notice + text, f"{identity}:{begin + length}")

    def firewall(self, work: Work) -> Sequence[FirewallRule]:
        """See `Cloud`."""
        return self._rules(work).rules()

    def set_firewall(self, work: Work, rule: FirewallRule) -> None:
        """See `Cloud`. Raises `DeniedError("gcp.instance.missing")`."""
        found = self._look(work)
        if found is None:
            raise no_instance(work.deployment.name)
        self._rules(work).set(rule, found)

    def clear_firewall(self, work: Work, protocol: str, port: int) -> bool:
        """See `Cloud`."""
        return self._rules(work).clear(protocol, port)

    def _open_evidence_port(self, work: Work, site: Site) -> None:
        """Let the deployer ask for evidence: a default network lets nobody in. A rule of a user counts."""
        rules = self._rules(work)
        if any(rule.port == EVIDENCE_PORT and rule.protocol == "tcp" for rule in rules.rules()):
            return
        sources = tuple(site.settings.ingress or ())
        rules.set(
            FirewallRule(action="allow", protocol="tcp", port=EVIDENCE_PORT, sources=sources),
            self._look(work),
        )
        work.say(f"port {EVIDENCE_PORT} is open, for evidence", sources=sources)

    # ---- the machine ----

    def _instance(
        self, resources: Resources, work: Work, site: Site, boot: str, config: str
    ) -> Wait | Machine:
        plan_id = work.plan.plan_id

        def make() -> dict[str, Any]:
            # both come and go with the instance, and are looked for when it is removed
            for name in (site.name, site.shared):
                work.intend("disk", name, site.place.path)
            return instance_body(site, plan_id, boot, config)

        found = resources.ensure(
            "instance",
            site.name,
            site.place,
            make,
            is_current=lambda one: (
                one.labels.get(PLAN_LABEL) == plan_id[:32] and one.labels.get(CONFIG_LABEL) == site.config
            ),
        )
        if isinstance(found, Wait):
            return found
        return _up(resources, self._recorded(work, site.place), found)

    def _look(self, work: Work) -> Any:  # noqa: ANN401 - Google's types
        """Return the instance of this deployment, None where there is none of ours."""
        place = self._place(work)
        if not place.project:
            return None  # nobody said yet where it is to be
        found = self._compute.look("instance", work.deployment.name, place)
        return found if found is not None and is_ours(found.labels, work.deployment.uid) else None

    def _recorded(self, work: Work, place: Place) -> Resource:
        recorded = work.deployment.resource("instance")
        return recorded or Resource(kind="instance", name=work.deployment.name, place=place.path)

    def _place(self, work: Work) -> Place:
        recorded = work.deployment.resource("instance")
        if recorded is not None:
            return Place.of(recorded.place)
        if work.deployment.planned is not None:
            return planned_site(work).place
        return wanted_site(work, self._defaults).place

    def _rules(self, work: Work) -> Firewall:
        return Firewall(self._compute, work.deployment.name, work.deployment.uid, self._place(work))

    def _serial(self, resource: Resource, place: Place, start: int) -> Any:  # noqa: ANN401 - Google's types
        return self._compute.call(
            "Instances",
            "get_serial_port_output",
            f"read the console of instance {resource.name}",
            **place.fields,
            instance=resource.name,
            port=1,
            start=start,
        )

    # ---- removal ----

    def _drop(self, work: Work, unwanted: Sequence[Resource]) -> Wait | None:
        """Remove the newest first. Nothing is removed under a running machine."""
        resources = Resources(self._compute, work)
        waits = []
        for resource in reversed(unwanted):
            if resource.facts.get(SHARED):
                work.say(f"{resource.kind} {resource.name} stays: other deployments may use it")
                work.gone(resource)
            elif resource.kind == OBJECT:
                drop_object(work, resource, self._buckets)
            elif (waiting := resources.drop(resource)) is not None:
                if resource.kind == "instance":
                    return waiting
                waits.append(waiting)
        return waits[0] if waits else None

    def _record_strays(self, work: Work, project: str) -> bool:
        """Take what bears our label and is not recorded into the record, so that it is removed like all."""
        uid = work.deployment.uid
        label = f'labels.{DEPLOYMENT}="{uid}"'
        found = False
        for kind in ("disk", "instance"):  # the newest is removed first
            known = KINDS[kind]
            listed = self._compute.list_everywhere(
                known.service, known.group, f"look for {kind}s", project=project, filter=label
            )
            for one in (one for one in listed if is_ours(one.labels, uid)):
                place = Place(project, str(one.zone).rpartition("/")[2])
                work.intend(kind, str(one.name), place.path)
                found = True
        images = self._compute.list("Images", "look for images", project=project, filter=label)
        for one in (one for one in images if is_ours(one.labels, uid)):
            work.intend("image", str(one.name), Place(project).path)
            found = True
        return found

    def _projects(self, work: Work) -> set[str]:
        """Return every project that this deployment may have anything in."""
        found = {Place.of(one.place).project for one in work.deployment.resources if one.kind != OBJECT}
        try:
            site = wanted_site(work, self._defaults)
        except (ConfigError, StorageError, NotFoundError):
            return found  # whatever was made is in the places that were recorded
        return found | ({site.place.project} if site.place.project else set())


def _up(resources: Resources, resource: Resource, found: Any) -> Wait | Machine:  # noqa: ANN401 - Google's types
    """Return the machine once it runs; start it where it does not. No operation of it is under way."""
    if found.status in _DOWN:
        return resources.act(resource, "start_unary", "start")
    if found.status != _UP:
        return Wait(POLL, f"until instance {resource.name} is no longer {found.status}")
    return machine_of(found)


def _live(work: Work) -> list[Resource]:
    return [one for one in work.deployment.resources if one.state != "gone"]


def _check_data_zone(work: Work, site: Site) -> None:
    for one in _live(work):
        if one.kind == "disk" and one.keep and one.place != site.place.path:
            raise moved_data(one.name, Place.of(one.place), site.place)


def _data_disk(resources: Resources, work: Work, site: Site, image: str) -> Wait | None:
    found = resources.ensure("disk", site.data, site.place, lambda: data_disk_body(site, image), keep=True)
    if isinstance(found, Wait):
        return found
    if str(found.status) != "READY":
        return Wait(POLL, f"until disk {site.data} is ready")
    if int(found.size_gb) < data_gb(site):
        recorded = work.intend("disk", site.data, site.place.path)
        body = {"size_gb": data_gb(site)}
        return resources.act(recorded, "resize_unary", "enlarge", disks_resize_request_resource=body)
    return None


def _position(cursor: str, identity: str) -> int:
    if not cursor:
        return 0
    seen, separator, number = cursor.rpartition(":")
    if not separator or not (number.isascii() and number.isdigit()) or len(number) > 18:
        raise ConfigError("gcp.logs.cursor", f"{cursor[:80]!a} is no cursor of this log")
    return int(number) if seen == identity else 0


def _first_bytes(contents: str, limit: int) -> tuple[str, int]:
    """Return at most `limit` bytes of text, and how many bytes of the console they were.

    The console's bytes that are no UTF-8 come as one replacement character each.
    """
    raw = contents.replace("\ufffd", "?").encode()
    taken = raw[:limit].decode(errors="ignore")
    return contents[: len(taken)], len(taken.encode())

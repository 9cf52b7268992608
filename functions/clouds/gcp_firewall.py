"""Firewall rules of one deployment (spec deploy 4).

Rules have no labels: the deployment's uid stands in the description. They are not recorded either, because
their names follow from the deployment's, and a list finds them all.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from functions.clouds.gcp_compute import Compute, Place
from functions.clouds.gcp_errors import BUSY, operation_error
from functions.clouds.gcp_settings import firewall_tag, name_taken
from functions.deploy.cloud import MANAGER, DeniedError, FirewallRule, TransientCloudError
from functions.google_api.errors import GoogleError
from shared.errors import ConfigError

PRIORITY: Final = {"allow": 1000, "deny": 900}
"""Google's default is 1000, and the lower number counts: a denial comes before what is allowed."""

_TRIES: Final = 5
_RULE: Final = re.compile(r"-(allow|deny)-(tcp|udp)-([0-9]{1,5})")


class Firewall:
    """The rules of the deployment `name`, whose instance is in `place`."""

    def __init__(self, compute: Compute, name: str, uid: str, place: Place) -> None:
        self._compute = compute
        self._name = name
        self._uid = uid
        self._place = place

    def rules(self) -> list[FirewallRule]:
        """Return what is in force, by port."""
        found = [self._rule(one) for one in self._list()]
        return sorted(found, key=lambda rule: (rule.port, rule.protocol, rule.action))

    def set(self, rule: FirewallRule, instance: Any) -> None:  # noqa: ANN401 - Google's types
        """Make a rule on the instance's network, and remove the opposite one.

        Raises `DeniedError("gcp.name_taken")`, `ConfigError("gcp.firewall")` for no port or sources.
        """
        if not 0 < rule.port < 1 << 16 or not rule.sources:
            raise ConfigError("gcp.firewall", f"a rule for port {rule.port} needs a port and sources")
        self._ensure_tag(instance)
        body = self._body(rule, str(next(iter(instance.network_interfaces)).network))
        existing = self._find(body["name"])
        what = f"{rule.action} {rule.protocol} port {rule.port}"
        if existing is None:
            self._ask("insert_unary", what, firewall_resource=body)
        elif self._rule(existing) != _normal(rule) or not _same_network(existing.network, body["network"]):
            self._ask("patch_unary", what, firewall=body["name"], firewall_resource=body)
        opposite = self._rule_name("deny" if rule.action == "allow" else "allow", rule.protocol, rule.port)
        if self._find(opposite) is not None:
            self._delete(opposite)

    def clear(self, protocol: str, port: int) -> bool:
        """Remove the rules of a port; False where there is none."""
        names = [self._rule_name(action, protocol, port) for action in PRIORITY]
        present = [name for name in names if self._find(name) is not None]
        for name in present:
            self._delete(name)
        return bool(present)

    def remove_all(self) -> bool:
        """Ask for the removal of every rule; False where a look finds none."""
        names = [str(one.name) for one in self._list()]
        for name in names:
            try:
                self._delete(name)
            except TransientCloudError as error:
                if error.code != BUSY:  # it is on its way out already
                    raise
        return bool(names)

    def _ensure_tag(self, instance: Any) -> None:  # noqa: ANN401 - Google's types
        for _ in range(_TRIES):
            items = list(instance.tags.items)
            if firewall_tag(self._name) in items:
                return
            tags = {"items": [*items, firewall_tag(self._name)], "fingerprint": instance.tags.fingerprint}
            try:
                self._compute.call(
                    "Instances",
                    "set_tags_unary",
                    f"tag instance {self._name}",
                    **self._place.fields,
                    instance=self._name,
                    tags_resource=tags,
                )
            except GoogleError as error:
                if error.status != 412:
                    raise
                instance = self._compute.look("instance", self._name, self._place)
                if instance is None:
                    break
                continue
            return
        raise TransientCloudError(BUSY, f"the tags of instance {self._name} keep changing")

    def _ask(self, method: str, what: str, **fields: Any) -> None:  # noqa: ANN401 - a request's fields
        try:
            operation = self._compute.call("Firewalls", method, what, project=self._place.project, **fields)
        except GoogleError as error:
            if error.status != 409:
                raise
            # the rule of this name is on its way in or out
            raise TransientCloudError(BUSY, error.message) from error
        if operation.error.errors:
            raise operation_error(
                operation.error.errors, what=what, project=self._place.project, member=self._compute.member
            )

    def _delete(self, name: str) -> None:
        try:
            self._ask("delete_unary", f"remove firewall rule {name}", firewall=name)
        except GoogleError as error:
            if error.status != 404:
                raise

    def _find(self, name: str) -> Any:  # noqa: ANN401 - Google's types
        found = self._compute.look("firewall", name, Place(self._place.project))
        if found is not None and not self._is_ours(found):
            raise name_taken("firewall rule", "firewall-rules", name, Place(self._place.project))
        return found

    def _list(self) -> Sequence[Any]:
        found = self._compute.list(
            "Firewalls",
            f"list the firewall rules of {self._name}",
            project=self._place.project,
            filter=f'name eq "{self._name}-(allow|deny)-(tcp|udp)-[0-9]+"',
        )
        return [one for one in found if self._is_ours(one)]

    def _is_ours(self, found: Any) -> bool:  # noqa: ANN401 - Google's types
        name = str(found.name)
        is_named = name.startswith(self._name) and _RULE.fullmatch(name[len(self._name) :]) is not None
        return is_named and found.description == self._description

    def _body(self, rule: FirewallRule, network: str) -> dict[str, Any]:
        entry = {"I_p_protocol": rule.protocol, "ports": [str(rule.port)]}
        return {
            "name": self._rule_name(rule.action, rule.protocol, rule.port),
            "description": self._description,
            "network": network,
            "direction": "INGRESS",
            "priority": PRIORITY[rule.action],
            "allowed" if rule.action == "allow" else "denied": [entry],
            "source_ranges": list(_normal(rule).sources),
            "target_tags": [firewall_tag(self._name)],
        }

    def _rule(self, found: Any) -> FirewallRule:  # noqa: ANN401 - Google's types
        action, protocol, port = str(found.name)[len(self._name) + 1 :].split("-")
        return FirewallRule(
            action="allow" if action == "allow" else "deny",
            protocol="tcp" if protocol == "tcp" else "udp",
            port=int(port),
            sources=tuple(sorted(str(one) for one in found.source_ranges)),
        )

    def _rule_name(self, action: str, protocol: str, port: int) -> str:
        return f"{self._name}-{action}-{protocol}-{port}"

    @property
    def _description(self) -> str:
        return f"{MANAGER} deployment {self._uid}"


def no_instance(name: str) -> DeniedError:
    """Return the refusal of what needs a machine where there is none."""
    return DeniedError("gcp.instance.missing", f"there is no instance {name}", f"dstack-cloud deploy {name}")


def _normal(rule: FirewallRule) -> FirewallRule:
    return FirewallRule(
        action=rule.action, protocol=rule.protocol, port=rule.port, sources=tuple(sorted(rule.sources))
    )


def _same_network(one: object, other: object) -> bool:
    return str(one).rpartition("/")[2] == str(other).rpartition("/")[2]

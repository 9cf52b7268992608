"""Firewall rules of a deployment on Google Cloud."""

from typing import Any

import pytest

from functions.deploy.cloud import EVIDENCE_PORT, DeniedError, FirewallRule, TransientCloudError
from shared.errors import ConfigError
from tests.functions.clouds.gcp_world import NAME, UID, World
from tests.shared.refusal import refuses

ALLOW = FirewallRule(action="allow", protocol="tcp", port=443, sources=("192.0.2.0/24",))
DENY = FirewallRule(action="deny", protocol="tcp", port=443, sources=("198.51.100.0/24",))


def rules_of(gcp: World) -> list[FirewallRule]:
    """Return the rules that the test asked for."""
    return [rule for rule in gcp.cloud.firewall(gcp.work()) if rule.port != EVIDENCE_PORT]


def settle(gcp: World) -> None:
    """Let the operations that were asked for come to their end."""
    for operation in list(gcp.fake.operations.values()):
        gcp.fake._advance(operation)


def put(gcp: World, rule: FirewallRule) -> None:
    gcp.cloud.set_firewall(gcp.work(), rule)
    settle(gcp)


def test_a_rule_is_for_this_machine_on_its_own_network(gcp: World) -> None:
    gcp.replan("d2" * 32, network="private")
    gcp.launch()
    put(gcp, ALLOW)
    rule = gcp.fake.find("firewall", f"{NAME}-allow-tcp-443").json
    assert rule["network"].endswith("/global/networks/private")
    assert rule["targetTags"] == [f"fw-{NAME}"]
    assert rule["allowed"] == [{"IPProtocol": "tcp", "ports": ["443"]}]
    assert rule["sourceRanges"] == ["192.0.2.0/24"]
    assert (rule["direction"], rule["priority"]) == ("INGRESS", 1000)
    assert UID in rule["description"]


def test_a_denial_comes_before_what_is_allowed_and_takes_its_place(gcp: World) -> None:
    gcp.launch()
    put(gcp, ALLOW)
    put(gcp, DENY)
    assert rules_of(gcp) == [DENY]
    assert gcp.fake.find("firewall", f"{NAME}-deny-tcp-443").json["priority"] == 900
    put(gcp, ALLOW)
    assert rules_of(gcp) == [ALLOW]


def test_other_sources_change_the_rule_and_the_same_ones_do_not(gcp: World) -> None:
    gcp.launch()
    put(gcp, ALLOW)
    wider = FirewallRule(action="allow", protocol="tcp", port=443, sources=("203.0.113.9/32", "192.0.2.0/24"))
    put(gcp, wider)
    (found,) = rules_of(gcp)
    assert found.sources == ("192.0.2.0/24", "203.0.113.9/32")
    put(gcp, wider)
    assert len(gcp.rest.called("compute.firewalls.patch")) == 1
    assert len(gcp.rest.called("compute.firewalls.insert")) == 2  # one of them the launch's own


def test_rules_are_listed_by_port_and_those_of_others_are_not(gcp: World) -> None:
    gcp.launch()
    udp = FirewallRule(action="allow", protocol="udp", port=53, sources=("192.0.2.0/24",))
    put(gcp, ALLOW)
    put(gcp, udp)
    gcp.fake.put("firewall", f"{NAME}-allow-tcp-80", description="by hand", network="default")
    gcp.fake.put("firewall", f"{NAME}-2-allow-tcp-80", description="another", network="default")
    assert rules_of(gcp) == [udp, ALLOW]


def test_clearing_a_port_says_whether_there_was_a_rule(gcp: World) -> None:
    gcp.launch()
    put(gcp, ALLOW)
    assert gcp.cloud.clear_firewall(gcp.work(), "tcp", 443) is True
    settle(gcp)
    assert gcp.cloud.clear_firewall(gcp.work(), "tcp", 443) is False
    assert rules_of(gcp) == []


def test_a_removal_takes_the_rules_and_leaves_those_of_others(gcp: World) -> None:
    gcp.launch()
    put(gcp, ALLOW)
    put(gcp, DENY)
    gcp.fake.put("firewall", f"{NAME}-allow-tcp-80", description="by hand", network="default")
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {"firewall": [f"{NAME}-allow-tcp-80"]}


def test_a_rule_of_somebody_else_is_not_taken_over(gcp: World) -> None:
    gcp.launch()
    gcp.fake.put("firewall", f"{NAME}-allow-tcp-443", description="by hand", network="default")
    with refuses("gcp.name_taken", DeniedError):
        gcp.cloud.set_firewall(gcp.work(), ALLOW)
    with refuses("gcp.name_taken", DeniedError):
        gcp.cloud.clear_firewall(gcp.work(), "tcp", 443)


def test_a_tag_that_somebody_took_away_is_put_back_beside_theirs(gcp: World) -> None:
    gcp.launch()
    item = gcp.fake.find("instance", NAME)
    item.json["tags"] = {"items": ["theirs"], "fingerprint": "b2xk"}
    put(gcp, ALLOW)
    assert item.json["tags"]["items"] == ["theirs", f"fw-{NAME}"]


def test_tags_that_change_meanwhile_are_read_again(gcp: World) -> None:
    gcp.launch()
    item = gcp.fake.find("instance", NAME)
    item.json["tags"] = {"items": [], "fingerprint": "b2xk"}

    def meddle(phase: str, request) -> None:
        if phase == "before" and request.method_id == "compute.instances.setTags":
            item.json["tags"] = {"items": ["theirs"], "fingerprint": "bmV3"}
            gcp.rest.hook = None

    gcp.rest.hook = meddle
    put(gcp, ALLOW)
    assert item.json["tags"]["items"] == ["theirs", f"fw-{NAME}"]
    assert len(gcp.rest.called("compute.instances.setTags")) == 2


def test_tags_that_keep_changing_are_left_for_later(gcp: World) -> None:
    gcp.launch()
    gcp.fake.find("instance", NAME).json["tags"] = {"items": [], "fingerprint": "b2xk"}
    gcp.rest.fail("compute.instances.setTags", 412, times=9)
    with refuses("gcp.busy", TransientCloudError):
        gcp.cloud.set_firewall(gcp.work(), ALLOW)


def test_a_rule_needs_a_machine(gcp: World) -> None:
    with refuses("gcp.instance.missing", DeniedError):
        gcp.cloud.set_firewall(gcp.work(), ALLOW)


@pytest.mark.parametrize(("port", "sources"), [(0, ("192.0.2.0/24",)), (65536, ("192.0.2.0/24",)), (1, ())])
def test_a_rule_needs_a_port_and_sources(gcp: World, port: int, sources: tuple[str, ...]) -> None:
    gcp.launch()
    with refuses("gcp.firewall", ConfigError):
        gcp.cloud.set_firewall(
            gcp.work(), FirewallRule(action="allow", protocol="tcp", port=port, sources=sources)
        )


def test_a_missing_permission_has_its_own_role(gcp: World) -> None:
    gcp.launch()
    message = "Required 'compute.firewalls.create' permission for 'projects/project/global/firewalls/x'"
    gcp.rest.fail("compute.firewalls.insert", 403, message=message)
    with refuses("gcp.permission", DeniedError) as caught:
        gcp.cloud.set_firewall(gcp.work(), ALLOW)
    assert isinstance(caught.value, DeniedError)
    assert "--role=roles/compute.securityAdmin" in caught.value.hint


def test_a_rule_that_is_on_its_way_out_is_busy(gcp: World) -> None:
    gcp.launch()
    gcp.rest.fail("compute.firewalls.insert", 409, reason="alreadyExists")
    with refuses("gcp.busy", TransientCloudError):
        gcp.cloud.set_firewall(gcp.work(), ALLOW)


def test_the_evidence_port_is_opened_to_whom_the_project_says(gcp: World) -> None:
    gcp.replan("d2" * 32, ingress=["203.0.113.0/24"])
    gcp.launch()
    assert [rule for rule in gcp.cloud.firewall(gcp.work()) if rule.port == EVIDENCE_PORT] == [
        FirewallRule(action="allow", protocol="tcp", port=EVIDENCE_PORT, sources=("203.0.113.0/24",))
    ]


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_rule_of_the_users_for_the_evidence_port_stays(gcp: World, action: Any) -> None:
    gcp.launch()
    own = FirewallRule(action=action, protocol="tcp", port=EVIDENCE_PORT, sources=("192.0.2.1/32",))
    put(gcp, own)
    gcp.launch()
    assert [rule for rule in gcp.cloud.firewall(gcp.work()) if rule.port == EVIDENCE_PORT] == [own]


def test_an_ingress_that_is_no_network_is_refused(gcp: World) -> None:
    gcp.replan("d2" * 32, ingress=["everybody"])
    with refuses("gcp.settings.ingress", ConfigError):
        gcp.cloud.launch(gcp.work())

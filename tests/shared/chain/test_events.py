"""Events of the contracts, from logs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.devchain.artifacts import artifact
from functions.governance import events as governance_events
from shared.chain import events
from shared.chain.events import EVENTS, POLICIES, Event, decode_event, policy_name, topic_of, topics_of
from shared.errors import ProtocolError
from shared.keccak import keccak256
from tests.shared.refusal import refuses

CONTRACTS = {"kms": ("DstackKms",), "app": ("DstackApp",), "both": ("DstackKms", "DstackApp")}


@pytest.mark.parametrize("event", EVENTS, ids=lambda one: one.name)
def test_the_contracts_have_each_event(event: Event) -> None:
    for contract in CONTRACTS[event.target]:
        (found,) = [
            one for one in artifact(contract).abi if one["type"] == "event" and one["name"] == event.name
        ]
        assert [one["type"] for one in found["inputs"]] == [kind for _, kind in event.parameters]
        assert [one["indexed"] for one in found["inputs"]] == [
            index < event.indexed for index in range(len(event.parameters))
        ]


def test_no_event_of_the_contracts_is_missing() -> None:
    names = {
        one["name"]
        for contract in ("DstackKms", "DstackApp")
        for one in artifact(contract).abi
        if one["type"] == "event"
    }
    assert names == {event.name for event in EVENTS}


def test_the_governance_function_knows_the_same_events() -> None:
    assert set(governance_events.EVENTS) == set(topics_of(EVENTS))


def test_decodes_every_log_of_upstreams_contracts(shared_data: Callable[[str], Path]) -> None:
    logs = json.loads(shared_data("contracts/logs.json").read_text())["logs"]
    decoded = [
        decode_event([bytes.fromhex(topic[2:]) for topic in one["topics"]], bytes.fromhex(one["data"][2:]))
        for one in logs
    ]
    assert all(decoded)
    assert {one.event.name for one in decoded if one} >= {"AppDeployedViaFactory", "PolicyChanged"}
    assert {
        policy_name(one.arguments[1]) for one in decoded if one and one.event.name == "PolicyChanged"
    } <= {*POLICIES}


def test_names_the_policies() -> None:
    assert [policy_name(keccak256(name.encode())) for name in POLICIES] == list(POLICIES)
    assert policy_name(bytes(32)) == ""


def test_another_contracts_event_is_none_of_ours() -> None:
    assert decode_event([bytes(32)], b"") is None
    assert decode_event([], b"") is None


@pytest.mark.parametrize(
    ("topics", "data"),
    [
        ([topic_of(events.OS_IMAGE_ADDED)], b""),
        ([topic_of(events.OS_IMAGE_ADDED)], bytes(33)),
        ([topic_of(events.OS_IMAGE_ADDED), bytes(32)], b""),
        ([topic_of(events.UPGRADED)], bytes(32)),
        ([topic_of(events.UPGRADED), b"\1" * 32], b""),
        ([topic_of(events.ALLOW_ANY_DEVICE_SET)], bytes(31) + b"\2"),
    ],
)
def test_refuses_a_log_that_the_contract_did_not_write(topics: list[bytes], data: bytes) -> None:
    with refuses("event.malformed", ProtocolError):
        decode_event(topics, data)

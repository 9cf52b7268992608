"""A deployment's view holds all that governance judges by, so that others judge as it does."""

import itertools
import json
from typing import Any

import msgspec
import pytest

from functions.deploy.quarantine import at_stake, next_up
from functions.deploy.record import (
    Deployment,
    Files,
    Goal,
    Planned,
    Proven,
    Resource,
    Running,
    Step,
    workload,
)
from functions.deploy.views import read_whole, whole
from functions.governance.judgement import key_server_question, questions
from shared.errors import ProtocolError
from tests.functions.deploy.memory_cloud import some_deployment
from tests.shared.refusal import refuses

OLD, NEW = (
    Planned(
        plan_id=one, app_id="22" * 20, compose_hash=one * 32, os_image_hash="44" * 32, platform="gcp", plan=""
    )
    for one in ("11", "22")
)
PROVEN = Proven(mr_aggregated="a1" * 32, device_id="d1" * 32, tcb_status="UpToDate")
MACHINE = Running(plan_id=NEW.plan_id, verdict={"tcb_status": "OutOfDate"}, proven=PROVEN)
LEFT = Resource(kind="disk", name="web", state="present")


def shown(found: Deployment) -> dict[str, Any]:
    """Return what the API answers."""
    read: dict[str, Any] = json.loads(msgspec.json.encode(whole(found)))
    return read


@pytest.mark.parametrize("step", Step)
def test_a_view_is_judged_as_the_record_is(step: Step) -> None:
    for goal, launched, running, left, env in itertools.product(
        Goal,
        (None, OLD, NEW),
        (None, MACHINE, msgspec.structs.replace(MACHINE, plan_id=OLD.plan_id)),
        ((), (LEFT,), (msgspec.structs.replace(LEFT, keep=True),)),
        ("", "ee" * 32),
    ):
        found = some_deployment(
            step=step,
            goal=goal,
            files=Files(project={}, encrypted_env=env),
            settings={"device_id": "0x" + "d2" * 32, "env_names": ["A"]},
            planned=NEW,
            launched=workload(launched),
            running=running,
            resources=left,
            key_server="a1" * 32,
        )
        read = read_whole(shown(found))
        assert (at_stake(read), next_up(read), read.is_resting) == (
            at_stake(found),
            next_up(found),
            found.is_resting,
        )
        assert questions(read) == questions(found)
        running_now = at_stake(found)
        if running_now is not None:
            assert key_server_question(read, running_now) == key_server_question(found, running_now)
        assert read.key_server == found.key_server


def test_a_view_shows_what_was_launched_beside_what_is_planned() -> None:
    found = shown(some_deployment(step=Step.AWAIT_APPROVAL, planned=NEW, launched=workload(OLD)))
    assert found["launched"] == msgspec.to_builtins(workload(OLD))
    assert found["planned"]["compose_hash"] == NEW.compose_hash
    assert shown(some_deployment())["launched"] is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"step": "dancing"}, "api.answer"),
        ({"planned": 7}, "api.answer"),
        ({"files": None}, "api.answer"),
        ({"launched": {"platform": "gcp"}}, "api.answer"),
        ({"launched": msgspec.to_builtins(workload(OLD)) | {"compose_hash": "no hex"}}, "hex.invalid"),
        ({"device_id": "no hex"}, "hex.invalid"),
    ],
)
def test_refuses_what_is_no_view(changes: dict[str, Any], code: str) -> None:
    with refuses(code, ProtocolError):
        read_whole(shown(some_deployment(planned=NEW)) | changes)

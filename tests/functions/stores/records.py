"""Records and events for tests of stores."""

from typing import Any

import msgspec

from functions.deploy.record import Deployment, Event, Files, Goal, Step, event_id


def record(name: str = "app", **changes: Any) -> Deployment:
    base = Deployment(
        name=name,
        uid=f"uid-{name}",
        version=1,
        cloud="local",
        goal=Goal.RUNNING,
        step=Step.PREPARE,
        files=Files(project={"app.json": "00" * 32}),
        created_at=1000,
        updated_at=1000,
    )
    return msgspec.structs.replace(base, **changes)


def following(deployment: Deployment, **changes: Any) -> Deployment:
    return msgspec.structs.replace(deployment, version=deployment.version + 1, **changes)


def event(deployment: Deployment, number: int = 0, message: str = "something happened") -> Event:
    return Event(
        id=event_id(deployment.version, number),
        uid=deployment.uid,
        at=deployment.updated_at,
        step=deployment.step.value,
        message=message,
    )

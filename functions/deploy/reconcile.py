"""The sweep that finds deployments whose message was lost, and has them advanced again.

A message is lost when a runner dies between a step and its next message with no redelivery left, when a queue
is purged, or when a store is restored from a backup. Run it every few minutes.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from functions.deploy.engine import redirect
from functions.deploy.record import Deployment
from functions.deploy.store import DeploymentStore, Schedule

OVERDUE_SECONDS: Final = 600
"""Longer than a queue may take to deliver a message of a runner that died: SQS's visibility timeout."""

SPREAD_SECONDS: Final = 60
"""Over which a sweep spreads what it found: after an outage that is everything at once."""

_PAGE: Final = 100


def sweep(
    store: DeploymentStore, schedule: Schedule, now: int, overdue: int = OVERDUE_SECONDS
) -> Sequence[str]:
    """Schedule every deployment that was to be advanced `overdue` seconds ago, and return their names.

    Raises what the store and the queue raise: the next sweep begins anew. A message too many does no harm.
    """
    found: list[str] = []
    for deployment in _all(store):
        if is_overdue(deployment, now, overdue):
            schedule(deployment.name, len(found) % SPREAD_SECONDS)
            found.append(deployment.name)
    return found


def is_overdue(deployment: Deployment, now: int, overdue: int = OVERDUE_SECONDS) -> bool:
    """Tell whether there is something to do that nobody did when it was time.

    `due` is 0 where a user asked for something, which was then due at the write; a lease that still runs is
    of a runner at work.
    """
    redirected = redirect(deployment)
    if redirected.is_resting and redirected.step is deployment.step:
        return False
    leased_until = deployment.lease.until if deployment.lease is not None else 0
    return max(deployment.due, deployment.updated_at, leased_until) + overdue <= now


def _all(store: DeploymentStore) -> Iterator[Deployment]:
    after = ""
    while page := store.list(after, _PAGE):
        yield from page
        after = page[-1].name

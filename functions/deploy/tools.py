"""What the engine's steps are given beside a cloud, put together."""

from typing import Protocol

from functions.deploy.planning import Planner
from functions.deploy.record import Deployment
from functions.deploy.steps import Attested, BuiltPlan
from functions.deploy.work import LeasedWork
from functions.plan.standing import Standing


class Attesting(Protocol):
    """Proves what a machine runs; see `functions.deploy.evidence.Attester`."""

    def attest(self, deployment: Deployment, evidence_url: str) -> Attested:
        """See `StepTools`."""
        ...


class Tools:
    """See `functions.deploy.steps.StepTools`."""

    def __init__(self, planner: Planner, attester: Attesting) -> None:
        self._planner = planner
        self._attester = attester

    def build(self, work: LeasedWork) -> BuiltPlan:
        """See `StepTools`."""
        return self._planner.build(work)

    def ask_approval(self, work: LeasedWork) -> Standing:
        """See `StepTools`."""
        return self._planner.ask_approval(work)

    def attest(self, deployment: Deployment, evidence_url: str) -> Attested:
        """See `StepTools`."""
        return self._attester.attest(deployment, evidence_url)

"""Whom a deployer believes: the vendors of real machines, and of simulated ones their throw-away roots."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, cast

from functions.deploy.cloud import LOCAL, Cloud
from functions.deploy.evidence import Attester, HttpChallenger, Verifier
from functions.deploy.record import Deployment
from functions.deploy.steps import Attested
from functions.verify.settings import parse_settings
from shared.errors import StorageError
from shared.net.dialer import DirectDialer
from shared.net.endorsement_source import production_source
from shared.net.fetch import HttpClient

if TYPE_CHECKING:
    from functions.clouds.local import LocalCloud


class Attesters:
    """An attester for each cloud. `environ` holds the settings of the verify function."""

    def __init__(
        self, clouds: Mapping[str, Cloud], environ: Mapping[str, str], now: Callable[[], int]
    ) -> None:
        self._clouds = clouds
        self._environ = environ
        self._now = now
        self._ask = HttpChallenger(HttpClient(DirectDialer()))

    def attest(self, deployment: Deployment, evidence_url: str) -> Attested:
        """See `StepTools`. Raises `ConfigError` of the settings, and as `Attester.attest` does."""
        if deployment.cloud != LOCAL:
            return self._real.attest(deployment, evidence_url)
        if deployment.planned is None:
            raise StorageError("deploy.plan", f"deployment {deployment.name} has no plan yet")
        # roots are made with the first machine, so they are read each time
        cloud = cast("LocalCloud", self._clouds[LOCAL])
        verifier = cloud.verifier(deployment.planned.platform, self._now)
        return Attester(verifier, self._ask).attest(deployment, evidence_url)

    @cached_property
    def _real(self) -> Attester:
        settings = parse_settings(b"", self._environ)
        source = production_source(
            bundle=settings.endorsements(),
            pccs_url=settings.attestation.urls.pccs,
            offline=settings.attestation.offline,
            external=settings.attestation.insecure_allow_external_trust_anchors,
        )
        return Attester(Verifier(settings.anchors(), self._now, source, settings.policy()), self._ask)

"""How often who may ask: `[core.limits]` as an answer to one request.

A peer's address is the parent's forwarder, so it means nothing here. What tells callers apart is what their
evidence measured:

- one bucket for each instance, named by what the hardware signs of it (`_instance`), so that one abusive
  instance exhausts its own bucket alone, whatever certificates it makes and whatever it claims;
- a larger one for each app and the code that was measured (`_app`), which bounds what a fleet costs. A call
  takes from its instance's first: one instance drains its app's bucket no faster than its own refills. On
  Nitro an app id is a claim, so the measured image is part of the name: who runs other code cannot drain it;
- one for each method for callers without evidence, so that a flood on GetMeta stops GetMeta for them alone;
- one for certificates with evidence that was not seen before: identification is what costs most, and a caller
  that is known does not need it;
- one for evidence in requests of callers without evidence, which strangers can make up over one connection:
  callers that are new must not wait for what these cost. A caller that is known has its own bucket for it.
"""

from collections.abc import Hashable
from typing import Literal, cast

from enclave.kms.config import RateLimits
from enclave.serving.rate_limit import Rate, RateLimited, TokenBuckets
from shared.attestation.envelope import NitroEnclaveQuote
from shared.attestation.identity import raw_device_id
from shared.attestation.nitro import VerifiedNitroDocument
from shared.attestation.verify import VerifiedAttestation

CODE = "prpc.rate"

Place = Literal["certificate", "request"]
"""Where evidence comes from that has to be verified."""


class CallLimits:
    """The buckets of one listener. Times are monotonic seconds. All methods raise `RateLimited`."""

    def __init__(self, settings: RateLimits) -> None:
        self._instances = TokenBuckets(Rate(settings.caller_per_minute, settings.caller_burst))
        self._apps = TokenBuckets(Rate(settings.app_per_minute, settings.app_burst))
        self._methods = TokenBuckets(Rate(settings.method_per_minute, settings.method_burst))
        self._evidence = TokenBuckets(Rate(settings.evidence_per_minute, settings.evidence_burst))
        self.refused = dict.fromkeys(("caller", "app", "method", "evidence"), 0)
        """How often each limit refused."""

    def take_evidence(self, place: Place, now: float) -> None:
        """Count evidence that has to be verified."""
        self._take("evidence", self._evidence, place, now)

    def take_caller(self, verified: VerifiedAttestation, now: float) -> None:
        """Count a call of a caller with verified evidence."""
        self._take("caller", self._instances, _instance(verified), now)
        self._take("app", self._apps, _app(verified), now)

    def take_method(self, method: str, now: float) -> None:
        """Count a call of a caller without evidence. `method` is one of ours, or one word for all others."""
        self._take("method", self._methods, method, now)

    def _take(self, limit: str, buckets: TokenBuckets, key: Hashable, now: float) -> None:
        wait = buckets.take(key, now)
        if wait:
            self.refused[limit] += 1
            raise RateLimited(CODE, f"too many calls by the limit per {limit}: wait {wait} seconds", wait)


def _instance(verified: VerifiedAttestation) -> Hashable:
    """Return what tells an instance from another, of what is signed: nothing of it can be made up for a call.

    On Nitro the module's id and PCR0; the claims beside them, app id and instance id, are left out. Elsewhere
    the machine and the ids that the guest's boot measured.
    """
    platform = verified.verdict.platform
    if isinstance(verified.attestation.quote, NitroEnclaveQuote):
        document = cast("VerifiedNitroDocument", verified.evidence).document
        return platform, document.module_id, document.pcrs[0]
    events = verified.events
    return platform, raw_device_id(verified), events.app_id, events.compose_hash, events.instance_id


def _app(verified: VerifiedAttestation) -> Hashable:
    platform, events = verified.verdict.platform, verified.events
    if isinstance(verified.attestation.quote, NitroEnclaveQuote):
        pcrs = cast("VerifiedNitroDocument", verified.evidence).document.pcrs
        return platform, events.app_id, pcrs[0], pcrs[1], pcrs[2]
    return platform, events.app_id, events.compose_hash

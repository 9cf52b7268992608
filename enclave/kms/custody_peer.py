"""Root keys that are written nowhere: taken over from a running KMS at every start.

For guests without a disk of their own, as enclaves are. Each start is an onboarding with all of its checks
(`enclave.kms.onboarding`); where no source gives the keys in time, this KMS does not start. It makes none.
"""

import time
from collections.abc import Callable

from enclave.kms.audit import AUDIT, AuditLog, Value, case_of
from enclave.kms.bootstrap import check_domain
from enclave.kms.custody import Custody
from enclave.kms.custody_config import PeerCustody
from enclave.kms.key_store import KeyMaterial
from enclave.kms.source_kms import Source
from shared.errors import ConfigError, DstackError, ProtocolError, StorageError, UnavailableError

FIRST_PAUSE = 1.0
"""Seconds between the first round of sources and the second; it doubles from round to round."""

LONGEST_PAUSE = 30.0

MAX_REASONS = 300
"""Bytes of the last sentence that tell why each source gave nothing; the log has all of it."""

Onboard = Callable[[str, str], object]
"""Takes the keys over from a URL, to serve them as a domain, into the custody that it was made for."""


class HeldKeys:
    """The keys in this process's memory. `onboarding` gives what fills this custody.

    Raises `ConfigError("config.custody.peer")` for a URL or a domain that is none.
    """

    def __init__(
        self,
        settings: PeerCustody,
        onboarding: Callable[[Custody], Onboard],
        *,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        audit: AuditLog = AUDIT,
    ) -> None:
        try:
            check_domain(settings.domain)
            for url in settings.source_urls:
                Source.parse(url)
        except ProtocolError as error:
            raise ConfigError("config.custody.peer", f"core.custody.peer: {error.message}") from error
        self._settings = settings
        self._onboard = onboarding(self)
        self._audit = audit
        self._wait = wait
        self._clock = clock
        self._keys: KeyMaterial | None = None

    def bootstrapped(self) -> bool:
        """Tell whether the keys have come."""
        return self._keys is not None

    def create(self, material: KeyMaterial) -> None:
        """Hold the keys until this process ends."""
        if self._keys is not None:
            raise StorageError("kms.bootstrapped", "KMS has already been bootstrapped")
        self._keys = material

    def load(self) -> KeyMaterial:
        """Return the keys of the first source that hands them over, in the order of the configuration.

        All sources are asked in turn, and again after a pause, until `patience` seconds have passed. The
        round that is under way then is finished, with the time limits that each attempt has.

        Raises `UnavailableError("kms.custody.no_source")`, and `ConfigError` for what no source can mend.
        """
        deadline = self._clock() + self._settings.patience
        pause = FIRST_PAUSE
        reasons: dict[str, str] = {}
        while True:
            for url in self._settings.source_urls:
                reasons[url] = self._try(url)
                if self._keys is not None:
                    return self._keys
            if (left := deadline - self._clock()) <= 0:
                break
            self._wait(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
        told = ", ".join(f"{url} {reason}" for url, reason in reasons.items())
        raise UnavailableError(
            "kms.custody.no_source",
            f"no source gave the root keys within {self._settings.patience} s: {told[:MAX_REASONS]}",
        )

    def _try(self, url: str) -> str:
        """Return why it gave nothing; what only the operator can mend ends the start."""
        try:
            self._onboard(url, self._settings.domain)
        except ConfigError:
            raise
        except DstackError as error:
            case = case_of(error)
            told: dict[str, Value] = {"source": url, "code": error.code, "message": error.message}
            self._audit.record("kms.custody.source_failed", told | (case.fields() if case else {}))
            return error.code
        return ""

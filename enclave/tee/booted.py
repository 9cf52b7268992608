"""A TDX virtual machine that booted an OS image and an app: what those of all clouds and of none share.

Who it is was recorded while it booted, in RTMR3 and whatever else the machine has. The app-compose.json
beside it is the host's copy, which counts where its hash is the recorded one.
"""

from collections.abc import Callable
from socket import create_server, socket

from enclave.devices.clock import SystemClock
from enclave.devices.runtime_events import RuntimeEventLog
from enclave.tee.boot_events import SYSTEM_READY, provider_events, record
from enclave.tee.tee import Attestor
from shared.attestation.event_log import system_events
from shared.attestation.trust import TrustAnchors
from shared.compose.app_compose import compose_hash, parse_app_compose
from shared.errors import ConfigError, UnavailableError
from shared.net.dialer import DirectDialer


class HostSetClock(SystemClock):
    """The system's clock where nobody said that it is set from authenticated time: the host's word."""

    source = "system (set by the host)"


class BootedTee:
    """One guest, by the log of its boot. `app_compose` gives the document that it says was measured."""

    needs_collateral = True

    def __init__(self, attestor: Attestor, log: RuntimeEventLog, *, app_compose: Callable[[], bytes]) -> None:
        self._attestor = attestor
        self._log = log
        self._app_compose = app_compose

    def attestor(self, app_id: bytes | None) -> Attestor:
        """See `Tee.attestor`: this guest has recorded whose it is."""
        recorded = system_events(self._log.read()).app_id
        if app_id is not None and app_id != recorded:
            raise ConfigError(
                "image.app_id",
                f"the measured image is of app {app_id.hex()}, the guest has recorded "
                f"{recorded.hex() or 'none'}",
            )
        return self._attestor

    def clock(self, anchors: TrustAnchors) -> SystemClock:
        """Return the system's clock, which tells whether the measured app-compose wants `secure_time`.

        With it, which is the default, the guest sets its clock from authenticated time before it starts
        anything. Raises `ProtocolError("compose.*")` for an app-compose that was measured and is none.
        """
        del anchors
        raw = self._app_compose()
        is_measured = compose_hash(raw) == system_events(self._log.read()).compose_hash
        if is_measured and parse_app_compose(raw).get("secure_time", True) is True:
            return SystemClock()
        return HostSetClock()

    def event_log(self) -> RuntimeEventLog:
        """Return the log of this boot."""
        return self._log

    def record_keys(self, *, os_image_hash: bytes, kms_root: bytes) -> None:
        """Record the keys' origin once; a workload that starts again finds its boot over."""
        if any(event.event == SYSTEM_READY for event in self._log.read()):
            return
        record(self._log, provider_events("kms", provider_id=kms_root, os_image_hash=os_image_hash))

    def listen(self, address: str, port: int) -> socket:
        """Listen on TCP. Raises `UnavailableError("tee.listen")`."""
        try:
            return create_server((address, port))
        except OSError as error:
            raise UnavailableError(
                "tee.listen", f"cannot listen on {address}:{port}: {error.strerror}"
            ) from error

    def dialer(self) -> DirectDialer:
        """Return plain TCP: names are the host's word, and everything above it is authenticated."""
        return DirectDialer()

"""GuestApi: what the guest's host may ask, beside Info (spec guest-agent section 2.12).

The host is told how the machine does. It is no authority over the app: all that it can make the guest do is
to power off, which it can do to a virtual machine anyway.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Final

from google.protobuf.empty_pb2 import Empty

from enclave.agent.commands import command_output
from enclave.agent.container_listing import ContainerListing
from enclave.agent.pages import Observed
from enclave.agent.procedures import Methods, methods
from enclave.dstack_util.host_notice import Host
from enclave.log import log_event
from shared.errors import ConfigError, DstackError
from shared.rpc import guest_api_pb2 as pb

POWER_OFF_SECONDS: Final = 10.0


class Shutdown:
    """Powers the guest off in the background, once the host was told."""

    def __init__(self, host: Host, power_off: Callable[[], None]) -> None:
        self._host = host
        self._power_off = power_off
        self._begun = threading.Lock()

    def begin(self) -> None:
        """Begin, unless it has begun already."""
        if self._begun.acquire(blocking=False):
            threading.Thread(target=self._run, name="shutdown", daemon=True).start()

    def _run(self) -> None:
        try:
            self._host.notify("shutdown.progress", "powering off")
            self._power_off()
        except DstackError as error:
            log_event("agent.shutdown.failed", code=error.code, message=error.message)
        finally:
            self._begun.release()  # what failed may be asked for again


def systemd_power_off() -> None:
    """Ask systemd. Raises `UnavailableError("agent.command.*")`."""
    command_output("systemctl", "poweroff", seconds=POWER_OFF_SECONDS)


def simulated_power_off() -> None:
    """Refuse for a simulated guest: `ConfigError("agent.simulated")`."""
    raise ConfigError(
        "agent.simulated", "a simulated guest has no machine of its own: this one would be powered off"
    )


def host_methods(observed: Observed, shutdown: Shutdown, limits: Mapping[str, int]) -> Methods:
    """Return the methods."""
    return methods(
        limits,
        prompt={"Shutdown": (Empty, lambda _: _shut_down(shutdown))},
        blocking={
            "SysInfo": (Empty, lambda _: observed.system.read()),
            "NetworkInfo": (Empty, lambda _: observed.network.read()),
            "ListContainers": (Empty, lambda _: _list_containers(observed.listing)),
        },
    )


def _shut_down(shutdown: Shutdown) -> Empty:
    shutdown.begin()
    return Empty()


def _list_containers(listing: ContainerListing) -> pb.ListContainersResponse:
    """Return all containers, none when the engine does not tell."""
    return pb.ListContainersResponse(
        containers=[
            pb.Container(
                id=one.id,
                names=one.names or (),
                image=one.image,
                image_id=one.image_id,
                created=one.created,
                state=one.state,
                status=one.status,
            )
            for one in listing.read_or_none() or ()
        ]
    )

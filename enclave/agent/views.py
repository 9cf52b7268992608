"""What the external port and the host's way in have beside the agent's own methods."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from starlette.routing import BaseRoute

from enclave.agent.container_listing import ContainerHealth
from enclave.agent.guest import Guest
from enclave.agent.host_methods import Shutdown, host_methods
from enclave.agent.methods_v1 import HealthCheck, unwatched
from enclave.agent.pages import Observed, page_routes
from enclave.agent.procedures import Methods


class Views(NamedTuple):
    """Pages and Health for everybody, methods for the host. As it stands there are none."""

    pages: Sequence[BaseRoute] = ()
    health: HealthCheck = unwatched
    host: Methods | None = None


NO_VIEWS = Views()


def guest_views(
    guest: Guest,
    observed: Observed,
    shutdown: Shutdown,
    limits: Mapping[str, int],
    *,
    simulated: bool = False,
) -> Views:
    """Return what a guest shows of itself, by its app-compose."""
    runner = None if guest.compose is None else guest.compose.runner
    return Views(
        page_routes(guest, observed, simulated=simulated),
        ContainerHealth(observed.listing, runner),
        host_methods(observed, shutdown, limits),
    )

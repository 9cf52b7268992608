"""A guest's way in: known to its gateway, with a tunnel to it (spec deploy section 6.3 step 14)."""

import msgspec

from enclave.agent.issuers import certificate_issuer
from enclave.dstack_util.enclave_config import kms_endpoint
from enclave.dstack_util.gateway_cache import gateway_identity
from enclave.dstack_util.gateway_client import Gateway, GatewayClient, read_gateway
from enclave.dstack_util.machine import Machine
from enclave.dstack_util.setup_config import load_trust
from enclave.dstack_util.sys_config import SysConfig
from enclave.dstack_util.tunnel import bring_up
from enclave.log import log_event
from enclave.platform import Platform
from enclave.tee.peers import establish_trust
from shared.compose.model import AppCompose
from shared.errors import ConfigError
from shared.keys.app_keys_file import AppKeysFile


class Registrant(msgspec.Struct, frozen=True, kw_only=True):
    """A booted guest, as far as its gateway is concerned."""

    app_id: bytes
    keys: AppKeysFile
    compose: AppCompose
    sys_config: SysConfig

    def gateway(self) -> Gateway:
        """Return whom it registers with.

        Raises `ConfigError("gateway.disabled")` where app-compose wants none, and what `read_gateway` does.
        """
        if not self.compose.uses_gateway:
            raise ConfigError("gateway.disabled", "app-compose does not have gateway_enabled")
        return read_gateway(self.keys.gateway_app_id, self.keys.ca_cert, self.sys_config.gateway_urls)


def register(platform: Platform, machine: Machine, guest: Registrant, *, force: bool = False) -> None:
    """Register once, and make the tunnel what the gateway says; `force` makes the interface anew.

    1. Whom: by the guest's keys. 2. As whom: two certificates and a key, cached. 3. The gateway assigns an
    address and names its nodes. 4. The interface follows. Raises what these steps do.
    """
    gateway = guest.gateway()
    if gateway.app_id is None:
        log_event(
            "gateway.unchecked", message="gateway_app_id is any: whoever answers is taken for the gateway"
        )
    trust = establish_trust(platform, load_trust(platform).settings())
    issuer = certificate_issuer(
        guest.keys,
        app_id=guest.app_id,
        attestor=platform.tee.attestor(guest.app_id),
        verifier=trust.verifier,
        dialer=platform.dialer(),
        more_urls=[kms_endpoint(url).url for url in guest.sys_config.kms_urls],
        vm_config=guest.sys_config.vm_config,
    )
    identity = gateway_identity(machine, issuer, now=trust.clock.now())
    client = GatewayClient(gateway, dialer=platform.dialer(), now=trust.clock.now)
    tunnel = client.register(identity, guest.compose.port_policy)
    made = bring_up(machine, tunnel, identity.wireguard, force=force)
    log_event("gateway.tunnel", address=str(tunnel.address), nodes=len(tunnel.servers), made_anew=made)

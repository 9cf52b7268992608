"""Deployments of this machine's user: the store below the state directory, and the clouds from here."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from cli.deployments import Deployments, HereDeployments
from cli.places import cache_path, state_path
from cli.remote import RemoteDeployments, token_source
from functions.clouds.making import Clouds, google_bucket, google_compute, nitro_cloud
from functions.deploy.assembly import chain_settings, local_app, now
from functions.deploy.attesters import Attesters
from functions.deploy.cloud import LOCAL, Cloud
from functions.deploy.engine import Engine
from functions.deploy.planning import ChainSettings, Planner
from functions.deploy.runner import is_gone, this_holder
from functions.deploy.service import DeploymentService
from functions.deploy.tools import Tools
from functions.plan.cloud_image import find_image
from functions.plan.model import Plan
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.project import GlobalConfig
from shared.errors import ConfigError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient


def remote(url: str, environ: Mapping[str, str]) -> Deployments:
    """Return the deployments behind an API. Raises `ConfigError`: `api.url`, `api.token`."""
    http = HttpClient(DirectDialer())
    return RemoteDeployments(url, token_source(environ, http, url), http)


def here(config: GlobalConfig, environ: Mapping[str, str], chain: ChainSettings | None = None) -> Deployments:
    """Return the deployments of this machine's user."""
    return HereDeployments(*parts(config, environ, chain))


def parts(
    config: GlobalConfig, environ: Mapping[str, str], chain: ChainSettings | None = None
) -> tuple[DeploymentService, Engine]:
    """Return the service and the engine over the user's own store."""
    place = state_path(environ)
    store, blobs = SqliteStore(place / "deployments.sqlite"), FileBlobs(place / "blobs")
    clouds = Clouds(
        {
            "gcp-tdx": partial(_gcp, config, environ),
            "aws-nitro": partial(_nitro, config, environ),
            LOCAL: partial(_local, config, environ, place),
        }
    )
    workspace = place / "work"
    workspace.mkdir(parents=True, exist_ok=True)
    planner = Planner(config, cache_path(environ), chain or ChainSettings(), workspace=workspace, local=True)
    engine = Engine(
        store,
        blobs,
        clouds,
        Tools(planner, Attesters(clouds, environ, now)),
        clock=now,
        holder=this_holder(),
        is_gone=is_gone,
    )
    # whoever asked follows it in this process; a queue would call somebody else
    return DeploymentService(store, blobs, clouds, lambda _name, _seconds: None, now), engine


def chain_of(rpc_urls: Sequence[str], kms_contract: bytes | None, chain_id: int | None) -> ChainSettings:
    """Return which chain is asked; both or neither of URLs and contract.

    Raises `ConfigError`: `deploy.kms_contract`, `deploy.chain_id`, and as `chain_settings`.
    """
    if not rpc_urls:
        if chain_id is not None:
            raise ConfigError("deploy.chain_id", "--chain-id needs --rpc: the endpoint to ask")
        return ChainSettings()
    if kms_contract is None:
        raise ConfigError("deploy.kms_contract", "--rpc needs --kms-contract: the contract to ask")
    return chain_settings(rpc_urls, kms_contract, chain_id)


def _gcp(config: GlobalConfig, environ: Mapping[str, str]) -> Cloud:
    from functions.clouds.gcp_tdx import GcpTdxCloud  # noqa: PLC0415 - each command uses one cloud

    return GcpTdxCloud(
        google_compute(environ),
        partial(google_bucket, environ),
        boot_disks=partial(_boot_disk, config),
        defaults=config.gcp,
    )


def _nitro(config: GlobalConfig, environ: Mapping[str, str]) -> Cloud:
    return nitro_cloud(environ, now, config.nitro)


def _local(config: GlobalConfig, environ: Mapping[str, str], place: Path) -> Cloud:
    from functions.clouds.local import LocalCloud  # noqa: PLC0415 - as above

    paths = [Path(path).expanduser() for path in config.image_search_paths]
    return LocalCloud(
        place / LOCAL, python=sys.executable, image_search_paths=paths, stand_in=local_app(environ)
    )


def _boot_disk(config: GlobalConfig, plan: Plan) -> Path | None:
    """Return the boot disk of a plan's OS image, where it is on this machine."""
    try:
        image = find_image(plan.image.source, config.image_search_paths, Path())
    except ConfigError:
        return None
    disk = image / "disk.raw"
    return disk if disk.exists() else None

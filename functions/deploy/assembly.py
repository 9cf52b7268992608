"""From the environment to a running deploy function: store, blobs, queue, clouds, chain, verifier.

DSTACK_STORE     dynamodb:TABLE | firestore:PROJECT/DATABASE | sqlite:PATH
DSTACK_BLOBS     s3:BUCKET | gcs:BUCKET | dir:PATH
DSTACK_QUEUE     sqs:URL | tasks:QUEUE|WORKER_URL|SERVICE_ACCOUNT | here (a thread, for one process)
DSTACK_CLOUDS    gcp-tdx,aws-nitro | local
DSTACK_CONFIG    the operator's settings, as in ~/.config/dstack-cloud/config.json, as JSON text
DSTACK_RPC_URL, DSTACK_KMS_CONTRACT, DSTACK_CHAIN_ID   the chain that is asked; without them nobody is.
                 Several URLs have spaces between them: a grant counts that their quorum agrees on
DSTACK_RPC_QUORUM   how many of them must agree; a majority where unset, and one for one URL alone
DSTACK_RPC_MAX_HEAD_AGE   seconds that the newest block may be old
DSTACK_VERIFIER_...   trust anchors, policy and collateral, as of the verify function
DSTACK_ARTIFACT_BUCKET, DSTACK_FORWARDER   where enclave images go, and what their parents run (aws-nitro)
DSTACK_CACHE_DIR   where images are built
DSTACK_SERVICE_ACCOUNTS   service accounts that projects may give to their machines (gcp-tdx)
DSTACK_INTERNAL_HOSTS   names of registries and file servers in our own network that projects may name
DSTACK_PROGRESS_URL   base URL at which guests reach this API to tell how they boot; without it none does
DSTACK_LOCAL_DIR, DSTACK_LOCAL_PYTHON   where simulated machines are, and what runs them (local)
DSTACK_LOCAL_APP   a command that runs in the place of an app that a simulated enclave's init starts (local)
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from functions.clouds.making import (
    Clouds,
    google_bucket,
    google_compute,
    nitro_cloud,
)
from functions.deploy.cloud import LOCAL, Cloud
from functions.deploy.engine import Engine
from functions.deploy.places import open_queue, open_store, split_place
from functions.deploy.places import unset as _unset
from functions.deploy.runner import this_holder
from functions.deploy.service import DeploymentService
from functions.deploy.store import BlobStore, DeploymentStore, Schedule
from shared.chain.agreement import majority
from shared.compose.project import GlobalConfig, read_global_config
from shared.hex import decode_hex_setting

if TYPE_CHECKING:
    from functions.deploy.planning import ChainSettings
    from functions.deploy.tools import Tools

DEFAULT_CACHE: Final = "/tmp/dstack"  # noqa: S108 - what a Lambda function may write to; digests are checked
CLOUDS: Final = ("gcp-tdx", "aws-nitro", LOCAL)
MAX_AGE: Final = 366 * 24 * 3600
RPC_TIMEOUT: Final = 10.0
RPC_REST_SECONDS: Final = 50.0
"""An endpoint that hangs holds up one look of a minute, once, where more are named than must agree."""


def now() -> int:
    """Return the time in unix seconds."""
    return int(time.time())


class Runtime:
    """What one environment runs on. Each part is made when it is first needed, and kept.

    Raises `ConfigError("deploy.settings")` naming the variable, when a part is made.
    """

    def __init__(self, environ: Mapping[str, str], clock: Callable[[], int] = now) -> None:
        self._environ = environ
        self.clock = clock

    @cached_property
    def store(self) -> DeploymentStore:
        """The records."""
        return open_store(self._environ)

    @cached_property
    def blobs(self) -> BlobStore:
        """The files."""
        kind, place = split_place(self._environ, "DSTACK_BLOBS", "s3", "gcs", "dir")
        if kind == "s3":
            from functions.aws_api import aws_client  # noqa: PLC0415 - each environment has one of the three
            from functions.stores.s3 import S3Blobs  # noqa: PLC0415

            return S3Blobs(place, aws_client("s3"))
        if kind == "gcs":
            from functions.stores.gcs import GcsBlobs  # noqa: PLC0415

            return GcsBlobs(google_bucket(self._environ, place))
        from functions.stores.sqlite import FileBlobs  # noqa: PLC0415

        return FileBlobs(Path(place))

    @cached_property
    def schedule(self) -> Schedule:
        """The queue."""
        if self._environ.get("DSTACK_QUEUE") == "here":
            return self._here()
        return open_queue(self._environ)

    def _here(self) -> Schedule:
        """Return a queue in this process, with what an earlier process left undone."""
        from functions.deploy.reconcile import sweep  # noqa: PLC0415
        from functions.queues.in_process import InProcessSchedule  # noqa: PLC0415

        schedule = InProcessSchedule(lambda name: self.engine.advance(name))  # noqa: PLW0108 - made when called
        sweep(self.store, schedule, self.clock(), overdue=0)
        return schedule

    @cached_property
    def config(self) -> GlobalConfig:
        """The operator's settings."""
        text = self._environ.get("DSTACK_CONFIG", "")
        return read_global_config(text.encode()) if text else GlobalConfig(image_search_paths=())

    @cached_property
    def clouds(self) -> Mapping[str, Cloud]:
        """The clouds that this environment may use."""
        names = [name.strip() for name in self._environ.get("DSTACK_CLOUDS", "").split(",") if name.strip()]
        if not names or set(names) - set(CLOUDS):
            raise _unset("DSTACK_CLOUDS", f"a list of {', '.join(CLOUDS)}")
        if LOCAL in names and len(names) > 1:
            # a caller chooses among them, and must not choose a simulated machine in place of a real one
            raise _unset("DSTACK_CLOUDS", f"{LOCAL} alone, or real clouds")
        return Clouds({name: partial(self._cloud, name) for name in names})

    @cached_property
    def service(self) -> DeploymentService:
        """What users ask."""
        return DeploymentService(self.store, self.blobs, self.clouds, self.schedule, self.clock)

    @cached_property
    def engine(self) -> Engine:
        """What carries deployments forward."""
        return Engine(
            self.store,
            self.blobs,
            self.clouds,
            self.tools,
            clock=self.clock,
            holder=this_holder(),
            progress_url=self._progress_url(),
        )

    @cached_property
    def tools(self) -> "Tools":
        """Planner and attester; an API alone loads neither."""
        from functions.deploy.attesters import Attesters  # noqa: PLC0415
        from functions.deploy.planning import Planner  # noqa: PLC0415
        from functions.deploy.tools import Tools  # noqa: PLC0415

        cache = Path(self._environ.get("DSTACK_CACHE_DIR") or DEFAULT_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        planner = Planner(
            self.config,
            cache / "images",
            self._chain(),
            workspace=cache,
            internal=self._listed("DSTACK_INTERNAL_HOSTS"),
        )
        return Tools(planner, Attesters(self.clouds, self._environ, self.clock))

    def _cloud(self, name: str) -> Cloud:
        if name == "gcp-tdx":
            from functions.clouds.gcp_limits import Limits  # noqa: PLC0415
            from functions.clouds.gcp_tdx import GcpTdxCloud  # noqa: PLC0415

            return GcpTdxCloud(
                google_compute(self._environ),
                partial(google_bucket, self._environ),
                defaults=self.config.gcp,
                limits=Limits(operator=self.config.gcp, accounts=self._listed("DSTACK_SERVICE_ACCOUNTS")),
            )
        if name == "aws-nitro":
            return nitro_cloud(self._environ, self.clock, self.config.nitro)
        try:
            from functions.clouds.local import LocalCloud  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise _unset("DSTACK_CLOUDS", "a real cloud: packages leave simulated machines out") from error
        if not (place := self._environ.get("DSTACK_LOCAL_DIR", "")):
            raise _unset("DSTACK_LOCAL_DIR", "a directory for simulated machines")
        python = self._environ.get("DSTACK_LOCAL_PYTHON") or sys.executable
        return LocalCloud(Path(place), python=python, stand_in=local_app(self._environ))

    def _progress_url(self) -> str:
        url = self._environ.get("DSTACK_PROGRESS_URL", "").rstrip("/")
        parts = urlsplit(url)
        is_here = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost"}
        if url and not (parts.hostname and not parts.query and (parts.scheme == "https" or is_here)):
            raise _unset("DSTACK_PROGRESS_URL", "the https url at which guests reach this api")
        return url

    def _chain(self) -> "ChainSettings":
        from functions.deploy.planning import ChainSettings  # noqa: PLC0415

        urls = self._environ.get("DSTACK_RPC_URL", "").split()
        if not urls:
            return ChainSettings()
        contract = decode_hex_setting(
            self._environ.get("DSTACK_KMS_CONTRACT", ""),
            what="DSTACK_KMS_CONTRACT",
            length=20,
            code="deploy.settings",
        )
        text = self._environ.get("DSTACK_CHAIN_ID", "")
        if not text.isascii() or not text.isdigit():
            raise _unset("DSTACK_CHAIN_ID", "the number of the chain that DSTACK_RPC_URL serves")
        return chain_settings(
            urls,
            contract,
            int(text),
            quorum=self._number("DSTACK_RPC_QUORUM", len(urls)),
            max_head_age=self._number("DSTACK_RPC_MAX_HEAD_AGE", MAX_AGE),
        )

    def _number(self, variable: str, most: int) -> int | None:
        text = self._environ.get(variable, "")
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and 1 <= int(text) <= most):
            raise _unset(variable, f"a number from 1 to {most}")
        return int(text)

    def _listed(self, variable: str) -> frozenset[str]:
        names = (name.strip().lower() for name in self._environ.get(variable, "").split(","))
        return frozenset(name for name in names if name)


def chain_settings(
    rpc_urls: Sequence[str],
    kms_contract: bytes,
    chain_id: int | None,
    *,
    quorum: int | None = None,
    max_head_age: int | None = None,
) -> "ChainSettings":
    """Return how to ask a chain about the contracts under `kms_contract` (20 bytes).

    Raises `ConfigError`: `rpc.url.invalid`, `quorum.config.*`.
    """
    from functions.deploy.planning import ChainSettings  # noqa: PLC0415
    from shared.net.agreed_reader import (  # noqa: PLC0415 - only where a chain is asked
        DEFAULT_MAX_HEAD_AGE,
        AgreedReader,
    )
    from shared.net.breaker import spare_endpoints  # noqa: PLC0415
    from shared.net.dialer import DirectDialer  # noqa: PLC0415
    from shared.net.fetch import HttpClient  # noqa: PLC0415
    from shared.net.json_rpc import JsonRpc  # noqa: PLC0415

    http = HttpClient(DirectDialer(), timeout=RPC_TIMEOUT)
    needed = quorum or majority(len(rpc_urls))
    reader = AgreedReader(
        spare_endpoints([JsonRpc(url, http) for url in rpc_urls], needed, RPC_REST_SECONDS),
        kms_contract,
        chain_id=chain_id,
        quorum=needed,
        max_head_age=max_head_age or DEFAULT_MAX_HEAD_AGE,
    )
    return ChainSettings(ask=reader.read, kms_contract=kms_contract)


def runtime_from_env(environ: Mapping[str, str] = os.environ) -> Runtime:
    """Return the runtime of an environment."""
    return Runtime(environ)


def service_from_env(environ: Mapping[str, str] = os.environ) -> DeploymentService:
    """Return the service of an environment. Raises `ConfigError("deploy.settings")`."""
    return Runtime(environ).service


def engine_from_env(environ: Mapping[str, str] = os.environ) -> Engine:
    """Return the engine of an environment. Raises `ConfigError("deploy.settings")`."""
    return Runtime(environ).engine


def local_app(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return what runs in the place of simulated enclaves' apps. Raises `ConfigError("deploy.settings")`."""
    try:
        return tuple(shlex.split(environ.get("DSTACK_LOCAL_APP", "")))
    except ValueError as error:
        raise _unset("DSTACK_LOCAL_APP", "a command line") from error

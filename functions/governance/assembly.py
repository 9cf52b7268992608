"""From the environment to a running governance function; `settings` lists the variables."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from functions.deploy.places import open_queue, open_store, split_place
from functions.deploy.quarantine import Quarantines
from functions.deploy.store import Schedule
from functions.google_api.endpoint import gcp_endpoint, google_session
from functions.governance.chain import AgreedChain
from functions.governance.governor import Governor
from functions.governance.notice import Notify
from functions.governance.notifier import Notifier
from functions.governance.receiver import Receiver
from functions.governance.reconciler import Reconciler
from functions.governance.secret_source import SecretCache, fetch_from
from functions.governance.service import GovernanceService
from functions.governance.settings import Settings, read_settings
from functions.governance.state import Memory
from shared.net.breaker import spare_endpoints
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from shared.net.quorum import ChainQuorum

RPC_TIMEOUT = 3.0
"""Seconds for a round trip; a look makes some six, and the function has 60."""

REST_SECONDS = 30.0
"""For which an endpoint that hung is left out: nobody waits for an answer here, and all is done again."""

STATE = "DSTACK_GOVERNANCE_STATE"
QUEUE = "DSTACK_GOVERNANCE_QUEUE"


def now() -> int:
    """Return the time in unix seconds."""
    return int(time.time())


def service_from_env(environ: Mapping[str, str], log: Notify) -> GovernanceService:
    """Return the service of an environment; `log` writes a notice as a line of the cloud's log.

    Raises `ConfigError`: `governance.settings`, `deploy.settings`, those of `ChainQuorum`.
    """
    settings = read_settings(environ)
    http = HttpClient(DirectDialer(), timeout=RPC_TIMEOUT)
    notify = Notifier(log, http, settings.notify_url)
    chain = _chain(settings, http)
    store = open_store(environ)
    memory = _memory(environ, now)
    quarantines = Quarantines(store, _engine_queue(environ), now)
    governor = Governor(chain, store, quarantines, notify, chain_id=settings.chain_id, clock=now)
    schedule = _schedule(environ, governor, notify)
    receiver = Receiver(
        SecretCache(settings.secrets, fetch_from(environ)).get,
        memory,
        schedule,
        notify,
        kms=settings.kms_contract,
        apps=governor.app_ids,
        chain_id=settings.chain_id,
    )
    reconciler = Reconciler(
        chain,
        governor,
        memory,
        schedule,
        notify,
        chain_id=settings.chain_id,
        clock=now,
        first_block=settings.first_block,
    )
    return GovernanceService(receiver, governor, reconciler, memory, schedule, notify, now)


def _chain(settings: Settings, http: HttpClient) -> AgreedChain:
    endpoints = spare_endpoints(
        [JsonRpc(url, http) for url in settings.rpc_urls], settings.quorum, REST_SECONDS
    )
    quorum = ChainQuorum(
        endpoints,
        chain_id=settings.chain_id,
        quorum=settings.quorum,
        allow_plain_http=settings.is_simulated,
        allow_single=settings.is_simulated,
    )
    return AgreedChain(
        endpoints,
        quorum,
        settings.kms_contract,
        quorum=settings.quorum,
        max_head_age=settings.max_head_age,
    )


def _memory(environ: Mapping[str, str], clock: Callable[[], int]) -> Memory:
    kind, place = split_place(environ, STATE, "dynamodb", "firestore", "sqlite")
    if kind == "dynamodb":
        from functions.aws_api import aws_client  # noqa: PLC0415 - each environment has one of the three
        from functions.governance.dynamodb_state import DynamoDbMemory  # noqa: PLC0415

        return DynamoDbMemory(place, aws_client("dynamodb"))
    if kind == "firestore":
        from functions.governance.firestore_state import FirestoreMemory  # noqa: PLC0415
        from functions.stores.firestore import BASE_URL  # noqa: PLC0415

        project, _, database = place.partition("/")
        base = gcp_endpoint(environ) or BASE_URL
        return FirestoreMemory(google_session(environ), project, database or "(default)", clock, base)
    from functions.governance.sqlite_state import SqliteMemory  # noqa: PLC0415

    return SqliteMemory(Path(place), clock)


def _engine_queue(environ: Mapping[str, str]) -> Schedule:
    if environ.get("DSTACK_QUEUE") == "poll":  # a runner on this machine looks at the store by itself
        return lambda _name, _seconds: None
    return open_queue(environ)


def _schedule(environ: Mapping[str, str], governor: Governor, notify: Notify) -> Schedule:
    if environ.get(QUEUE) != "here":
        return open_queue(environ, QUEUE)
    from functions.governance.here import InProcessLooks  # noqa: PLC0415 - development alone

    return InProcessLooks(governor, notify)

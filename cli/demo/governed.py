"""The app as a deployment that governance rules: its record, the function that reads events, and a runner.

The record and the function are those of the real thing. The runner polls the record and stops the app's
process where a cloud would stop a machine.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from cli.demo.functions import POLL_SECONDS, READY_SECONDS, start_function, wait_until_ok
from cli.demo.guests import Measured
from cli.demo.processes import Process, ProcessGroup
from functions.deploy.cloud import Cloud, Machine
from functions.deploy.engine import Engine
from functions.deploy.record import Deployment, Files, Goal, Planned, Running, Step, workload
from functions.deploy.runner import this_holder
from functions.deploy.steps import StepTools
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.errors import PolicyDenied, ProtocolError, UnavailableError
from shared.net.fetch import HttpClient

NAME: Final = "app"
_SECRET: Final = "DEMO_WEBHOOK_SECRET"  # noqa: S105 - a variable's name


class WebhookFunction:
    """The governance function, under functions-framework. It starts while the story goes on.

    `kms_contract` is 0x text. The function keeps its own state and the deployments in files below `work`.
    """

    def __init__(
        self, processes: ProcessGroup, work: Path, *, rpc_url: str, kms_contract: str, chain_id: int
    ) -> None:
        self.store = work / "deployments.sqlite"
        self._secret = secrets.token_hex(32)
        self._chain_id = chain_id
        self._url, self._process = start_function(
            processes,
            "governance",
            {
                "DSTACK_STORE": f"sqlite:{self.store}",
                "DSTACK_QUEUE": "poll",
                "DSTACK_GOVERNANCE_STATE": f"sqlite:{work / 'governance.sqlite'}",
                "DSTACK_GOVERNANCE_QUEUE": "here",
                "DSTACK_GOVERNANCE_RPC_URLS": rpc_url,
                "DSTACK_GOVERNANCE_SIMULATED": "true",
                "DSTACK_KMS_CONTRACT": kms_contract,
                "DSTACK_CHAIN_ID": str(chain_id),
                "DSTACK_WEBHOOK_SECRETS": f"plain=env:{_SECRET}",
                _SECRET: self._secret,
            },
        )

    def deliver(self, http: HttpClient, receipt: Mapping[str, Any], now: int) -> None:
        """Deliver a transaction's logs as a provider would; a forged delivery before it must be refused.

        Raises `PolicyDenied("demo.webhook.open")`, `ProtocolError("demo.webhook.status")`.
        """
        wait_until_ok(f"{self._url}/webhooks/plain", self._process)
        logs = [
            {
                "address": log["address"],
                "topics": [f"0x{bytes(topic).hex()}" for topic in log["topics"]],
                "blockHash": f"0x{bytes(log['blockHash']).hex()}",
                "blockNumber": log["blockNumber"],
                "logIndex": log["logIndex"],
            }
            for log in receipt["logs"]
        ]
        body = msgspec.json.encode({"id": secrets.token_hex(16), "chainId": self._chain_id, "logs": logs})
        if self._post(http, body, now, secrets.token_hex(32)) != 401:
            raise PolicyDenied("demo.webhook.open", "a delivery that nobody signed was taken")
        status = self._post(http, body, now, self._secret)
        if status != 200:
            raise ProtocolError("demo.webhook.status", f"the governance function answered {status}")

    def _post(self, http: HttpClient, body: bytes, now: int, secret: str) -> int:
        signature = hmac.new(secret.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "X-Dstack-Timestamp": str(now),
            "X-Dstack-Signature": f"sha256={signature}",
        }
        return http.request("POST", f"{self._url}/webhooks/plain", body, headers).status


class GovernedApp:
    """The running app's record, and a runner over it; `device_id` is its machine's in the contract."""

    def __init__(
        self,
        function: WebhookFunction,
        app: Process,
        measured: Measured,
        *,
        platform: str,
        app_id: bytes,
        device_id: bytes,
        now: Callable[[], int],
    ) -> None:
        self._store = SqliteStore(function.store)
        self._app = app
        planned = Planned(
            plan_id="demo",
            app_id=app_id.hex(),
            compose_hash=measured.compose_hash.hex(),
            os_image_hash=measured.os_image_hash.hex(),
            platform=platform,
            plan="",
        )
        self._store.create(
            Deployment(
                name=NAME,
                uid=secrets.token_hex(8),
                version=1,
                cloud="local",
                goal=Goal.RUNNING,
                step=Step.RUNNING,
                files=Files(project={}),
                settings={"device_id": device_id.hex()},
                planned=planned,
                running=Running(plan_id=planned.plan_id),
                launched=workload(planned),
                created_at=now(),
                updated_at=now(),
            )
        )
        # of a cloud the engine needs no more than this to stop what runs
        cloud = cast("Cloud", self)
        blobs = FileBlobs(function.store.with_name("blobs"))
        tools = cast("StepTools", None)
        self._engine = Engine(self._store, blobs, {"local": cloud}, tools, clock=now, holder=this_holder())

    def stop(self, work: object) -> Machine:
        """See `Cloud`: end the app's process."""
        del work
        self._app.stop()
        return Machine(status="TERMINATED")

    def poll_until_stopped(self) -> tuple[Deployment, int]:
        """Poll the record, as a runner does, until the app is stopped; return it, and how many polls it took.

        A poll runs all steps that are due. Counted are those after governance marked the record: how long
        endpoints take to agree on the block is theirs. Raises `UnavailableError("demo.governance.silent")`.
        """
        deadline = time.monotonic() + READY_SECONDS
        polls = 0
        while True:
            polls += self._store.get(NAME).quarantine is not None
            while self._engine.advance(NAME).seconds == 0:
                pass
            found = self._store.get(NAME)
            if found.step is Step.STOPPED and found.quarantine is not None:
                return found, max(polls, 1)  # the mark may come during the poll that acts on it
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        raise UnavailableError(
            "demo.governance.silent", f"the app still runs after {READY_SECONDS:.0f} seconds"
        )

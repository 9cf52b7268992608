"""A chain with the contracts, an app on it, and AWS on loopback, for the function and for its packages."""

import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from functions.deploy.record import Planned, Running, Step, workload
from functions.deploy.store import DeploymentStore
from functions.stores.dynamodb import DynamoDbStore
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from tests.conftest import CHAIN_ENGINE
from tests.functions.deploy.memory_cloud import some_deployment

if TYPE_CHECKING:
    from functions.aws_api import AwsClient
    from tests.fakes.aws import AwsServer

SECRET = "a secret of thirty characters."
COMPOSE, IMAGE, DEVICE = b"\x33" * 32, b"\x44" * 32, b"\x55" * 32
REGION = "eu-west-1"


@contextmanager
def open_site() -> Iterator[tuple[Chain, Governance]]:
    """Run a chain on which the contracts are, and an image is allowed."""
    with start_chain(CHAIN_ENGINE, block_time=0) as started:
        owner = Governance(started.url, started.accounts[0])
        owner.deploy()
        owner.settle(owner.add_os_image(IMAGE))
        yield started, owner


def make_table(client: "AwsClient") -> str:
    """Make a table for what the function remembers, as template.yaml does."""
    name = f"governance-{uuid4()}"
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


class Site:
    """A chain with one registered app whose compose hash is allowed; each test has an app of its own."""

    def __init__(self, chain: Chain, owner: Governance) -> None:
        self.chain = chain
        self.owner = owner
        self.app_id = owner.deploy_app(device_id=DEVICE, compose_hash=COMPOSE)
        self.settle()

    def settle(self) -> None:
        rpc = JsonRpc(self.chain.url, HttpClient(DirectDialer()))
        for _ in range(4):  # so that the newest change is final
            rpc.call("evm_mine")

    @property
    def environment(self) -> dict[str, str]:
        port = self.chain.url.rpartition(":")[2]
        return {
            "DSTACK_GOVERNANCE_RPC_URLS": f"http://127.0.0.1:{port} http://localhost:{port}",
            "DSTACK_GOVERNANCE_SIMULATED": "true",
            "DSTACK_KMS_CONTRACT": self.owner.kms.address,
            "DSTACK_CHAIN_ID": str(self.chain.chain_id),
        }

    def deploy(self, store: DeploymentStore, step: Step = Step.RUNNING) -> None:
        planned = Planned(
            plan_id="1",
            app_id=self.app_id.hex(),
            compose_hash=COMPOSE.hex(),
            os_image_hash=IMAGE.hex(),
            platform="gcp",
            plan="",
        )
        running = Running(evidence_url="http://192.0.2.7", plan_id="1") if step is Step.RUNNING else None
        store.create(
            some_deployment(
                step=step,
                planned=planned,
                running=running,
                launched=workload(planned) if running else None,
                settings={"device_id": f"0x{DEVICE.hex()}"},
            )
        )

    def remove(self) -> dict[str, Any]:
        """Remove the compose hash, and return the plain form of its event."""
        [receipt] = self.owner.settle(self.owner.remove_compose_hash(self.app_id, COMPOSE))
        return self.delivery(receipt)

    def delivery(self, receipt: Any) -> dict[str, Any]:
        """Return the plain form of a transaction's events."""
        logs = [
            {
                "address": log["address"],
                "topics": ["0x" + bytes(topic).hex() for topic in log["topics"]],
                "blockHash": "0x" + bytes(log["blockHash"]).hex(),
                "blockNumber": hex(log["blockNumber"]),
                "logIndex": hex(log["logIndex"]),
            }
            for log in receipt["logs"]
        ]
        return {"id": str(uuid4()), "chainId": self.chain.chain_id, "logs": logs}


def signed(document: object) -> tuple[str, dict[str, str]]:
    body, stamp = json.dumps(document), str(int(time.time()))
    digest = hmac.new(SECRET.encode(), f"{stamp}.{body}".encode(), hashlib.sha256).hexdigest()
    return body, {"X-Dstack-Timestamp": stamp, "X-Dstack-Signature": f"sha256={digest}"}


class Amazon:
    """Tables, queues and a secret, and what the environment says of them."""

    def __init__(self, server: "AwsServer", site: Site) -> None:
        self.sqs = server.client("sqs")
        self.engine_queue, self.looks = (
            self.sqs.create_queue(QueueName=f"q-{uuid4()}")["QueueUrl"] for _ in range(2)
        )
        from tests.fakes.aws import make_table as make_store  # noqa: PLC0415 - moto takes a second

        table = make_store(server, f"deployments-{uuid4()}")
        self.store = DynamoDbStore(table, server.client("dynamodb"))
        name = f"hooks/{uuid4()}"
        server.client("secretsmanager").create_secret(Name=name, SecretString=SECRET)
        self.environment = site.environment | {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "DSTACK_STORE": f"dynamodb:{table}",
            "DSTACK_QUEUE": f"sqs:{self.engine_queue}",
            "DSTACK_GOVERNANCE_STATE": f"dynamodb:{make_table(server.client('dynamodb'))}",
            "DSTACK_GOVERNANCE_QUEUE": f"sqs:{self.looks}",
            "DSTACK_WEBHOOK_SECRETS": f"plain=aws:{name}",
        }

    def take(self, queue: str) -> list[dict[str, Any]]:
        """Return what waits in a queue, as Lambda's event source hands it over."""
        found = self.sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
        return [{"messageId": one["MessageId"], "body": one["Body"], "attributes": {}} for one in found]

"""The packages of the deploy function at work over stand-ins of the clouds: requests, messages, sweeps."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.cloud_tasks import QUEUE, CloudTasks
from tests.fakes.compute import ComputeFake
from tests.fakes.firestore import Firestore
from tests.fakes.google_rest import GoogleRest
from tests.fakes.storage import Storage
from tests.functions.deploy.issuer import Issuer, jwk, rsa_key, sign
from tests.functions.deploy.uploads import (
    app_json,
    body,
    github_claims,
    github_grant,
    grants_file,
    project,
)
from tests.packaging.conftest import Artefacts
from tests.packaging.runtime_api import RunningFunction, running
from tests.packaging.serving import serving
from tests.packaging.test_template import read_template

if TYPE_CHECKING:
    from tests.fakes.aws import AwsServer

GRANT = github_grant(verbs=["deploy", "read", "remove"])
AUTHORIZED = {"authorizer": {"jwt": {"claims": github_claims(), "scopes": None}}}
NITRO = {
    "image": "registry.invalid/web@sha256:" + "ab" * 32,
    "instance_type": "m5.xlarge",
    "memory_mib": 1 << 20,
    "iam_instance_profile": "parents",
}


class OnAws:
    """Table, bucket and queue of one test, and the deploy package over them."""

    _numbers = itertools.count(1)

    def __init__(self, aws: "AwsServer", artefacts: Artefacts, directory: Path) -> None:
        name = f"packaged-{os.getpid()}-{next(self._numbers)}"
        table = read_template()["Resources"]["Table"]["Properties"]
        aws.client("dynamodb").create_table(
            TableName=name,
            **{key: table[key] for key in ("BillingMode", "AttributeDefinitions", "KeySchema")},
        )
        place = {"LocationConstraint": aws.client("s3").meta.region_name}
        aws.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=place)
        aws.client("s3").put_object(Bucket=name, Key="grants.json", Body=grants_file(GRANT))
        self.sqs, self.dynamodb = aws.client("sqs"), aws.client("dynamodb")
        self.queue = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        self.table = name
        self._artefacts, self._directory = artefacts, directory
        self._package = artefacts.unpacked("deploy")
        self._environ = {
            "AWS_ENDPOINT_URL": aws.url,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "DSTACK_STORE": f"dynamodb:{name}",
            "DSTACK_BLOBS": f"s3:{name}",
            "DSTACK_QUEUE": f"sqs:{self.queue}",
            "DSTACK_CLOUDS": "aws-nitro",
            "DSTACK_GRANTS": f"s3:{name}/grants.json",
            "DSTACK_CONFIG": json.dumps({"nitro": {"region": "eu-west-1", "bucket": name}}),
            "DSTACK_ARTIFACT_BUCKET": name,
            "DSTACK_FORWARDER": str(self._package / "forwarder.tar.gz"),
            "DSTACK_CACHE_DIR": str(directory / "cache"),
        }

    def run(self, handler: str) -> AbstractContextManager[RunningFunction]:
        return running(self._package, self._artefacts.awslambdaric(), handler, self._directory, self._environ)

    def messages(self) -> list[dict[str, Any]]:
        """Take what waits in the queue, as the event source hands it on."""
        found = self.sqs.receive_message(QueueUrl=self.queue, AttributeNames=["All"], MaxNumberOfMessages=10)
        return [
            {"messageId": one["MessageId"], "body": one["Body"], "attributes": one["Attributes"]}
            for one in found.get("Messages", [])
        ]


@pytest.fixture
def on_aws(aws: "AwsServer", artefacts: Artefacts, tmp_path: Path) -> OnAws:
    return OnAws(aws, artefacts, tmp_path)


def test_a_deployment_goes_from_a_request_by_a_message_to_what_the_cloud_says(on_aws: OnAws) -> None:
    files = project(platform="nitro", nitro_config=NITRO)
    with on_aws.run("functions.deploy.aws.handler") as api:
        status, made = api.http("POST", "/v1/deployments", json.loads(body(files=files)), **AUTHORIZED)
        assert (status, made["step"], made["cloud"]) == (202, "prepare", "aws-nitro")
        assert api.http("GET", "/v1/deployments/web", **AUTHORIZED)[1]["uid"] == made["uid"]
    messages = on_aws.messages()
    assert [message["body"] for message in messages] == ['{"name":"web"}']
    with on_aws.run("functions.deploy.aws_worker.handler") as worker:
        assert worker.invoke({"Records": messages}) == {"batchItemFailures": []}
    with on_aws.run("functions.deploy.aws.handler") as api:
        status, now = api.http("GET", "/v1/deployments/web", **AUTHORIZED)
    # EC2, Systems Manager and S3 were asked, and the forwarder of the package was read
    assert (status, now["step"], now["failure"]["code"]) == (200, "failed", "nitro.memory_mib"), now
    assert "m5.xlarge has 16384" in now["failure"]["message"]


def test_the_api_denies_by_default(on_aws: OnAws) -> None:
    with on_aws.run("functions.deploy.aws.handler") as api:
        assert api.http("GET", "/v1/deployments")[0] == 401
        other = {"authorizer": {"jwt": {"claims": github_claims(repository_id="9")}}}
        status, answer = api.http("POST", "/v1/deployments", json.loads(body()), **other)
        assert (status, answer["code"]) == (403, "deploy.forbidden")
        assert api.http("POST", "/v1/deployments/web/stop", **AUTHORIZED)[0] == 403
    assert not on_aws.messages()


def test_a_message_that_failed_is_told_to_the_queue_and_one_that_never_can_succeed_is_not(
    on_aws: OnAws,
) -> None:
    sent = {"SentTimestamp": "1767225600000", "ApproximateReceiveCount": "1"}
    records = [
        {"messageId": "1", "body": "no message", "attributes": sent},
        {"messageId": "2", "body": '{"name":"nobody"}', "attributes": sent},
    ]
    with on_aws.run("functions.deploy.aws_worker.handler") as worker:
        assert worker.invoke({"Records": records}) == {"batchItemFailures": []}
        on_aws.dynamodb.delete_table(TableName=on_aws.table)
        assert worker.invoke({"Records": records}) == {"batchItemFailures": [{"itemIdentifier": "2"}]}
        assert "aws.dynamodb.table" in worker.log()


def test_the_sweep_finds_a_deployment_whose_message_was_lost(on_aws: OnAws) -> None:
    with on_aws.run("functions.deploy.aws.handler") as api:
        files = project(platform="nitro", nitro_config=NITRO)
        assert api.http("POST", "/v1/deployments", json.loads(body(files=files)), **AUTHORIZED)[0] == 202
    assert len(on_aws.messages()) == 1
    key = {"pk": {"S": "name#web"}, "sk": {"S": "record"}}
    item = on_aws.dynamodb.get_item(TableName=on_aws.table, Key=key)["Item"]
    (field,) = [name for name, value in item.items() if b'"updated_at"' in _bytes(value)]
    record = json.loads(_bytes(item[field])) | {"updated_at": int(time.time()) - 3600}
    kind = next(iter(item[field]))
    text = json.dumps(record)
    item[field] = {kind: text.encode() if kind == "B" else text}
    with on_aws.run("functions.deploy.aws_worker.sweep_handler") as sweep:
        assert sweep.invoke({}) == {"overdue": 0}
        on_aws.dynamodb.put_item(TableName=on_aws.table, Item=item)
        assert sweep.invoke({}) == {"overdue": 1}
    assert [message["body"] for message in on_aws.messages()] == ['{"name":"web"}']


def _bytes(value: dict[str, Any]) -> bytes:
    (inner,) = value.values()
    return inner if isinstance(inner, bytes) else str(inner).encode()


class OnGoogle:
    """The APIs that the deploy function calls, with an issuer of tokens."""

    def __init__(self, directory: Path) -> None:
        self.rest = GoogleRest(["firestore.v1", "storage.v1", "cloudtasks.v2", "compute.v1"])
        self.firestore, self.storage = Firestore(self.rest), Storage(self.rest)
        self.tasks = CloudTasks(self.rest, now=int(time.time()))
        ComputeFake(self.rest, lambda _bucket, _key: None, project="p1")
        self.issuer, self.key = Issuer(directory), rsa_key()
        self.issuer.publish(jwk(self.key, "k1"))
        (directory / "ca.pem").write_bytes(self.issuer.certificate)
        grant = GRANT | {"issuer": self.issuer.url}
        self.environ = {
            "SSL_CERT_FILE": str(directory / "ca.pem"),
            "DSTACK_GCP_ENDPOINT": self.rest.url,
            "DSTACK_STORE": "firestore:p1/(default)",
            "DSTACK_BLOBS": "gcs:bucket",
            "DSTACK_QUEUE": f"tasks:{QUEUE}|https://worker.example.com/internal/advance|q@p1.iam",
            "DSTACK_CLOUDS": "gcp-tdx",
            "DSTACK_GRANTS": grants_file(grant).decode(),
            "DSTACK_CACHE_DIR": str(directory / "cache"),
        }

    def bearer(self, **claims: Any) -> dict[str, str]:
        now = int(time.time())
        wanted = github_claims(iss=self.issuer.url, iat=now, nbf=now, exp=now + 300, **claims)
        return {"Authorization": f"Bearer {sign(wanted, self.key, 'k1')}"}


@pytest.fixture
def on_google(tmp_path: Path) -> Iterator[OnGoogle]:
    made = OnGoogle(tmp_path)
    try:
        with made.rest:
            yield made
    finally:
        made.issuer.close()
    assert made.rest.violations == []


def test_the_staged_source_answers_pipelines_and_lets_nobody_else_in(
    on_google: OnGoogle, artefacts: Artefacts, tmp_path: Path
) -> None:
    files = {**project(), "app.json": app_json(gcp_config={"project": "p1", "zone": "us-central1-z"})}
    upload = json.loads(body(files=files))
    with serving(artefacts, "deploy", "deploy", tmp_path, on_google.environ) as call:
        assert call("POST", "/v1/deployments", upload)[0] == 401
        stranger = on_google.bearer(repository_id="9")
        assert call("POST", "/v1/deployments", upload, **stranger)[0] == 403
        assert call("POST", "/v1/deployments", upload, **on_google.bearer(aud="other"))[0] in {401, 403}
        assert call("POST", "/internal/advance", {"name": "web"})[0] == 401
        assert on_google.tasks.bodies() == []
        status, made = call("POST", "/v1/deployments", upload, **on_google.bearer())
        assert (status, made["step"], made["cloud"]) == (202, "prepare", "gcp-tdx")
    assert on_google.tasks.bodies() == [b'{"name":"web"}']
    # the worker's step, by what is staged; its gate wants a token of Google's own
    script = (
        "import json, sys; sys.path[:0] = sys.argv[1:3]\n"
        "from functions.deploy.assembly import runtime_from_env\n"
        "runtime = runtime_from_env(); after = runtime.engine.advance('web')\n"
        "print(json.dumps([after.step, runtime.store.get('web').failure.message]))"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-S", "-c", script),
            *(str(artefacts.source("deploy")[1]), str(artefacts.requirements("deploy"))),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **on_google.environ},
    )
    assert done.returncode == 0, done.stderr
    step, message = json.loads(done.stdout)
    assert (step, "us-central1-z" in message) == ("failed", True), message
    called = {request.method_id for request in on_google.rest.calls}
    assert called >= {
        "compute.projects.get",
        "compute.zones.get",
        "firestore.projects.databases.documents.commit",
    }

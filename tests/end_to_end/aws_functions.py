"""The deploy function on AWS, as its stack has it: the zip behind an HTTP API, a worker behind a queue."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from functions.deploy.oidc import TokenVerifier, bearer_token
from shared.errors import DstackError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.end_to_end.aws_site import PROFILE, AwsSite
from tests.end_to_end.gcp_site import verifier_environment
from tests.end_to_end.pipeline import GITHUB_HOST, GRANTS, Identities, Pump
from tests.end_to_end.shared_clock import PRELUDE, SharedClock
from tests.fakes.aws import REGION, Answer, Environ, StartResponse
from tests.fakes.nitro_aws import NitroAws
from tests.functions.deploy.uploads import AUDIENCE
from tests.packaging.conftest import Artefacts
from tests.packaging.runtime_api import BOOT, FunctionError, RunningFunction, RuntimeApi, http_event
from tests.packaging.test_template import read_template

_NO_CALLS = 0.02  # seconds between two looks at a queue that nobody writes to


class WatchedAws(NitroAws):
    """AWS with `after`, which is told of each action of EC2 that had its effect, before it is answered."""

    after: Callable[[str], object] = staticmethod(lambda _action: None)

    def _ec2(self, environ: Environ, start_response: StartResponse, form: dict[str, str]) -> Answer:
        answer = super()._ec2(environ, start_response, form)
        self.after(form.get("Action", ""))
        return answer


class Function:
    """One Lambda function: a process of the package at a time, a new one where the last one ended."""

    def __init__(
        self, handler: str, package: Path, runtime: Path, environment: Mapping[str, str], log: Path
    ) -> None:
        self._command = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            PRELUDE + BOOT,
            str(package),
            str(runtime),
            handler,
        ]
        self._package = package
        self._environment = environment
        self._log = log
        self._lock = threading.Lock()
        self._ended = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.close()

    def invoke(self, event: Any) -> Any:
        """Return the answer to an event. Raises `FunctionError`, also for a process that ended at it."""
        with self._lock:
            assert self._process is not None
            if self._process.poll() is not None:
                self._start()
            return self._running.invoke(event)

    def kill(self) -> None:
        """End the process and what it is doing, at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._ended.close()
        self.starts += 1
        api = self._ended.enter_context(RuntimeApi())
        thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                env=dict(self._environment) | {"AWS_LAMBDA_RUNTIME_API": api.address},
                cwd=self._package,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._running = RunningFunction(api, self._process, self._log)

        def end() -> None:
            self.kill()
            api.events.put(None)
            api.shutdown()
            thread.join()

        self._ended.callback(end)


class Gateway(ThreadingHTTPServer):
    """An HTTP API with a JWT authorizer in front of a function (payload format 2.0)."""

    daemon_threads = True

    def __init__(self, function: Function, who: Identities, clock: SharedClock) -> None:
        super().__init__(("127.0.0.1", 0), _GatewayHandler)
        self.function = function
        self._clock = clock
        http = HttpClient(_Resolver(who.hosts), who.ca_file.read_bytes())
        self._tokens = TokenVerifier([f"https://{GITHUB_HOST}"], AUDIENCE, http)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        """Return the function's answer, or the gateway's own."""
        try:
            claims = self._tokens.verify(bearer_token(headers), self._clock())
        except DstackError:
            return _own_answer(401, "Unauthorized")
        parts = urlsplit(target)
        # the authorizer hands on texts alone
        texts = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in claims.items()
        }
        authorizer = {"jwt": {"claims": texts, "scopes": None}}
        event = http_event(method, parts.path, None, parts.query, authorizer=authorizer)
        event |= {"headers": headers, "body": body.decode()} if body else {"headers": headers}
        try:
            answer = self.function.invoke(event)
        except FunctionError:
            return _own_answer(503, "Service Unavailable")
        assert isinstance(answer, dict)
        return answer


class _GatewayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.answer(self.command, self.path, headers, body)
        content = answer["body"].encode()
        self.send_response(answer["statusCode"])
        for name, value in answer["headers"].items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815 - names of the base class

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


def _own_answer(status: int, message: str) -> dict[str, Any]:
    body = json.dumps({"message": message})
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": body}


class _Resolver(DirectDialer):
    """Reaches issuers on this machine."""

    def __init__(self, hosts: Mapping[str, int]) -> None:
        self._hosts = hosts

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        return super().dial("127.0.0.1", self._hosts[host] if port == 443 else port, timeout)


class AwsFunctions:
    """`url` is the API's, `worker` what the queue's messages go to; `failed` how often it failed."""

    def __init__(
        self, site: AwsSite, artefacts: Artefacts, place: Path, who: Identities, clock: SharedClock
    ) -> None:
        self._site = site
        self._clock = clock
        self._step = 1
        self.failed = 0
        resources = read_template()["Resources"]
        self._sqs = site.aws.new_client("sqs")
        self._queue = self._sqs.create_queue(
            QueueName=site.bucket,
            Attributes={"VisibilityTimeout": str(resources["Queue"]["Properties"]["VisibilityTimeout"])},
        )["QueueUrl"]
        table = resources["Table"]["Properties"]
        site.aws.lasting_client("dynamodb").create_table(
            TableName=site.bucket,
            **{key: table[key] for key in ("BillingMode", "AttributeDefinitions", "KeySchema")},
        )
        site.aws.lasting_client("s3").put_object(Bucket=site.bucket, Key="grants.json", Body=GRANTS)
        package = artefacts.unpacked("deploy")
        place.mkdir()
        config = {"nitro": {"region": REGION, "bucket": site.bucket, "iam_instance_profile": PROFILE}}
        variables = {
            "DSTACK_STORE": f"dynamodb:{site.bucket}",
            "DSTACK_BLOBS": f"s3:{site.bucket}",
            "DSTACK_QUEUE": f"sqs:{self._queue}",
            "DSTACK_CLOUDS": "aws-nitro",
            "DSTACK_CONFIG": json.dumps(config),
            "DSTACK_RPC_URL": "",
            "DSTACK_RPC_QUORUM": "",
            "DSTACK_KMS_CONTRACT": "",
            "DSTACK_CHAIN_ID": "",
            "DSTACK_GRANTS": f"s3:{site.bucket}/grants.json",
            "DSTACK_ARTIFACT_BUCKET": site.bucket,
            "DSTACK_FORWARDER": str(package / "forwarder.tar.gz"),
            "DSTACK_CACHE_DIR": str(place / "cache"),
            "DSTACK_INTERNAL_HOSTS": "localhost",  # where the registry is
        }
        given = resources["DeployFunction"]["Properties"]["Environment"]["Variables"]
        assert {name for name in given if not name.startswith("DSTACK_VERIFIER_")} <= set(variables), given
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
            "HOME": str(place),
            "TMPDIR": str(place),
            "LAMBDA_TASK_ROOT": str(package),
            "AWS_LAMBDA_FUNCTION_NAME": "deploy",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": site.aws.url,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "throw-away",
            "SSL_CERT_FILE": str(who.ca_file),
            **variables,
            **verifier_environment(place, site.guests.roots),
            **clock.environment(who.hosts),
        }
        runtime = artefacts.awslambdaric()
        self.api, self.worker = (
            Function(f"functions.deploy.{handler}.handler", package, runtime, environment, place / handler)
            for handler in ("aws", "aws_worker")
        )
        self.gateway = Gateway(self.api, who, clock)

    @property
    def url(self) -> str:
        return self.gateway.url

    def turn(self) -> bool:
        """Hand a message to the worker, as the event source does; where none is due, let time pass."""
        found = self._sqs.receive_message(
            QueueUrl=self._queue, AttributeNames=["All"], MaxNumberOfMessages=1
        ).get("Messages", [])
        for message in found:
            self._step = 1
            record = {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message["Attributes"],
                "eventSource": "aws:sqs",
                "awsRegion": REGION,
            }
            try:
                answer = self.worker.invoke({"Records": [record]})
            except FunctionError:
                self.failed += 1  # the message is seen again after its visibility timeout
                continue
            if answer["batchItemFailures"]:
                self.failed += 1
            else:
                self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])
        if not found and self._is_awaited():
            # when the next one is due is not said
            self._clock.skip(self._step)
            self._step *= 2
        elif not found:
            time.sleep(_NO_CALLS)
        return True

    def _is_awaited(self) -> bool:
        names = ["ApproximateNumberOfMessagesDelayed", "ApproximateNumberOfMessagesNotVisible"]
        found = self._sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=names)["Attributes"]
        return any(int(number) for number in found.values())

    def left(self, uid: str) -> dict[str, list[str]]:
        """Return what is left of a deployment but for its record and the files that were handed in."""
        found = self._site.left(uid)
        kept = [
            key for key in found.pop("object", []) if key != "grants.json" and not key.startswith("blobs/")
        ]
        return found | ({"object": kept} if kept else {})


@contextlib.contextmanager
def aws_functions(
    site: AwsSite,
    artefacts: Artefacts,
    place: Path,
    who: Identities,
    clock: SharedClock,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[AwsFunctions]:
    """Give the functions, with their API served and their queue at work, by the clock."""
    monkeypatch.setattr("moto.sqs.models.unix_time_millis", lambda: (time.time() + clock.skipped) * 1000)
    made = AwsFunctions(site, artefacts, place, who, clock)
    thread = threading.Thread(target=made.gateway.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        with made.api, made.worker, Pump(made.turn):
            yield made
    finally:
        made.gateway.shutdown()
        made.gateway.server_close()
        thread.join()

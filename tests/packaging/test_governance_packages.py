"""The packages of the governance function at work over a real node and stand-ins of the clouds."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from functions.google_api.credentials import anonymous_credentials
from functions.google_api.rest import GoogleSession
from functions.stores.firestore import FirestoreStore
from tests.fakes.cloud_tasks import QUEUE, CloudTasks
from tests.fakes.firestore import Firestore
from tests.fakes.google_rest import GoogleRest
from tests.functions.governance.site import SECRET, Amazon, Site, open_site, signed
from tests.packaging.conftest import Artefacts
from tests.packaging.runtime_api import http_event, running
from tests.packaging.serving import serving

if TYPE_CHECKING:
    from tests.fakes.aws import AwsServer


@pytest.fixture(scope="module")
def chain() -> Iterator[tuple[Chain, Governance]]:
    with open_site() as found:
        yield found


@pytest.fixture
def site(chain: tuple[Chain, Governance]) -> Site:
    return Site(*chain)


def test_the_zip_stops_by_a_webhook_and_a_message(
    aws: "AwsServer", site: Site, artefacts: Artefacts, tmp_path: Path
) -> None:
    amazon = Amazon(aws, site)
    site.deploy(amazon.store)
    package, runtime = artefacts.unpacked("governance"), artefacts.awslambdaric()

    def run(handler: str) -> Any:
        entry = f"functions.governance.aws.{handler}"
        return running(package, runtime, entry, tmp_path, amazon.environment)

    body, headers = signed(site.remove())
    event = http_event("POST", "/webhooks/plain") | {"headers": headers, "body": body}
    with run("handler") as function:
        assert json.loads(function.invoke(event)["body"])["accepted"] == 2
        assert json.loads(function.invoke(event)["body"])["replayed"] is True
        forged = event | {"headers": headers | {"X-Dstack-Signature": "sha256=" + "00" * 32}}
        assert function.invoke(forged)["statusCode"] == 401
    with run("work_handler") as function:
        assert function.invoke({"Records": amazon.take(amazon.looks)}) == {"batchItemFailures": []}
    assert amazon.store.get("web").quarantine is not None
    with run("sweep_handler") as function:
        [drift] = function.invoke({})["drifts"]
        # the engine has not stopped it yet
        assert (drift["kind"], drift["acted"]) == ("runs_what_is_not_allowed", False)


def test_the_staged_source_takes_webhooks_and_lets_nobody_else_work(
    site: Site, artefacts: Artefacts, tmp_path: Path
) -> None:
    with GoogleRest(["firestore.v1", "cloudtasks.v2"]) as rest:
        Firestore(rest)
        tasks = CloudTasks(rest, now=int(time.time()))
        site.deploy(FirestoreStore(GoogleSession(anonymous_credentials()), "p1", base_url=rest.url))
        environ = site.environment | {
            "DSTACK_GCP_ENDPOINT": rest.url,
            "DSTACK_STORE": "firestore:p1/(default)",
            "DSTACK_QUEUE": f"tasks:{QUEUE}|https://worker.example.com/internal/advance|q@p1.iam",
            "DSTACK_GOVERNANCE_STATE": "firestore:p1/(default)",
            "DSTACK_GOVERNANCE_QUEUE": f"tasks:{QUEUE}|https://gov.example.com/internal/look|q@p1.iam",
            "DSTACK_WEBHOOK_SECRETS": "plain=env:HOOK",
            "HOOK": SECRET,
        }
        document = site.remove()
        _, headers = signed(document)
        with serving(artefacts, "governance", "governance", tmp_path, environ) as call:
            status, answer = call("POST", "/webhooks/plain", document, **headers)
            assert (status, answer["accepted"]) == (200, 2), answer
            assert call("POST", "/webhooks/plain", document, **headers)[1]["replayed"] is True
            assert call("POST", "/webhooks/plain", document)[0] == 401
            assert call("POST", "/internal/look", {"name": "look:all:0"})[0] == 401
            assert call("POST", "/internal/sweep")[0] == 401
        [message] = tasks.bodies()
        assert json.loads(message)["name"].startswith(f"look:0x{site.app_id.hex()}:")
    assert rest.violations == []

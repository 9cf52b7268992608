"""setup.sh and deploy.sh, run with a gcloud that writes down what it is asked."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from functions.clouds import gcp_compute
from functions.packaging.gcp_services import GcpService
from functions.packaging.gcp_source import deploy_script, setup_script
from functions.packaging.targets import GCP_FUNCTIONS
from tests.packaging.conftest import Artefacts

GIVEN = {
    "PROJECT": "p1",
    "REGION": "europe-west4",
    "BUCKET": "p1-dstack",
    "KMS_CONTRACT_ADDR": "0x" + "9f" * 20,
    "ETH_CHAIN_ID": "8453",
    "ETH_RPC_URL_SECRET": "rpc-url",
    "DSTACK_KMS_CONTRACT": "0x" + "9f" * 20,
    "DSTACK_CHAIN_ID": "8453",
    "DSTACK_GOVERNANCE_RPC_URLS_SECRET": "rpc-urls",
    "DSTACK_WEBHOOK_SECRETS": "plain=gcp:projects/p1/secrets/hook alchemy=gcp:projects/p1/secrets/alchemy",
}
FUNCTIONS = {function.name: function for function in GCP_FUNCTIONS}
GCLOUD = """#!{python}
import json, os, sys
with open(os.environ["SAID"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
# nothing is there yet
sys.exit(1 if "describe" in sys.argv and not os.environ.get("EXISTS") else 0)
"""


class Ran:
    """A script that ended, and the calls of gcloud that it made."""

    def __init__(self, done: "subprocess.CompletedProcess[str]", calls: list[list[str]]) -> None:
        self.status, self.error, self.calls = done.returncode, done.stderr, calls

    def deployed(self) -> dict[str, dict[str, str]]:
        """Return the options of each `functions deploy`, by the function's name."""
        return {call[2]: _options(call[3:]) for call in self.calls if call[:2] == ["functions", "deploy"]}


def _options(arguments: list[str]) -> dict[str, str]:
    assert all(one.startswith("--") for one in arguments), arguments
    return {name: value for name, _, value in (one.partition("=") for one in arguments)}


def run(artefacts: Artefacts, name: str, script: str, tmp_path: Path, **environ: str) -> Ran:
    binaries = tmp_path / "bin"
    binaries.mkdir(exist_ok=True)
    gcloud = binaries / "gcloud"
    gcloud.write_text(GCLOUD.format(python=sys.executable))
    gcloud.chmod(0o755)
    said = tmp_path / "said"
    said.write_text("")
    done = subprocess.run(
        [str(artefacts.source(name)[1] / script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{binaries}:{os.environ['PATH']}", "SAID": str(said), **environ},
        cwd=tmp_path,
    )
    return Ran(done, [json.loads(line) for line in said.read_text().splitlines()])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_service_is_deployed_as_described(artefacts: Artefacts, tmp_path: Path, name: str) -> None:
    ran = run(artefacts, name, "deploy.sh", tmp_path, **GIVEN)
    assert (ran.status, ran.error) == (0, "")
    deployed = ran.deployed()
    assert set(deployed) == {service.name for service in FUNCTIONS[name].services}
    version = artefacts.runtime.identifier.replace(".", "")
    for service in FUNCTIONS[name].services:
        options = deployed[service.name]
        assert options["--runtime"] == version
        assert (options["--project"], options["--region"]) == ("p1", "europe-west4")
        assert (options["--source"], options["--entry-point"]) == (".", service.target)
        assert options["--service-account"] == f"{service.name}@p1.iam.gserviceaccount.com"
        assert {"--gen2", "--trigger-http", "--allow-unauthenticated"} <= set(options)
        assert int(options["--max-instances"]) <= 20
        names = [pair.partition("=")[0] for pair in variables(options)]
        assert names == [setting.name for setting in service.settings]


def variables(options: dict[str, str]) -> list[str]:
    """Split as gcloud does: the separator stands between two carets."""
    _, separator, text = options["--set-env-vars"].split("^", 2)
    return text.split(separator)


def test_the_deploy_functions_settings_follow_from_project_region_and_bucket(
    artefacts: Artefacts, tmp_path: Path
) -> None:
    config = '{"gcp": {"zone": "europe-west4-a", "machine_type": "c3-standard-8"}}'
    ran = run(artefacts, "deploy", "deploy.sh", tmp_path, **GIVEN, DSTACK_CONFIG=config)
    worker = "https://europe-west4-p1.cloudfunctions.net/dstack-deploy-worker/internal/advance"
    account = "dstack-tasks@p1.iam.gserviceaccount.com"
    for options in ran.deployed().values():
        assert dict(pair.split("=", 1) for pair in variables(options)) == {
            "DSTACK_STORE": "firestore:p1/dstack",
            "DSTACK_BLOBS": "gcs:p1-dstack",
            "DSTACK_CLOUDS": "gcp-tdx",
            "DSTACK_QUEUE": f"tasks:projects/p1/locations/europe-west4/queues/dstack|{worker}|{account}",
            "DSTACK_GRANTS": "gcs:p1-dstack/grants.json",
            "DSTACK_CONFIG": config,
            "DSTACK_SERVICE_ACCOUNTS": "",
            "DSTACK_KMS_CONTRACT": GIVEN["DSTACK_KMS_CONTRACT"],
            "DSTACK_CHAIN_ID": "8453",
            "DSTACK_RPC_QUORUM": "",
            "DSTACK_VERIFIER_ATTESTATION__URLS__PCCS": "",
        }
        assert "--set-secrets" not in options
    (sweep,) = [call for call in ran.calls if call[:3] == ["scheduler", "jobs", "create"]]
    assert {
        f"--uri={worker.removesuffix('advance')}sweep",
        f"--oidc-token-audience={worker}",
        f"--oidc-service-account-email={account}",
    } <= set(sweep)


def test_the_chains_url_comes_from_a_secret(artefacts: Artefacts, tmp_path: Path) -> None:
    ran = run(artefacts, "authorize", "deploy.sh", tmp_path, **GIVEN)
    assert ran.deployed()["dstack-authorize"]["--set-secrets"] == "ETH_RPC_URL=rpc-url:latest"
    ran = run(artefacts, "deploy", "deploy.sh", tmp_path, **GIVEN, DSTACK_RPC_URL_SECRET="rpc")
    deployed = ran.deployed()
    assert deployed["dstack-deploy-worker"]["--set-secrets"] == "DSTACK_RPC_URL=rpc:latest"
    assert "--set-secrets" not in deployed["dstack-deploy"]


@pytest.mark.parametrize("missing", ["PROJECT", "REGION", "KMS_CONTRACT_ADDR", "ETH_RPC_URL_SECRET"])
def test_what_is_missing_is_named_before_anything_is_deployed(
    artefacts: Artefacts, tmp_path: Path, missing: str
) -> None:
    given = {name: value for name, value in GIVEN.items() if name != missing}
    ran = run(artefacts, "authorize", "deploy.sh", tmp_path, **given)
    assert ran.status != 0
    assert f"{missing}: " in ran.error
    assert ran.calls == []


@pytest.mark.parametrize("exists", ["", "1"])
def test_setup_makes_what_is_not_there(artefacts: Artefacts, tmp_path: Path, exists: str) -> None:
    ran = run(artefacts, "deploy", "setup.sh", tmp_path, **GIVEN, EXISTS=exists)
    assert (ran.status, ran.error) == (0, "")
    made = sorted(" ".join(call[: call.index("create") + 2]) for call in ran.calls if "create" in call)
    assert made == (
        []
        if exists
        else [
            "firestore databases create --database=dstack",
            "iam roles create dstack_deploy",
            "iam roles create dstack_deploy_worker",
            "iam service-accounts create dstack-deploy",
            "iam service-accounts create dstack-deploy-worker",
            "iam service-accounts create dstack-tasks",
            "storage buckets create gs://p1-dstack",
            "tasks queues create dstack",
        ]
    )
    bound = {one.partition("=")[2] for call in ran.calls for one in call if one.startswith("--role=")}
    assert not [role for role in bound if re.search(r"owner|editor|admin", role, re.IGNORECASE)]


def test_governance_may_read_its_secrets_and_use_both_queues(artefacts: Artefacts, tmp_path: Path) -> None:
    ran = run(artefacts, "governance", "setup.sh", tmp_path, **GIVEN)
    assert (ran.status, ran.error) == (0, "")
    read = {call[2] for call in ran.calls if call[:2] == ["secrets", "add-iam-policy-binding"]}
    assert read == {"rpc-urls", "hook", "alchemy"}
    queues = {call[3] for call in ran.calls if call[:3] == ["tasks", "queues", "add-iam-policy-binding"]}
    assert queues == {"dstack", "dstack-governance"}
    assert not [call for call in ran.calls if call[:2] == ["iam", "roles"]]


def test_governance_sweeps_each_minute(artefacts: Artefacts, tmp_path: Path) -> None:
    ran = run(artefacts, "governance", "deploy.sh", tmp_path, **GIVEN)
    (sweep,) = [call for call in ran.calls if call[:3] == ["scheduler", "jobs", "create"]]
    look = "https://europe-west4-p1.cloudfunctions.net/dstack-governance/internal/look"
    assert {
        "--schedule=* * * * *",
        f"--uri={look.removesuffix('look')}sweep",
        f"--oidc-token-audience={look}",
    } <= set(sweep)
    settings = dict(pair.split("=", 1) for pair in variables(ran.deployed()["dstack-governance"]))
    assert settings["DSTACK_GOVERNANCE_QUEUE"].split("|")[1] == look
    assert settings["DSTACK_WEBHOOK_SECRETS"] == GIVEN["DSTACK_WEBHOOK_SECRETS"]


def test_the_api_may_not_make_or_end_machines() -> None:
    services = {service.name: service for service in FUNCTIONS["deploy"].services}
    api, worker = services["dstack-deploy"], services["dstack-deploy-worker"]
    assert set(api.permissions) < set(worker.permissions)
    assert not [one for one in api.permissions if re.search(r"instances\.(create|delete|start|stop)", one)]


ALONG_THE_WAY = {
    # what the methods need beside their own permission, as Google's reference says of each
    "compute.disks.setLabels",
    "compute.disks.use",
    "compute.images.setLabels",
    "compute.images.useReadOnly",
    "compute.instances.setLabels",
    "compute.instances.setServiceAccount",
    "compute.networks.updatePolicy",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
    # services whose names are chosen while the code runs
    "compute.globalOperations.get",
    "compute.zoneOperations.get",
}


def test_the_worker_has_a_permission_for_each_method_that_the_code_calls_and_no_other() -> None:
    services = {service.name: service for service in FUNCTIONS["deploy"].services}
    assert set(services["dstack-deploy-worker"].permissions) == permissions_of_the_code() | ALONG_THE_WAY


def permissions_of_the_code() -> set[str]:
    """Return IAM's names of what `functions.clouds` looks at, lists and changes."""
    kinds = {kind.service: kind.group for kind in gcp_compute.KINDS.values()}
    groups = {service: group.replace("firewall-rules", "firewalls") for service, group in kinds.items()}
    wanted = {f"compute.{group}.{verb}" for group in groups.values() for verb in ("create", "delete", "get")}
    code = "".join(path.read_text() for path in Path(gcp_compute.__file__).parent.glob("gcp_*.py"))
    for service in re.findall(r'\.find\(\s*"(\w+)"', code):
        wanted.add(f"compute.{service[0].lower()}{service[1:]}.get")
    for service in re.findall(r'\.list(?:_everywhere)?\(\s*"(\w+)"', code):
        wanted.add(f"compute.{service[0].lower()}{service[1:]}.list")
    # what is removed is looked for by its label among these
    wanted |= {"compute.disks.list", "compute.instances.list"}
    if "get_serial_port_output" in code:
        wanted.add("compute.instances.getSerialPortOutput")
    verbs = set(re.findall(r'"([a-z_]+)_unary"', code)) - {"insert", "delete"}
    return wanted | {CHANGES[verb] for verb in verbs}


CHANGES = {
    "patch": "compute.firewalls.update",
    "resize": "compute.disks.resize",
    "set_tags": "compute.instances.setTags",
    "start": "compute.instances.start",
    "stop": "compute.instances.stop",
}


@pytest.mark.parametrize("listed", ["", "a@p1.iam.gserviceaccount.com,b@p1.iam.gserviceaccount.com"])
def test_the_worker_may_act_as_the_accounts_that_machines_may_have_and_the_api_as_none(
    artefacts: Artefacts, tmp_path: Path, listed: str
) -> None:
    ran = run(artefacts, "deploy", "setup.sh", tmp_path, **GIVEN, DSTACK_SERVICE_ACCOUNTS=listed)
    assert (ran.status, ran.error) == (0, "")
    acts = {
        (call[3], option.partition("=")[2])
        for call in ran.calls
        if call[:3] == ["iam", "service-accounts", "add-iam-policy-binding"]
        for option in call
        if option.startswith("--member=")
    }
    worker, api = (f"serviceAccount:dstack-deploy{one}@p1.iam.gserviceaccount.com" for one in ("-worker", ""))
    queue = "dstack-tasks@p1.iam.gserviceaccount.com"
    machines = {(account, worker) for account in listed.split(",") if account}
    assert acts == {(queue, worker), (queue, api)} | machines


def test_the_scripts_say_nothing_of_the_machine_that_wrote_them(artefacts: Artefacts) -> None:
    for function in GCP_FUNCTIONS:
        scripts = deploy_script(function, artefacts.runtime) + setup_script(function)
        assert str(artefacts.directory) not in scripts
        assert str(Path.home()) + "/" not in scripts


def test_a_service_is_private_unless_it_is_said_to_be_public(artefacts: Artefacts) -> None:
    options: dict[str, Any] = {
        "name": "dstack-x",
        "target": "x",
        "memory": "1Gi",
        "seconds": 1,
        "concurrency": 1,
        "instances": 1,
    }
    function = FUNCTIONS["verify"]
    for public, option in ((True, " --allow-unauthenticated "), (False, " --no-allow-unauthenticated ")):
        service = GcpService(public=public, **options)
        changed = type(function)(name="x", entry=function.entry, budget=1, services=(service,))
        assert option in deploy_script(changed, artefacts.runtime)

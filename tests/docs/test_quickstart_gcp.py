"""docs/quickstart-gcp.md: its commands are run on stand-ins of Google Cloud, and give what it shows."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

import cli.runtime
from cli.devchain.governance import Governance
from cli.devchain.launcher import start_chain
from functions.clouds.gcp_instance import BOOT_GB, CONFIG_GB
from functions.deploy.evidence import HttpChallenger
from functions.deploy.runner import run_until_settled
from functions.google_api.errors import LOGIN
from shared.compose.project import GCP_DEFAULTS
from shared.errors import UnavailableError
from tests.conftest import CHAIN_ENGINE, QUICK_BLOCKS
from tests.docs.console_page import Session, Transcript, need_tools, send_until_final, table_codes, wrong
from tests.docs.references import REPOSITORY, is_error_code
from tests.end_to_end.commands import become
from tests.end_to_end.gcp_site import BUCKET, GcpSite, gcp_site
from tests.fakes.file_server import FileServer, archive
from tests.fakes.guests import Roots
from tests.fakes.os_images import write_whole_os_image
from tests.functions.deploy.kms_stand_in import KmsStandIn, serving

PAGE = (REPOSITORY / "docs" / "quickstart-gcp.md").read_text()
IMAGE = "dstack-0.6.0"
CONSOLE = b"Booting dstack\ndstack: config disk found\ncontainer web started\n"
RULE = "dstack-web-allow-tcp-8090"
SENDING = {
    "# call 2 is sent, with a wallet or a Safe": "deployAndRegisterApp",
    "# the kms contract's owner sends call 1": "addOsImageHash",
    "# the app's owner sends that call": "addComposeHash",
}

VERBS = (
    "config-edit",
    "pull",
    "new",
    "doctor",
    "plan",
    "deploy",
    "status",
    "logs",
    "fw allow",
    "fw list",
    "verify",
    "stop",
    "start",
    "remove",
    "list",
)


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcript]:
    """Run the page's commands one after another; each with the lines that came."""
    need_tools()
    place = tmp_path_factory.mktemp("page")
    with ExitStack() as stack:
        session = make_session(place, stack)
        yield session.take(PAGE)


def make_session(place: Path, stack: ExitStack) -> Session:
    """Return a user without settings, images or a bucket, before a chain where the KMS contract is."""
    site = stack.enter_context(gcp_site(place, stack.enter_context(Roots())))
    chain = stack.enter_context(start_chain(CHAIN_ENGINE, block_time=QUICK_BLOCKS))
    kms = stack.enter_context(serving(KmsStandIn(seed=7, timestamp=int(time.time()))))
    downloads = FileServer()
    stack.callback(downloads.close)
    write_whole_os_image(place / "source")
    downloads.answers[f"/{IMAGE}-uki.tar.gz"] = archive(place / "source" / IMAGE, f"{IMAGE}/")

    owner = Governance(chain.url, chain.accounts[0])
    owner.deploy()
    owner.finalize(owner.set_kms_info(k256_pubkey=kms.signer, ca_pubkey=b"not asked for here"))
    site.storage.buckets.clear()
    _write_to_console(site)
    stack.enter_context(patch.dict(os.environ))  # for what the page exports
    monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
    become(monkeypatch, site.environment | {"EDITOR": f"cp {place}/config.json"}, place)
    for name in ("DSTACK_CLOUD_CONFIG", "DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CLOUD_API"):
        monkeypatch.delenv(name, raising=False)
    _jump_over_timeouts(monkeypatch)
    _enforce_firewall(site, monkeypatch)
    monkeypatch.setattr("cli.pull.RELEASES", f"{downloads.url}/{{name}}-uki.tar.gz")
    send = partial(send_until_final, owner, "--app-owner", owner.address)
    sending = {line: partial(send, function=function) for line, function in SENDING.items()}
    return Session(
        place,
        words={
            "203.0.113.10": site.address,
            "https://kms.example.com:12001": kms.url,
            "https://rpc.example.com": chain.url,
            "https://rpc.example.net": chain.url.replace("127.0.0.1", "localhost"),
            "verify evidence.json": f"verify evidence.json {_roots(place, site)}",
            "/home/you": str(place),
        },
        others=sending | {"gcloud storage buckets create": lambda: site.storage.buckets.add(BUCKET)},
    )


def _enforce_firewall(site: GcpSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have evidence be out of reach until a rule lets it through: the fake only keeps rules."""
    ask = HttpChallenger.__call__

    def ask_through(self: HttpChallenger, url: str, challenge: bytes) -> bytes:
        if site.address in url and RULE not in site.compute.names("firewall"):
            raise UnavailableError("net.timeout", "no answer")
        return ask(self, url, challenge)

    monkeypatch.setattr(HttpChallenger, "__call__", ask_through)


def _jump_over_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `--timeout` go by the clock that jumps over pauses."""
    clock = cli.runtime.now  # since `become`, the one that jumps
    monkeypatch.setattr("cli.deployments.time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    defaults = run_until_settled.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "clock", clock)


def _roots(place: Path, site: GcpSite) -> str:
    """Return the options that make a verifier believe simulated guests."""
    anchors = " ".join(f"--trust-anchor {place}/{name}.pem" for name in ("tdx", "gcp_tpm"))
    return f"{anchors} --pccs {site.guests.roots.pccs_url}"


def _write_to_console(site: GcpSite) -> None:
    boot = site.compute.on_boot

    def boot_and_tell(instance: dict[str, Any], disks: Mapping[str, bytes]) -> None:
        boot(instance, disks)
        site.compute.write_console(instance["name"], CONSOLE)

    site.compute.on_boot = boot_and_tell


def test_each_command_gives_what_the_page_shows(transcript: Transcript) -> None:
    assert wrong(transcript) == []


def test_the_page_goes_all_the_way(transcript: Transcript) -> None:
    typed = [command.text for command, _ in transcript]
    for verb in VERBS:
        assert any(text.startswith(f"dstack-cloud {verb}") for text in typed), verb
    exits = {line for _, came in transcript for line in came if line.startswith("exit ")}
    assert exits == {"exit 0", "exit 3", "exit 5"}


def test_every_code_of_the_table_can_be_raised() -> None:
    codes = table_codes(PAGE, "## When it does not work")
    assert len(codes) >= 20
    assert [code for code in codes if not is_error_code(code)] == []


def test_the_commands_of_other_tools_are_those_that_the_errors_name() -> None:
    assert f"`{LOGIN}`" in PAGE
    for service in ("compute.googleapis.com", "storage.googleapis.com"):
        assert service in PAGE


def test_the_quota_is_that_of_one_machine() -> None:
    disks = BOOT_GB + CONFIG_GB + int(str(GCP_DEFAULTS.data_size))
    assert f"{disks} of `SSD_TOTAL_GB`" in PAGE
    assert f"`{GCP_DEFAULTS.machine_type}`" in PAGE

"""docs/kms-setup.md: its commands are run with a real Safe and simulated guests, and give what it shows."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import pytest

from cli.demo.functions import start_authorize
from cli.demo.processes import Process, ProcessGroup
from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from tests.conftest import CHAIN_ENGINE, QUICK_BLOCKS
from tests.docs.console_page import Session, Transcript, need_tools, table_codes, wrong
from tests.docs.references import REPOSITORY, is_error_code
from tests.end_to_end.commands import become
from tests.end_to_end.gcp_site import user_environment
from tests.fakes.os_images import write_whole_os_image
from tests.safe.real_safe import RealSafe, need_safe

PAGE = (REPOSITORY / "docs" / "kms-setup.md").read_text()
EXAMPLES = REPOSITORY / "docs" / "examples"
PAYER, DEPLOYER, OWNERS = 5, 6, slice(1, 4)  # of the chain's funded accounts
SIGNED = "# two owners sign {}.json, and it is final"


class Site:
    """What the page's operator has around: a chain with a Safe, the function, and simulated guests."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        self.words: dict[str, str] = {}
        self._processes = stack.enter_context(ProcessGroup(place / "logs"))
        self.chain: Chain = stack.enter_context(start_chain(CHAIN_ENGINE, block_time=QUICK_BLOCKS))
        self._payer = Governance(self.chain.url, self.chain.accounts[PAYER])
        self._safe: RealSafe
        self._guests: dict[str, Process] = {}
        key = place / "deployer.key"
        key.write_text(self.chain.accounts[DEPLOYER].private_key.hex() + "\n")
        key.chmod(0o600)
        write_whole_os_image(place / "images")
        self._publisher = self._processes.python(
            "pccs", "enclave.simulator", "pccs", str(place / "authority")
        )
        self._pccs = str(self._publisher.wait_for("ready")["url"])
        self.roots = {
            "tdx": place / "authority/intel/root.pem",
            "gcp_tpm": place / "authority/google/root.pem",
        }

    def make_safe(self) -> None:
        self._safe = RealSafe(self._payer, self.chain.accounts[OWNERS], threshold=2)
        assert self._safe.address in PAGE

    def sign(self, batch: str) -> None:
        self._safe.execute(self.place / f"{batch}.json", signers=2)

    def start_function(self) -> None:
        self.words["https://authorize.example.com"] = start_authorize(
            self._processes,
            rpc_url=self.chain.url,
            kms_contract=os.environ["KMS"],
            chain_id=self.chain.chain_id,
        )

    def copy_example(self) -> None:
        """Copy the project, for URLs on this computer and with the simulated vendors' roots."""
        shutil.copytree(EXAMPLES / "kms-gcp", self.place / "kms")
        compose = self.place / "kms/docker-compose.yaml"
        text = compose.read_text()
        for written, real in self.words.items():
            text = text.replace(written, real)
        mounts = "".join(f"      - {{source: {name}, target: /etc/kms/{name}.pem}}\n" for name in self.roots)
        text = text.replace("    volumes:\n", f"{mounts}    volumes:\n", 1)
        anchors = "".join(f'      {name} = "/etc/kms/{name}.pem"\n' for name in self.roots)
        settings = (
            "      [core.attestation]\n      insecure_allow_external_trust_anchors = true\n"
            f'      [core.attestation.urls]\n      pccs = "{self._pccs}"\n'
            f"      [core.attestation.root_ca]\n{anchors}\n"
        )
        text = text.replace("      [core.auth_api]\n", f"{settings}      [core.auth_api]\n", 1)
        for name, pem in self.roots.items():
            indented = re.sub("^", "      ", pem.read_text().strip(), flags=re.MULTILINE)
            text += f"  {name}:\n    content: |\n{indented}\n"
        compose.write_text(text)

    def write_rpc_roots(self) -> None:
        (self.place / "rpc-roots.pem").write_bytes(self.roots["tdx"].read_bytes())

    def start(self, name: str) -> None:
        """Boot a guest of a project's app-compose, and run the KMS in it."""
        compose = self.place / name / "shared/app-compose.json"
        disk = self.place / f"{name}-disk"
        disk.mkdir(mode=0o700)
        app_id = sha256(compose.read_bytes()).hexdigest()[:40]  # as a guest derives it
        guest = self._processes.python(
            name,
            "enclave.simulator",
            *("run", "--platform", "gcp", "--image", str(self.place / "images/dstack-0.6.0")),
            *("--app-compose", str(compose), "--app-id", app_id, "--writable", str(disk)),
            *("--authority", str(self.place / "authority"), "kms"),
        )
        guest.wait_for("kms.onboarding")
        port = str(guest.wait_for("guest.listening", port=8000)["address"]).rpartition(":")[2]
        self.words[f"{name}.example.com:8000"] = f"localhost:{port}"
        self._guests[name] = guest

    def wait_until_ready(self, name: str) -> None:
        self._guests[name].wait_for("kms.ready")

    def verifier_options(self) -> str:
        anchors = " ".join(f"--trust-anchor {pem}" for pem in self.roots.values())
        return f"{anchors} --pccs {self._pccs}"


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcript]:
    """Run the page's commands one after another; each with the lines that came."""
    need_tools()
    need_safe()
    with ExitStack() as stack:
        yield make_session(tmp_path_factory.mktemp("page"), stack).take(PAGE)


def make_session(place: Path, stack: ExitStack) -> Session:
    site = Site(place, stack)
    stack.enter_context(patch.dict(os.environ))  # for what the page exports
    monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
    become(monkeypatch, user_environment(place), place)
    for name in ("DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CHAIN_ID", "DSTACK_CLOUD_API"):
        monkeypatch.delenv(name, raising=False)
    (place / "config.json").write_text(
        json.dumps({"image_search_paths": [str(place / "images")], "gcp": {"project": "my-project"}})
    )
    site.words |= {
        "dstack-cloud/docs/": f"{REPOSITORY}/docs/",
        "https://rpc.example.com": site.chain.url,
        "https://rpc.example.net": site.chain.url.replace("127.0.0.1", "localhost"),
        "verify bootstrap-info.json": f"verify bootstrap-info.json {site.verifier_options()}",
        "verify-kms ": f"verify-kms {site.verifier_options()} ",
    }
    signing: dict[str, Callable[[], object]] = {
        SIGNED.format(name): partial(site.sign, name) for name in ("allow", "publish", "register", "allow2")
    }
    return Typing(
        site,
        others=signing
        | {
            "# three people make a Safe that two of them must sign for": site.make_safe,
            "# the authorize function is deployed, as https://authorize.example.com": site.start_function,
            "# the image is built and pushed as registry.example.com/dstack-kms": lambda: None,
            "cp -r dstack-cloud/docs/examples/kms-gcp kms": site.copy_example,
            "# rpc-roots.pem holds the roots of the authorities that issue for the three hosts": (
                site.write_rpc_roots
            ),
            "# dstack-cloud -C kms deploy, and dstack-cloud -C kms fw allow 8000 --source NETWORK": partial(
                site.start, "kms"
            ),
            "# the KMS opens its main listener": partial(site.wait_until_ready, "kms"),
            "# dstack-cloud -C kms2 deploy, and its fw allow": partial(site.start, "kms2"),
            "# the second KMS opens its main listener": partial(site.wait_until_ready, "kms2"),
        },
    )


class Typing(Session):
    """A session whose words grow, as guests and functions come up: host names are last of all."""

    def __init__(self, site: Site, others: dict[str, Callable[[], object]]) -> None:
        super().__init__(site.place, others=others)
        self._site = site

    def type(self, text: str) -> list[str]:
        hosts = {"kms.example.com": "localhost", "kms2.example.com": "localhost"}
        self._words = self._site.words | hosts
        return super().type(text)


def test_each_command_gives_what_the_page_shows(transcript: Transcript) -> None:
    assert wrong(transcript) == []


def test_the_page_goes_all_the_way(transcript: Transcript) -> None:
    typed = "\n".join(command.text for command, _ in transcript)
    for step in ("GetAttestationInfo", "Bootstrap", "verify", "set-info", "Finish", "GetMeta", "Onboard"):
        assert step in typed, step


def test_every_code_of_the_table_can_be_raised() -> None:
    codes = table_codes(PAGE, "## When it does not work")
    assert len(codes) >= 10
    assert [code for code in codes if not is_error_code(code)] == []


def test_what_the_page_says_of_nitro_is_what_its_example_has() -> None:
    compose = json.loads((EXAMPLES / "kms-nitro/app.json").read_text())["nitro_config"]
    forwarder = (EXAMPLES / "kms-nitro/forwarder.toml").read_text()
    assert f"--memory {compose['memory_mib']} --enclave-cid 16" in PAGE
    assert 'target = "vsock://16:8000"' in forwarder
    assert "--build-arg KMS_IMAGE=" in PAGE
    assert "ARG KMS_IMAGE\n" in (EXAMPLES / "kms-nitro/Dockerfile").read_text()

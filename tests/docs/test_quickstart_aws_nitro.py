"""docs/quickstart-aws-nitro.md: its commands are run on stand-ins of AWS, and give what it shows."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import start_chain
from enclave.dstack_util.enclave_config import EnclaveConfig
from shared.compose.project import NITRO_DEFAULTS
from tests.conftest import CHAIN_ENGINE
from tests.docs.console_page import (
    Session,
    Transcript,
    files,
    need_tools,
    send_until_final,
    table_codes,
    wrong,
)
from tests.docs.references import REPOSITORY, is_error_code
from tests.end_to_end.aws_site import PROFILE, aws_site
from tests.end_to_end.commands import become
from tests.fakes.guests import Roots
from tests.fakes.nitro_aws import NitroAws
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar

PAGE = (REPOSITORY / "docs" / "quickstart-aws-nitro.md").read_text()
APP_ID = "75537828f2ce51be7289709686a69cbfdbb714f1"
SENDING = ("# the owners send all three", "# the owners send both")

VERBS = (
    "config-edit",
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
    with ExitStack() as stack:
        yield make_session(tmp_path_factory.mktemp("page"), stack).take(PAGE)


def make_session(place: Path, stack: ExitStack) -> Session:
    """Return a user with an image and boot files, without settings, before a chain with a KMS contract."""
    aws = stack.enter_context(NitroAws())
    roots = stack.enter_context(Roots())
    site = stack.enter_context(aws_site(place, aws, roots, bytes.fromhex(APP_ID), bucket=False))
    chain = stack.enter_context(start_chain(CHAIN_ENGINE, block_time=0))
    owner = Governance(chain.url, chain.accounts[0])
    owner.deploy()

    def make_app() -> None:
        app_id = owner.deploy_app()
        assert app_id.hex() == APP_ID

    stack.enter_context(patch.dict(os.environ))  # for what the page exports
    monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
    become(monkeypatch, site.environment | {"EDITOR": f"cp {place}/config.json"}, place)
    for name in ("DSTACK_CLOUD_CONFIG", "DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CLOUD_API"):
        monkeypatch.delenv(name, raising=False)
    sending = dict.fromkeys(SENDING, lambda: send_until_final(owner))
    return Session(
        place,
        words={
            "203.0.113.10": site.address,
            "https://rpc.example.com": chain.url,
            "https://rpc.example.net": chain.url.replace("127.0.0.1", "localhost"),
            "my-bucket": site.bucket,
            "verify evidence.json": f"verify evidence.json --trust-anchor {place}/aws_nitro_enclave.pem",
            "/home/you": str(place),
        },
        others=sending
        | {
            "aws s3 mb": site.make_bucket,
            "# the app's owner makes its contract": make_app,
            "docker buildx build": lambda: _build_image(place / "web"),
            "for name in bzImage init nsm.ko; do curl": lambda: _write_boot_files(place / "web"),
        },
    )


def _build_image(place: Path) -> None:
    """Do what Docker would: write the image in OCI layout; another one each time."""
    again = (place / "layout").exists()
    shutil.rmtree(place / "layout", ignore_errors=True)
    app = file("app", b"#!/bin/sh\n" + b"# again\n" * again, mode=0o755)
    Layout(layer_tar(directory("etc"), app)).write(place / "layout")


def _write_boot_files(place: Path) -> None:
    for name in ("bzImage", "init", "nsm.ko"):
        (place / name).write_bytes(f"{name} of the page".encode())


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


def test_the_images_own_file_is_one_that_the_agent_reads() -> None:
    config = msgspec.toml.decode(files(PAGE)["web/enclave.toml"], type=EnclaveConfig)
    assert config.app_id_bytes().hex() == APP_ID
    assert f"vsock port {config.evidence.port}" in PAGE


def test_what_the_page_says_of_the_defaults_is_so() -> None:
    assert f"`{NITRO_DEFAULTS.instance_type}` is the default" in PAGE
    assert f"{NITRO_DEFAULTS.volume_size} GiB" in PAGE
    assert f"`{PROFILE}`" in PAGE

"""`gov` needs what the extra `cli` brings and nothing else, and pays for it only when a command runs."""

import subprocess
import sys
from collections.abc import Callable

from tests.cli.gov.conftest import Site

BEYOND_THE_EXTRA = (
    *("google.protobuf", "coincurve", "cbor2", "starlette", "uvicorn", "httptools", "uvloop", "urllib3"),
    *("web3", "eth", "eth_account", "rlp", "boto3", "requests", "httpx", "google.auth"),
)


def run(site: Site, *words: str) -> "subprocess.CompletedProcess[str]":
    script = (
        f"import sys; sys.modules |= dict.fromkeys({BEYOND_THE_EXTRA}); from cli.main import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "gov",
        *words,
        "--rpc",
        site.chain.url,
        "--kms-contract",
        site.kms,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_signs_and_sends_without_another_package(site: Site, fresh: Callable[[], str]) -> None:
    done = run(site, "image", "add", fresh(), "--send", "--key-file", str(site.key_file()))
    assert done.returncode == 0, done.stdout + done.stderr


def test_tells_the_status_without_another_package(site: Site) -> None:
    done = run(site, "status")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "running deployments: 0" in done.stdout


def test_help_loads_no_command() -> None:
    script = (
        "import sys; from click.testing import CliRunner; from cli.main import cli; "
        "assert CliRunner().invoke(cli, ['gov', '--help']).exit_code == 0; "
        "rooms = ('cli.gov.', 'shared.net', 'functions'); "
        "print(*sorted(name for name in sys.modules if name.startswith(rooms)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["cli.gov.command"], "")

"""No daemon and no function pays at start for what it does not use (DEPENDENCIES.md, import budgets)."""

import subprocess
import sys

import pytest

# Powertools imports botocore's own module, which is nothing but a name, wherever it is installed
HEAVY = (
    *(
        "web3",
        "eth",
        "boto3",
        "botocore.session",
        "grpc",
        "google.cloud.compute_v1",
        "pydantic",
        "rich",
        "dcap_qvl",
    ),
)
ENTRIES = (
    "enclave.agent.daemon",
    "enclave.compose.main",
    "enclave.dstack_util.main",
    "enclave.init.boot",
    "enclave.kms.daemon",
    "enclave.vsock.forwarder",
    "functions.authorize.aws",
    "functions.deploy.aws",
    "functions.deploy.aws_worker",
    "functions.governance.aws",
    "functions.verify.aws",
    "cli.main",
)


def test_the_builder_loads_the_network_only_to_use_it() -> None:
    script = (
        "import sys, functions.builder.nitro_image; "
        "print(*(name for name in sys.modules if name == 'http.client' or name.startswith('shared.net')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_loads_nothing_heavy(entry: str) -> None:
    script = (
        f"import sys; before = set(sys.modules); import {entry}; "
        f"loaded = set(sys.modules) - before; assert {entry!r} in loaded; "
        f"print(*(name for name in {HEAVY} if name in loaded))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr

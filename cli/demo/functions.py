"""Starts the demo's cloud function."""

import socket
import sys
import time
from http import HTTPStatus
from importlib.util import find_spec

from cli.demo.processes import Process, ProcessGroup
from shared.errors import ConfigError, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient

LOOPBACK = "127.0.0.1"
READY_SECONDS = 30.0
POLL_SECONDS = 0.05


def start_authorize(processes: ProcessGroup, *, rpc_url: str, kms_contract: str, chain_id: int) -> str:
    """Start the authorize function under functions-framework; returns its base URL once it answers."""
    spec = find_spec("functions.authorize.gcp")
    if spec is None or spec.origin is None:
        raise ConfigError("demo.function", "the authorize function is not installed")
    port = _free_port()
    process = processes.start(
        "authorize",
        [
            *(sys.executable, "-m", "functions_framework", "--source", spec.origin),
            *("--target", "authorize", "--host", LOOPBACK, "--port", str(port)),
        ],
        {"ETH_RPC_URL": rpc_url, "KMS_CONTRACT_ADDR": kms_contract, "ETH_CHAIN_ID": str(chain_id)},
    )
    url = f"http://{LOOPBACK}:{port}"
    _wait_until_ok(url, process)
    return url


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_until_ok(url: str, process: Process) -> None:
    http = HttpClient(DirectDialer(), timeout=READY_SECONDS)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            status = http.request("GET", url).status
            if status == HTTPStatus.OK:
                return
            problem = UnavailableError("demo.function.status", f"{url} answers {status}")
        except UnavailableError as error:
            problem = error
        if process.ended() or time.monotonic() > deadline:
            raise problem
        time.sleep(POLL_SECONDS)

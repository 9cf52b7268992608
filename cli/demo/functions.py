"""Starts the demo's cloud functions."""

import socket
import sys
import time
from collections.abc import Mapping
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
    environment = {"ETH_RPC_URL": rpc_url, "KMS_CONTRACT_ADDR": kms_contract, "ETH_CHAIN_ID": str(chain_id)}
    url, process = start_function(processes, "authorize", environment)
    wait_until_ok(url, process)
    return url


def start_function(processes: ProcessGroup, name: str, environment: Mapping[str, str]) -> tuple[str, Process]:
    """Start a function under functions-framework; returns its base URL, where nothing may answer yet."""
    spec = find_spec(f"functions.{name}.gcp")
    if spec is None or spec.origin is None:
        raise ConfigError("demo.function", f"the {name} function is not installed")
    port = _free_port()
    process = processes.start(
        name,
        [
            *(sys.executable, "-m", "functions_framework", "--source", spec.origin),
            *("--target", name, "--host", LOOPBACK, "--port", str(port)),
        ],
        environment,
    )
    return f"http://{LOOPBACK}:{port}", process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_until_ok(url: str, process: Process) -> None:
    """Wait until a function answers; raises what the last attempt met once it cannot any more."""
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

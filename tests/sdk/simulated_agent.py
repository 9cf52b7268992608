"""The simulated guest agent as an app's developer has it: a process of its own, in a directory of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
UPSTREAMS = ("app-compose.json", "appkeys.json", "attestation.bin", "dstack.toml", "sys-config.json")
"""What upstream's fixture directory holds; the configuration may be left out."""


@contextmanager
def running(directory: Path, *arguments: str) -> Iterator[dict[str, str]]:
    """Serve a directory; give the variables that SDKs read."""
    daemon = subprocess.Popen(
        [sys.executable, "-m", "enclave.simulator.agent", "--dir", str(directory), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout is not None
    try:
        event = json.loads(daemon.stdout.readline() or "{}")
        assert event.get("event") == "simulator.ready", event
        yield {"DSTACK_SIMULATOR_ENDPOINT": event["dstack"], "TAPPD_SIMULATOR_ENDPOINT": event["tappd"]}
    finally:
        daemon.terminate()
        daemon.communicate()


def copy_fixture(source: Path, directory: Path) -> Path:
    """Copy what upstream's fixture directory holds, and nothing else of `source`; return `directory`."""
    directory.mkdir(exist_ok=True)
    for name in UPSTREAMS:
        if (source / name).exists():
            (directory / name).write_bytes((source / name).read_bytes())
    return directory

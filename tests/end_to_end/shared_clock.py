"""One clock for a test and the processes that it starts: it runs, and jumps over pauses.

A process takes the clock over with `PRELUDE`, in front of the code that it runs.
"""

import json
import mmap
import struct
import time
from collections.abc import Mapping
from pathlib import Path

PRELUDE = """
import json, mmap, os, socket, struct, time

def _prepare():
    real, resolve = time.time, socket.getaddrinfo
    with open(os.environ["TEST_CLOCK"], "rb") as file:
        skipped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    hosts = json.loads(os.environ["TEST_HOSTS"])

    def getaddrinfo(host, port, *arguments, **options):
        if host in hosts:
            host, port = "127.0.0.1", hosts[host]
        return resolve(host, port, *arguments, **options)

    time.time = lambda: real() + struct.unpack("q", skipped[:8])[0]
    socket.getaddrinfo = getaddrinfo

_prepare()
"""
"""Python source: the process's clock is the test's, and hosts of `TEST_HOSTS` are ports of this machine."""


class SharedClock:
    """Unix seconds, ahead of the real ones by what was skipped."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        self._path = path
        with path.open("r+b") as file:
            self._skipped = mmap.mmap(file.fileno(), 0)

    def __call__(self) -> int:
        return int(time.time()) + self.skipped

    @property
    def skipped(self) -> int:
        (seconds,) = struct.unpack("q", self._skipped[:8])
        assert isinstance(seconds, int)
        return seconds

    def skip(self, seconds: int) -> None:
        """Jump; one thread of a test does so."""
        self._skipped[:8] = struct.pack("q", self.skipped + max(seconds, 0))

    def environment(self, hosts: Mapping[str, int]) -> dict[str, str]:
        """Return what `PRELUDE` reads; `hosts` are ports of this machine by the names that they serve."""
        return {"TEST_CLOCK": str(self._path), "TEST_HOSTS": json.dumps(dict(hosts))}

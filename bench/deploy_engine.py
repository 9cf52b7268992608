"""The deployment engine without a cloud: what one step costs, and whether a thousand at once all arrive."""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.measure import Bar, Result
from functions.deploy.engine import Engine
from functions.deploy.record import Step
from functions.stores.sqlite import FileBlobs, SqliteStore
from tests.functions.deploy.memory_cloud import CALL, MemoryCloud, MemoryTools, some_deployment

ADVANCE_SECONDS = 0.015
HELP_SECONDS = 0.150
ROUNDS = 200
DEPLOYMENTS = int(os.environ.get("DEPLOYMENTS", "1000"))
RUNNERS = 4


def advance() -> Result:
    """Measure a step that asks and waits: read, lease, step, write. Both writes are on disk in the end."""
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore(Path(directory) / "store.sqlite")
        tools = MemoryTools()
        tools.missing = (CALL,)
        clock = [1_800_000_000]
        engine = Engine(
            store,
            FileBlobs(Path(directory) / "blobs"),
            {"gcp-tdx": MemoryCloud()},
            tools,
            clock=lambda: clock[0],
            holder="bench",
        )
        store.create(some_deployment())
        while engine.advance("web").step is not Step.AWAIT_APPROVAL:
            pass
        walls, cpus = [], []
        for _ in range(ROUNDS):
            clock[0] += 60
            wall, cpu = time.perf_counter(), time.process_time()
            engine.advance("web")
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        store.close()
    ours = statistics.median(walls)
    return Result(
        name="advance",
        what="one step of the engine on SQLite without a call of a cloud, in wall time, against its 15 ms",
        ours=ours,
        reference=ADVANCE_SECONDS,
        ratio=ours / ADVANCE_SECONDS,
        bar=Bar("at most", 1.0),
        detail={"median cpu ms": statistics.median(cpus) * 1e3, "worst wall ms": max(walls) * 1e3},
    )


def converge() -> Result:
    """Have several runners carry a thousand deployments forward at once, and count what became of them.

    The ratio is of deployments that arrived, each with its machine made exactly once, to all of them.
    """
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        names = [f"app-{number}" for number in range(DEPLOYMENTS)]
        store = SqliteStore(place / "store.sqlite")
        for name in names:
            store.create(some_deployment(name, uid=f"uid-{name}"))
        cloud, tools = _LockedCloud(boot_polls=0), MemoryTools()
        clock = [1_800_000_000]

        def run(runner: int) -> None:
            own = SqliteStore(place / "store.sqlite")
            engine = Engine(
                own,
                FileBlobs(place / "blobs"),
                {"gcp-tdx": cloud},
                tools,
                clock=lambda: clock[0],
                holder=f"runner-{runner}",
            )
            left = set(names)
            while left:
                for name in list(left):
                    after = engine.advance(name)
                    if after.seconds is None:
                        left.discard(name)
            own.close()

        began = time.perf_counter()
        runners = [threading.Thread(target=run, args=(number,)) for number in range(RUNNERS)]
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.join()
        seconds = time.perf_counter() - began
        arrived = sum(
            store.get(name).step is Step.RUNNING and cloud.made.count(("instance", f"{name}-instance")) == 1
            for name in names
        )
        store.close()
    return Result(
        name="converge",
        what=f"{DEPLOYMENTS} deployments carried forward by {RUNNERS} runners on one SQLite store",
        ours=seconds / DEPLOYMENTS,
        reference=seconds / DEPLOYMENTS,
        ratio=arrived / DEPLOYMENTS,
        bar=Bar("at least", 1.0),
        detail={"seconds in all": seconds},
    )


def show_help() -> Result:
    """Measure `dstack-cloud --help` as a user meets it, the interpreter's start included."""
    walls = []
    for _ in range(15):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cli", "--help"], check=True, capture_output=True)
        walls.append(time.perf_counter() - began)
    ours = min(walls)
    return Result(
        name="cli-help",
        what="`dstack-cloud --help`, the best of 15 in wall time, against its 150 ms",
        ours=ours,
        reference=HELP_SECONDS,
        ratio=ours / HELP_SECONDS,
        bar=Bar("at most", 1.0),
        detail={"median ms": statistics.median(walls) * 1e3},
    )


class _LockedCloud(MemoryCloud):
    """The cloud in memory, for runners in threads: its things are looked for by deployment alone."""

    def __init__(self, boot_polls: int) -> None:
        super().__init__(boot_polls)
        self._lock = threading.RLock()

    def launch(self, work):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - as its base
        with self._lock:
            return super().launch(work)

"""A staged directory as functions-framework serves it, with nothing but its own requirements."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.packaging.conftest import Artefacts

SERVE = """
import sys
sys.path[:0] = sys.argv[1:3]
from functions_framework._cli import _cli
_cli(sys.argv[3:])
"""
# a process that has not said by then where it listens never will
START_SECONDS = 60
LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+)")

Call = Callable[..., tuple[int, Any]]


@contextmanager
def serving(
    artefacts: Artefacts, name: str, target: str, directory: Path, environ: dict[str, str]
) -> Iterator[Call]:
    """Serve a target of a staged directory, as the buildpack's start command does."""
    _, source = artefacts.source(name)
    packages = artefacts.requirements(name)
    options = ["--target", target, "--source", str(source / "main.py"), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SERVE, str(source), str(packages), *options],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "GUNICORN_LOG_LEVEL": "info",  # it says on which port it listens
            **environ,
        },
        cwd=source,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            said.append(line)
            if found := LISTENING.search(line):
                port = int(found[1])
                break
        watchdog.cancel()
        assert port, "".join(said)
        yield lambda *arguments, **options: _call(port, *arguments, **options)
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate()


def _call(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        text = None if body is None else json.dumps(body)
        sent = {"content-type": "application/json"} if text else {}
        connection.request(method, path, text, {**sent, **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()

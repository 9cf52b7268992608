"""An app's directory, and programs on PATH that write down how they were called."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from enclave.compose.app import App, load_app
from enclave.compose.lifecycle import Lifecycle
from enclave.compose.programs import GuestPrograms

SECRET = "hunter2 is the secret"
SERVICES = "services:\n  web:\n    image: nginx\n"

RECORDER = """#!/bin/sh
# {name}: writes down each call, and fails where a file says so
here={calls}
number=$(ls "$here" | grep -c argv)
/usr/bin/env -0 > "$here/$number.env"
/bin/cat > "$here/$number.stdin"
printf '%s\\0' {name} "$@" > "$here/$number.argv"
for word in "$@"; do
    if [ -e "$here/../fail-$word" ]; then exit 7; fi
done
if [ "$1" = ps ]; then /bin/cat "$here/../listing" 2>/dev/null; fi
exit 0
"""


class Call:
    """One call of a program."""

    def __init__(self, path: Path) -> None:
        self.argv = path.read_text().split("\0")[:-1]
        entries = path.with_suffix(".env").read_text().split("\0")
        self.environment = dict(entry.partition("=")[::2] for entry in entries if entry)
        self.stdin = path.with_suffix(".stdin").read_text()


class Guest:
    """A work directory with fake docker and nerdctl on PATH."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.work = directory / "dstack"
        (self.work / ".host-shared").mkdir(parents=True)
        self._calls = directory / "calls"
        self._calls.mkdir()
        programs = directory / "bin"
        programs.mkdir()
        for name in ("docker", "nerdctl"):
            path = programs / name
            path.write_text(RECORDER.format(name=name, calls=self._calls))
            path.chmod(0o755)
        self.environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(directory)}
        self.told: list[tuple[str, str]] = []

    def notify(self, event: str, payload: str) -> None:
        """Take note, as the host does."""
        self.told.append((event, payload))

    def fail(self, word: str) -> None:
        """Have each call with this word fail."""
        (self.directory / f"fail-{word}").touch()

    def app(self, environment: Mapping[str, str] | None = None, **fields: Any) -> App:
        document = {
            "manifest_version": "3",
            "name": "web",
            "runner": "docker-compose",
            "docker_compose_file": SERVICES,
            **fields,
        }
        present = {name: value for name, value in document.items() if value is not None}
        (self.work / "app-compose.json").write_text(json.dumps(present))
        (self.work / ".host-shared/.decrypted-env.json").write_text(json.dumps(environment or {}))
        return load_app(self.work)

    def lifecycle(self, environment: Mapping[str, str] | None = None, **fields: Any) -> Lifecycle:
        return Lifecycle(
            self.app(environment, **fields),
            GuestPrograms(str(self.work)),
            self,
            guest=self.environment,
            credentials=self.directory / "credentials",
        )

    @property
    def calls(self) -> list[Call]:
        return [Call(path) for path in sorted(self._calls.glob("*.argv"), key=lambda path: int(path.stem))]

    @property
    def verbs(self) -> list[str]:
        """What docker was asked for, without the file's path."""
        compose = f" -f {self.work / 'docker-compose.yaml'}"
        return [" ".join(call.argv).replace(compose, "") for call in self.calls]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)

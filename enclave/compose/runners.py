"""The three runners of app-compose: docker-compose, nerdctl-compose and bash, behind one interface.

Whatever is measured is written again at each boot: an edited docker-compose.yaml of an earlier boot would run
what nobody measured.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from enclave.compose.app import App
from enclave.compose.programs import Programs
from enclave.log import log_event
from shared.compose.services import read_compose_file
from shared.errors import ConfigError, DstackError, StorageError, UnavailableError

NAMESPACE: Final = "dstack"
"""containerd's, for nerdctl."""


class Runner(Protocol):
    """One way to run an app."""

    @property
    def progress(self) -> str:
        """What the host is told when it starts."""
        ...

    @property
    def registry_client(self) -> str:
        """The program that logs in to a registry for it; empty where none does."""
        ...

    def check(self) -> None:
        """Refuse what cannot run, before anything is changed. Raises `ConfigError("compose.runner")`."""
        ...

    def write(self) -> None:
        """Write what is run, from the measured document. Raises `StorageError("compose.write")`."""
        ...

    def validate(self, environment: Mapping[str, str]) -> None:
        """Have the program read what was written. Raises `UnavailableError("compose.invalid")`."""
        ...

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the app with its variables. Raises `UnavailableError("compose.start")`."""
        ...

    def clean(self, environment: Mapping[str, str]) -> None:
        """Remove images and volumes that nothing uses any more; what fails is told and left."""
        ...

    def stop(self, environment: Mapping[str, str]) -> None:
        """Stop the app, and keep its containers. Raises `UnavailableError("compose.stop")`."""
        ...


def runner_of(app: App, programs: Programs) -> Runner:
    """Return the runner that the measured document names."""
    match app.compose.runner:
        case "docker-compose":
            return DockerCompose(app, programs)
        case "nerdctl-compose":
            return NerdctlCompose(app, programs)
        case "bash":
            return Bash(app, programs)


class _Compose:
    """What docker and nerdctl have in common."""

    progress = "starting containers"
    program: tuple[str, ...]
    prunes: tuple[tuple[str, ...], ...]

    def __init__(self, app: App, programs: Programs) -> None:
        self._app = app
        self._programs = programs

    @property
    def registry_client(self) -> str:
        return self.program[0]

    def write(self) -> None:
        text = self._app.compose.docker_compose_file or ""
        _replace(self._app.compose_path, text.encode())

    def start(self, environment: Mapping[str, str]) -> None:
        self._run(("up", "--remove-orphans", "-d", "--build"), environment, "compose.start")

    def stop(self, environment: Mapping[str, str]) -> None:
        self._run(("stop",), environment, "compose.stop")

    def clean(self, environment: Mapping[str, str]) -> None:
        for arguments in self.prunes:
            try:
                code = self._programs.run((*self.program, *arguments), environment=environment)
            except DstackError as error:
                log_event("compose.prune_failed", what=arguments[0], code=error.code)
                continue
            if code:
                log_event("compose.prune_failed", what=arguments[0], code="compose.program.failed")

    def _require_file(self) -> str:
        text = self._app.compose.docker_compose_file
        if not text:
            raise ConfigError("compose.runner", "app-compose has a compose runner and no docker_compose_file")
        return text

    def _run(self, arguments: tuple[str, ...], environment: Mapping[str, str], code: str) -> None:
        command = (*self.program, "compose", "-f", str(self._app.compose_path), *arguments)
        if ended := self._programs.run(command, environment=environment):
            shown = " ".join((self.program[0], "compose", arguments[0]))
            raise UnavailableError(code, f"{shown} ended with exit code {ended}")


class DockerCompose(_Compose):
    """Runner `docker-compose`."""

    program = ("docker",)
    prunes = (("image", "prune", "-af"), ("volume", "prune", "-f"))

    def check(self) -> None:
        """See `Runner.check`."""
        self._require_file()
        if self._app.compose.snapshotter is not None:
            raise ConfigError("compose.runner", "snapshotter is nerdctl's, and the runner is docker-compose")

    def validate(self, environment: Mapping[str, str]) -> None:
        """See `Runner.validate`."""
        self._run(("config", "--quiet"), environment, "compose.invalid")


class NerdctlCompose(_Compose):
    """Runner `nerdctl-compose`."""

    prunes = (("image", "prune", "-af"),)

    @property
    def program(self) -> tuple[str, ...]:  # type: ignore[override]
        """The command with its namespace and snapshotter."""
        snapshotter = self._app.compose.snapshotter or "overlayfs"
        return ("nerdctl", "--namespace", NAMESPACE, "--snapshotter", snapshotter)

    def check(self) -> None:
        """See `Runner.check`."""
        built = [
            service.name for service in read_compose_file(self._require_file()).services if service.has_build
        ]
        if built:
            raise ConfigError(
                "compose.runner", f"service {built[0][:40]} is built, which nerdctl does not do here"
            )

    def validate(self, environment: Mapping[str, str]) -> None:
        """See `Runner.validate`."""
        self._run(("config", "--quiet"), environment, "compose.invalid")

    def start(self, environment: Mapping[str, str]) -> None:
        """See `Runner.start`."""
        self._run(("up", "--remove-orphans", "-d"), environment, "compose.start")


class Bash:
    """Runner `bash`: the measured script, on standard input of bash."""

    progress = "running main script"
    registry_client = ""

    def __init__(self, app: App, programs: Programs) -> None:
        self._app = app
        self._programs = programs

    def check(self) -> None:
        """See `Runner.check`."""
        if not self._app.compose.bash_script:
            raise ConfigError("compose.runner", "app-compose has the runner bash and no bash_script")

    def write(self) -> None:
        """See `Runner.write`."""

    def validate(self, environment: Mapping[str, str]) -> None:
        """See `Runner.validate`."""
        script = (self._app.compose.bash_script or "").encode()
        if self._programs.run(("bash", "-n"), environment=environment, stdin=script):
            raise UnavailableError("compose.invalid", "bash does not understand bash_script")

    def start(self, environment: Mapping[str, str]) -> None:
        """See `Runner.start`."""
        script = (self._app.compose.bash_script or "").encode()
        if ended := self._programs.run(("bash",), environment=environment, stdin=script):
            raise UnavailableError("compose.start", f"bash_script ended with exit code {ended}")

    def clean(self, environment: Mapping[str, str]) -> None:
        """See `Runner.clean`."""

    def stop(self, environment: Mapping[str, str]) -> None:
        """Stop nothing: a script's processes are systemd's to end."""


def _replace(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, over whatever an earlier boot left there, a link included."""
    staged = path.with_name(f".{path.name}.new")
    try:
        staged.unlink(missing_ok=True)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        staged.replace(path)
    except OSError as error:
        raise StorageError("compose.write", f"cannot write {path}: {error.strerror}") from error

"""Start and stop of an app in a booted guest, step by step: a step that fails is named, and the last one.

Each step is one line of the journal and, where upstream's host is told, one notification. Notifications are
for people: one that fails changes nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from enclave.compose.app import App
from enclave.compose.programs import Programs, plain_environment
from enclave.compose.registry import CREDENTIALS, login, wants_login
from enclave.compose.runners import Runner, runner_of
from enclave.compose.scripts import source
from enclave.dstack_util.host_notice import Host
from enclave.log import log_event
from shared.errors import DstackError

PROGRESS: Final = "boot.progress"
ERROR: Final = "boot.error"
START_FAILED: Final = "failed to start containers"
"""Upstream's words for a failed `up`."""


class Lifecycle:
    """One app's start and stop. `guest` is the environment of the guest's own programs, without secrets."""

    def __init__(
        self,
        app: App,
        programs: Programs,
        host: Host,
        *,
        guest: Mapping[str, str] | None = None,
        credentials: Path = CREDENTIALS,
    ) -> None:
        self._app = app
        self._programs = programs
        self._host = host
        self._credentials = credentials
        self._plain = plain_environment(guest) | {"DOCKER_CONFIG": str(credentials)}
        self._runner: Runner = runner_of(app, programs)

    def run_init_scripts(self) -> None:
        """Source the init scripts, before docker and before the app's variables are known to any of them.

        Raises what `source` raises.
        """
        scripts = self._app.compose.scripts
        if not scripts:
            return
        self._host.notify(PROGRESS, "init-script")
        with self._step("init-script"):
            source(self._programs, scripts, self._plain, name="init_script")

    def start(self) -> None:
        """Start the app.

        1. Refuse what cannot run. 2. Write what is run, as measured. 3. Log in to the registry. 4. Source the
        pre-launch script. 5. Have the runner read what was written: nothing is removed before it could.
        6. Start, without services that are gone. 7. Remove what nothing uses. 8. Tell that it is done.

        Raises what these raise, with the step's name in the journal and in the host's `boot.error`.
        """
        runner, compose = self._runner, self._app.compose
        with self._step("check"):
            runner.check()
        with self._step("write"):
            runner.write()
        if wants_login(compose.docker_config) and compose.docker_config and runner.registry_client:
            with self._step("login"):
                login(
                    self._programs,
                    runner.registry_client,
                    compose.docker_config,
                    self._app.environment,
                    environment=self._plain,
                    credentials=self._credentials,
                )
        environment = self._environment()
        if compose.pre_launch_script is not None:
            self._host.notify(PROGRESS, "pre-launch")
            with self._step("pre-launch"):
                environment = source(
                    self._programs, (compose.pre_launch_script,), environment, name="pre_launch_script"
                )
        with self._step("validate"):
            runner.validate(environment)
        self._host.notify(PROGRESS, runner.progress)
        with self._step("start", failure=START_FAILED):
            runner.start(environment)
        runner.clean(self._plain)
        self._host.notify(PROGRESS, "done")

    def stop(self) -> None:
        """Stop the app's containers, and keep them. Raises `UnavailableError("compose.stop")`."""
        with self._step("stop"):
            self._runner.stop(self._environment())

    def _environment(self) -> dict[str, str]:
        """Return what the app's own programs get: the guest's, the host's address for collateral, secrets."""
        pccs = {"PCCS_URL": self._app.pccs_url} if self._app.pccs_url else {}
        return self._plain | pccs | self._app.environment

    @contextmanager
    def _step(self, name: str, *, failure: str = "") -> Iterator[None]:
        log_event("compose.step", step=name, status="started")
        try:
            yield
        except DstackError as error:
            log_event("compose.step", step=name, status="failed", code=error.code, message=error.message)
            self._host.notify(ERROR, failure or f"{name} failed [{error.code}]")
            raise
        log_event("compose.step", step=name, status="done")

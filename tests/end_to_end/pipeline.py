"""A job of a repository on GitHub that deploys: GitHub's and Google's issuers, and its commands."""

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import msgspec
import pytest

from cli.remote import ApiError, RemoteDeployments
from cli.upload import project_upload
from functions.plan.project_files import read_config
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from tests.end_to_end.commands import become, run, shown
from tests.end_to_end.gcp_site import user_environment
from tests.end_to_end.shared_clock import SharedClock
from tests.functions.deploy.issuer import Issuer, jwk, rsa_key, sign
from tests.functions.deploy.uploads import AUDIENCE, github_claims, github_grant, grants_file

GITHUB_HOST = "token.actions.githubusercontent.com"
GOOGLE_HOST = "accounts.google.com"
TOKEN_SECONDS = 6 * 3600  # longer than any test skips
PAUSE = 0.1
"""Seconds between two looks of a command at a deployment, in place of three."""

GRANTS = grants_file(
    github_grant(apps=["dstack-web"], verbs=["deploy", "read", "logs", "stop", "start", "remove", "firewall"])
)


class Identities:
    """GitHub and Google as issuers of tokens, at their own names; `ca_file` is whom their clients believe."""

    def __init__(self, directory: Path, clock: SharedClock) -> None:
        self._clock = clock
        self.key = rsa_key()
        self._issuers = {host: _issuer(directory / host, host) for host in (GITHUB_HOST, GOOGLE_HOST, "")}
        for issuer in self._issuers.values():
            issuer.publish(jwk(self.key, "k1"))
        self.hosts = {host: issuer.port for host, issuer in self._issuers.items() if host}
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(b"".join(issuer.certificate for issuer in self._issuers.values()))
        # the runner of a job gives out the job's tokens, over an address of its own
        self._runner = self._issuers[""]

    def close(self) -> None:
        for issuer in self._issuers.values():
            issuer.close()

    def tls(self) -> ssl.SSLContext:
        """Return the context of a server that is called localhost."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._runner.chain)
        return context

    def job(self, **claims: Any) -> str:
        """Return the token of a job."""
        now = self._clock()
        wanted = github_claims(iat=now, nbf=now, exp=now + TOKEN_SECONDS, **claims)
        return sign(wanted, self.key, "k1")

    def forged(self) -> str:
        """Return a token that says the same, signed by somebody else."""
        claims = jwt.decode(self.job(), options={"verify_signature": False})
        return sign(claims, rsa_key(), "k1")

    def task(self, audience: str, email: str) -> str:
        """Return the token with which Google's queue calls."""
        now = self._clock()
        claims = {"iss": f"https://{GOOGLE_HOST}", "aud": audience, "iat": now, "exp": now + 3600}
        return sign(claims | {"email": email, "email_verified": True, "sub": "1"}, self.key, "k1")

    def job_environment(self) -> dict[str, str]:
        """Return what a job with `id-token: write` finds, and how it believes this machine's servers."""
        path = "/token?api-version=2.0"
        self._runner.documents[f"{path}&audience={quote(AUDIENCE, safe='')}"] = {"value": self.job()}
        return {
            "ACTIONS_ID_TOKEN_REQUEST_URL": self._runner.url + path,
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of the job",
            "DSTACK_CLOUD_AUDIENCE": AUDIENCE,
            "SSL_CERT_FILE": str(self.ca_file),
        }


@contextlib.contextmanager
def identities(directory: Path, clock: SharedClock) -> Iterator[Identities]:
    """Give issuers that serve while the block runs."""
    made = Identities(directory, clock)
    try:
        yield made
    finally:
        made.close()


def become_job(monkeypatch: pytest.MonkeyPatch, who: Identities, place: Path) -> None:
    """Take the environment of a job below `place`: it has no credentials of any cloud."""
    become(monkeypatch, user_environment(place) | who.job_environment(), place)
    defaults = RemoteDeployments.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "sleep", lambda _seconds: time.sleep(PAUSE))


class Job:
    """A job of the repository at `place`, where its project `web` is, that deploys by the API at `url`."""

    def __init__(self, place: Path, url: str, who: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.url = url
        self.who = who
        self._monkeypatch = monkeypatch

    def asks(self, command: str, code: int = 0) -> str:
        """Run a command on the project, and return what it printed."""
        return run(f"dstack-cloud -C web {command} --api {self.url}", code)

    def gets(self, command: str, code: int = 0) -> dict[str, Any]:
        """Run a command on the project with --json, and return the object."""
        return shown(f"dstack-cloud -C web {command} --api {self.url}", code)

    def refusal(self, command: str, token: str) -> tuple[str, int]:
        """Run a command with another token, and return the API's refusal: code and status."""
        with self._monkeypatch.context() as other:
            other.setenv("DSTACK_CLOUD_TOKEN", token)
            with pytest.raises(ApiError) as caught:
                self.asks(command)
        return caught.value.code, caught.value.status

    def deployments(self) -> RemoteDeployments:
        """Return what the commands of a job speak through."""
        return RemoteDeployments(self.url, self.who.job, HttpClient(DirectDialer()))

    def rival(self) -> "Rival":
        """Return another job, which deploys other files of this project."""
        return Rival(self.deployments(), self.place / "web", self.place / "config.json")


class Rival:
    """Another job that deploys other files under the same name, when it is called; `codes` is what it got."""

    def __init__(self, api: RemoteDeployments, project: Path, config: Path) -> None:
        self._api = api
        found = project_upload(project, read_config(config))
        files = found.files | {"docker-compose.yaml": found.files["docker-compose.yaml"] + b"# other\n"}
        self._upload = msgspec.structs.replace(found, files=files, directory="")
        self.codes: list[tuple[str, int]] = []

    def __call__(self) -> None:
        for replace in (False, True):
            upload = msgspec.structs.replace(self._upload, replace=replace)
            try:
                self._api.deploy(upload, "")
            except ApiError as error:
                self.codes.append((error.code, error.status))
            else:
                self.codes.append(("accepted", 202))


class Pump:
    """Calls `turn` in a thread until the block ends; what it raises is raised at the block's end."""

    def __init__(self, turn: Callable[[], bool]) -> None:
        self._turn = turn
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if not self._turn():
                    self._stop.wait(0.01)
        except BaseException as error:  # noqa: BLE001 - raised at the end of the block
            self._failure = error


def _issuer(directory: Path, host: str) -> Issuer:
    directory.mkdir(exist_ok=True)
    return Issuer(directory, host)

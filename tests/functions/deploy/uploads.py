"""Projects as they are handed in, and a service over a real store with a cloud that only remembers."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from functions.deploy.cloud import FirewallRule, LogPage, Machine, Work
from functions.deploy.record import Deployment, Planned, Step
from functions.deploy.request import Options, Upload
from functions.deploy.service import DeploymentService
from functions.stores.sqlite import FileBlobs, SqliteStore

COMPOSE = b"services:\n  web:\n    image: nginx@sha256:" + b"ab" * 32 + b"\n"
CIPHERTEXT = bytes(range(256))
GITHUB = "https://token.actions.githubusercontent.com"
GITLAB = "https://gitlab.example.com"
AUDIENCE = "https://deploy.example.com"
NOW = 1_800_000_000


def app_json(**changes: Any) -> bytes:
    return json.dumps({"name": "web", "platform": "gcp", "os_image": "dstack-0.6.0"} | changes).encode()


def project(**changes: Any) -> dict[str, bytes]:
    return {"app.json": app_json(**changes), "docker-compose.yaml": COMPOSE}


def upload(name: str = "web", **changes: Any) -> Upload:
    return msgspec.structs.replace(Upload(name=name, files=project(), options=Options()), **changes)


def body(name: str = "web", files: dict[str, bytes] | None = None, **changes: Any) -> bytes:
    encoded = {file: base64.b64encode(content).decode() for file, content in (files or project()).items()}
    return json.dumps({"name": name, "files": encoded} | changes).encode()


def github_claims(**changes: Any) -> dict[str, Any]:
    return {
        "iss": GITHUB,
        "aud": AUDIENCE,
        "repository": "acme/web",
        "repository_id": "1001",
        "repository_owner": "acme",
        "repository_owner_id": "2002",
        "ref": "refs/heads/main",
        "event_name": "push",
        "run_id": "77",
    } | changes


def gitlab_claims(**changes: Any) -> dict[str, Any]:
    return {
        "iss": GITLAB,
        "aud": AUDIENCE,
        "project_id": "42",
        "project_path": "acme/web",
        "ref": "main",
        "ref_path": "refs/heads/main",
        "ref_protected": "true",
        "pipeline_source": "push",
    } | changes


def github_grant(**changes: Any) -> dict[str, Any]:
    return {
        "issuer": GITHUB,
        "repository_id": "1001",
        "repository_owner_id": "2002",
        "ref": "refs/heads/main",
        "apps": ["web", "web-*"],
        "verbs": ["deploy", "read"],
    } | changes


def gitlab_grant(**changes: Any) -> dict[str, Any]:
    return {
        "issuer": GITLAB,
        "project_id": "42",
        "ref_protected": True,
        "ref": "refs/heads/main",
        "apps": ["web"],
        "verbs": ["deploy", "read"],
    } | changes


def grants_file(*grants: dict[str, Any], audience: str = AUDIENCE) -> bytes:
    return json.dumps({"audience": audience, "grants": grants}).encode()


class RememberingCloud:
    """The part of a cloud that the service calls: a console and a table of rules."""

    def __init__(self) -> None:
        self.rules: list[FirewallRule] = []
        self.console = b""
        self.failure: Exception | None = None
        self.seen: list[Deployment] = []

    def logs(self, work: Work, cursor: str = "", limit: int = 1 << 20) -> LogPage:
        self._look(work)
        start = int(cursor or 0)
        page = self.console[start : start + limit]
        return LogPage(page.decode(), str(start + len(page)))

    def describe(self, work: Work) -> Machine:
        self._look(work)
        return Machine(status="RUNNING", confidential="TDX", traits={"vtpm": True})

    def firewall(self, work: Work) -> Sequence[FirewallRule]:
        self._look(work)
        return list(self.rules)

    def set_firewall(self, work: Work, rule: FirewallRule) -> None:
        self.clear_firewall(work, rule.protocol, rule.port)
        work.present(work.intend("firewall", f"allow-{rule.port}"))
        self.rules.append(rule)

    def clear_firewall(self, work: Work, protocol: str, port: int) -> bool:
        self._look(work)
        kept = [one for one in self.rules if (one.protocol, one.port) != (protocol, port)]
        cleared = len(kept) != len(self.rules)
        self.rules = kept
        return cleared

    def _look(self, work: Work) -> None:
        self.seen.append(work.deployment)
        if self.failure is not None:
            raise self.failure


class Bench:
    """A service, what it is made of, and the calls that it asked for."""

    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(directory / "deployments.sqlite")
        self.blobs = FileBlobs(directory / "blobs")
        self.cloud = RememberingCloud()
        self.calls: list[tuple[str, int]] = []
        self.now = NOW
        clouds: Any = {"gcp-tdx": self.cloud, "aws-nitro": self.cloud}
        self.service = DeploymentService(
            self.store,
            self.blobs,
            clouds,
            lambda name, wait: self.calls.append((name, wait)),
            lambda: self.now,
        )

    def change(self, name: str, **changes: Any) -> Deployment:
        """Write to a record as the engine would."""
        found = self.store.get(name)
        changed = msgspec.structs.replace(found, **changes, version=found.version + 1)
        self.store.replace(changed, found.version)
        return changed

    def settle(self, name: str, step: Step = Step.RUNNING, **changes: Any) -> Deployment:
        """Bring a deployment to a place of rest, with a plan."""
        planned = Planned(
            plan_id="1" * 64,
            app_id="2" * 40,
            compose_hash="3" * 64,
            os_image_hash="4" * 64,
            platform="gcp",
            plan=self.blobs.put(b"{}"),
        )
        return self.change(name, step=step, planned=planned, **changes)

    def close(self) -> None:
        self.store.close()

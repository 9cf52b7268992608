"""Who may do what with which deployment, decided on the claims of a token that was verified already.

Nothing is allowed that no grant allows. A grant names a repository by its ids, which nobody can take over
with a name; the branch, tag or environment that a pipeline must run for; apps; and verbs. Pipelines of pull
and merge requests run what strangers wrote, so no grant can name them.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from shared.errors import ConfigError, ProtocolError
from shared.strict_json import decode_json

Verb = Literal["deploy", "read", "logs", "stop", "start", "remove", "firewall"]
Claims = Mapping[str, Any]

MAX_GRANTS_BYTES: Final = 256 << 10
MAX_GRANTS: Final = 256
MAX_ITEMS: Final = 64
"""Of apps, or of events, in one grant."""

_APP: Final = re.compile(r"[a-z][-a-z0-9]{0,62}\*?|\*")
_ID: Final = re.compile(r"[0-9]{1,20}")
_REF: Final = re.compile(r"refs/(heads|tags)/\S{1,200}")
_SHOWN: Final = 80

GITHUB_EVENTS: Final = ("push", "workflow_dispatch", "release", "schedule")
GITLAB_EVENTS: Final = ("push", "web", "schedule")
"""What may start a pipeline, where a grant does not say: what only people with write access can cause."""


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the grants file.

    `repository_id` and `repository_owner_id` are GitHub's, `project_id` and `ref_protected` GitLab's. `ref`
    is a whole one (`refs/heads/main`). An app is a name, or a prefix with `*` behind it. `events` are what
    GitHub calls `event_name` and GitLab `pipeline_source`.
    """

    issuer: str
    apps: tuple[str, ...]
    verbs: tuple[Verb, ...]
    repository_id: str = ""
    repository_owner_id: str = ""
    project_id: str = ""
    ref_protected: bool = False
    ref: str = ""
    environment: str = ""
    events: tuple[str, ...] = ()

    @property
    def is_gitlab(self) -> bool:
        """Whether the claims are GitLab's."""
        return bool(self.project_id)

    def wanted(self) -> dict[str, tuple[str, ...]]:
        """Return which claims must be there, and the texts that each may be."""
        wanted: dict[str, tuple[str, ...]] = {"iss": (self.issuer,)}
        if self.is_gitlab:
            wanted |= {"project_id": (self.project_id,), "ref_protected": ("true",)}
        else:
            wanted |= {
                "repository_id": (self.repository_id,),
                "repository_owner_id": (self.repository_owner_id,),
            }
        if self.ref:
            # GitLab's `ref` may be a branch or a tag of one name, its `ref_path` says which
            wanted["ref_path" if self.is_gitlab else "ref"] = (self.ref,)
        if self.environment:
            wanted["environment"] = (self.environment,)
        event, usual = ("pipeline_source", GITLAB_EVENTS) if self.is_gitlab else ("event_name", GITHUB_EVENTS)
        wanted[event] = self.events or usual
        return wanted

    def covers(self, app: str) -> bool:
        """Whether the grant names an app."""
        return any(
            app.startswith(pattern[:-1]) if pattern.endswith("*") else app == pattern for pattern in self.apps
        )


class Decision(msgspec.Struct, frozen=True):
    """The answer, and why, for the log: which grant allowed it, or what each one missed."""

    allowed: bool
    why: str


class Grants(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The grants file. `audience` is this deployment's own: a token made for another place is none."""

    audience: str
    grants: tuple[Grant, ...]

    @property
    def issuers(self) -> frozenset[str]:
        """Whose tokens can be granted anything."""
        return frozenset(grant.issuer for grant in self.grants)

    def decide(self, claims: Claims, verb: Verb, app: str) -> Decision:
        """Decide whether these claims may do `verb` with `app`."""
        if (refusal := self._refusal(claims)) is not None:
            return Decision(allowed=False, why=refusal)
        missed = []
        for number, grant in enumerate(self.grants):
            reason = _mismatch(grant, claims)
            if reason is None and verb not in grant.verbs:
                reason = f"has no verb {verb}"
            if reason is None and not grant.covers(app):
                reason = f"names other apps than {app[:_SHOWN]!a}"
            if reason is None:
                return Decision(allowed=True, why=f"grant {number}")
            missed.append(f"grant {number} {reason}")
        return Decision(allowed=False, why="; ".join(missed)[:1000] or "there are no grants")

    def knows(self, claims: Claims) -> bool:
        """Whether any grant is for these claims, whatever the app and the verb."""
        return self._refusal(claims) is None and any(
            _mismatch(grant, claims) is None for grant in self.grants
        )

    def held(self, claims: Claims, verb: Verb) -> tuple[Grant, ...]:
        """Return the grants by which these claims may do `verb`, for whoever looks at many apps."""
        if self._refusal(claims) is not None:
            return ()
        return tuple(
            grant for grant in self.grants if verb in grant.verbs and _mismatch(grant, claims) is None
        )

    def _refusal(self, claims: Claims) -> str | None:
        audience = claims.get("aud")
        if isinstance(audience, list | tuple) and len(audience) == 1:
            audience = audience[0]
        if not _same(audience, self.audience):
            return f"aud is {_show(audience)}, expected {self.audience!a}"
        for name in ("event_name", "pipeline_source"):
            event = claims.get(name)
            if isinstance(event, str) and _is_request_event(event):
                return f"{name} is {_show(event)}: what a request for changes runs is not trusted"
        return None


def parse_grants(raw: bytes) -> Grants:
    """Read a grants file.

    Raises `ConfigError`: `deploy.grants.json.*`, `deploy.grants.field`, and for a grant that is too wide or
    names nobody `deploy.grants.issuer`, `.identity`, `.where`, `.apps`, `.verbs`, `.events`, `.audience`.
    """
    try:
        document = decode_json(
            raw, what="the grants", code="deploy.grants.json", max_bytes=MAX_GRANTS_BYTES, max_depth=8
        )
        grants = msgspec.convert(document, Grants)
    except ProtocolError as error:
        raise ConfigError(error.code, error.message) from error
    except ValueError as error:
        detail = str(error).splitlines()[0][:200].encode("ascii", "replace").decode().rstrip(".")
        raise ConfigError("deploy.grants.field", f"the grants do not fit: {detail}") from None
    if not grants.audience or any(character.isspace() for character in grants.audience):
        raise ConfigError(
            "deploy.grants.audience", "the grants name no audience: give this deployment its own"
        )
    if len(grants.grants) > MAX_GRANTS:
        raise ConfigError(
            "deploy.grants.field", f"got {len(grants.grants)} grants, expected at most {MAX_GRANTS}"
        )
    for number, grant in enumerate(grants.grants):
        _check(grant, f"grant {number}")
    return grants


def caller(claims: Claims) -> str:
    """Return who is calling, in one short ASCII text for records and logs: ids, never an email or a name."""
    names = ("repository_id", "project_id", "ref", "environment", "run_id", "pipeline_id")
    known = [f"{name}={_show(claims[name])}" for name in names if isinstance(claims.get(name), str)]
    return " ".join(known)[:300]


def _mismatch(grant: Grant, claims: Claims) -> str | None:
    """Return what a grant misses in the claims, None where they are whom it names."""
    for name, allowed in grant.wanted().items():
        if not any(_same(claims.get(name), text) for text in allowed):
            return f"wants {name} {' or '.join(allowed)[:_SHOWN]!a}, got {_show(claims.get(name))}"
    return None


def _same(claim: object, text: str) -> bool:
    """Compare exactly: a number, a list or another case is another claim."""
    return isinstance(claim, str) and claim == text


def _is_request_event(event: str) -> bool:
    return event.startswith(("pull_request", "merge_request", "external_pull_request"))


def _check(grant: Grant, what: str) -> None:
    _check_issuer(grant, what)
    is_github = bool(grant.repository_id or grant.repository_owner_id)
    if is_github == grant.is_gitlab:
        _wrong("identity", f"{what} must name repository_id and repository_owner_id, or project_id")
    ids = (grant.project_id,) if grant.is_gitlab else (grant.repository_id, grant.repository_owner_id)
    if not all(_ID.fullmatch(one) for one in ids):
        _wrong("identity", f"{what} must have ids in decimal: names can be taken over")
    if grant.is_gitlab and not grant.ref_protected:
        _wrong("where", f"{what} must have ref_protected true: anybody with write access makes other refs")
    if grant.ref_protected and not grant.is_gitlab:
        _wrong("where", f"{what} has ref_protected, which GitHub's tokens do not say")
    if not grant.ref and not grant.environment:
        _wrong("where", f"{what} has neither ref nor environment: every branch could use it")
    if grant.ref and not _REF.fullmatch(grant.ref):
        _wrong("where", f"{what} has the ref {_show(grant.ref)}, expected refs/heads/NAME or refs/tags/NAME")
    if not 1 <= len(grant.apps) <= MAX_ITEMS or not all(_APP.fullmatch(app) for app in grant.apps):
        _wrong("apps", f"{what} must name apps, as names or as prefixes with * behind them")
    if not grant.verbs:
        _wrong("verbs", f"{what} has no verbs, so it grants nothing")
    if len(grant.events) > MAX_ITEMS or any(_is_request_event(one) or not one for one in grant.events):
        _wrong("events", f"{what} names events of pull or merge requests, which nothing can grant")


def _check_issuer(grant: Grant, what: str) -> None:
    try:
        parts = urlsplit(grant.issuer)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.username:
        _wrong("issuer", f"{what} has the issuer {_show(grant.issuer)}, expected an https url")


def _wrong(code: str, message: str) -> None:
    raise ConfigError(f"deploy.grants.{code}", message)


def _show(value: object) -> str:
    return ascii(value)[:_SHOWN]

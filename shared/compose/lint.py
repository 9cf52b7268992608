"""The linter of app-compose.json: what a reader of the document should know before its hash is approved.

It reads the bytes as shipped, so it can say what a parser no longer sees. Errors come first, notes last.
"""

from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from typing import Any, Final

from shared.compose.app_compose import canonical_bytes, parse_app_compose
from shared.compose.findings import Finding, Severity, error, note, warning
from shared.compose.model import PLATFORMS, AppCompose, model_of
from shared.compose.secrets import is_secret_name, is_secret_value, is_switch
from shared.compose.services import ComposeFile, Service, is_pinned, plain_texts, read_compose_file, variables
from shared.errors import ProtocolError

MAX_FINDINGS: Final = 1000  # of each part: services times variables could be a flood
_MAX_WALK: Final = 100_000  # values of one document that are looked at for nulls and numbers
_DEPRECATED: Final = {
    "features": "only tproxy-net acts; set gateway_enabled instead",
    "tproxy_enabled": "set gateway_enabled instead",
    "kms_enabled": "set key_provider instead",
    "local_key_provider_enabled": "set key_provider instead",
    "docker_config": "no guest reads it",
    "launch_token_hash": "no guest checks it; set requirements.launch_token_hash instead",
}
_TRUE_BY_DEFAULT: Final = ("secure_time", "public_tcbinfo")
_SCRIPTS: Final = ("pre_launch_script", "bash_script")


def lint_app_compose(raw: bytes) -> tuple[Finding, ...]:
    """Return all findings about the exact bytes of an app-compose.json; never raises for their content.

    A document that the guest would refuse gives one error with the code that `read_app_compose` raises.
    """
    try:
        document = parse_app_compose(raw)
    except ProtocolError as problem:
        return (error(problem.code, "app-compose", problem.message),)
    findings = list(islice(_form(raw, document), MAX_FINDINGS))
    try:
        compose = model_of(document)
    except ProtocolError as problem:
        return (error(problem.code, "app-compose", problem.message), *findings)
    for part in (_scripts(compose), _fields(document, compose), _containers(compose)):
        findings = [*islice(part, MAX_FINDINGS), *findings]
    order = list(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


# ---- the form of the bytes ----


def _form(raw: bytes, document: dict[str, Any]) -> Iterator[Finding]:
    yield from _odd_values(document)
    try:
        if canonical_bytes(document) == raw:
            return
    except ProtocolError as problem:
        yield warning("lint.canonical", "app-compose", f"has no canonical form: {problem.message}")
        return
    yield warning(
        "lint.canonical",
        "app-compose",
        "is not in canonical form: another tool that writes the same document makes another hash",
    )


def _odd_values(document: dict[str, Any]) -> Iterator[Finding]:
    pending: list[tuple[str, Any]] = [("app-compose", document)]
    seen = 0
    while pending:
        where, value = pending.pop()
        seen += 1
        if seen > _MAX_WALK:
            yield warning("lint.size", "app-compose", f"has more than {_MAX_WALK} values: not all were read")
            return
        if value is None:
            yield warning("lint.null", where, "is null: sdks keep or drop it, which makes two hashes")
        elif isinstance(value, float):
            yield warning("lint.number", where, "is a fraction: languages write it in different ways")
        elif isinstance(value, dict):
            pending += ((f"{where}.{key[:40]}", item) for key, item in reversed(value.items()))
        elif isinstance(value, list):
            pending += ((f"{where}[{index}]", item) for index, item in enumerate(value))


# ---- fields ----


def _fields(document: dict[str, Any], compose: AppCompose) -> Iterator[Finding]:
    for name in compose.unknown:
        yield warning(
            "lint.unknown",
            name[:80],
            "is unknown to every guest: it is measured, and verifiers refuse it",
        )
    for name, instead in _DEPRECATED.items():
        if document.get(name):
            yield warning("lint.deprecated", name, f"is deprecated: {instead}")
    for name in _TRUE_BY_DEFAULT:
        if name not in document:
            yield note("lint.default", name, "is absent, which means true")
    if list(compose.allowed_envs) != sorted(set(compose.allowed_envs)):
        yield warning("lint.allowed_envs", "allowed_envs", "is not sorted, or names one twice")
    if compose.public_logs:
        yield warning("lint.public_logs", "public_logs", "is true: anybody can read what containers print")
    yield from _keys(document, compose)
    yield from _env_signer(compose)
    yield from _key_epoch(compose)
    yield from _runner(compose)
    yield from _platforms(compose)


def _platforms(compose: AppCompose) -> Iterator[Finding]:
    if (required := compose.requirements) is None or required.platforms is None:
        return
    if not required.platforms:
        yield error("lint.platforms", "requirements.platforms", "is empty: no platform may start this app")
    for platform in sorted(set(required.platforms) - set(PLATFORMS)):
        yield warning(
            "lint.platforms", "requirements.platforms", f"names an unknown platform {platform[:40]!a}"
        )


def _keys(document: dict[str, Any], compose: AppCompose) -> Iterator[Finding]:
    provider = compose.effective_key_provider
    if "key_provider" not in document:
        yield note("lint.key_provider", "key_provider", f"is absent, which means {provider}")
    if provider == "none":
        yield warning(
            "lint.key_provider",
            "key_provider",
            "is none: keys and disk are lost with each boot",
        )
    if provider != "kms" and compose.uses_gateway:
        yield error(
            "lint.gateway",
            "gateway_enabled",
            f"needs key_provider kms, got {provider}",
        )
    if provider != "kms" and compose.allowed_envs:
        yield error(
            "lint.allowed_envs",
            "allowed_envs",
            f"needs key_provider kms, got {provider}",
        )


def _key_epoch(compose: AppCompose) -> Iterator[Finding]:
    """Say what a raised epoch takes: keys of another epoch open nothing that the old ones closed."""
    if not compose.key_epoch:
        return
    if compose.effective_key_provider != "kms":
        yield error(
            "lint.key_epoch.key_provider",
            "key_epoch",
            f"needs key_provider kms, got {compose.effective_key_provider}",
        )
    yield note(
        "lint.key_epoch.guest",
        "key_epoch",
        "is for the guest and KMS of this project; the disk of another epoch cannot be opened with its keys",
    )


def _env_signer(compose: AppCompose) -> Iterator[Finding]:
    """Say who may choose the variables of this app: anybody can encrypt to its key."""
    is_signed = compose.env_signer is not None
    if is_signed and compose.effective_key_provider != "kms":
        yield error(
            "lint.env_signer.key_provider",
            "env_signer",
            f"needs key_provider kms, got {compose.effective_key_provider}",
        )
    if is_signed:
        yield note(
            "lint.env_signer.guest",
            "env_signer",
            "is checked by the guest of this project; upstream's measures it and takes any variables",
        )
    if compose.env_min_version and not is_signed:
        yield error("lint.env_signer.version", "env_min_version", "does nothing without an env_signer")
    has_token = compose.requirements is not None and compose.requirements.launch_token_hash is not None
    if compose.allowed_envs and not is_signed and not has_token:
        yield note(
            "lint.env_signer.absent",
            "allowed_envs",
            "can be set by whoever runs the machine: name an env_signer, or a requirements.launch_token_hash",
        )


def _runner(compose: AppCompose) -> Iterator[Finding]:
    if compose.runner == "bash":
        if not compose.bash_script:
            yield error("lint.runner", "bash_script", "is absent, and the runner is bash")
    elif not compose.docker_compose_file:
        yield error("lint.runner", "docker_compose_file", f"is absent, and the runner is {compose.runner}")
    if compose.runner == "nerdctl-compose" and compose.manifest < 3:
        yield error("lint.runner", "runner", "nerdctl-compose needs manifest_version '3'")
    if compose.snapshotter is not None and compose.runner != "nerdctl-compose":
        yield warning("lint.runner", "snapshotter", f"does nothing with the runner {compose.runner}")


# ---- code outside of containers ----


def _scripts(compose: AppCompose) -> Iterator[Finding]:
    """Show each script whole: it is code that an approved hash lets run (SECURITY N-05)."""
    for index, script in enumerate(compose.scripts):
        digest = sha256(script.encode()).hexdigest()
        yield note(
            "lint.init_script", f"init_script[{index}]", f"runs before docker, sha256 {digest}", detail=script
        )
        yield from _plain_secrets(f"init_script[{index}]", script)
    for name in _SCRIPTS:
        if script := getattr(compose, name):
            yield note(f"lint.{name}", name, "runs as root in the guest; it gates nothing", detail=script)
            yield from _plain_secrets(name, script)


def _plain_secrets(where: str, text: str) -> Iterator[Finding]:
    if is_secret_value(text):
        yield error("lint.secret", where, "holds what looks like a secret: an app-compose is public")


# ---- containers ----


def _containers(compose: AppCompose) -> Iterator[Finding]:
    if compose.runner == "bash" or not (text := compose.docker_compose_file):
        return
    try:
        file = read_compose_file(text)
    except ProtocolError as problem:
        yield error(f"lint.{problem.code}", "docker_compose_file", problem.message)
        return
    if file.has_include:
        yield error("lint.include", "docker_compose_file", "includes other files, which no guest has")
    for service in file.services:
        yield from lint_image(service)
        yield from _environment(service)
    yield from _plain_secrets("docker_compose_file", text)
    yield from _variables(file, text, compose)


def lint_image(service: Service) -> Iterator[Finding]:
    """Say where the image of a service is not fixed by the compose hash (SECURITY N-73)."""
    where = _where(service)
    if service.has_extends:
        yield error("lint.extends", where, "extends another service: write it out, so that its image shows")
    if service.has_build:
        yield error("lint.image.build", where, "is built in the guest, from what nobody measured")
    if service.image is None:
        if not service.has_build and not service.has_extends:
            yield error("lint.image.missing", where, "has no image")
    elif variables(service.image):
        yield error("lint.image.variable", where, "takes its image from a variable, which no hash covers")
    elif not is_pinned(service.image):
        yield error(
            "lint.image.digest", where, f"has the image {service.image[:120]!a}, expected NAME@sha256:DIGEST"
        )


def _environment(service: Service) -> Iterator[Finding]:
    where = _where(service)
    if service.has_env_file:
        yield warning("lint.env_file", where, "reads an env_file, which no guest has")
    for name, value in service.environment:
        if value and is_secret_name(name) and any(not is_switch(one) for one in plain_texts(value)):
            yield error(
                "lint.secret",
                f"{where}.{name[:40]}",
                "holds a secret in plain text: move it to .env",
            )


def _variables(file: ComposeFile, text: str, compose: AppCompose) -> Iterator[Finding]:
    used = set(variables(text))
    used |= {name for service in file.services for name, value in service.environment if value is None}
    allowed = set(compose.allowed_envs)
    for name in sorted(used - allowed):
        yield warning("lint.env.undeclared", name[:40], "is used by the compose file and not in allowed_envs")
    for name in sorted(allowed - used):
        yield note("lint.env.unused", name[:40], "is in allowed_envs and not used by the compose file")


def _where(service: Service) -> str:
    return f"services.{service.name[:40]}"

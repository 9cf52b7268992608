"""Whether an enclave's image takes the environment that its project has, found before anything is launched.

The image says in `/etc/dstack/enclave.toml`, which is measured, which variables its app takes, whose they
must be and of which key epoch: an environment that was sealed for another answer would end the boot.
"""

from collections.abc import Iterator, Sequence

from msgspec import UNSET

from functions.plan.project_files import ProjectFiles
from shared.compose.enclave_toml import ENCLAVE_TOML, ENV_PORT, EnclaveToml, read_enclave_toml
from shared.compose.env_file import lint_env_file
from shared.compose.findings import Finding, error, note
from shared.errors import ConfigError


def enclave_env_findings(files: ProjectFiles, text: str | None, app_id: bytes) -> tuple[Finding, ...]:
    """Return what is wrong between a project's `.env` and app.json and the text of its image's file.

    `app_id` has 20 bytes or none. A project that has no variables and names no signer and no epoch is not
    looked at.
    """
    project = files.project
    names: Sequence[str] = () if files.env is None else files.env.names
    if not names and project.env_signer is UNSET and project.key_epoch is UNSET:
        return ()
    try:
        measured = read_enclave_toml(text or "")
    except ConfigError as problem:
        return (error(problem.code, f"/{ENCLAVE_TOML}", problem.message),)
    if names and not (measured.is_booted and measured.boot.allowed_envs):
        takes_none = (
            f"has variables, and the image's /{ENCLAVE_TOML} takes none: name them in boot.allowed_envs"
        )
        return (error("lint.nitro.env", ".env", takes_none),)
    quotes = () if files.env is None else lint_env_file(files.env)
    return (*quotes, *_undeclared(names, measured), *_other_key(files, measured, app_id if names else b""))


def _undeclared(names: Sequence[str], measured: EnclaveToml) -> Iterator[Finding]:
    for name in names:
        if name not in measured.boot.allowed_envs:
            yield error("lint.env.undeclared", name, "is in .env and not in the image's boot.allowed_envs")
    if names and not measured.boot.env_signer:
        yield note(
            "lint.env_signer.absent",
            "boot.allowed_envs",
            "can be set by whoever runs the parent: name a boot.env_signer",
        )
    if names and measured.boot.env_port != ENV_PORT:
        yield error(
            "lint.nitro.env_port",
            "boot.env_port",
            f"is {measured.boot.env_port}, and the instance offers the environment at {ENV_PORT}",
        )


def _other_key(files: ProjectFiles, measured: EnclaveToml, app_id: bytes) -> Iterator[Finding]:
    """Say where app.json, which the environment is sealed by, and the image differ."""
    project = files.project
    asked: list[tuple[str, object, object]] = [
        ("env_signer", project.env_signer, measured.boot.env_signer.lower()),
        ("key_epoch", project.key_epoch, measured.key_epoch),
        ("app_id", app_id.hex() or UNSET, measured.app_id.lower().removeprefix("0x")),
    ]
    for name, wanted, found in asked:
        same = wanted.lower() == found if isinstance(wanted, str) else wanted == found
        if wanted is not UNSET and not same:
            yield error(
                "lint.nitro.enclave_toml",
                name,
                f"is {wanted}, and {str(found)[:80]!a} in the image: what is sealed would not open",
            )

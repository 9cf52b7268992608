"""The source directory of a Google Cloud function, and the scripts that prepare its project and deploy it."""

from pathlib import Path
from shutil import copyfile, rmtree
from typing import Final

import msgspec

from functions.packaging.aws_zip import Runtime, check_budget, compile_bytecode
from functions.packaging.gcp_services import REGION, GcpService, Setting
from functions.packaging.own_code import REPOSITORY, copy_modules
from functions.packaging.targets import GcpFunction

MAIN: Final = '''"""What functions-framework looks for in main.py."""

from {entry} import {targets}

__all__ = [{names}]
'''

# a function that is started by our scripts alone has no use for them
GCLOUDIGNORE: Final = """.gcloudignore
deploy.sh
setup.sh
"""

_HEAD: Final = """#!/usr/bin/env bash
# {what} Written by `make package`.
set -euo pipefail
cd "$(dirname "$0")"
: "${{PROJECT:?the project to deploy to}}"
"""

# gcloud splits lists at a comma, which our values hold
_SEPARATOR: Final = ";"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A staged directory: its size without the packages that the buildpack installs, in bytes."""

    name: str
    runtime: str
    size: int
    budget: int


def stage_source(function: GcpFunction, runtime: Runtime, directory: Path) -> Source:
    """Write `<name>/` in a directory. Raises `StorageError`: `package.command`, `package.budget`."""
    stage = directory / function.name
    if stage.exists():
        rmtree(stage)
    stage.mkdir(parents=True)
    copy_modules([function.entry], stage)
    targets = sorted({service.target for service in function.services})
    names = ", ".join(f'"{target}"' for target in targets)
    main = MAIN.format(entry=function.entry, targets=", ".join(targets), names=names)
    (stage / "main.py").write_text(main)
    compile_bytecode(stage, runtime.interpreter, "/workspace")
    size = check_budget(function.name, stage, function.budget)
    copyfile(REPOSITORY / function.lock, stage / "requirements.txt")
    (stage / ".gcloudignore").write_text(GCLOUDIGNORE)
    for name, script in (
        ("setup.sh", setup_script(function)),
        ("deploy.sh", deploy_script(function, runtime)),
    ):
        (stage / name).write_text(script)
        (stage / name).chmod(0o755)
    return Source(name=function.name, runtime=runtime.identifier, size=size, budget=function.budget)


def deploy_script(function: GcpFunction, runtime: Runtime) -> str:
    """Return the script with the `gcloud functions deploy` command of each service."""
    asked = {
        setting.name: setting
        for service in function.services
        for setting in (*service.inputs, *map(_secret, service.secrets), *service.settings)
    }
    # what has no default comes first: the others may name it
    ordered = sorted(asked.values(), key=lambda setting: setting.default is not None)
    return "".join(
        [
            _HEAD.format(what=f"Deploys the {function.name} function."),
            _ask(REGION),
            *(_ask(setting) for setting in ordered),
            *(_deploy(service, runtime) + service.after for service in function.services),
        ]
    )


def setup_script(function: GcpFunction) -> str:
    """Return the script that makes accounts with no more rights than they need, and what else they use.

    It may run again.
    """
    return _HEAD.format(what=f"Prepares a project for the {function.name} function.") + "".join(
        _account(service) + service.before for service in function.services
    )


def _secret(setting: Setting) -> Setting:
    return Setting(f"{setting.name}_SECRET", setting.what, setting.default)


def _ask(setting: Setting) -> str:
    if setting.default is None:
        return f': "${{{setting.name}:?{setting.what}}}"\n'
    return f': "${{{setting.name}={setting.default}}}"  # {setting.what}\n'


def _deploy(service: GcpService, runtime: Runtime) -> str:
    options = [
        *('--project="$PROJECT"', '--region="$REGION"', "--gen2", f"--runtime={_gcp_name(runtime)}"),
        *("--source=.", f"--entry-point={service.target}", "--trigger-http"),
        "--allow-unauthenticated" if service.public else "--no-allow-unauthenticated",
        f'--service-account="{service.name}@$PROJECT.iam.gserviceaccount.com"',
        *(f"--memory={service.memory}", "--cpu=1", f"--timeout={service.seconds}s"),
        *(f"--concurrency={service.concurrency}", f"--max-instances={service.instances}"),
    ]
    if service.settings:
        pairs = _SEPARATOR.join(f"{one.name}=${one.name}" for one in service.settings)
        options.append(f'--set-env-vars="^{_SEPARATOR}^{pairs}"')
    for secret in service.secrets:
        name = f"{secret.name}_SECRET"
        # an option that is not there where no secret is named
        options.append(f'${{{name}:+--set-secrets="{secret.name}=${name}:latest"}}')
    return " \\\n  ".join([f"\ngcloud functions deploy {service.name}", *options]) + "\n"


def _account(service: GcpService) -> str:
    address = f"{service.name}@$PROJECT.iam.gserviceaccount.com"
    project = '--project="$PROJECT"'
    accounts = "gcloud iam service-accounts"
    lines = [
        f'\nMEMBER="serviceAccount:{address}"',
        f'{accounts} describe "{address}" {project} >/dev/null 2>&1 ||',
        f"  {accounts} create {service.name} {project}",
    ]
    roles = list(service.roles)
    if service.permissions:
        role = service.name.replace("-", "_")
        what = f'{role} {project} --permissions="{",".join(service.permissions)}"'
        lines += [
            f"if gcloud iam roles describe {role} {project} >/dev/null 2>&1; then",
            f"  gcloud iam roles update {what}",
            "else",
            f"  gcloud iam roles create {what}",
            "fi",
        ]
        roles.append(f"projects/$PROJECT/roles/{role}")
    member = '--member="$MEMBER"'
    lines += [
        f'gcloud projects add-iam-policy-binding "$PROJECT" {member} --role="{role}" --condition=None'
        for role in roles
    ]
    for secret in map(_secret, service.secrets):
        grant = f'gcloud secrets add-iam-policy-binding "${secret.name}" {project} {member}'
        lines += [
            _ask(secret).rstrip(),
            f'if [ -n "${secret.name}" ]; then',
            f"  {grant} --role=roles/secretmanager.secretAccessor >/dev/null",
            "fi",
        ]
    return "\n".join(lines) + "\n"


def _gcp_name(runtime: Runtime) -> str:
    return "python{}{}".format(*runtime.version)

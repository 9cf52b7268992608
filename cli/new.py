"""`dstack-cloud new`: a project directory, with upstream's files (spec deploy section 1.2)."""

import json
import re
import secrets
from pathlib import Path
from typing import Any, Final

import click

from functions.plan.project_files import APP_JSON
from shared.compose.project import APP_ID_BYTES, PROJECT_DEFAULTS, SEED_BYTES, read_app_json
from shared.errors import ConfigError
from shared.hex import decode_hex_setting

INSTANCE_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""What Google Cloud takes as the name of an instance; EC2's tags take it too."""

COMPOSE_FILES: Final = ("docker-compose.yaml", "docker-compose.yml", "compose.yaml", "compose.yml")
"""What a directory's compose file may be called; the first one that is there counts."""

_COMPOSE: Final = """\
services:
  web:
    # pin the image: `docker buildx imagetools inspect nginx:alpine` prints its digest
    image: nginx:alpine
    ports:
      - "80:80"
    restart: unless-stopped
"""
_PRELAUNCH: Final = """\
#!/bin/bash
# Runs in the guest before the containers start. It is measured.
"""
_ENV: Final = (
    "# NAME=value, one a line; encrypted to the app's key when it is deployed. Quotes stay in a value.\n"
)
_SECTIONS: Final = {"gcp": "gcp_config", "aws": "aws_config", "nitro": "nitro_config"}


@click.command()
@click.argument("name")
@click.option("--os-image", metavar="NAME", help="OS image, as `pull` takes it.")
@click.option("--app-id", metavar="HEX", help="The app contract's address; drawn at random otherwise.")
@click.option(
    "--gateway-enabled/--no-gateway-enabled",
    "--gw/--no-gw",
    "gateway",
    default=None,
    help="Register with a gateway, which needs a KMS.",
)
@click.option(
    "--key-provider", "--kp", type=click.Choice(["kms", "local", "tpm", "none"]), help="Where keys come from."
)
@click.option(
    "--storage-fs", "--fs", type=click.Choice(["ext4", "zfs"]), help="File system of the data disk."
)
@click.option("--secure-time/--no-secure-time", default=None, help="Wait for a synchronised clock at boot.")
@click.option(
    "--no-instance-id/--instance-id",
    "no_instance_id",
    default=None,
    help="Whether a machine has an id of its own, which its disk key depends on.",
)
@click.option(
    "--platform",
    type=click.Choice(["gcp", "aws", "nitro"]),
    default="gcp",
    show_default=True,
    help="TDX on Google Cloud, a NitroTPM instance (plan alone), or a Nitro enclave.",
)
@click.option("--project", "-p", "cloud_project", metavar="ID", help="Google Cloud project.")
@click.option("--zone", "-z", help="Google Cloud zone.")
@click.option("--region", help="AWS region.")
@click.option("--instance-name", metavar="NAME", help="Name of the machine; dstack-NAME otherwise.")
@click.option("--machine-type", "-m", metavar="TYPE", help="Machine type, on AWS the instance type.")
@click.option("--data-size", type=click.IntRange(min=1), metavar="GB", help="Size of the data disk.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def new(name: str, *, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - click passes each option by its name
    """Make a project in the new directory NAME.

    It holds app.json, docker-compose.yaml, prelaunch.sh, .env (where keys come from a KMS) and .user-config.

    Exit codes: 0 made, 2 usage, such as a directory that exists.
    """
    document = app_json(name, **options)
    directory = Path(name)
    write_project(directory, document)
    if as_json:
        click.echo(json.dumps({"directory": str(directory), "app": document}, indent=2))
        return
    click.echo(f"made {directory}: edit {directory / 'docker-compose.yaml'}, then run")
    click.echo(f"  dstack-cloud -C {directory} plan")


def app_json(
    name: str,
    *,
    platform: str = "gcp",
    key_provider: str | None = None,
    gateway: bool | None = None,
    no_instance_id: bool | None = None,
    app_id: str | None = None,
    instance_name: str | None = None,
    **options: Any,  # noqa: ANN401 - as above
) -> dict[str, Any]:
    """Return the app.json of a new project: what was chosen, and fresh random ids.

    Only what was asked for is written, so that the operator's own defaults stay in force. Without a KMS there
    is no gateway and no instance id, unless they were asked for. Raises `ConfigError`: `new.name`,
    `new.option`.
    """
    machine = instance_name or f"dstack-{name}"
    if not INSTANCE_NAME.fullmatch(machine):
        raise ConfigError(
            "new.name",
            f"the machine would be called {machine[:80]!a}, expected lowercase letters, digits and dashes",
        )
    if app_id:
        app_id = decode_hex_setting(app_id, what="--app-id", length=APP_ID_BYTES, code="new.option").hex()
    document: dict[str, Any] = {"name": name, "platform": platform}
    if platform == "nitro":
        # an enclave's keys and identity are its image's; a random app id would name no contract
        document["app_id"] = app_id or ""
    else:
        document["app_id"] = app_id or secrets.token_hex(APP_ID_BYTES)
        document["instance_id_seed"] = secrets.token_hex(SEED_BYTES)
        # upstream's defaults are true: anybody who reaches the guest reads what containers print
        document |= {"public_logs": False, "public_sysinfo": False}
        has_kms = key_provider in {None, "kms"}
        given = {
            "os_image": options.get("os_image"),
            "key_provider": key_provider,
            "gateway_enabled": gateway if gateway is not None or has_kms else False,
            "no_instance_id": no_instance_id if no_instance_id is not None or has_kms else True,
            "storage_fs": options.get("storage_fs"),
            "secure_time": options.get("secure_time"),
            "env_file": None if has_kms else "",
        }
        document |= {key: value for key, value in given.items() if value is not None}
    document[_SECTIONS[platform]] = _machine(platform, machine, options)
    read_app_json(json.dumps(document).encode())
    return document


def adopt_compose_file(directory: Path, platform: str) -> str:
    """Make a project of a directory that holds a compose file alone; returns the file's name.

    The project is called after the directory, as `new` would call it. Where there is an app.json, or no
    compose file, nothing is done and the name is empty. Raises `ConfigError`: `new.name`, `new.directory`.
    """
    found = next((name for name in COMPOSE_FILES if (directory / name).is_file()), "")
    if not found or (directory / APP_JSON).exists():
        return ""
    name = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-")
    document = app_json(name, platform=platform)
    if found != PROJECT_DEFAULTS.docker_compose_file:
        document["docker_compose_file"] = found
    try:
        # never over one that somebody makes at the same time
        with (directory / APP_JSON).open("x") as file:
            file.write(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            "new.directory", f"cannot write {directory / APP_JSON}: {error.strerror}"
        ) from error
    return found


def write_project(directory: Path, document: dict[str, Any]) -> None:
    """Write a project's files. Raises `ConfigError("new.exists")`, `ConfigError("new.directory")`."""
    try:
        directory.mkdir()
    except FileExistsError as error:
        raise ConfigError("new.exists", f"directory '{directory}' already exists") from error
    except OSError as error:
        raise ConfigError("new.directory", f"cannot make {directory}: {error.strerror}") from error
    (directory / "app.json").write_text(json.dumps(document, indent=2) + "\n")
    (directory / "docker-compose.yaml").write_text(_COMPOSE)
    (directory / ".user-config").write_text("{}\n")
    (directory / "shared").mkdir()
    if document["platform"] == "nitro":
        return
    script = directory / "prelaunch.sh"
    script.write_text(_PRELAUNCH)
    script.chmod(0o755)
    if document.get("key_provider", "kms") == "kms":
        (directory / ".env").write_text(_ENV)
        (directory / ".env").chmod(0o600)


def _machine(platform: str, machine: str, options: dict[str, Any]) -> dict[str, Any]:
    type_field = "machine_type" if platform == "gcp" else "instance_type"
    fields = {
        "gcp": {"project": options.get("cloud_project"), "zone": options.get("zone")},
        "aws": {"region": options.get("region")},
        "nitro": {"region": options.get("region")},
    }[platform]
    fields |= {"instance_name": machine, type_field: options.get("machine_type")}
    if platform != "nitro":
        fields["data_size"] = options.get("data_size")
    return {key: value for key, value in fields.items() if value is not None}

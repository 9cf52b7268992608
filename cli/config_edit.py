"""`dstack-cloud config-edit`: the operator's own settings (spec deploy section 1.3)."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, Final

import click

from cli.places import config_path
from functions.plan.project_files import read_config
from shared.compose.project import AWS_DEFAULTS, GCP_DEFAULTS, NITRO_DEFAULTS, Services
from shared.errors import ConfigError

_TEMPLATE: Final[dict[str, Any]] = {
    "_comment_services": "the key servers and gateways that guests use; the first kms_url encrypts .env",
    "services": {
        "kms_urls": list(Services().kms_urls),
        "gateway_urls": list(Services().gateway_urls),
        "pccs_url": "",
        "nvidia_attestation_proxy_url": "",
    },
    "_comment_images": "where OS images are looked for, in this order; `pull` writes into the first",
    "image_search_paths": ["~/.dstack/images"],
    "_comment_clouds": "defaults of every project that does not say otherwise",
    "gcp": {"project": "", "zone": GCP_DEFAULTS.zone, "bucket": ""},
    "aws": {"region": AWS_DEFAULTS.region, "instance_type": AWS_DEFAULTS.instance_type},
    "nitro": {"region": NITRO_DEFAULTS.region, "instance_type": NITRO_DEFAULTS.instance_type},
}


@click.command("config-edit")
def config_edit() -> None:
    """Open your settings in $EDITOR, made from a template where there are none, and check them afterwards.

    They are in $DSTACK_CLOUD_CONFIG, else in ~/.config/dstack-cloud/config.json.

    Exit codes: 0 fine, 1 the editor failed, 2 the settings cannot be read.
    """
    path = config_path(os.environ)
    if not path.exists():
        write_template(path)
        click.echo(f"made {path}")
    editor = shlex.split(os.environ.get("EDITOR") or "vi")
    try:
        done = subprocess.run([*editor, str(path)], check=False)  # noqa: S603 - the user's own editor
    except OSError as error:
        raise ConfigError("config.editor", f"cannot start {editor[0]}: {error.strerror}") from error
    if done.returncode:
        raise click.ClickException(f"{editor[0]} ended with code {done.returncode}")
    read_config(path)


def write_template(path: Path) -> None:
    """Write the template. Raises `ConfigError("config.write")`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(json.dumps(_TEMPLATE, indent=2) + "\n")
    except OSError as error:
        raise ConfigError("config.write", f"cannot write {path}: {error.strerror}") from error

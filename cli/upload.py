"""A project as it is handed in to be deployed: its files, and its environment as ciphertext alone."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec
from msgspec import UNSET

from functions.deploy.request import OS_IMAGE_FILES, Options, Upload
from functions.plan.cloud_image import find_image
from functions.plan.project_files import APP_JSON, ProjectFiles, read_file, read_project
from shared.compose.project import MAX_APP_JSON_BYTES, GlobalConfig, gcp_settings, nitro_settings
from shared.compose.shared_files import USER_CONFIG
from shared.errors import ConfigError
from shared.hex import decode_hex_setting

if TYPE_CHECKING:
    from functions.deploy.env_sealing import SealedEnv
    from shared.keys.env_encryption import EnvAuthor
    from shared.keys.env_signature import TrustedSigners

WHITELIST: Final = "kms-whitelist.json"
"""Beside the operator's config: whose signature of a key to encrypt to counts. Upstream has it too."""


class Sealing(msgspec.Struct, frozen=True, kw_only=True):
    """How the environment is encrypted: who may vouch for the key, and who signs the values.

    `kms_urls` of the operator's config are asked. `env_key_file` holds an Ed25519 private key (PEM) where
    app-compose names an env_signer.
    """

    signers: Path
    rpc_urls: tuple[str, ...] = ()
    chain_id: int | None = None
    kms_contract: bytes | None = None
    env_key_file: Path | None = None
    env_version: int | None = None
    allow_legacy: bool = False
    ca_roots: Path | None = None


def project_upload(directory: Path, config: GlobalConfig, options: Options | None = None) -> Upload:
    """Return a project without its environment.

    The files are those that its app.json names, and of an OS image those that say what it measures. Raises
    what reading does, `ConfigError("deploy.platform")` for a NitroTPM project.
    """
    files = read_project(directory)
    project = files.project
    contents = {APP_JSON: read_file(directory / APP_JSON, MAX_APP_JSON_BYTES)}
    if files.docker_compose is not None and project.docker_compose_file:
        contents[str(project.docker_compose_file)] = files.docker_compose.encode()
    if files.pre_launch_script is not None and project.prelaunch_script:
        contents[str(project.prelaunch_script)] = files.pre_launch_script.encode()
    if files.app_compose is not None and project.app_compose_file:
        contents[str(project.app_compose_file)] = files.app_compose
    if files.user_config is not None:
        contents[USER_CONFIG] = files.user_config
    match project.platform:
        case "gcp":
            contents |= _os_image(files, config)
            name = gcp_settings(project, config).instance_name
        case "nitro":
            name = nitro_settings(project, config).instance_name
        case _:
            raise ConfigError(
                "deploy.platform",
                'platform "aws" is a NitroTPM instance, which is not launched yet: set "platform" in '
                'app.json to "nitro" for an enclave, or to "gcp"',
            )
    return Upload(
        name=str(name),
        files=contents,
        env_names=() if files.env is None else tuple(files.env.names),
        options=options or Options(),
        directory=str(directory.resolve()),
    )


def with_env(upload: Upload, directory: Path, config: GlobalConfig, sealing: Sealing) -> Upload:
    """Return the upload with the project's environment encrypted, and say how that came about.

    Raises what `seal_env` raises; `ConfigError("env.app_id")` where there is no app id yet: the key is of
    one. For an enclave, what measuring its image raises.
    """
    files = read_project(directory)
    names = () if files.env is None else files.env.names
    wanted = _wanted(files, config, sealing)
    if not names and not wanted.env_signer:
        return upload  # where somebody signs the environment, an empty one is signed too
    app_id = upload.options.app_id or str(files.project.app_id or "")
    if not app_id:
        raise ConfigError("env.app_id", "app.json has no app_id, and the environment is encrypted to one")
    raw = decode_hex_setting(app_id, what="app_id", length=20, code="env.app_id")
    sealed = _seal(files, config, sealing, raw, wanted)
    for warning in sealed.warnings:
        click.echo(f"warning: {warning}", err=True)
    return msgspec.structs.replace(upload, encrypted_env=sealed.ciphertext, env_names=sealed.names)


def whitelist_path(config: Path) -> Path:
    """Return where the operator's pins are: beside the config."""
    return config.with_name(WHITELIST)


def _os_image(files: ProjectFiles, config: GlobalConfig) -> dict[str, bytes]:
    image = find_image(str(files.project.os_image or ""), config.image_search_paths, files.directory)
    return {name: read_file(image / Path(name).name, limit) for name, limit in OS_IMAGE_FILES.items()}


class _Wanted(msgspec.Struct, frozen=True):
    """What the guest will want of its environment: who signed it (hex, or empty), and of which key epoch."""

    env_signer: str
    key_epoch: int


def _wanted(files: ProjectFiles, config: GlobalConfig, sealing: Sealing) -> _Wanted:
    """Return what the app-compose says, or of an enclave the measured enclave.toml.

    Where app.json of an enclave's project says it, the image is not measured here: the plan compares them.
    """
    project = files.project
    if project.platform != "nitro":
        from functions.plan.service import make_app_compose  # noqa: PLC0415 - as in `_seal`

        model = make_app_compose(files)[0].model
        return _Wanted(model.env_signer or "", model.key_epoch)
    said = _Wanted(project.env_signer or "", project.key_epoch or 0)
    is_said = project.env_signer is not UNSET or project.key_epoch is not UNSET
    has_env = files.env is not None and bool(files.env.names)
    if is_said or not (has_env or sealing.env_key_file is not None):
        return said
    from cli.places import cache_path  # noqa: PLC0415 - few projects are measured for their environment
    from functions.plan.enclave_builder import CachedBuilder  # noqa: PLC0415
    from functions.plan.enclave_image import measure_enclave  # noqa: PLC0415
    from shared.compose.enclave_toml import read_enclave_toml  # noqa: PLC0415

    builder = CachedBuilder(cache_path(os.environ))
    image, _ = measure_enclave(files, nitro_settings(project, config), builder)
    measured = read_enclave_toml(image.enclave_toml or "")
    return _Wanted(measured.boot.env_signer, measured.key_epoch)


def _seal(
    files: ProjectFiles, config: GlobalConfig, sealing: Sealing, app_id: bytes, wanted: _Wanted
) -> "SealedEnv":
    # PLC0415: encryption and proofs are loaded where there is something to encrypt
    from functions.deploy.env_sealing import EnvKeySource, seal_env  # noqa: PLC0415
    from shared.net.dialer import DirectDialer  # noqa: PLC0415

    roots = None if sealing.ca_roots is None else read_file(sealing.ca_roots, 1 << 20)
    return seal_env(
        files.env.values if files.env is not None else {},
        app_id=app_id,
        source=EnvKeySource(DirectDialer(), config.services.kms_urls, roots),
        signers=_signers(sealing),
        now=int(time.time()),
        env_signer=_signer_key(wanted.env_signer),
        author=_author(sealing, app_id),
        allow_legacy=sealing.allow_legacy,
        epoch=wanted.key_epoch,
    )


def _signer_key(text: str) -> bytes:
    if not text:
        return b""
    return decode_hex_setting(text, what="env_signer", length=32, code="env_signer.author")


def _signers(sealing: Sealing) -> "TrustedSigners":
    """Return whose signature counts: proven on chain where a contract is named, else the operator's file."""
    from functions.deploy.env_sealing import signer_on_chain, signers_in_file  # noqa: PLC0415 - see above

    if sealing.kms_contract is None or not sealing.rpc_urls:
        return signers_in_file(sealing.signers)
    if sealing.chain_id is None:
        raise ConfigError(
            "deploy.chain_id", "--rpc and --kms-contract need --chain-id, to pin the key's signer"
        )
    from cli.chain_quorum import chain_quorum  # noqa: PLC0415
    from shared.chain.code import code_list  # noqa: PLC0415
    from shared.chain.decision import ChainPolicy  # noqa: PLC0415
    from shared.net.proof_source import ProofSource  # noqa: PLC0415

    quorum, endpoints = chain_quorum(sealing.rpc_urls, sealing.chain_id)
    policy = ChainPolicy(chain_id=sealing.chain_id, kms_contract=sealing.kms_contract, codes=code_list())
    return signer_on_chain(quorum, ProofSource(endpoints[0], sealing.kms_contract), policy, int(time.time()))


def _author(sealing: Sealing, app_id: bytes) -> "EnvAuthor | None":
    if sealing.env_key_file is None:
        return None
    from shared.keys.env_encryption import EnvAuthor  # noqa: PLC0415
    from shared.keys.env_signer import load_env_signing_key  # noqa: PLC0415

    key = load_env_signing_key(read_file(sealing.env_key_file, 1 << 14))
    # the time makes a version that grows by itself, so that an older environment can be told from a newer one
    version = int(time.time()) if sealing.env_version is None else sealing.env_version
    return EnvAuthor(key, app_id, version)

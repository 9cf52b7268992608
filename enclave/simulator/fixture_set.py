"""The SDK simulator's directory, where the developer has none: a made-up guest whose parts agree.

The app-compose's hash is the event's and is in the quote's configuration id, the event log replays to the
quote, a simulated KMS signed the app's key for the id in the events, and vm_config names the image that the
registers show. So a verifier and a chain of keys can be tried to their ends, without hardware. Upstream's
fixture has the same files, and does not agree with itself.
"""

import json
import os
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.simulator.agent_config import CONFIG_FILE, SEED_BYTES, SimulatorConfig
from enclave.simulator.authority_files import certificate_pem, key_pem
from enclave.simulator.lite_guest import LiteImage, boot_lite
from enclave.simulator.tdx import SimulatedIntel
from enclave.tee.boot_events import identity_events, make_instance_id, provider_events
from shared.attestation.collateral import bundle_json
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import REPORT_DATA_LENGTH, encode_envelope
from shared.compose.app_compose import MAX_COMPOSE_BYTES, compose_hash
from shared.compose.model import read_app_compose
from shared.errors import ConfigError, StorageError
from shared.keys.app_keys import RootKeys, app_ca_scalar, derive_app_keys
from shared.keys.app_keys_file import AppKeysFile, SeedProvider
from shared.keys.k256 import public_key
from shared.keys.kdf import hkdf_sha256, p256_key
from shared.measurement.vm_config import encode_vm_config
from shared.ratls.certificates import (
    BACKDATE,
    CA_LIFETIME,
    ROOT_CA_NAME,
    app_ca_certificate,
    self_signed_ca,
    spki_der,
)

RECORD: Final = ("appkeys.json", "app-compose.json", "sys-config.json", "attestation.bin")
"""What a directory must have to be served; upstream's `sdk/simulator` has them."""

ROOT: Final = "root.pem"
COLLATERAL: Final = "collateral.json"
EXPECTED: Final = "expected.json"

APP_CA: Final = "app-ca.pem"
"""The CA that the simulated KMS gave this app, certificate and key; upstream's fixture has none."""

APP_COMPOSE: Final = (
    b'{"docker_compose_file":"services: {}","kms_enabled":true,"manifest_version":2,'
    b'"name":"simulated-app","runner":"docker-compose"}'
)
_CONFIG: Final = '[default.core.simulator]\nmock_attestation_seed = "{seed}"\n'
_OS_IMAGE: Final = b"the image of a simulated guest"
_PRIVATE: Final = 0o600


class Expected(msgspec.Struct, frozen=True):
    """What a relying party of this guest expects, in hex: on a real one it learns all of it elsewhere.

    `kms_k256_root` (compressed) signed the app's key, `kms_ca_root` (SPKI DER) is the key of the root CA.
    """

    app_id: str
    instance_id: str
    compose_hash: str
    os_image_hash: str
    kms_k256_root: str
    kms_ca_root: str


def make_fixture(app_compose: bytes, *, seed: bytes, now: int) -> dict[str, bytes]:
    """Return the files by name: the guest, its keys and everything below them follow from 32 bytes.

    `now` (unix seconds) begins the CAs. There is no KMS to ask, so the guest has its app's CA beside it, and
    signs as the KMS of that root would. Raises `ProtocolError("compose.*")`.
    """
    compose, digest = read_app_compose(app_compose), compose_hash(app_compose)
    roots = RootKeys(_part(seed, b"kms ca"), _part(seed, b"kms k256"))
    ca_key = p256_key(roots.ca_scalar)
    ca_spki = spki_der(ca_key.public_key())
    app_id = digest[:20]
    instance_id = b"" if compose.no_instance_id else make_instance_id(_part(seed, b"instance"), app_id, b"")
    keys = derive_app_keys(roots, app_id, instance_id)
    image, intel_seed = LiteImage.of(_OS_IMAGE), _part(seed, b"intel")
    events = (
        *identity_events(
            app_id=app_id,
            compose_hash=digest,
            instance_id=instance_id,
            init_script_hashes=compose.init_script_hashes,
            gpu_policy_hash=compose.gpu_policy_hash,
        ),
        *provider_events("kms", provider_id=ca_spki, os_image_hash=image.config.os_image_hash),
    )
    attest = boot_lite(image, SimulatedIntel.from_seed(intel_seed), compose_hash=digest, events=events)
    ca = self_signed_ca(ca_key, ROOT_CA_NAME, 1, now - BACKDATE, now + CA_LIFETIME)
    app_ca_key = p256_key(app_ca_scalar(roots, app_id))
    app_ca = app_ca_certificate(app_ca_key, app_id=app_id, issuer=(ca, ca_key))
    file = AppKeysFile(
        disk_crypt_key=keys.disk_crypt_key,
        env_crypt_key=keys.env_crypt_key,
        k256_key=keys.k256_key,
        k256_signature=keys.k256_signature,
        gateway_app_id="any",
        ca_cert=ca.public_bytes(Encoding.PEM).decode(),
        key_provider=SeedProvider(kind="None", key=key_pem(ca_key).decode()),
    )
    expected = Expected(
        app_id=app_id.hex(),
        instance_id=instance_id.hex(),
        compose_hash=digest.hex(),
        os_image_hash=image.config.os_image_hash.hex(),
        kms_k256_root=public_key(roots.k256).hex(),
        kms_ca_root=ca_spki.hex(),
    )
    return {
        "appkeys.json": file.to_json(),
        "app-compose.json": app_compose,
        "sys-config.json": _json({"kms_urls": [], "vm_config": encode_vm_config(image.config)}),
        "attestation.bin": encode_envelope(attest(bytes(REPORT_DATA_LENGTH))),
        APP_CA: certificate_pem(app_ca) + key_pem(app_ca_key),
        EXPECTED: _json(msgspec.structs.asdict(expected)),
        CONFIG_FILE: _CONFIG.format(seed=intel_seed.hex()).encode(),
    }


def lay_fixture(directory: Path, app_compose: bytes | None, *, now: int) -> bool:
    """Have `directory` hold a record: one that is there, or one that is made; returns whether it was made.

    `app_compose` None stands for a small one. Raises `ConfigError`: `simulator.directory.foreign` for a
    directory with other files and no whole record, `simulator.directory.compose` for a record of another
    app-compose; `StorageError("simulator.directory.write")`; and what `make_fixture` raises.
    """
    names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    if names >= set(RECORD):
        if app_compose is not None and (directory / "app-compose.json").read_bytes() != app_compose:
            raise ConfigError(
                "simulator.directory.compose",
                f"{directory} holds a guest of another app-compose: name another directory",
            )
        return False
    if names:
        raise ConfigError(
            "simulator.directory.foreign",
            f"{directory} holds {min(names)!a} and no whole guest: name an empty or a new directory",
        )
    files = make_fixture(app_compose or APP_COMPOSE, seed=os.urandom(SEED_BYTES), now=now)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in files.items():
            _write(directory / name, content)
    except OSError as error:
        raise StorageError(
            "simulator.directory.write", f"cannot write to {directory}: {error.strerror}"
        ) from error
    return True


def publish_trust(directory: Path, config: SimulatorConfig, *, now: int) -> bool:
    """Write what verifies this guest, where its quotes are signed: the root and collateral of this hour.

    Returns whether they are. Raises `ConfigError("simulator.seed")`,
    `StorageError("simulator.directory.write")`.
    """
    intel = config.default.core.simulator.intel()
    if intel is None:
        return False
    bundle = bundle_json(Endorsements(tdx=(intel.collateral(now - BACKDATE),)))
    try:
        _write(directory / ROOT, intel.root_pem)
        _write(directory / COLLATERAL, bundle.encode())
    except OSError as error:
        raise StorageError(
            "simulator.directory.write", f"cannot write to {directory}: {error.strerror}"
        ) from error
    return True


def read_compose_file(path: Path) -> bytes:
    """Read an app-compose.json. Raises `ConfigError("simulator.compose")`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_COMPOSE_BYTES + 1)
    except OSError as error:
        raise ConfigError("simulator.compose", f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_COMPOSE_BYTES:
        raise ConfigError("simulator.compose", f"{path} is larger than {MAX_COMPOSE_BYTES} bytes")
    return content


def _part(seed: bytes, name: bytes) -> bytes:
    return hkdf_sha256(seed, (b"simulated guest ", name))


def _json(document: dict[str, object]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def _write(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, for nobody's eyes but the developer's."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _PRIVATE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    staged.replace(path)

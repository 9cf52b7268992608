"""`dstack-util setup`: one boot of a guest, from the host's files to a mounted disk (spec deploy 6.3).

The order is upstream's, because it is measured: who the guest is, before anybody gives it a key; where its
keys came from, before it uses them. A step that fails stops the boot. What was done can be done again: each
event is recorded once, files are replaced whole, and a disk counts as made only when it is.
"""

import json
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.dstack_util.boot_record import BootRecord
from enclave.dstack_util.data_disk import DataDisk, disk_options
from enclave.dstack_util.environment import open_environment, write_environment
from enclave.dstack_util.gateway import Registrant, register
from enclave.dstack_util.get_keys import KeyQuestion
from enclave.dstack_util.guest import BootingTee, booting_tee
from enclave.dstack_util.host_api import host_of
from enclave.dstack_util.host_notice import Host, NoHost
from enclave.dstack_util.host_share import (
    keep_share,
    mount_share,
    read_share,
    unmount_share,
)
from enclave.dstack_util.kms_keys import Waiting, fetch_keys
from enclave.dstack_util.launch_policy import check_launch
from enclave.dstack_util.machine import PRIVATE, PUBLIC, Machine, run_checked
from enclave.dstack_util.setup_config import load_setup_config
from enclave.dstack_util.sys_config import SysConfig, parse_sys_config
from enclave.dstack_util.tpm_seed import tpm_seed
from enclave.log import log_event
from enclave.platform import Platform
from enclave.tee.boot_events import KeyProvider as EventProvider
from enclave.tee.boot_events import identity_events, make_instance_id, provider_events
from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import Trust, establish_trust
from shared.attestation.envelope import GcpTdxQuote, TdxQuote, decode_envelope
from shared.attestation.tdx_quote import parse_quote
from shared.compose.app_compose import compose_hash
from shared.compose.model import AppCompose, read_app_compose
from shared.compose.project import APP_ID_BYTES, SEED_BYTES
from shared.compose.shared_files import (
    APP_COMPOSE,
    ENCRYPTED_ENV,
    INSTANCE_INFO,
    SYS_CONFIG,
    USER_CONFIG,
    InstanceInfo,
    parse_instance_info,
)
from shared.errors import ConfigError, DstackError, InvalidEvidence, ProtocolError, StorageError
from shared.keys.app_keys_file import MAX_FILE, AppKeysFile, SeedProvider, parse_app_keys
from shared.keys.seed_keys import SEED_BYTES as KEY_SEED_BYTES
from shared.keys.seed_keys import derive_seed_keys
from shared.measurement.mr_config import BootValues, KeyProvider, KeyProviderKind, check_mr_config
from shared.ratls.certificates import attested_ca
from shared.strict_json import decode_json

APP_KEYS = ".appkeys.json"
APP_ROOT_NAME = "App Root Cert"

_INSTANCE_SEED = ".instance-seed"
_OS_RELEASE = "/etc/os-release"
_CMDLINE = "/proc/cmdline"
_DAEMON_JSON = "/etc/docker/daemon.json"
_GPUS = "/proc/driver/nvidia/gpus"
_RUN = "/var/run/dstack"
_MAX_SMALL_FILE = 64 * 1024
_SEED_KINDS = {"none": "None", "tpm": "Tpm"}


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where a boot happens: `work` is in memory, `device` is the data disk."""

    work: Path
    device: Path
    mount_point: Path
    share: Path


class _Identity(msgspec.Struct, frozen=True, kw_only=True):
    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    seed: bytes


class _Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys file, and what is recorded of where it came from."""

    file: AppKeysFile
    provider: EventProvider
    provider_id: bytes = b""
    os_image_hash: bytes = b""


def setup(
    platform: Platform,
    machine: Machine,
    places: Places,
    *,
    waiting: Waiting | None = None,
    host: Host | None = None,
) -> None:
    """Boot this guest. Raises what stopped it, after the host was told.

    `host` is told in place of the one that the host's files name, of which a cloud has none.
    """
    boot = _Boot(platform, machine, places, waiting or Waiting(), host)
    try:
        boot.run()
    except DstackError as error:
        log_event("setup.failed", code=error.code, message=error.message)
        boot.host.notify("boot.error", f"{error.message} [{error.code}]")
        raise


class _Boot:
    def __init__(
        self, platform: Platform, machine: Machine, places: Places, waiting: Waiting, host: Host | None
    ) -> None:
        self.host: Host = host or NoHost()
        self._is_host_given = host is not None
        self._platform = platform
        self._machine = machine
        self._places = places
        self._waiting = waiting

    def run(self) -> None:
        tee = booting_tee(self._platform)
        # 1. what the host gives, copied once
        files = self._take_share()
        directory = keep_share(self._machine, files, self._places.work)
        # 2. read, and the version of this boot's events
        compose = read_app_compose(files[APP_COMPOSE])
        sys_config = parse_sys_config(files[SYS_CONFIG])
        if not self._is_host_given:
            self.host = host_of(tee.variant, sys_config.host_api_url, tee.vsock)
        tee.event_log().set_version(compose.event_log_version)
        # 3. may this app run here
        self._check_launch(tee, compose, files.get(USER_CONFIG))
        # 4. the time, before any certificate is judged by it
        if compose.secure_time:
            run_checked(self._machine, "chronyc", "waitsync", "30", "0.1", "0", "5")
        # 5. who this is, recorded before anybody is asked for anything
        record = BootRecord(tee.event_log())
        identity = self._identify(tee, compose, files, record)
        record.emit_all(
            identity_events(
                app_id=identity.app_id,
                compose_hash=identity.compose_hash,
                instance_id=identity.instance_id,
                init_script_hashes=compose.init_script_hashes,
                gpu_policy_hash=compose.gpu_policy_hash,
            )
        )
        log_event(
            "setup.identity",
            app_id=identity.app_id.hex(),
            compose_hash=identity.compose_hash.hex(),
            instance_id=identity.instance_id.hex(),
        )
        # 6. to 8. keys, and whether they are from whom they must be
        self.host.notify("boot.progress", "requesting app keys")
        keys = self._keys(tee, compose, sys_config, identity, record)
        _check_mr_config(tee, compose, sys_config, identity, keys)
        # 9. kept before they are recorded: a TPM gives its seed back only up to here
        self._machine.write(directory / APP_KEYS, keys.file.to_json(), PRIVATE)
        options = disk_options(
            self._machine,
            storage_fs=compose.storage_fs,
            swap_size=compose.swap_size,
            cmdline=self._small_file(_CMDLINE).decode("ascii", "replace"),
        )
        *origin, ready = provider_events(
            keys.provider,
            provider_id=keys.provider_id,
            os_image_hash=keys.os_image_hash,
            storage_fs=options.file_system,
        )
        record.emit_all(origin)
        # 10. and 11. the disk, and swap on it
        self.host.notify("boot.progress", "mounting data disk")
        disk = DataDisk(
            self._machine,
            device=self._places.device,
            mount_point=self._places.mount_point,
            memory=self._places.work,
            passphrase=keys.file.disk_crypt_key.hex().encode(),
            options=options,
        )
        disk.prepare()
        disk.make_swap()
        # 12. nothing that follows names this guest any more
        self.host.notify("instance.info", _instance_info(identity))
        record.emit_all([ready])
        self.host.notify("boot.progress", "data disk ready")
        # 13. what the app is started with
        opened = open_environment(
            compose,
            files.get(ENCRYPTED_ENV),
            private=keys.file.env_crypt_key,
            app_id=identity.app_id,
        )
        write_environment(self._machine, directory, opened)
        self._lay_out(directory)
        # 14. and 15. conveniences: the guest is whole without them
        self._register(
            Registrant(app_id=identity.app_id, keys=keys.file, compose=compose, sys_config=sys_config)
        )
        self._mirror(sys_config)

    def _take_share(self) -> dict[str, bytes]:
        mount_share(self._machine, self._places.share)
        try:
            return read_share(self._places.share)
        finally:
            unmount_share(self._machine, self._places.share)

    def _check_launch(self, tee: BootingTee, compose: AppCompose, user_config: bytes | None) -> None:
        check_launch(
            compose,
            variant=tee.variant,
            os_release=self._small_file(_OS_RELEASE),
            user_config=user_config,
        )
        gpus = self._machine.path(_GPUS)
        if gpus.is_dir() and any(gpus.iterdir()):
            raise ConfigError("setup.gpu", "this machine has a gpu, and no gpu is attested here")

    def _identify(
        self, tee: BootingTee, compose: AppCompose, files: dict[str, bytes], record: BootRecord
    ) -> _Identity:
        info = InstanceInfo(b"", b"")
        if INSTANCE_INFO in files:
            info = parse_instance_info(files[INSTANCE_INFO])
        digest = compose_hash(files[APP_COMPOSE])
        app_id = info.app_id or digest[:APP_ID_BYTES]
        if not any(app_id):
            raise ConfigError("setup.app_id", "app_id is zero")
        seed = b"" if compose.effective_key_provider == "none" else info.seed
        seed = seed or self._own_seed(record)
        instance_id = b""
        if not compose.no_instance_id:
            instance_id = make_instance_id(seed, app_id, tee.instance_binding())
        return _Identity(app_id=app_id, compose_hash=digest, instance_id=instance_id, seed=seed)

    def _own_seed(self, record: BootRecord) -> bytes:
        """Return this boot's own seed, the same for every attempt of it."""
        path = self._places.work / _INSTANCE_SEED
        try:
            kept = path.read_bytes()
        except FileNotFoundError:
            kept = b""
        except OSError as error:
            raise StorageError("setup.unreadable", f"{path} cannot be read: {error.strerror}") from error
        if record.is_resumed and len(kept) == SEED_BYTES:
            return kept
        seed = secrets.token_bytes(SEED_BYTES)
        self._machine.write(path, seed, PRIVATE)
        return seed

    def _keys(
        self,
        tee: BootingTee,
        compose: AppCompose,
        sys_config: SysConfig,
        identity: _Identity,
        record: BootRecord,
    ) -> _Keys:
        provider = compose.effective_key_provider
        config = load_setup_config(self._platform)
        trust = establish_trust(self._platform, config.trust.settings())
        if provider == "kms":
            bundle = fetch_keys(
                sys_config.kms_urls,
                KeyQuestion(
                    app_id=identity.app_id,
                    root_spki=bytes.fromhex(compose.key_provider_id),
                    key_epoch=compose.key_epoch,
                    pinned_k256=config.kms.pinned_k256(),
                    vm_config=sys_config.vm_config,
                ),
                dialer=self._platform.dialer(),
                attestor=tee.attestor(identity.app_id),
                trust=trust,
                waiting=self._waiting,
            )
            return _Keys(
                file=bundle.to_file(),
                provider="kms",
                provider_id=bundle.root_spki(),
                os_image_hash=bundle.os_image_hash,
            )
        if provider == "local":
            raise ConfigError(
                "setup.key_provider", "key_provider is local, which needs a host with an sgx key provider"
            )
        file = self._kept_keys(_SEED_KINDS[provider]) if record.is_resumed else None
        file = file or _seed_keys(tee, provider, trust)
        return _Keys(file=file, provider=provider)

    def _kept_keys(self, kind: str) -> AppKeysFile | None:
        """Return the keys that an earlier attempt of this boot made, if it came that far."""
        path = self._places.work / ".host-shared" / APP_KEYS
        try:
            with path.open("rb") as file:
                kept = parse_app_keys(file.read(MAX_FILE + 1))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError("setup.unreadable", f"{path} cannot be read: {error.strerror}") from error
        if not isinstance(kept.key_provider, SeedProvider) or kept.key_provider.kind != kind:
            raise StorageError(
                "setup.events.diverged", "this boot has keys of another key provider: reboot to start anew"
            )
        return kept

    def _lay_out(self, directory: Path) -> None:
        work = self._places.work
        self._machine.link(work / APP_COMPOSE, directory / APP_COMPOSE)
        self._machine.link(work / "user_config", directory / USER_CONFIG)
        run = self._machine.path(_RUN)
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError("setup.write", f"{run} cannot be made: {error.strerror}") from error
        disks = ["/", str(self._places.mount_point)]
        agent = {"default": {"core": {"data_disks": disks}}}
        self._machine.write(work / "agent.json", json.dumps(agent).encode(), PUBLIC)

    def _register(self, guest: Registrant) -> None:
        """Register with a gateway; whoever only calls others runs as well without one."""
        if not guest.compose.uses_gateway:
            return
        self.host.notify("boot.progress", "setting up dstack-gateway")
        try:
            register(self._platform, self._machine, guest)
        except DstackError as error:
            log_event("setup.gateway_failed", code=error.code, message=error.message)
            self.host.notify("boot.error", f"{error.message} [{error.code}]")

    def _mirror(self, sys_config: SysConfig) -> None:
        """Add the host's registry mirror: images are pinned by digest, so a mirror chooses nothing."""
        if not sys_config.docker_registry:
            return
        if urlsplit(sys_config.docker_registry).scheme not in {"http", "https"}:
            raise ProtocolError("sys_config.url", "docker_registry is no http or https url")
        path = self._machine.path(_DAEMON_JSON)
        document: object = {}
        if path.exists():
            raw = self._small_file(_DAEMON_JSON)
            document = decode_json(raw, what=_DAEMON_JSON, code="docker", max_bytes=_MAX_SMALL_FILE)
        if not isinstance(document, dict):
            raise ConfigError("setup.docker", f"{_DAEMON_JSON} is not a json object")
        document["registry-mirrors"] = [sys_config.docker_registry]
        self._machine.write(path, json.dumps(document, indent=2).encode(), PUBLIC)

    def _small_file(self, absolute: str) -> bytes:
        path = self._machine.path(absolute)
        try:
            with path.open("rb") as file:
                return file.read(_MAX_SMALL_FILE)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageError("setup.unreadable", f"{path} cannot be read: {error.strerror}") from error


def _seed_keys(tee: BootingTee, provider: EventProvider, trust: Trust) -> AppKeysFile:
    seed = tpm_seed(tee) if provider == "tpm" else os.urandom(KEY_SEED_BYTES)
    keys = derive_seed_keys(seed)
    key = keys.ca_key()
    certificate = attested_ca(
        key,
        APP_ROOT_NAME,
        path_length=1,
        attestation=certificate_evidence(tee.attestor(None), key.public_key()),
        now=trust.clock.now(),
    )
    return keys.to_file(_SEED_KINDS[provider], certificate.public_bytes(Encoding.PEM).decode())


def _check_mr_config(
    tee: BootingTee, compose: AppCompose, sys_config: SysConfig, identity: _Identity, keys: _Keys
) -> None:
    """Compare what the host bound into the domain with this boot; Google Cloud's hosts bind nothing."""
    quote = decode_envelope(tee.attestor(identity.app_id).attest(bytes(64))).quote
    tdx = quote.tdx if isinstance(quote, GcpTdxQuote) else quote
    if not isinstance(tdx, TdxQuote):
        return
    boot = BootValues(
        compose_hash=identity.compose_hash,
        app_id=identity.app_id,
        key_provider=KeyProvider(KeyProviderKind(keys.provider), keys.provider_id),
        instance_id=identity.instance_id,
        gpu_policy_hash=compose.gpu_policy_hash,
        init_script_hashes=compose.init_script_hashes,
    )
    document = sys_config.mr_config.encode() or None
    check = check_mr_config(parse_quote(tdx.quote).report.mr_config_id, boot, document=document)
    if check.version and not check.checked:
        raise InvalidEvidence("setup.mr_config", f"mr_config_id cannot be checked: {check.reason}")


def _instance_info(identity: _Identity) -> str:
    return json.dumps(
        {
            "instance_id_seed": identity.seed.hex(),
            "instance_id": identity.instance_id.hex(),
            "app_id": identity.app_id.hex(),
        }
    )

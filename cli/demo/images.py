"""What the demo's two workloads are made of: files whose every byte is measured.

For an enclave they are files of a container image (`write_oci_layout`), and the builder makes them its root
file system. For a Google Cloud guest they are `configs` of its app-compose (`app_compose`), and the OS image
is one and the same for all.
"""

from pathlib import Path

import msgspec

from cli.demo.oci_layout import ImageFile, write_oci_layout
from shared.compose.app_compose import canonical_bytes

KMS_ROOT = "/etc/dstack/kms-root-ca.pem"
KMS_PORT, EVIDENCE_PORT = 8000, 8080

_ENTRYPOINT = "/entrypoint.sh"
PROGRAM = """#!/bin/sh
# What this image would start; the simulator starts the same program from the installed packages.
exec python3 -m enclave.{daemon}
"""

_ENCLAVE_GATE = """\
# An enclave has no TCB status, and this contract wants one of its KMS: say so, and GetMeta shows it.
treat_nitro_as_up_to_date = true
aws_nitro_enclave_key_release = true
"""


class Roots(msgspec.Struct, frozen=True, kw_only=True):
    """The simulated hardware's roots (PEM), by the anchor's name in kms.toml, and its collateral service."""

    pems: dict[str, bytes]
    pccs_url: str = ""

    def files(self) -> dict[str, bytes]:
        """Return the roots as files of an image."""
        return {self.path(name): pem for name, pem in self.pems.items()}

    def path(self, name: str) -> str:
        """Return where a root lies in an image."""
        return f"/etc/dstack/simulated-{name.replace('_', '-')}.pem"


class KmsImage(msgspec.Struct, frozen=True, kw_only=True):
    """What a KMS's measured files fix: contract, chain, RPC endpoint, function, gates, trust anchors."""

    chain_id: int
    kms_contract: str
    rpc_url: str
    authorize_url: str
    roots: Roots

    @property
    def app_id(self) -> bytes:
        """The KMS's own app id: its contract's address."""
        return bytes.fromhex(self.kms_contract.removeprefix("0x"))

    def files(self) -> dict[str, bytes]:
        """Return the files by their absolute paths."""
        is_enclave = "aws_nitro_enclave" in self.roots.pems
        anchors = "".join(f'{name} = "{self.roots.path(name)}"\n' for name in self.roots.pems)
        urls = f'\n[core.attestation.urls]\npccs = "{self.roots.pccs_url}"\n' if self.roots.pccs_url else ""
        config = f"""# Measured: changing a byte of this changes the hash that governance approved.
[rpc]
port = {KMS_PORT}

[core]
cert_dir = "/var/lib/kms"
enforce_self_authorization = true
{_ENCLAVE_GATE if is_enclave else ""}
[core.attestation]
insecure_allow_external_trust_anchors = true

[core.attestation.root_ca]
{anchors}{urls}
[core.onboard]
port = {KMS_PORT}

[core.auth_api]
type = "proof"

[core.auth_api.proof]
url = "{self.authorize_url}"
chain_id = {self.chain_id}
kms_contract = "{self.kms_contract}"
rpc_urls = ["{self.rpc_url}"]
quorum = 1
max_block_age = 600
"""
        return {
            "/etc/kms/kms.toml": config.encode(),
            "/etc/dstack/app-id": self.app_id.hex().encode(),
            **self.roots.files(),
        }

    def write_oci_layout(self, directory: Path) -> bytes:
        """Write the container image that an enclave's is built from; returns its manifest's digest."""
        return _write_oci_layout(directory, self.files(), daemon="kms")

    def app_compose(self) -> bytes:
        """Return the app-compose.json of a KMS guest: keys from its vTPM, measurements known beforehand."""
        return _app_compose("dstack-kms", "kms", self.files(), key_provider="tpm", no_instance_id=True)


class AppImage(msgspec.Struct, frozen=True, kw_only=True):
    """What an app's measured files fix: who it is, which KMS it asks, and which root that KMS must have."""

    app_id: str
    kms_url: str
    kms_root: bytes
    k256_pubkey: bytes
    roots: Roots

    def files(self) -> dict[str, bytes]:
        """Return the files by their absolute paths."""
        signers = {"aws_nitro_enclave": "nitro", "tdx": "tdx", "gcp_tpm": "gcp_tpm"}
        anchors = "".join(
            f'{signers[name]}_roots = ["{self.roots.path(name)}"]\n' for name in self.roots.pems
        )
        pccs = f'pccs = ["{self.roots.pccs_url}"]\n' if self.roots.pccs_url else ""
        config = f"""app_id = "{self.app_id}"

[kms]
url = "{self.kms_url}"
root_ca = "{KMS_ROOT}"
k256_pubkey = "0x{self.k256_pubkey.hex()}"

[trust]
{anchors}{pccs}
[evidence]
port = {EVIDENCE_PORT}

[boot]
command = ["/bin/demo-app"]
"""
        return {
            "/etc/dstack/enclave.toml": config.encode(),
            KMS_ROOT: self.kms_root,
            **self.roots.files(),
        }

    def write_oci_layout(self, directory: Path) -> bytes:
        """Write the container image that an enclave's is built from; returns its manifest's digest."""
        return _write_oci_layout(directory, self.files(), daemon="init")

    def app_compose(self) -> bytes:
        """Return the app-compose.json of an app's guest, whose keys come from the KMS."""
        return _app_compose("demo-app", "agent", self.files(), key_provider="kms", no_instance_id=False)


def write_os_image(directory: Path) -> None:
    """Write the OS image of every Google Cloud guest: it starts whatever its app-compose says."""
    _write(directory, "/init", b"#!/bin/sh\n# measures app-compose.json, then starts its containers\n", 0o755)
    _write(directory, "/cmdline", b"console=ttyS0 panic=-1\n")


def _app_compose(
    name: str, daemon: str, files: dict[str, bytes], *, key_provider: str, no_instance_id: bool
) -> bytes:
    configs = {f"file-{index}": (path, content) for index, (path, content) in enumerate(files.items())}
    service = {
        "command": ["python3", "-m", f"enclave.{daemon}"],
        "configs": [{"source": source, "target": path} for source, (path, _) in configs.items()],
    }
    compose = {
        "services": {daemon: service},
        "configs": {source: {"content": content.decode()} for source, (_, content) in configs.items()},
    }
    return canonical_bytes(
        {
            "manifest_version": 2,
            "name": name,
            "runner": "docker-compose",
            # json is yaml
            "docker_compose_file": canonical_bytes(compose).decode(),
            "key_provider": key_provider,
            "no_instance_id": no_instance_id,
            "secure_time": True,
            "storage_fs": "ext4",
            "public_logs": False,
            "public_sysinfo": False,
            "allowed_envs": [],
        }
    )


def _write_oci_layout(directory: Path, files: dict[str, bytes], *, daemon: str) -> bytes:
    image = {path: ImageFile(content) for path, content in files.items()}
    image[_ENTRYPOINT] = ImageFile(PROGRAM.format(daemon=daemon).encode(), 0o755)
    return write_oci_layout(directory, image, entrypoint=[_ENTRYPOINT])


def _write(directory: Path, path: str, content: bytes, mode: int = 0o644) -> None:
    target = directory / path.lstrip("/")
    target.write_bytes(content)
    target.chmod(mode)

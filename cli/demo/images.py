"""The two enclave images of the demo: directories whose every byte is measured."""

from pathlib import Path

import msgspec

SIMULATED_ROOT = "/etc/dstack/simulated-root.pem"
KMS_ROOT = "/etc/dstack/kms-root-ca.pem"

PROGRAM = """#!/bin/sh
# What this image would start; the simulator starts the same daemon from the installed packages.
exec python3 -m enclave.{daemon}
"""


class KmsImage(msgspec.Struct, frozen=True, kw_only=True):
    """What a KMS image fixes: contract, chain, RPC endpoint, function, gates, trust anchor."""

    chain_id: int
    kms_contract: str
    rpc_url: str
    authorize_url: str
    simulated_root: bytes

    def write(self, directory: Path) -> None:
        """Write the image's files below `directory`."""
        config = f"""# Measured: changing a byte of this changes the image hash that governance approved.
[rpc]
port = 8000

[core]
cert_dir = "/var/lib/kms"
enforce_self_authorization = true
# An enclave has no TCB status, and this contract wants one of its KMS: say so, and GetMeta shows it.
treat_nitro_as_up_to_date = true
aws_nitro_enclave_key_release = true

[core.attestation]
insecure_allow_external_trust_anchors = true

[core.attestation.root_ca]
aws_nitro_enclave = "{SIMULATED_ROOT}"

[core.onboard]
port = 8000

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
        _write(directory, "/etc/kms/kms.toml", config.encode())
        _write(directory, "/etc/dstack/app-id", self.kms_contract.removeprefix("0x").lower().encode())
        _write(directory, SIMULATED_ROOT, self.simulated_root)
        _write(directory, "/entrypoint.sh", PROGRAM.format(daemon="kms").encode(), executable=True)


class AppImage(msgspec.Struct, frozen=True, kw_only=True):
    """What an app image fixes: who it is, which KMS it asks, and which root that KMS must have."""

    app_id: str
    kms_url: str
    kms_root: bytes
    k256_pubkey: bytes
    simulated_root: bytes

    def write(self, directory: Path) -> None:
        """Write the image's files below `directory`."""
        config = f"""app_id = "{self.app_id}"

[kms]
url = "{self.kms_url}"
root_ca = "{KMS_ROOT}"
k256_pubkey = "0x{self.k256_pubkey.hex()}"

[trust]
nitro_roots = ["{SIMULATED_ROOT}"]

[evidence]
port = 8080
"""
        _write(directory, "/etc/dstack/enclave.toml", config.encode())
        _write(directory, KMS_ROOT, self.kms_root)
        _write(directory, SIMULATED_ROOT, self.simulated_root)
        _write(directory, "/entrypoint.sh", PROGRAM.format(daemon="agent").encode(), executable=True)


def _write(directory: Path, path: str, content: bytes, *, executable: bool = False) -> None:
    target = directory / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(0o755 if executable else 0o644)

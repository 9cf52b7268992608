"""`/etc/dstack/enclave.toml`: what an app's enclave image fixes, and thereby measures (DESIGN section 2).

app_id = "0x..."                            # the DstackApp contract; on GCP the guest records it too
key_epoch = 0                               # raise it to leave this app's keys behind
[kms]
url = "https://kms.example.org:8000"
more_urls = []                              # others with the same roots, for when that one does not answer
root_ca = "/etc/dstack/kms-root-ca.pem"     # the KMS root CA, never the temporary CA
k256_pubkey = "0x02..."                     # optional: who must have signed the app's k256 key
[trust]
nitro_roots = []                            # extra anchors, PEM files: simulated guests only
tdx_roots = []
gcp_tpm_roots = []
policy = ""                                 # a policy file for the KMS's evidence
pccs = []                                   # where collateral for it comes from; on GCP it is needed
tls_roots = ""                              # TLS roots for that, PEM; the system's when empty
[evidence]
port = 8080
[boot]                                      # what enclave.init starts: see enclave.init.settings
command = ["/usr/bin/app"]
"""

import tomllib
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

import msgspec

from enclave.init.settings import Boot
from enclave.platform import Platform
from enclave.tee.peers import TrustSettings
from shared.attestation.trust import Signer
from shared.errors import ConfigError
from shared.hex import decode_hex_setting
from shared.keys.epoch import MAX_EPOCH

CONFIG_PATH = "/etc/dstack/enclave.toml"
DEFAULT_KMS_PORT = 443


class KmsEndpoint(msgspec.Struct, frozen=True):
    """Where one KMS is. `base` is the path that its methods hang below, always ending in `/prpc`."""

    host: str
    port: int
    base: str
    url: str
    """The base as a URL, as `.appkeys.json` names it."""


class Kms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kms]`. `more_urls` are further KMSes with the same roots, for when the first gives no keys."""

    url: str
    more_urls: tuple[str, ...] = ()
    root_ca: str = ""
    k256_pubkey: str = ""

    def endpoints(self) -> tuple[KmsEndpoint, ...]:
        """Return the KMSes in the order in which they are asked. Raises `ConfigError("image.kms_url")`."""
        return tuple(kms_endpoint(url) for url in (self.url, *self.more_urls))

    def pinned_k256(self) -> bytes | None:
        """Return the pinned k256 root key (compressed, 33 bytes), or None."""
        if not self.k256_pubkey:
            return None
        return decode_hex_setting(
            self.k256_pubkey, what="kms.k256_pubkey", length=33, code="image.k256_pubkey"
        )


def kms_endpoint(url: str) -> KmsEndpoint:
    """Read one URL, with or without `/prpc` (spec kms section 8.2). Raises `ConfigError("image.kms_url")`."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_KMS_PORT
    except ValueError as error:
        raise ConfigError("image.kms_url", f"kms url {url!r} has an invalid host or port") from error
    if parts.scheme != "https" or not parts.hostname:
        raise ConfigError("image.kms_url", f"kms url is {url!r}, expected https://host[:port]")
    path = parts.path.rstrip("/")
    base = path if path.endswith("/prpc") else path + "/prpc"
    return KmsEndpoint(
        parts.hostname, port, base, urlunsplit(parts._replace(path=base, query="", fragment=""))
    )


class Trust(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[trust]`: whom to believe about the KMS. Paths are in the image."""

    nitro_roots: tuple[str, ...] = ()
    tdx_roots: tuple[str, ...] = ()
    gcp_tpm_roots: tuple[str, ...] = ()
    policy: str = ""
    pccs: tuple[str, ...] = ()
    tls_roots: str = ""

    def settings(self) -> TrustSettings:
        """Return the same as the verifier takes it."""
        roots: dict[Signer, tuple[str, ...]] = {
            "nitro": self.nitro_roots,
            "tdx": self.tdx_roots,
            "gcp_tpm": self.gcp_tpm_roots,
        }
        return TrustSettings(roots=roots, policy=self.policy, pccs=self.pccs, tls_roots=self.tls_roots)


class Evidence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[evidence]`: where `POST /evidence` is answered; in an enclave `port` is a vsock port."""

    address: str = "0.0.0.0"
    port: int = 8080


class EnclaveConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    app_id: str
    kms: Kms
    key_epoch: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)] = 0
    trust: Trust = Trust()
    evidence: Evidence = Evidence()
    boot: Boot = Boot()

    def app_id_bytes(self) -> bytes:
        """Return the 20 bytes of the app id. Raises `ConfigError("image.app_id")` when absent or zero."""
        app_id = decode_hex_setting(self.app_id, what="app_id", length=20, code="image.app_id")
        if not any(app_id):
            raise ConfigError("image.app_id", "app_id is zero")
        return app_id


def load_enclave_config(platform: Platform) -> EnclaveConfig:
    """Read the file from the measured image. Raises `ConfigError`: `image.missing`, `image.config`."""
    text = platform.read_measured(CONFIG_PATH)
    try:
        return msgspec.convert(tomllib.loads(text.decode()), EnclaveConfig)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError("image.config", f"{CONFIG_PATH}: {error}") from error

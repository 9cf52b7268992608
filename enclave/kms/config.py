"""`kms.toml`, compatible with upstream's file (spec kms section 5.1).

Keys that upstream knows and we do not need are ignored, as upstream ignores unknown keys. Our own sections,
`[core.auth_api.proof]`, `[core.custody]` and `[core.limits]`, are policy, so a misspelt key there is refused
instead of silently defaulted.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from enclave.kms.custody_config import CustodySettings
from shared.attestation.trust import Signer
from shared.chain.decision import DEFAULT_MAX_BLOCK_AGE, DEFAULT_MAX_HEAD_AGE
from shared.errors import ConfigError
from shared.hex import decode_hex_setting

CONFIG_PATH = "/etc/kms/kms.toml"

MAX_ALLOW_CACHE = 60
"""Seconds. An allow older than this could outlive a revocation by more than an operator would notice."""

MAX_BLOCK_CACHE = 12
"""Seconds: one slot of the slowest chain that we know of. A newer block may hold a revocation."""

MAX_HEAD_AGE = 3600
"""Seconds a revocation may stay hidden at most, however the operator sets it."""

MAX_BLOCK_AGE = 7 * 86_400
"""Chains that finalise through another one take up to a week."""

MAX_CHAIN_ID = (1 << 63) - 1
"""What GetMeta's field and every JSON reader of it can hold."""

ADMIN_TOKEN_VARIABLES = ("DSTACK_KMS_ADMIN_TOKEN", "ADMIN_API_TOKEN")

MAX_APP_CERTIFICATE_DAYS = 3650
"""Upstream's ten years."""

MAX_RATE = 1_000_000
"""Of a limit, per minute or at once: more than any machine answers."""

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Rpc(msgspec.Struct, frozen=True, kw_only=True):
    """`[rpc]`: the main listener. In an enclave `port` is a vsock port and `address` has no meaning."""

    address: str = "0.0.0.0"
    port: _Port = 8000


def _optional_hex(text: str, name: str, length: int) -> bytes | None:
    if not text:
        return None
    return decode_hex_setting(text, what=f"core.onboard.{name}", length=length, code="config.invalid")


class Onboard(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.onboard]`: the plain HTTP listener that runs only while root keys are missing.

    `token_hash` is the SHA-256 of the token that Bootstrap, Onboard and Finish need. `source_*` are the
    public root keys (hex) whose private halves Onboard must be handed. `public_key_handover` is about this
    KMS as another's source: whether GetKmsKey is served on the main listener, to evidence alone.
    """

    enabled: bool = True
    auto_bootstrap_domain: str = ""
    address: str = "0.0.0.0"
    port: _Port = 8000
    token_hash: str = ""
    source_ca_pubkey: str = ""
    source_k256_pubkey: str = ""
    public_key_handover: bool = True

    def token_digest(self) -> bytes | None:
        """Return the SHA-256 of the token that the methods need, None for none."""
        return _optional_hex(self.token_hash, "token_hash", 32)

    def pinned_ca(self) -> bytes | None:
        """Return the source's root CA key, SPKI DER of P-256."""
        return _optional_hex(self.source_ca_pubkey, "source_ca_pubkey", 91)

    def pinned_k256(self) -> bytes | None:
        """Return the source's k256 root key, compressed."""
        return _optional_hex(self.source_k256_pubkey, "source_k256_pubkey", 33)


class Admin(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.admin]`: the admin listener, off by default. In an enclave `port` is a vsock port.

    `auth_token_hash` is the SHA-256 of the token as hex, so that a measured file need not hold the token.
    `tls` serves it with the main listener's certificate. Upstream has a table of files there: any table means
    yes, and its files are not read.
    """

    enabled: bool = False
    address: str = "127.0.0.1"
    port: _Port = 8001
    auth_token: str = ""
    auth_token_hash: str = ""
    tls: bool | dict[str, Any] = False

    def has_tls(self) -> bool:
        """Tell whether the listener speaks attested TLS, without which it hands over no keys."""
        return self.tls is not False

    def token_digest(self, environ: Mapping[str, str]) -> bytes:
        """Return the SHA-256 of the token: of the file, else of `environ`, as upstream's order has it.

        Raises `ConfigError`: `config.admin.token` where there is none, `config.invalid`.
        """
        if self.auth_token_hash:
            return decode_hex_setting(
                self.auth_token_hash, what="core.admin.auth_token_hash", length=32, code="config.invalid"
            )
        tokens = (self.auth_token, *(environ.get(name, "") for name in ADMIN_TOKEN_VARIABLES))
        token = next(filter(None, tokens), "")
        if not token:
            raise ConfigError(
                "config.admin.token",
                "core.admin is enabled without a token: set auth_token_hash, the sha-256 of one",
            )
        return hashlib.sha256(token.encode(errors="surrogateescape")).digest()

    def __repr__(self) -> str:
        """Hide the token."""
        return f"Admin(enabled={self.enabled!r}, address={self.address!r}, port={self.port!r})"


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.image]`: what ClearImageCache clears. `verify` is not here: images are always verified."""

    cache_dir: str = "/usr/share/dstack/images"


class RootCa(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.attestation.root_ca]`: extra trust anchors, paths inside the image.

    AWS signs for enclaves and NitroTPMs under one root, and so do verifiers here treat the two keys.
    """

    tdx: str = ""
    gcp_tpm: str = ""
    aws_nitro_enclave: str = ""
    aws_nitro_tpm: str = ""

    def by_signer(self) -> dict[Signer, tuple[str, ...]]:
        """Return the paths that are set, by who signs under them."""
        named: dict[Signer, tuple[str, ...]] = {
            "tdx": (self.tdx,),
            "gcp_tpm": (self.gcp_tpm,),
            "nitro": (self.aws_nitro_enclave, self.aws_nitro_tpm),
        }
        present = {signer: tuple(filter(None, paths)) for signer, paths in named.items()}
        return {signer: paths for signer, paths in present.items() if paths}


class Urls(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.attestation.urls]`: where Intel's collateral comes from; empty fetches nothing on Nitro."""

    pccs: str = ""


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.attestation]`.

    `policy` is a policy file of the image (`shared.attestation.policy`), for callers and for this KMS's own
    evidence. `tls_roots` is a PEM file of it, the TLS roots for what is fetched; empty takes the system's.
    """

    insecure_allow_external_trust_anchors: bool = False
    root_ca: RootCa = RootCa()
    urls: Urls = Urls()
    policy: str = ""
    tls_roots: str = ""


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.auth_api.webhook]`: upstream's mode, where the answer of an HTTP server is believed."""

    url: str = "http://auth-api:8000"


class Dev(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.auth_api.dev]`: everything is allowed; only a simulated KMS may run it."""

    gateway_app_id: str = "any"


class Proof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[core.auth_api.proof]`: the chain is believed, and only by proof (DESIGN section 2).

    `url` is the authorize function that fetches proof bundles. `quorum` of the `rpc_urls` must agree on the
    blocks. Ages are in seconds. `implementations` are rows of `shared.chain.known_builds.KnownBuild` that the
    operator pins besides the known ones. `rpc_roots` is a PEM file of the image with the TLS roots for the
    RPC hosts. `allow_cache` is how long an allow may be reused, at most 60; `block_cache` how long the blocks
    that the quorum named count as the newest, at most 12.
    """

    url: str
    chain_id: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHAIN_ID)]
    kms_contract: str
    rpc_urls: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    quorum: Annotated[int, msgspec.Meta(ge=1)] = 2
    max_block_age: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK_AGE)] = DEFAULT_MAX_BLOCK_AGE
    max_head_age: Annotated[int, msgspec.Meta(ge=1, le=MAX_HEAD_AGE)] = DEFAULT_MAX_HEAD_AGE
    implementations: tuple[dict[str, Any], ...] = ()
    rpc_roots: str = ""
    allow_cache: Annotated[int, msgspec.Meta(ge=0, le=MAX_ALLOW_CACHE)] = 0
    block_cache: Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK_CACHE)] = 0
    timeout: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10.0

    def contract(self) -> bytes:
        """Return the DstackKms proxy's address, 20 bytes."""
        return decode_hex_setting(
            self.kms_contract, what="core.auth_api.proof.kms_contract", length=20, code="config.invalid"
        )


class AuthApi(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.auth_api]`."""

    type: Literal["proof", "webhook", "dev"] = "proof"
    webhook: Webhook = Webhook()
    dev: Dev = Dev()
    proof: Proof | None = None


_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_RATE)]


class RateLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[core.limits]`: calls per minute, and how many may come at once; none can be turned off.

    `caller_*` for one instance, by its evidence; `app_*` for all instances of one app; `method_*` for one
    method's callers without evidence; `evidence_*` for verifying evidence that was not seen before.
    """

    caller_per_minute: _Count = 120
    caller_burst: _Count = 60
    app_per_minute: _Count = 6000
    app_burst: _Count = 3000
    method_per_minute: _Count = 6000
    method_burst: _Count = 3000
    evidence_per_minute: _Count = 6000
    evidence_burst: _Count = 3000


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """`[core.metrics]`."""

    enabled: bool = True


class Core(msgspec.Struct, frozen=True, kw_only=True):
    """`[core]`."""

    cert_dir: str = "/etc/kms/certs"
    site_name: str = ""
    enforce_self_authorization: bool = True
    attest_rpc_cert: bool = True
    sev_snp_key_release: bool = False
    aws_nitro_tpm_key_release: bool = False
    aws_nitro_enclave_key_release: bool = False
    treat_nitro_as_up_to_date: bool = False
    nitro_app_id_pcr: bool = False
    app_certificate_days: Annotated[int, msgspec.Meta(ge=1, le=MAX_APP_CERTIFICATE_DAYS)] = 90
    attestation: Attestation = Attestation()
    auth_api: AuthApi = AuthApi()
    custody: CustodySettings = CustodySettings()
    onboard: Onboard = Onboard()
    admin: Admin = Admin()
    image: Image = Image()
    metrics: Metrics = Metrics()
    limits: RateLimits = RateLimits()

    def key_handover(self) -> str:
        """Return the listeners that serve GetKmsKey: `main`, `admin`, `main, admin` or `off`."""
        serving = {
            "main": self.onboard.public_key_handover,
            "admin": self.admin.enabled and self.admin.has_tls(),
        }
        return ", ".join(name for name, serves in serving.items() if serves) or "off"


class KmsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    rpc: Rpc = Rpc()
    core: Core = Core()


def parse_config(text: bytes) -> KmsConfig:
    """Parse and check `kms.toml`.

    Raises `ConfigError`: `config.syntax`, `config.invalid`, `config.proof.missing`,
    `config.custody.pcrs`, `config.custody.peer`, `config.anchors.flag`.
    """
    try:
        document = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("config.syntax", f"kms.toml is not valid toml: {error}") from error
    try:
        config = msgspec.convert(document, KmsConfig)
    except msgspec.ValidationError as error:
        raise ConfigError("config.invalid", f"kms.toml: {error}") from error
    core = config.core
    for check in (core.onboard.token_digest, core.onboard.pinned_ca, core.onboard.pinned_k256):
        check()
    if core.auth_api.type == "proof":
        proof = core.auth_api.proof
        if proof is None:
            raise ConfigError(
                "config.proof.missing",
                "auth_api.type is proof (the default), so [core.auth_api.proof] must name the contract",
            )
        proof.contract()
    core.custody.check(auto_bootstraps=bool(core.onboard.auto_bootstrap_domain))
    if core.attestation.root_ca.by_signer() and not core.attestation.insecure_allow_external_trust_anchors:
        raise ConfigError(
            "config.anchors.flag",
            "attestation.root_ca is set, which needs insecure_allow_external_trust_anchors = true",
        )
    return config

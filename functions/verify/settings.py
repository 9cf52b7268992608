"""Settings of the verifier: upstream's TOML keys and environment, and a few of ours (spec attestation 7.3).

Ours are `attestation.policy` and `attestation.endorsements` (files), `attestation.offline` and
`attestation.allow_request_overrides`. Unknown keys are refused: a misspelt one must not be a silent default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from shared.attestation.endorsements import NO_ENDORSEMENTS, Endorsements
from shared.attestation.policy import DEFAULT_POLICY, Policy, parse_policy
from shared.attestation.trust import Signer, TrustAnchors
from shared.errors import ConfigError, ProtocolError

ENV_PREFIX = "DSTACK_VERIFIER_"
IMAGE_PLACEHOLDER = "{OS_IMAGE_HASH}"
# The largest file that a setting names is a bundle of collateral, some 20 KiB for each platform model.
MAX_FILE = 4 * 1024 * 1024

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_Seconds = Annotated[int, msgspec.Meta(ge=1, le=3600)]

# Upstream's name of each root, and who signs under it. AMD's are checked like the others and serve nobody:
# SEV-SNP is not verified here.
_SIGNERS: dict[str, Signer | None] = {
    "tdx": "tdx",
    "gcp_tpm": "gcp_tpm",
    "aws_nitro_enclave": "nitro",
    "aws_nitro_tpm": "nitro",
    "sev_snp_milan": None,
    "sev_snp_genoa": None,
    "sev_snp_turin": None,
}


class Urls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[attestation.urls]`: where collateral comes from; empty takes the defaults."""

    pccs: str = ""
    amd_kds: str = ""


class RootCa(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[attestation.root_ca]`: extra roots, paths of PEM or DER files."""

    tdx: str = ""
    gcp_tpm: str = ""
    aws_nitro_enclave: str = ""
    aws_nitro_tpm: str = ""
    sev_snp_milan: str = ""
    sev_snp_genoa: str = ""
    sev_snp_turin: str = ""


class AttestationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[attestation]`. `policy` and `endorsements` are paths of a policy file and of a bundle.

    `offline` fetches nothing. `allow_request_overrides` lets a request bring its own `now` and `collateral`.
    """

    insecure_allow_external_trust_anchors: bool = False
    urls: Urls = Urls()
    root_ca: RootCa = RootCa()
    policy: str = ""
    endorsements: str = ""
    offline: bool = False
    allow_request_overrides: bool = False


class VerifierSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    address: str = "0.0.0.0"
    port: _Port = 8080
    image_cache_dir: str = "/tmp/dstack-verifier/cache"  # noqa: S108 - upstream's default; the cache checks hashes
    image_download_url: str = f"https://download.dstack.org/os-images/mr_{IMAGE_PLACEHOLDER}.tar.gz"
    image_download_timeout_secs: _Seconds = 300
    attestation: AttestationSettings = AttestationSettings()

    def anchors(self) -> TrustAnchors:
        """Return the production anchors and the roots that the settings name.

        Raises `ConfigError`: `verify.anchors.flag` for a root without the flag that admits it,
        `verify.settings.file`, `trust.anchor.*`.
        """
        anchors = TrustAnchors.production()
        for name, signer in _SIGNERS.items():
            path = getattr(self.attestation.root_ca, name)
            if not path:
                continue
            if not self.attestation.insecure_allow_external_trust_anchors:
                raise ConfigError(
                    "verify.anchors.flag",
                    f"attestation.root_ca.{name} is set, insecure_allow_external_trust_anchors is not true",
                )
            extended = anchors.with_extra(_pem(_read(path)), signer=signer)
            anchors = anchors if signer is None else extended
        return anchors

    def policy(self) -> Policy:
        """Return the policy of the file that the settings name, else the default.

        Raises `ConfigError`: `verify.settings.file`, `policy.*`.
        """
        path = self.attestation.policy
        return parse_policy(_read(path)) if path else DEFAULT_POLICY

    def endorsements(self) -> Endorsements:
        """Return the bundle that the settings name, else nothing.

        Raises `ConfigError`: `verify.settings.file`, `collateral.*`.
        """
        path = self.attestation.endorsements
        if not path:
            return NO_ENDORSEMENTS
        from shared.attestation.collateral import parse_bundle  # noqa: PLC0415 - few deployments have a bundle

        try:
            return parse_bundle(_read(path))
        except ProtocolError as error:
            raise ConfigError(error.code, f"{path}: {error.message}") from error


def parse_settings(text: bytes, environment: Mapping[str, str]) -> VerifierSettings:
    """Return the settings of a TOML text under those of `DSTACK_VERIFIER_*` variables, `__` between names.

    Raises `ConfigError`: `verify.settings.syntax`, `verify.settings.invalid`.
    """
    document: dict[str, Any] = {}
    if text:
        import tomllib  # noqa: PLC0415 - a function has no file, only variables

        try:
            document = tomllib.loads(text.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError("verify.settings.syntax", f"settings are not valid toml: {error}") from error
    for variable, value in environment.items():
        if variable.startswith(ENV_PREFIX):
            _set(document, variable.removeprefix(ENV_PREFIX).lower().split("__"), value)
    try:
        settings = msgspec.convert(document, VerifierSettings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError("verify.settings.invalid", f"settings: {error}") from error
    _check(settings)
    return settings


def _check(settings: VerifierSettings) -> None:
    from ipaddress import ip_address  # noqa: PLC0415 - 5 ms that most cold starts need for nothing else

    try:
        ip_address(settings.address)
    except ValueError as error:
        raise ConfigError(
            "verify.settings.invalid", f"address is {settings.address!r}, expected an ip address"
        ) from error
    attestation = settings.attestation
    # Plain http is for simulations, whose collateral service is on this machine.
    schemes = {"https", "http"} if attestation.insecure_allow_external_trust_anchors else {"https"}
    if attestation.urls.pccs and not _is_url(attestation.urls.pccs, schemes):
        raise ConfigError(
            "verify.settings.invalid",
            f"attestation.urls.pccs is {attestation.urls.pccs!r}, expected an https url",
        )
    url = settings.image_download_url
    if IMAGE_PLACEHOLDER not in url or not _is_url(url.replace(IMAGE_PLACEHOLDER, "0"), {"https", "http"}):
        raise ConfigError(
            "verify.settings.invalid",
            f"image_download_url must be an http or https url with {IMAGE_PLACEHOLDER}",
        )


def _is_url(text: str, schemes: set[str]) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:  # half an IPv6 address
        return False
    return parts.scheme in schemes and bool(parts.hostname)


def _set(document: dict[str, Any], names: list[str], value: str) -> None:
    for name in names[:-1]:
        document = document.setdefault(name, {})
        if not isinstance(document, dict):
            raise ConfigError("verify.settings.invalid", f"{name} is both a value and a section")
    if isinstance(document.get(names[-1]), dict):
        raise ConfigError("verify.settings.invalid", f"{names[-1]} is both a value and a section")
    document[names[-1]] = value


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError("verify.settings.file", f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_FILE:
        raise ConfigError("verify.settings.file", f"{path} is larger than {MAX_FILE} bytes")
    return content


def _pem(root: bytes) -> bytes:
    if b"-----BEGIN" in root:
        return root
    import base64  # noqa: PLC0415 - a root in DER is rare

    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(root) + b"-----END CERTIFICATE-----\n"

"""Settings: upstream's TOML and environment, and what startup refuses."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from functions.verify.settings import MAX_FILE, VerifierSettings, parse_settings
from shared.attestation.collateral import bundle_json
from shared.attestation.endorsements import NO_ENDORSEMENTS
from shared.attestation.policy import DEFAULT_POLICY
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError
from tests.shared.attestation.forgery import Forge, refuses
from tests.shared.attestation.guest_forgery import GcpGuest

PREFIX = "DSTACK_VERIFIER_"
FLAG = f"{PREFIX}ATTESTATION__INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS"
ROOTS = ("tdx", "gcp_tpm", "aws_nitro_enclave", "aws_nitro_tpm")
AMD = ("sev_snp_milan", "sev_snp_genoa", "sev_snp_turin")

# Every key of section 7.3 with its default, and ours.
WHOLE = b"""
address = "0.0.0.0"
port = 8080
image_cache_dir = "/tmp/dstack-verifier/cache"
image_download_url = "https://download.dstack.org/os-images/mr_{OS_IMAGE_HASH}.tar.gz"
image_download_timeout_secs = 300

[attestation]
insecure_allow_external_trust_anchors = false
policy = ""
endorsements = ""
offline = false
allow_request_overrides = false

[attestation.urls]
pccs = ""
amd_kds = ""

[attestation.root_ca]
tdx = ""
gcp_tpm = ""
aws_nitro_enclave = ""
aws_nitro_tpm = ""
sev_snp_milan = ""
sev_snp_genoa = ""
sev_snp_turin = ""
"""


@pytest.fixture(scope="module")
def guest() -> GcpGuest:
    """Whose roots are configured."""
    return GcpGuest()


def variable(name: str) -> str:
    return f"{PREFIX}ATTESTATION__ROOT_CA__{name.upper()}"


def counts(anchors: TrustAnchors) -> dict[str, int]:
    return {name: len(getattr(anchors, name)) - 1 for name in ("nitro", "tdx", "gcp_tpm")}


def test_the_defaults_are_upstreams() -> None:
    assert parse_settings(b"", {}) == parse_settings(WHOLE, {}) == VerifierSettings()


def test_variables_go_before_the_file() -> None:
    environment = {
        f"{PREFIX}PORT": "9000",
        f"{PREFIX}ADDRESS": "127.0.0.1",
        f"{PREFIX}ATTESTATION__URLS__PCCS": "https://pccs.example",
        FLAG: "true",
        "DSTACK_OTHER": "ignored",
    }
    settings = parse_settings(b'port = 8000\nimage_cache_dir = "/cache"\n', environment)
    assert (settings.port, settings.address, settings.image_cache_dir) == (9000, "127.0.0.1", "/cache")
    assert settings.attestation.urls.pccs == "https://pccs.example"
    assert settings.attestation.insecure_allow_external_trust_anchors is True


@pytest.mark.parametrize(
    "text",
    [
        b"unknown = 1",
        b"[attestation]\nunknown = 1",
        b"[attestation.urls]\nunknown = 1",
        b"[attestation.root_ca]\nunknown = 1",
        b"port = 0",
        b"port = 65536",
        b'port = "web"',
        b'address = "localhost"',
        b'address = ""',
        b'image_download_url = "https://download.example/image.tar.gz"',
        b'image_download_url = "ftp://download.example/{OS_IMAGE_HASH}"',
        b"image_download_timeout_secs = 0",
        b"attestation = 1",
        b'[attestation.urls]\npccs = "http://pccs.example"',
        b'[attestation.urls]\npccs = "pccs.example"',
        b'[attestation.urls]\npccs = "https://"',
        b'[attestation.urls]\npccs = "https://["',
        b'image_download_url = "https://[/{OS_IMAGE_HASH}"',
        b'[attestation]\ninsecure_allow_external_trust_anchors = true\nurls.pccs = "ftp://127.0.0.1"',
    ],
)
def test_refuses_what_it_does_not_know(text: bytes) -> None:
    with refuses("verify.settings.invalid", ConfigError):
        parse_settings(text, {})


@pytest.mark.parametrize("text", [b"port =", b"\xff", b"port = 1\nport = 2"])
def test_refuses_what_is_no_toml(text: bytes) -> None:
    with refuses("verify.settings.syntax", ConfigError):
        parse_settings(text, {})


@pytest.mark.parametrize(
    "environment",
    [
        {f"{PREFIX}UNKNOWN": "1"},
        {f"{PREFIX}PORT": "web"},
        {f"{PREFIX}PORT__X": "1", f"{PREFIX}PORT": "80"},
        {FLAG: "maybe"},
    ],
)
def test_refuses_variables_that_it_does_not_know(environment: dict[str, str]) -> None:
    with refuses("verify.settings.invalid", ConfigError):
        parse_settings(b"", environment)
    with refuses("verify.settings.invalid", ConfigError):
        parse_settings(b"", dict(reversed(environment.items())))


def test_a_variable_cannot_be_below_a_value() -> None:
    with refuses("verify.settings.invalid", ConfigError):
        parse_settings(b"port = 80", {f"{PREFIX}PORT__X": "1"})


# --- trust anchors ---


def test_trusts_only_the_vendors_by_default() -> None:
    assert parse_settings(b"", {}).anchors() == TrustAnchors.production()
    assert parse_settings(b"", {FLAG: "true"}).anchors() == TrustAnchors.production()


def root_of(name: str, forge: Forge, guest: GcpGuest) -> bytes:
    nitro = forge.made["root"].pem
    pems = {"tdx": guest.forge.intel.root_pem, "gcp_tpm": guest.forge.google.root_pem}
    return pems.get(name, nitro)


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_root_serves_who_it_is_configured_for(
    name: str, encoding: Encoding, tmp_path: Path, guest: GcpGuest
) -> None:
    pem = root_of(name, Forge(), guest)
    path = tmp_path / "root"
    path.write_bytes(x509.load_pem_x509_certificate(pem).public_bytes(encoding))
    anchors = parse_settings(b"", {variable(name): str(path), FLAG: "true"}).anchors()
    served = name if name in {"tdx", "gcp_tpm"} else "nitro"
    assert counts(anchors) == {signer: int(signer == served) for signer in ("nitro", "tdx", "gcp_tpm")}


@pytest.mark.parametrize("name", [*ROOTS, *AMD])
@pytest.mark.parametrize("flag", [{}, {FLAG: "false"}])
def test_a_root_without_the_flag_is_refused_at_startup(
    name: str, flag: dict[str, str], tmp_path: Path, guest: GcpGuest
) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(root_of(name, Forge(), guest))
    with refuses("verify.anchors.flag", ConfigError):
        parse_settings(b"", {variable(name): str(path), **flag}).anchors()


def test_amds_roots_are_read_and_serve_nobody(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(Forge().made["root"].pem)
    for name in AMD:
        settings = parse_settings(b"", {variable(name): str(path), FLAG: "true"})
        assert settings.anchors() == TrustAnchors.production()
    path.write_bytes(b"no certificate")
    with refuses("trust.anchor.malformed", ConfigError):
        parse_settings(b"", {variable(AMD[0]): str(path), FLAG: "true"}).anchors()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "verify.settings.file"),
        (b"x" * (MAX_FILE + 1), "verify.settings.file"),
        (b"", "trust.anchor.malformed"),
        (b"-----BEGIN CERTIFICATE-----", "trust.anchor.malformed"),
    ],
)
def test_refuses_a_root_that_cannot_be_read(content: bytes | None, code: str, tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    if content is not None:
        path.write_bytes(content)
    with refuses(code, ConfigError):
        parse_settings(b"", {variable("tdx"): str(path), FLAG: "true"}).anchors()


def test_refuses_a_root_of_another_key_or_kind(tmp_path: Path, guest: GcpGuest) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(guest.forge.intel.root_pem)
    with refuses("trust.anchor.malformed", ConfigError):
        parse_settings(b"", {variable("aws_nitro_enclave"): str(path), FLAG: "true"}).anchors()
    path.write_bytes(Forge().made["leaf"].pem)
    with refuses("trust.anchor.not_ca", ConfigError):
        parse_settings(b"", {variable("aws_nitro_enclave"): str(path), FLAG: "true"}).anchors()


# --- policy and endorsements ---


def settings_with(**paths: Path) -> VerifierSettings:
    lines = "".join(f'{name} = "{path}"\n' for name, path in paths.items())
    return parse_settings(f"[attestation]\n{lines}".encode(), {})


def test_a_policy_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[nitro]\nmax_age = 60\n")
    assert settings_with(policy=path).policy().nitro.max_age == 60
    assert parse_settings(b"", {}).policy() == DEFAULT_POLICY
    path.write_text("[nitro]\nmax = 60\n")
    with refuses("policy.invalid", ConfigError):
        settings_with(policy=path).policy()


def test_endorsements_are_a_file(tmp_path: Path, guest: GcpGuest) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(bundle_json(guest.endorsements))
    assert settings_with(endorsements=path).endorsements() == guest.endorsements
    assert parse_settings(b"", {}).endorsements() == NO_ENDORSEMENTS


def test_endorsements_that_cannot_be_read_are_refused_at_startup(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    with refuses("verify.settings.file", ConfigError):
        settings_with(endorsements=path).endorsements()
    path.write_text("[]")
    with refuses("collateral.bundle", ConfigError):
        settings_with(endorsements=path).endorsements()

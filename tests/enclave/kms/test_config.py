"""kms.toml: upstream's file is taken as it is, and ours is refused when it is misspelt."""

import hashlib

import pytest

from enclave.kms.config import Admin, RateLimits, parse_config
from shared.errors import ConfigError
from tests.shared.refusal import refuses

PROOF = """
[core.auth_api.proof]
url = "https://authorize.example"
chain_id = 1
kms_contract = "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"
rpc_urls = ["https://a.example", "https://b.example"]
"""

ADMIN = "[core.admin]\nenabled = true\n"
TOKEN = "correct horse battery staple"
DIGEST = hashlib.sha256(TOKEN.encode()).digest()

UPSTREAM = """
workers = 8
[rpc]
address = "0.0.0.0"
port = 8000
[rpc.tls]
key = "/etc/kms/certs/rpc.key"
[core]
cert_dir = "/etc/kms/certs"
subject_postfix = ".dstack"
[core.image]
verify = true
cache_dir = "/usr/share/dstack/images"
[core.auth_api]
type = "webhook"
[core.auth_api.webhook]
url = "http://auth-api:8000"
[core.auth_api.dev]
gateway_app_id = "any"
[core.onboard]
enabled = true
quote_enabled = true
auto_bootstrap_domain = ""
"""


def _code(text: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        parse_config(text.encode())
    return refusal.value.code


def test_the_default_mode_is_proof() -> None:
    config = parse_config(PROOF.encode())
    assert config.core.auth_api.type == "proof"
    assert config.core.auth_api.proof.quorum == 2
    assert len(config.core.auth_api.proof.contract()) == 20


def test_honours_upstreams_file_with_its_webhook() -> None:
    config = parse_config(UPSTREAM.encode())
    assert config.core.auth_api.type == "webhook"
    assert config.core.auth_api.webhook.url == "http://auth-api:8000"
    assert not config.core.aws_nitro_enclave_key_release


def test_upstreams_switches_that_turn_checks_off_change_nothing() -> None:
    """Evidence of callers and of images is not optional here, whatever the file says."""
    lax = UPSTREAM.replace("quote_enabled = true", "quote_enabled = false")
    lax = lax.replace("verify = true", "verify = false")
    lax = lax.replace('subject_postfix = ".dstack"', "insecure_skip_attestation = true")
    assert lax != UPSTREAM
    assert parse_config(lax.encode()) == parse_config(UPSTREAM.encode())


def test_refuses_the_default_mode_without_a_contract() -> None:
    assert _code("") == "config.proof.missing"


def test_refuses_a_misspelt_policy_key() -> None:
    assert _code(PROOF + "max_block_ago = 5\n") == "config.invalid"


def test_refuses_an_unknown_mode() -> None:
    assert _code('[core.auth_api]\ntype = "none"\n') == "config.invalid"


@pytest.mark.parametrize(
    "line",
    [
        "allow_cache = 61",
        "block_cache = 13",
        "max_head_age = 3601",
        "max_head_age = 0",
        "max_block_age = -3",
        "quorum = 0",
        "timeout = -1",
    ],
)
def test_refuses_a_limit_out_of_bounds(line: str) -> None:
    assert _code(f"{PROOF}{line}\n") == "config.invalid"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("chain_id = 1", "chain_id = -5"),
        ('rpc_urls = ["https://a.example", "https://b.example"]', "rpc_urls = []"),
        ("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0", "0x9fE4"),
        ("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0", "zz"),
    ],
)
def test_refuses_a_contract_that_is_none(old: str, new: str) -> None:
    assert old in PROOF
    assert _code(PROOF.replace(old, new)) == "config.invalid"


def test_refuses_extra_anchors_without_the_flag() -> None:
    assert (
        _code(PROOF + '[core.attestation.root_ca]\naws_nitro_enclave = "/root.pem"\n')
        == "config.anchors.flag"
    )


@pytest.mark.parametrize("text", ["[core", "\xff\xfe"])
def test_refuses_what_is_not_toml(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_config(text.encode("latin-1"))
    assert refusal.value.code == "config.syntax"


@pytest.mark.parametrize(
    ("key", "signer"),
    [
        ("tdx", "tdx"),
        ("gcp_tpm", "gcp_tpm"),
        ("aws_nitro_enclave", "nitro"),
        ("aws_nitro_tpm", "nitro"),
    ],
)
def test_every_extra_root_needs_the_flag(key: str, signer: str) -> None:
    root = f'[core.attestation.root_ca]\n{key} = "/root.pem"\n'
    assert _code(PROOF + root) == "config.anchors.flag"
    flag = "[core.attestation]\ninsecure_allow_external_trust_anchors = true\n"
    attestation = parse_config((PROOF + flag + root).encode()).core.attestation
    assert attestation.root_ca.by_signer() == {signer: ("/root.pem",)}


def test_upstreams_collateral_url_is_read() -> None:
    urls = '[core.attestation.urls]\npccs = "https://pccs.example"\namd_kds = "https://kds.example"\n'
    assert parse_config((PROOF + urls).encode()).core.attestation.urls.pccs == "https://pccs.example"


@pytest.mark.parametrize(
    ("line", "environ"),
    [
        (f'auth_token_hash = "{DIGEST.hex()}"', {"ADMIN_API_TOKEN": "other"}),
        (f'auth_token = "{TOKEN}"', {"DSTACK_KMS_ADMIN_TOKEN": "other"}),
        ("", {"DSTACK_KMS_ADMIN_TOKEN": TOKEN, "ADMIN_API_TOKEN": "other"}),
        ("", {"DSTACK_KMS_ADMIN_TOKEN": "", "ADMIN_API_TOKEN": TOKEN}),
    ],
)
def test_the_admin_token_is_found_in_upstreams_order(line: str, environ: dict[str, str]) -> None:
    admin = parse_config(f"{PROOF}{ADMIN}{line}\n".encode()).core.admin
    assert admin.token_digest(environ) == DIGEST
    assert TOKEN not in repr(admin)


@pytest.mark.parametrize("line", ["", 'auth_token = ""', "insecure_no_auth = true"])
def test_refuses_an_admin_listener_without_a_token(line: str) -> None:
    admin = parse_config(f"{PROOF}{ADMIN}{line}\n".encode()).core.admin
    with refuses("config.admin.token", ConfigError):
        admin.token_digest({})


@pytest.mark.parametrize("digest", ["ab", "zz" * 32])
def test_refuses_a_token_hash_that_is_none(digest: str) -> None:
    with refuses("config.invalid", ConfigError):
        Admin(auth_token_hash=digest).token_digest({})


def test_an_upstream_table_of_tls_files_turns_tls_on() -> None:
    table = '[core.admin.tls]\ncerts = "/a.crt"\nkey = "/a.key"\n'
    assert parse_config(f"{PROOF}{ADMIN}{table}".encode()).core.admin.has_tls()
    assert not parse_config(f"{PROOF}{ADMIN}".encode()).core.admin.has_tls()
    assert _code(f'{PROOF}{ADMIN}tls = "yes"\n') == "config.invalid"


def test_the_admin_listener_is_off_by_default() -> None:
    assert not parse_config(PROOF.encode()).core.admin.enabled


@pytest.mark.parametrize("name", ["token_hash", "source_ca_pubkey", "source_k256_pubkey"])
@pytest.mark.parametrize("value", ["zz", "ab"])
def test_refuses_an_onboarding_pin_that_is_none(name: str, value: str) -> None:
    assert _code(f'{PROOF}[core.onboard]\n{name} = "{value}"\n') == "config.invalid"


def test_onboarding_names_no_keys_and_no_token_by_default() -> None:
    onboard = parse_config(PROOF.encode()).core.onboard
    assert (onboard.token_digest(), onboard.pinned_ca(), onboard.pinned_k256()) == (None, None, None)


CUSTODY = "[core.custody]\n"
PEER = '[core.custody.peer]\nsource_urls = ["https://a.example"]\ndomain = "kms.example"\n'


def test_root_keys_are_in_files_by_default() -> None:
    custody = parse_config(PROOF.encode()).core.custody
    assert (custody.type, custody.tpm.bank, custody.tpm.pcrs) == ("file", "sha256", (0, 2, 14))


@pytest.mark.parametrize(
    "text",
    [
        CUSTODY + 'type = "hsm"\n',
        CUSTODY + "typ = 1\n",
        "[core.custody.tpm]\nbanks = 1\n",
        '[core.custody.tpm]\nbank = "sha1"\n',
        "[core.custody.tpm]\npcrs = [2, 14, 24]\n",
        PEER + "retries = 1\n",
        PEER + "patience = 3601\n",
        PEER.replace('"https://a.example"', ""),
        PEER.replace('domain = "kms.example"\n', ""),
    ],
)
def test_refuses_a_custody_that_is_misspelt(text: str) -> None:
    assert _code(PROOF + text) == "config.invalid"


@pytest.mark.parametrize("pcrs", ["[0, 2]", "[0, 14]", "[]"])
def test_refuses_to_seal_to_less_than_image_and_app(pcrs: str) -> None:
    assert _code(f"{PROOF}[core.custody.tpm]\npcrs = {pcrs}\n") == "config.custody.pcrs"


def test_seals_to_more_registers_than_the_default() -> None:
    text = f"{PROOF}[core.custody.tpm]\npcrs = [0, 2, 4, 14]\n"
    assert parse_config(text.encode()).core.custody.tpm.pcrs == (0, 2, 4, 14)


@pytest.mark.parametrize("more", ["", PEER + '[core.onboard]\nauto_bootstrap_domain = "kms.example"\n'])
def test_refuses_custody_peer_without_a_source_or_with_a_bootstrap(more: str) -> None:
    assert _code(f'{PROOF}{CUSTODY}type = "peer"\n{more}') == "config.custody.peer"


@pytest.mark.parametrize("line", ["caller_per_minut = 1", "caller_burst = 0", "app_per_minute = 1000001"])
def test_refuses_a_limit_that_it_does_not_know_or_that_is_none(line: str) -> None:
    with refuses("config.invalid", ConfigError):
        parse_config(f'[core.auth_api]\ntype = "dev"\n[core.limits]\n{line}\n'.encode())


def test_reads_the_limits() -> None:
    config = parse_config(b'[core.auth_api]\ntype = "dev"\n[core.limits]\ncaller_burst = 1\n')
    assert config.core.limits == RateLimits(caller_burst=1)

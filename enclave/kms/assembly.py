"""From configuration to a running KMS's parts: the one place where policy becomes objects.

Everything here follows the trust rule (DESIGN section 2): what would leave a decision to somebody else
works only in a simulated guest, and whatever makes this KMS laxer than another is told by GetMeta.
"""

from urllib.parse import urlsplit

import msgspec

from enclave.kms.authorization import Authorizer, DevAuthorizer, ProofAuthorizer, WebhookAuthorizer
from enclave.kms.config import CONFIG_PATH, Attestation, KmsConfig, Proof, parse_config
from enclave.platform import Platform
from enclave.tee.peers import PeerVerifier, TrustSettings, establish_trust
from enclave.tee.tee import Attestor, Clock
from shared.attestation.policy import Policy
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import AWS_NITRO_TPM, GCP_TDX, NITRO_ENCLAVE
from shared.chain.code import code_list
from shared.chain.decision import ChainPolicy
from shared.chain.finality import RememberedBlocks
from shared.errors import ConfigError
from shared.hex import decode_hex_setting
from shared.net.breaker import spare_endpoints
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from shared.net.proof_source import ProofSource
from shared.net.quorum import ChainQuorum
from shared.rpc import kms_pb2 as pb

APP_ID_PATH = "/etc/dstack/app-id"
"""The KMS's own app id in its image, 40 hex digits; optional, for evidence that names it."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon needs, whether or not keys exist yet."""

    config: KmsConfig
    verifier: PeerVerifier
    attestor: Attestor
    own: VerifiedAttestation
    authorizer: Authorizer
    policy: pb.KmsPolicy


def assemble(platform: Platform) -> Parts:
    """Read the measured configuration and build the parts.

    Verifies evidence about this very guest first: a debug enclave, or one under an unknown root, does not
    start. Raises `ConfigError` (`config.*`) and what verification raises.
    """
    config = parse_config(platform.read_measured(CONFIG_PATH))
    core = config.core
    settings = _trust_settings(core.attestation)
    trust = establish_trust(platform, settings)
    attestor = platform.tee.attestor(_own_app_id(platform))
    own = trust.verifier.verify(attestor.attest(bytes(64)), bytes(64))
    if core.treat_nitro_as_up_to_date and own.verdict.platform == NITRO_ENCLAVE:
        told = own.verdict.with_disabled("tcb_status of this KMS: core.treat_nitro_as_up_to_date")
        own = msgspec.structs.replace(own, verdict=told)
    simulated = own.verdict.simulated
    if settings.has_extra_roots and not simulated:
        raise ConfigError(
            "config.anchors.mixed",
            "this guest is real, so extra trust anchors would let simulated callers have real keys",
        )
    authorizer = _authorizer(platform, config, trust.clock, simulated=simulated)
    return Parts(
        config=config,
        verifier=trust.verifier,
        attestor=attestor,
        own=own,
        authorizer=authorizer,
        policy=_policy(config, own, trust.verifier.policy, trust.clock.source, authorizer.mode),
    )


def _trust_settings(attestation: Attestation) -> TrustSettings:
    return TrustSettings(
        roots=attestation.root_ca.by_signer(),
        policy=attestation.policy,
        pccs=(attestation.urls.pccs,) if attestation.urls.pccs else (),
        tls_roots=attestation.tls_roots,
    )


def _policy(
    config: KmsConfig, own: VerifiedAttestation, accepted: Policy, clock_source: str, mode: str
) -> pb.KmsPolicy:
    """Return what GetMeta tells: every setting that makes this KMS laxer than another."""
    core = config.core
    policy = pb.KmsPolicy(
        auth_mode=mode,
        clock_source=clock_source,
        simulated=own.verdict.simulated,
        evidence_anchor=", ".join(own.verdict.anchors),
        nitro_enclave_key_release=core.aws_nitro_enclave_key_release,
        nitro_tpm_key_release=core.aws_nitro_tpm_key_release,
        treat_nitro_as_up_to_date=core.treat_nitro_as_up_to_date,
        nitro_app_id_pcr=core.nitro_app_id_pcr,
        self_authorization=core.enforce_self_authorization,
        attested_certificate=core.attest_rpc_cert,
        evidence_policy=_relaxations(accepted),
        key_handover=core.key_handover(),
        custody=core.custody.type,
        image_verification=True,  # not optional here: core.image.verify is ignored
    )
    proof = core.auth_api.proof
    if mode == ProofAuthorizer.mode and proof is not None:
        policy.quorum = proof.quorum
        policy.quorum_plain_http = any(urlsplit(url).scheme.lower() != "https" for url in proof.rpc_urls)
        policy.max_block_age = proof.max_block_age
        policy.max_head_age = proof.max_head_age
        policy.allow_cache = proof.allow_cache
        policy.block_cache = proof.block_cache
        policy.pinned_implementations = len(proof.implementations)
    return policy


def _relaxations(accepted: Policy) -> list[str]:
    """Return what the policy lets pass of any caller that may have keys, one clause each, none twice."""
    platforms = (NITRO_ENCLAVE, AWS_NITRO_TPM, GCP_TDX)
    return list(dict.fromkeys(clause for name in platforms for clause in accepted.relaxations(name)))


def _own_app_id(platform: Platform) -> bytes | None:
    if not platform.has_measured(APP_ID_PATH):
        return None
    text = platform.read_measured(APP_ID_PATH).decode("ascii", errors="replace").strip()
    return decode_hex_setting(text, what=APP_ID_PATH, length=20, code="image.app_id")


def _authorizer(platform: Platform, config: KmsConfig, clock: Clock, *, simulated: bool) -> Authorizer:
    auth = config.core.auth_api
    if auth.type == "dev":
        if not simulated:
            raise ConfigError(
                "config.dev.real", "auth_api.type = dev allows everything: only a simulated KMS runs it"
            )
        return DevAuthorizer(auth.dev.gateway_app_id)
    if auth.type == "webhook":
        return WebhookAuthorizer(auth.webhook.url, HttpClient(platform.dialer()))
    if auth.proof is None:
        raise ConfigError("config.proof.missing", "[core.auth_api.proof] is missing")
    return _proof_authorizer(platform, auth.proof, clock, simulated=simulated)


def _proof_authorizer(platform: Platform, proof: Proof, clock: Clock, *, simulated: bool) -> ProofAuthorizer:
    urls = (proof.url, *proof.rpc_urls)
    if not proof.rpc_roots and any(urlsplit(url).scheme.lower() == "https" for url in urls):
        raise ConfigError(
            "config.proof.rpc_roots",
            "an https url needs rpc_roots: the roots that tls may chain to are part of the measured image",
        )
    roots = platform.read_measured(proof.rpc_roots) if proof.rpc_roots else None
    http = HttpClient(platform.dialer(), ca_roots=roots, timeout=proof.timeout)
    endpoints = spare_endpoints([JsonRpc(url, http) for url in proof.rpc_urls], proof.quorum)
    quorum = ChainQuorum(
        endpoints,
        chain_id=proof.chain_id,
        quorum=proof.quorum,
        allow_plain_http=simulated,
        allow_single=simulated,
    )
    policy = ChainPolicy(
        chain_id=proof.chain_id,
        kms_contract=proof.contract(),
        max_block_age=proof.max_block_age,
        max_head_age=proof.max_head_age,
        codes=code_list(proof.implementations),
    )
    sources = [ProofSource(endpoint, policy.kms_contract) for endpoint in endpoints]
    finality = RememberedBlocks(quorum, proof.block_cache, clock.now)
    return ProofAuthorizer(proof, policy, finality, http, clock.now, clock.raise_floor, sources)

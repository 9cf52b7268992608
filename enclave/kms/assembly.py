"""From configuration to a running KMS's parts: the one place where policy becomes objects.

Everything here follows the trust rule (DESIGN section 2): what weakens a check works only in a simulated
enclave, and is reported.
"""

from collections.abc import Callable

import msgspec

from enclave.devices.attestor import NitroAttestor
from enclave.devices.clock import TrustedClock
from enclave.devices.nsm import Nsm
from enclave.dstack_util.enclave_config import load_anchors
from enclave.kms.authorization import Authorizer, DevAuthorizer, ProofAuthorizer, WebhookAuthorizer
from enclave.kms.config import CONFIG_PATH, KmsConfig, Proof, parse_config
from enclave.kms.service import Environment
from enclave.platform import Platform
from shared.attestation.trust import NitroAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.chain.code import code_list
from shared.chain.decision import ChainPolicy
from shared.errors import ConfigError
from shared.hex import decode_hex
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from shared.net.quorum import ChainQuorum

APP_ID_PATH = "/etc/dstack/app-id"
"""The KMS's own app id in its image, 40 hex digits; optional, for evidence that names it."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon needs, whether or not keys exist yet."""

    config: KmsConfig
    anchors: NitroAnchors
    nsm: Nsm
    attestor: NitroAttestor
    own: VerifiedAttestation
    now: Callable[[], int]
    authorizer: Authorizer
    environment: Environment


def assemble(platform: Platform) -> Parts:
    """Read the measured configuration and build the parts.

    Verifies evidence about this very enclave first: a debug enclave, or one under an unknown root, does not
    start. Raises `ConfigError` (`config.*`) and what verification raises.
    """
    config = parse_config(platform.read_measured(CONFIG_PATH))
    extra = config.core.attestation.root_ca.aws_nitro_enclave
    anchors = load_anchors(platform, (extra,) if extra else ())
    nsm = Nsm(platform.nsm)
    clock = TrustedClock(nsm, anchors)
    attestor = NitroAttestor(nsm, _own_app_id(platform))
    own = verify_attestation(
        attestor.attest(bytes(64)), now=clock.now(), anchors=anchors, report_data=bytes(64)
    )
    if config.core.treat_nitro_as_up_to_date:
        told = own.verdict.with_disabled("tcb_status of this KMS: core.treat_nitro_as_up_to_date")
        own = msgspec.structs.replace(own, verdict=told)
    simulated = own.verdict.simulated
    if extra and not simulated:
        raise ConfigError(
            "config.anchors.mixed",
            "this enclave is real, so extra trust anchors would let simulated callers have real keys",
        )
    authorizer = _authorizer(platform, config, clock.now, simulated=simulated)
    proof = config.core.auth_api.proof if authorizer.mode == "proof" else None
    environment = Environment(
        clock_source=clock.source,
        simulated=simulated,
        evidence_anchor=own.nitro.anchor,
        quorum=proof.quorum if proof else 0,
        quorum_plain_http=any(url.startswith("http://") for url in proof.rpc_urls) if proof else False,
        max_block_age=proof.max_block_age if proof else 0,
    )
    return Parts(
        config=config,
        anchors=anchors,
        nsm=nsm,
        attestor=attestor,
        own=own,
        now=clock.now,
        authorizer=authorizer,
        environment=environment,
    )


def _own_app_id(platform: Platform) -> bytes | None:
    try:
        text = platform.read_measured(APP_ID_PATH).decode().strip()
    except ConfigError:
        return None
    return decode_hex(text, what=APP_ID_PATH, length=20)


def _authorizer(
    platform: Platform, config: KmsConfig, now: Callable[[], int], *, simulated: bool
) -> Authorizer:
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
    return _proof_authorizer(platform, auth.proof, now, simulated=simulated)


def _proof_authorizer(
    platform: Platform, proof: Proof, now: Callable[[], int], *, simulated: bool
) -> ProofAuthorizer:
    roots = platform.read_measured(proof.rpc_roots) if proof.rpc_roots else None
    http = HttpClient(platform.dialer(), ca_roots=roots, timeout=proof.timeout)
    quorum = ChainQuorum(
        [JsonRpc(url, http) for url in proof.rpc_urls],
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
    return ProofAuthorizer(proof, policy, quorum, http, now)

"""What to do when an audit of a KMS is refused, by the longest leading part of the refusal's code."""

from typing import Final

from cli.verify_hints import HINTS, longest_part

_GENERAL: Final = "docs/verification.md explains the lanes of a key server"
_NO_KMS: Final = (
    "what answers at this URL is no KMS that attests: check the URL, and trust nothing that it says"
)
_OTHER_KEYS: Final = (
    "this KMS has other keys than it should: check that URL and contract belong together, and give it no app"
)
_CLOCK: Final = "check this machine's clock, and that the KMS renews its certificate"
_SET_INFO: Final = "have the contract's owner call setKmsInfo with the keys of the KMS's bootstrap record"
_UNSETTLED: Final = "the contract's kmsInfo has just changed: try again when that is final"
_MALFORMED: Final = "have the contract's owner correct kmsInfo with setKmsInfo"
_COLLATERAL: Final = "fetch collateral anew, without --collateral, or from another service with --pccs"
_RPC: Final = "pass endpoints with --rpc that serve this chain with proofs (eth_getProof) of recent blocks"

HINTS_KMS: Final = {
    # the server
    "ratls": _NO_KMS,
    "ratls.usage": "this is the certificate of something else under a KMS's root, of an app perhaps: no KMS",
    "ratls.attestation.missing": "have the KMS run with attest_rpc_cert: there is no other evidence",
    "ratls.certificate": _CLOCK,
    "ratls.certificate.malformed": _NO_KMS,
    "ratls.certificate.size": _NO_KMS,
    "ratls.certificate.version": _NO_KMS,
    "ratls.root": _CLOCK,
    "attestation.report_data": (
        "the evidence belongs to another TLS key, so somebody else may answer: check the URL, trust nothing"
    ),
    "nitro.stale": _CLOCK,
    "nitro.future": _CLOCK,
    "nitro.chain.expired": _CLOCK,
    "nitro.chain.not_yet_valid": _CLOCK,
    "tdx.anchor.validity": _CLOCK,
    "tdx.collateral": _COLLATERAL,
    "identity.os_image.unverified": (
        "keys are released by a verified image alone: the KMS must show its boot log, or pin what booted in "
        "--policy"
    ),
    # its answer
    "kms_audit.status": "the KMS cannot describe itself now, perhaps for want of its chain: read its log",
    "kms_audit.meta": "the answer is no KMS's: check the URL's path, and the KMS's version",
    "kms_audit.ca_cert": "the KMS shows no CA certificate that could issue its own: do not use it",
    "kms_audit.policy": "the KMS contradicts its evidence: drop --trust-anchor, or do not use it",
    # the contract
    "kms_audit.contract": "check --kms-contract and --chain-id: this KMS obeys another contract",
    "kms_audit.contract.unnamed": "this KMS asks no contract, so none can vouch for it: see auth_mode",
    "kms_audit.root_ca.unset": _SET_INFO,
    "kms_audit.k256_key.unset": _SET_INFO,
    "kms_audit.root_ca": _OTHER_KEYS,
    "kms_audit.k256_key": _OTHER_KEYS,
    "kms_audit.denied": ("the contract may have revoked this KMS: give it no app, or have it allowed"),
    "proof.root_ca.unsettled": _UNSETTLED,
    "proof.signer.unsettled": _UNSETTLED,
    "proof.root_ca.malformed": _MALFORMED,
    "proof.signer.malformed": _MALFORMED,
    "proof": _RPC,
    "proof.kms.absent": "there is no contract at --kms-contract on this chain: check both",
    "proof.code.unknown": "what runs at --kms-contract is no known build of DstackKms: see its code",
    "proof.header.stale": "the chain's newest blocks are old: check the endpoints, and this machine's clock",
    "proof.header.future": "check this machine's clock",
    "proof.zero_hash": "the KMS measures an image of zeros, which no contract may allow",
    "quorum": "the endpoints of --rpc do not agree: try again, and if it stays, one of them is wrong",
    "quorum.chain_id": "pass endpoints of --chain-id with --rpc",
    "quorum.too_few": "an endpoint of --rpc does not answer: try again, or pass others",
    "rpc": _RPC,
    # the record
    "kms_audit.bootstrap": "the record is damaged: pass the operator's own with --bootstrap-info",
    "kms_audit.bootstrap.other_keys": _OTHER_KEYS,
    # the way there
    "net": "nothing answers as a KMS does: check URL, port and network, and that onboarding has ended",
}


def hint_for_kms(code: str) -> str:
    """Return the hint for a code of an audit, else the one that the evidence alone would give."""
    ours, evidence = longest_part(code, HINTS_KMS), longest_part(code, HINTS)
    if ours is None and evidence is None:
        return _GENERAL
    if evidence is None or (ours is not None and len(ours) >= len(evidence)):
        return HINTS_KMS[ours or ""]
    return HINTS[evidence]

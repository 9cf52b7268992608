"""What to change when evidence is refused, by the longest leading part of the refusal's code."""

from collections.abc import Container

_AT_ITS_TIME = "judge it at its own time with --at {made_at}"
_DAMAGED = "get the evidence from the guest again"
_POLICY = "docs/verification.md shows policy files"
_CLOCK = "check this machine's clock"
_COLLATERAL = "let it be fetched (no --offline, no --collateral), or pass a --collateral FILE that has it"
_NO_EVIDENCE = (
    "the file is damaged or no evidence: pass an envelope, a Nitro document, a TDX quote, a request, an "
    "RA-TLS certificate, or hex of one"
)

HINTS = {
    # what the file is
    "verify.file": _NO_EVIDENCE,
    "verify.file.request": 'a request is {"attestation": hex}, or {"quote", "event_log", "vm_config"}',
    "verify.file.no_attestation": "pass an app's RA-TLS certificate: this one is an ordinary certificate",
    "envelope": _NO_EVIDENCE,
    "envelope.pod": f"the pod's payload was altered after it was signed: {_DAMAGED}",
    "scale": _NO_EVIDENCE,
    "msgpack": _NO_EVIDENCE,
    "cbor": _NO_EVIDENCE,
    "cose": f"this is no document that an AWS module makes: {_DAMAGED}",
    "cose.signature": f"the document was altered after it was signed: {_DAMAGED}",
    "ratls": f"the certificate's extensions were altered: {_DAMAGED}",
    "attestation.platform": "pass evidence of a Nitro, NitroTPM, TDX or GCP guest: SEV-SNP is not verified",
    "attestation.report_data": "the evidence is about another key or challenge: ask for evidence over yours",
    # AWS
    "nitro": f"this is no document that an AWS module makes: {_DAMAGED}",
    "nitro.stale": f"ask the guest for a fresh document, or {_AT_ITS_TIME}",
    "nitro.future": f"{_CLOCK}, or {_AT_ITS_TIME}",
    "nitro.chain": f"this is no certificate chain that an NSM makes: {_DAMAGED}",
    "nitro.chain.anchor": "evidence of a simulated enclave needs --trust-anchor with its root.pem",
    "nitro.chain.signature": f"the certificates do not belong together, by damage or by forgery: {_DAMAGED}",
    "nitro.chain.expired": f"ask the guest for a fresh document, or {_AT_ITS_TIME}",
    "nitro.chain.not_yet_valid": f"{_CLOCK}, or {_AT_ITS_TIME}",
    "nitro.debug": "run the enclave without debug mode: a debug enclave cannot be attested",
    "nitro.user_data": f"report_data of the envelope belongs to another document: {_DAMAGED}",
    "nitro_tpm": f"the events are not those that the instance measured into its TPM: {_DAMAGED}",
    "nitro_tpm.unmeasured": "boot the instance from an image with UEFI and NitroTPM support",
    "aws.image": "the config names another image than booted: check the instance's image",
    # TDX
    "tdx.anchor": "evidence of a simulated guest needs --trust-anchor with its root.pem",
    "tdx.anchor.validity": "the root above the platform is out of its dates: check --at, and the root",
    "tdx.report_data": "the quote is about another key or challenge: ask for evidence over yours",
    "tdx.attributes": "the domain's settings let its host look into it: launch it with the defaults",
    "tdx.attributes.policy": f"list the attribute under [tdx] allow_attributes if you accept it; {_POLICY}",
    "tdx.xfam": f"the domain enables more processor state than [tdx] xfam allows; {_POLICY}",
    "tdx.mr_signer_seam": "the host runs a TDX module that Intel did not sign: use another host",
    "tdx.seam_attributes": "the host runs a TDX module in debug: use another host",
    "tdx.mr_service_td": "a service domain can act on this one: launch it without a migration domain",
    "tdx.tcb": (
        "update the host's firmware and microcode, or accept this state by name, with [tdx] accept or grace "
        f"in --policy; {_POLICY}"
    ),
    "tdx.tcb.revoked": "use another host: Intel revoked this platform's state, and no policy accepts it",
    "tdx.tcb.evaluation": "fetch newer collateral: the policy's min_tcb_evaluation_number asks for it",
    "tdx.advisory": f"update the host: an advisory applies that [tdx] reject_advisories lists; {_POLICY}",
    "tdx.collateral": "fetch collateral anew, or judge at the collateral's own time with --at",
    "tdx.collateral.signer": "this collateral is not signed by Intel's own signers: use another source",
    "tdx.collateral.missing": f"Intel's statements about this platform are needed: {_COLLATERAL}",
    "tdx.pck": f"the quote's certificates are not Intel's: {_DAMAGED}",
    "tdx.pck.revoked": "use another host: Intel revoked this platform's certificate",
    "tdx.dcap": f"the chain from Intel to the quote does not hold: {_DAMAGED}, or fetch collateral anew",
    "tdx.quote": f"the quote's layout is not one that TDX makes: {_DAMAGED}",
    "tdx.rtmr3": f"the runtime events are not those that the guest measured: {_DAMAGED}",
    "tdx.boot_log": f"the boot log is not the one that was measured: {_DAMAGED}",
    "event_log": f"the events were altered or are not those of this quote: {_DAMAGED}",
    # Google Cloud
    "gcp": f"the vTPM half does not fit the TDX half or its events: {_DAMAGED}",
    "gcp.binding": f"the vTPM quote is about another TDX quote: {_DAMAGED}, both quotes from one machine",
    "gcp.anchor": "pass the roots of both halves with --trust-anchor, or of neither",
    "gcp.firmware": f"list this PCR0 under [[gcp.firmware]] if you know where it comes from; {_POLICY}",
    "gcp.rtmr2": f"the guest booted with another command line than [gcp] rtmr2 lists; {_POLICY}",
    "gcp.partition_tables": f"the disk's partition table is none of [gcp] partition_tables; {_POLICY}",
    "gcp.kernels": f"the image's kernel is none of [gcp] kernels; {_POLICY}",
    "gcp.uki": "something else than the image that the config names was booted: check the disk's image",
    "gcp.chain": f"Google must certify the vTPM's key: {_COLLATERAL}",
    "tpm": f"the vTPM half is malformed or altered: {_DAMAGED}",
    # image and configuration
    "identity.compose_hash.missing": "the guest recorded no app: boot it with an app-compose.json",
    "identity.os_image": "the config names another image: rebuild the envelope around this document",
    "identity.os_image.acpi": (
        "a legacy image's registers cannot be recomputed here: boot with a measurement document (lite), "
        "or accept an unverified image with [tdx] allow_unverified_image = true in --policy"
    ),
    "vm_config": "the config is no vm_config that is known here: update this verifier, or the host's tools",
    "measurement": "the registers are not those of the image that vm_config names: check image and vm_config",
    "os_image": "the checksum list in vm_config is no image's: check the host's tools",
    "mr_config": f"the launcher fixed another configuration than the guest recorded; {_POLICY}",
    # endorsements
    "crl": f"a revocation list is missing, old or unreadable: {_COLLATERAL}",
    "crl.revoked": "use another machine: the vendor revoked a certificate of this one",
    "collateral": "the collateral is not as Intel makes it: fetch it anew, or pass another --collateral FILE",
    "endorsements": _COLLATERAL,
    "pccs": "the collateral service did not answer as it should: try again, or pass --pccs or --collateral",
    "issuers": "the vendor's certificate service did not answer as it should: try again, or --collateral",
    "net": "the network did not answer: try again, or pass --collateral FILE with --offline",
}


def hint_for(code: str, made_at: int | None) -> str:
    """Return the hint for a refusal's code; `made_at` is the evidence's own time, where it has one."""
    prefix = longest_part(code, HINTS)
    if prefix is None:
        return _NO_EVIDENCE
    return HINTS[prefix].replace("{made_at}", "UNIX" if made_at is None else str(made_at))


def longest_part(code: str, hints: Container[str]) -> str | None:
    """Return the longest leading part of a code that is among `hints`, None where none is."""
    prefix = code
    while prefix not in hints:
        prefix, dot, _ = prefix.rpartition(".")
        if not dot:
            return None
    return prefix

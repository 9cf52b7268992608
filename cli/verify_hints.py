"""What to change when evidence is refused, by the longest prefix of the refusal's code."""

_AT_ITS_TIME = "judge it at its own time with --at {made_at}"
_DAMAGED = "get the evidence from the guest again"
_POLICY = "see docs/verification.md for policy files"

HINTS = {
    "nitro.stale": f"ask the enclave for a fresh document, or {_AT_ITS_TIME}",
    "nitro.future": f"check this machine's clock, or {_AT_ITS_TIME}",
    "nitro.chain.anchor": "evidence of a simulated enclave needs --trust-anchor with its root.pem",
    "nitro.chain.signature": f"the certificates do not belong together, by damage or by forgery: {_DAMAGED}",
    "nitro.chain.expired": f"ask the enclave for a fresh document, or {_AT_ITS_TIME}",
    "nitro.chain": f"this is no certificate chain that an NSM makes: {_DAMAGED}",
    "nitro.debug": "run the enclave without debug mode: a debug enclave cannot be attested",
    "nitro.user_data": f"report_data of the envelope belongs to another document: {_DAMAGED}",
    "nitro_tpm": f"the NitroTPM document does not fit its events or this time: {_DAMAGED}, or {_AT_ITS_TIME}",
    "cose.signature": f"the document was altered after it was signed: {_DAMAGED}",
    "attestation.report_data": "the evidence is about another key or challenge: ask for evidence over yours",
    "attestation.platform": "Nitro enclave, NitroTPM, TDX and GCP TDX evidence is verified, SEV-SNP is not",
    "identity.os_image.acpi": (
        "a legacy image's registers cannot be recomputed here: boot with a measurement document (lite), "
        "or accept an unverified image with [tdx] allow_unverified_image = true in --policy"
    ),
    "identity.os_image": "the config names another image: rebuild the envelope around this document",
    "identity": f"the envelope's config or events were altered: {_DAMAGED}",
    "vm_config": "the config is no vm_config that is known here: update this verifier, or the host's tools",
    "measurement": "the registers are not those of the image that vm_config names",
    "mr_config": f"the launcher fixed another configuration than the guest recorded; {_POLICY}",
    "event_log": f"the events were altered or are not those of this quote: {_DAMAGED}",
    "tdx.rtmr3": f"the runtime events are not those that the guest measured: {_DAMAGED}",
    "tdx.boot_log": f"the boot log is not the one that was measured: {_DAMAGED}",
    "tdx.anchor": "evidence of a simulated guest needs --trust-anchor with its root",
    "tdx.attributes": "the domain's settings let its host look into it: launch it with the defaults",
    "tdx.xfam": f"the domain enables processor state that the policy does not list; {_POLICY}",
    "tdx.tcb": (
        "update the host's firmware and microcode, or accept this state by name, with [tdx] accept or grace "
        "in --policy"
    ),
    "tdx.advisory": "this policy rejects an advisory that applies to the platform: update the host",
    "tdx.collateral.missing": (
        "Intel's statements about this platform are needed: leave out --offline, or pass --collateral FILE"
    ),
    "tdx.collateral": "fetch collateral anew, or judge at the collateral's own time with --at",
    "tdx.dcap": f"the chain from Intel to the quote does not hold now: {_DAMAGED}, fetch collateral anew",
    "tdx.quote": f"the quote's layout is not one that TDX makes: {_DAMAGED}",
    "collateral": "the --collateral file is not upstream's collateral object nor a bundle of this tool",
    "gcp.binding": f"the vTPM quote is about another TDX quote: {_DAMAGED}, both from one machine",
    "gcp.firmware": f"list this PCR0 under [[gcp.firmware]] if you know where it comes from; {_POLICY}",
    "gcp.rtmr2": f"the guest booted with another command line than the policy lists; {_POLICY}",
    "gcp.chain": "Google must certify the vTPM's key: leave out --offline, or add issuers to --collateral",
    "gcp": f"the vTPM half does not fit the rest: {_DAMAGED}",
    "tpm": f"the vTPM half is malformed or altered: {_DAMAGED}",
    "crl": "a revocation list is missing, old, or revokes: leave out --offline, or add it to --collateral",
    "endorsements": "leave out --offline, or pass --collateral FILE",
    "pccs": "the collateral service did not answer as it should: try again, or pass --pccs or --collateral",
    "issuers": "Google's certificate service did not answer as it should: try again, or pass --collateral",
    "net": "the network did not answer: try again, or pass --collateral FILE with --offline",
    "verify.file.request": 'a request is {{"attestation": hex}} or {{"quote", "event_log", "vm_config"}}',
    "": (
        "the file is damaged or no evidence: pass an envelope, a Nitro document, a TDX quote, a request, an "
        "RA-TLS certificate, or hex of one"
    ),
}


def hint_for(code: str, made_at: int | None) -> str:
    """Return the hint for a refusal's code; `made_at` is the evidence's own time, where it has one."""
    prefix = max((known for known in HINTS if code.startswith(known)), key=len)
    return HINTS[prefix].format(made_at="UNIX" if made_at is None else made_at)

"""BootInfo: what a policy is asked about (spec kms section 6.2).

It is the one structure that crosses from attestation to the chain, so it imports neither.
"""

import msgspec

# How BootInfo, a verdict and a policy name the platform.
TDX = "dstack-tdx"
GCP_TDX = "dstack-gcp-tdx"
NITRO_ENCLAVE = "dstack-nitro-enclave"
SEV_SNP = "dstack-amd-sev-snp"
AWS_NITRO_TPM = "dstack-aws-nitro-tpm"


class BootInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Identity of one booted workload, as taken from verified evidence.

    Byte fields are raw: `app_id` 20 bytes, `instance_id` 20 or empty, `device_id`, `compose_hash`,
    `mr_aggregated`, `mr_system` 32, `os_image_hash` 32 or empty. `key_provider_info` is UTF-8 JSON or empty.
    """

    tee_variant: str
    mr_aggregated: bytes
    os_image_hash: bytes
    mr_system: bytes
    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    device_id: bytes
    key_provider_info: bytes
    tcb_status: str
    advisory_ids: tuple[str, ...]

    def to_wire(self) -> dict[str, str | list[str]]:
        """Return the webhook's JSON object: camelCase keys, lowercase hex without a prefix, all present."""
        return {
            "teeVariant": self.tee_variant,
            "mrAggregated": self.mr_aggregated.hex(),
            "osImageHash": self.os_image_hash.hex(),
            "mrSystem": self.mr_system.hex(),
            "appId": self.app_id.hex(),
            "composeHash": self.compose_hash.hex(),
            "instanceId": self.instance_id.hex(),
            "deviceId": self.device_id.hex(),
            "keyProviderInfo": self.key_provider_info.hex(),
            "tcbStatus": self.tcb_status,
            "advisoryIds": list(self.advisory_ids),
        }

"""What contracts cannot express: which kinds of TEE, and which security advisories, may have keys.

An optional file of the operator. It can refuse what the contract allows and allow nothing that the contract
refuses. A file that cannot be read, or not in full, refuses everything. This function is not trusted, so
neither is its policy: what must hold against its operator belongs into the key server's measured policy.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec

from shared.boot_info import BootInfo
from shared.errors import ConfigError, PolicyDenied, ProtocolError
from shared.strict_json import decode_json

TeeVariant = Literal[
    "dstack-tdx", "dstack-gcp-tdx", "dstack-nitro-enclave", "dstack-amd-sev-snp", "dstack-aws-nitro-tpm"
]
# All of Intel's advisories for TDX are a few dozen, of 14 characters each.
MAX_POLICY_BYTES = 64 * 1024

# A denial by the policy: its message is the reason that the caller is told.
DENIALS: Final = frozenset({"authorize.policy.tee_variant", "authorize.policy.advisory"})


class PlatformPolicy(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"
):
    """What may have keys: TEE variants, and evidence with no other advisory than these. None takes any."""

    allowed_tee_variants: tuple[TeeVariant, ...] | None = None
    allowed_advisory_ids: tuple[str, ...] | None = None

    def check(self, boot_info: BootInfo) -> None:
        """Refuse what is not allowed.

        Raises `PolicyDenied`, whose message is the answer's reason: `authorize.policy.tee_variant`,
        `authorize.policy.advisory`.
        """
        variants, advisories = self.allowed_tee_variants, self.allowed_advisory_ids
        if variants is not None and boot_info.tee_variant not in variants:
            raise PolicyDenied("authorize.policy.tee_variant", "TEE variant is not allowed")
        if advisories is not None and not set(boot_info.advisory_ids) <= set(advisories):
            raise PolicyDenied("authorize.policy.advisory", "advisory ID is not allowed")


def read_policy(path: str) -> PlatformPolicy:
    """Read a policy file. It is read for each request, so that a change counts at once.

    Raises `ConfigError`: `authorize.policy.unreadable`, `authorize.policy.invalid`.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_POLICY_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError("authorize.policy.unreadable", "the policy file cannot be read") from error
    try:
        document = decode_json(
            raw, what="the policy file", code="authorize.policy", max_bytes=MAX_POLICY_BYTES
        )
        policy = msgspec.convert(document, PlatformPolicy)
    except (msgspec.ValidationError, ProtocolError) as error:
        raise ConfigError("authorize.policy.invalid", f"the policy file is malformed: {error}") from error
    if policy == PlatformPolicy():
        raise ConfigError(
            "authorize.policy.invalid", "the policy file restricts nothing: remove it, or say what is allowed"
        )
    return policy

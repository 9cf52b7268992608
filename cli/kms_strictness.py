"""How lax a KMS says it is: each setting of GetMeta's `policy` that weakens it, and what that means.

It is the KMS's own word. Its measured image is what makes it believable, or not.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from shared.chain.decision import DEFAULT_MAX_BLOCK_AGE, DEFAULT_MAX_HEAD_AGE

PROOF: Final = "proof"
_CLOCKS: Final = frozenset({"nsm", "system (secure_time)"})


class KmsPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """`policy` of GetMeta, ages in seconds; a setting that an older KMS does not report is unset."""

    auth_mode: str | UnsetType = UNSET
    clock_source: str | UnsetType = UNSET
    simulated: bool | UnsetType = UNSET
    evidence_anchor: str | UnsetType = UNSET
    self_authorization: bool | UnsetType = UNSET
    attested_certificate: bool | UnsetType = UNSET
    image_verification: bool | UnsetType = UNSET
    evidence_policy: tuple[str, ...] | UnsetType = UNSET
    treat_nitro_as_up_to_date: bool | UnsetType = UNSET
    nitro_enclave_key_release: bool | UnsetType = UNSET
    nitro_app_id_pcr: bool | UnsetType = UNSET
    nitro_tpm_key_release: bool | UnsetType = UNSET
    quorum: int | UnsetType = UNSET
    quorum_plain_http: bool | UnsetType = UNSET
    finalized_block: int | UnsetType = UNSET
    max_block_age: int | UnsetType = UNSET
    max_head_age: int | UnsetType = UNSET
    allow_cache: int | UnsetType = UNSET
    block_cache: int | UnsetType = UNSET
    pinned_implementations: int | UnsetType = UNSET
    custody: str | UnsetType = UNSET
    key_handover: str | UnsetType = UNSET

    @property
    def unreported(self) -> tuple[str, ...]:
        """The names of the settings that this KMS does not report: nothing is known of them."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name) is UNSET)


class LaxSetting(msgspec.Struct, frozen=True):
    """One setting that is weaker than it could be. `value` is as the KMS told it, `meaning` a clause."""

    name: str
    value: bool | int | str
    meaning: str


class _Rule(NamedTuple):
    name: str
    is_lax: Callable[[Any], bool]
    meaning: str
    applies: Callable[[KmsPolicy], bool] = lambda _policy: True


_RULES: Final = (
    _Rule(
        "auth_mode", lambda mode: mode != PROOF, "who gets keys is another server's word, not proven on chain"
    ),
    _Rule("simulated", bool, "it runs in no TEE: whoever runs the machine can read the keys"),
    _Rule(
        "clock_source",
        lambda clock: clock not in _CLOCKS,
        "the host can set its clock, and old evidence passes",
    ),
    _Rule("self_authorization", lambda on: not on, "a revocation on chain does not stop it"),
    _Rule("attested_certificate", lambda on: not on, "its certificate need not carry evidence"),
    _Rule("image_verification", lambda on: not on, "a caller's os_image_hash is the caller's own claim"),
    _Rule(
        "treat_nitro_as_up_to_date", bool, "the contract is told UpToDate of it, and Nitro has no such status"
    ),
    _Rule("nitro_enclave_key_release", bool, "an open gate: Nitro enclaves may have keys"),
    _Rule(
        "nitro_app_id_pcr",
        lambda on: not on,
        "an enclave's app id is its own claim",
        applies=lambda policy: policy.nitro_enclave_key_release is True,
    ),
    _Rule("nitro_tpm_key_release", bool, "an open gate: EC2 guests with a NitroTPM may have keys"),
    _Rule(
        "quorum",
        lambda size: size < 2,
        "one endpoint decides which blocks count",
        applies=lambda policy: policy.auth_mode == PROOF,
    ),
    _Rule("quorum_plain_http", bool, "whoever is on the way to the endpoints decides which blocks count"),
    _Rule(
        "max_block_age",
        lambda age: age > DEFAULT_MAX_BLOCK_AGE,
        "seconds for which it can be shown an old chain",
    ),
    _Rule(
        "max_head_age",
        lambda age: age > DEFAULT_MAX_HEAD_AGE,
        "seconds for which a revocation can stay unseen",
    ),
    _Rule("allow_cache", lambda seconds: seconds > 0, "seconds for which it answers without asking again"),
    _Rule("block_cache", lambda seconds: seconds > 0, "seconds for which it asks for no newer block"),
    _Rule(
        "pinned_implementations",
        lambda count: count > 0,
        "contract builds beyond the known ones are believed",
    ),
    _Rule("custody", lambda kind: kind == "file", "the root keys are in the clear on the disk of its guest"),
    _Rule(
        "key_handover",
        lambda listeners: "main" in listeners,
        "whoever is an allowed KMS gets the root keys, without a token",
    ),
)


def lax_settings(policy: KmsPolicy) -> tuple[LaxSetting, ...]:
    """Return what weakens this KMS, in a fixed order; each clause of `evidence_policy` is one."""
    found = []
    for rule in _RULES:
        value = getattr(policy, rule.name)
        if value is not UNSET and rule.applies(policy) and rule.is_lax(value):
            found.append(LaxSetting(rule.name, value, rule.meaning))
    clauses = () if policy.evidence_policy is UNSET else policy.evidence_policy
    found += [
        LaxSetting("evidence_policy", clause, "it lets this pass of callers' evidence") for clause in clauses
    ]
    return tuple(found)

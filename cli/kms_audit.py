"""What an audit of a running KMS finds: what one visit brought back goes in, lanes come out.

1. The server's certificate is a KMS's, with evidence over the key of this very connection, which verifies,
   of an image that the registers measured.
2. The CA that GetMeta names issued that certificate.
3. The contract that the auditor names is the one that the KMS names; it publishes the KMS's root keys, and
   allows this KMS, in two proven blocks.
4. The record of the bootstrap names the same keys, and its evidence is over them.
5. How lax the KMS is, by its own word.

Steps 3 and 4 are judged apart, so that one refusal does not hide another. The caller still owes: that TLS
proved the leaf's key, that nothing was sent before step 1 had passed, what `shared.chain.decision` owes, and
the verification of both pieces of evidence (`shared.attestation.verify`) under the auditor's policy.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from cli.kms_meta import BootstrapRecord, Meta
from shared.attestation.identity import AppInfo, boot_info, check_release_image, info_of
from shared.attestation.report_data import bootstrap_report_data
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import BootInfo
from shared.chain.decision import Decision, KmsRoots
from shared.chain.rules import treat_nitro_as_up_to_date
from shared.errors import ConfigError, DstackError, ExitCode, InvalidEvidence, PolicyDenied
from shared.ratls.peer import check_kms_certificate, check_source_kms_certificate, ratls_report_data

_T = TypeVar("_T")


class Status(StrEnum):
    """How far one lane can be relied on; `failed` means that the network kept it from being judged."""

    VERIFIED = "verified"
    NOT_APPLICABLE = "not_applicable"
    SELF_ASSERTED = "self_asserted"
    SKIPPED = "skipped"
    REFUSED = "refused"
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True):
    """One lane. `reason` is a clause, `code` stands where it was refused or failed."""

    status: Status
    reason: str
    code: str | None = None


class Contract(msgspec.Struct, frozen=True):
    """The contract that the auditor names: its chain, its address (20 bytes), and who is asked."""

    chain_id: int
    address: bytes
    hosts: tuple[str, ...]


class Proven(msgspec.Struct, frozen=True):
    """What the contract publishes and decides, in two blocks; an error stands for what was not proven."""

    roots: KmsRoots | DstackError
    decision: Decision | DstackError


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one visit brought back. An error stands where a step failed, None where it was not reached.

    `leaf` is the server's certificate (DER). `server` is the evidence in it, verified over the key of the
    connection; `record_evidence` that of `record`, verified over the keys in it. `contract` is None where the
    auditor named none, `record` where there is none.
    """

    leaf: bytes | DstackError
    server: VerifiedAttestation | DstackError | None = None
    meta: Meta | DstackError | None = None
    contract: Contract | None = None
    proven: Proven | None = None
    record: BootstrapRecord | DstackError | None = None
    record_evidence: VerifiedAttestation | DstackError | None = None


SERVER: Final = ("certificate", "evidence", "image")
ANSWER: Final = ("meta", "issuer", "hostname")
CHAIN: Final = ("contract", "root_ca", "k256_key", "allowed")
BOOTSTRAP: Final = ("bootstrap_keys", "bootstrap_evidence", "bootstrap_image")
LANES: Final = (*SERVER, *ANSWER, *CHAIN, *BOOTSTRAP, "policy")
"""Every lane, in order."""

# what an audit without a contract has to establish; the others may not apply
_REQUIRED: Final = (*SERVER, "meta", "issuer")
_UNREACHED: Final = Finding(Status.SKIPPED, "not reached")
_NO_CONTRACT: Final = Finding(Status.SKIPPED, "no contract was given")
_NO_RECORD: Final = Finding(
    Status.NOT_APPLICABLE,
    "absent: a KMS that took its keys from another, or made them at start, has no record",
)


def audit(seen: Seen, *, hostname: str, now: int) -> dict[str, Finding]:
    """Return every lane, in the order of `LANES`, as judged at `now` (unix seconds)."""
    lanes = dict.fromkeys(LANES, _UNREACHED)
    lanes |= _server(seen, now)
    leaf, server, meta = seen.leaf, seen.server, seen.meta
    is_verified = all(lanes[name].status is Status.VERIFIED for name in SERVER)
    if not is_verified or not isinstance(leaf, bytes) or not isinstance(server, VerifiedAttestation):
        return lanes
    if meta is None:
        return lanes
    if isinstance(meta, DstackError):
        return lanes | {"meta": refusal(meta)}
    lanes["meta"] = _verified("read over the connection that was verified")
    lanes |= _answer(leaf, meta, hostname, now)
    lanes |= _on_chain(seen, server, meta)
    lanes |= _bootstrap(seen, server, meta)
    lanes["policy"] = _policy(server, meta)
    return lanes


def outcome(lanes: dict[str, Finding], *, with_contract: bool) -> ExitCode:
    """Return what the lanes amount to: `OK` needs each lane that was asked for; refused outdoes failed."""
    statuses = {finding.status for finding in lanes.values()}
    required = (*_REQUIRED, *CHAIN) if with_contract else _REQUIRED
    if Status.REFUSED in statuses:
        return ExitCode.REFUSED
    if Status.FAILED in statuses:
        return ExitCode.FAILED
    is_complete = all(lanes[name].status is Status.VERIFIED for name in required)
    return ExitCode.OK if is_complete else ExitCode.REFUSED


def caveats(lanes: dict[str, Finding], *, with_contract: bool) -> tuple[str, ...]:
    """Return what an audit that found no fault did not look at, for the first lines of a report."""
    found = []
    if not with_contract:
        found.append("without the contract: whose keys these are was not checked")
    if lanes["bootstrap_image"].status is Status.SKIPPED and lanes["bootstrap_evidence"].status is (
        Status.VERIFIED
    ):
        found.append("with keys that another image made: which, and whether it was approved, was not checked")
    return tuple(found)


def subject(server: VerifiedAttestation, meta: Meta) -> BootInfo:
    """Return what the contract is asked about: this KMS, with what it says that it fills in on Nitro.

    Raises what `shared.attestation.identity.boot_info` raises.
    """
    info = boot_info(server)
    return treat_nitro_as_up_to_date(info) if _fills_in(meta) else info


def attempt(step: Callable[[], _T]) -> _T | DstackError:
    """Return what a step brings back, or its error. Raises `ConfigError`: that is the auditor's to mend."""
    try:
        return step()
    except ConfigError:
        raise
    except DstackError as error:
        return error


def refusal(error: DstackError) -> Finding:
    """Return the lane of an error. What an offline run lacks is the auditor's to give: it is refused too."""
    refused = error.exit_code is ExitCode.REFUSED or error.code == "endorsements.offline"
    return Finding(Status.REFUSED if refused else Status.FAILED, error.message, error.code)


def _server(seen: Seen, now: int) -> dict[str, Finding]:
    if isinstance(seen.leaf, DstackError):
        return {"certificate": refusal(seen.leaf)}
    leaf = seen.leaf
    lanes = {"certificate": _lane(lambda: _certificate(leaf, now))}
    if lanes["certificate"].status is not Status.VERIFIED or seen.server is None:
        return lanes
    server = seen.server
    lanes["evidence"] = _lane(
        lambda: _evidence(server, ratls_report_data(leaf), "the key of this connection")
    )
    if lanes["evidence"].status is Status.VERIFIED:
        lanes["image"] = _lane(lambda: _image(server))
    return lanes


def _certificate(leaf: bytes, now: int) -> str:
    check_source_kms_certificate(leaf, now=now)
    return "usage kms:rpc, with evidence inside"


def _evidence(found: VerifiedAttestation | DstackError, report_data: bytes, what: str) -> str:
    verified = _value(found)
    if verified.attestation.report_data != report_data:
        raise InvalidEvidence("attestation.report_data", f"the evidence is not over {what}")
    verdict = verified.verdict
    return f"{verdict.platform}, up to {', '.join(verdict.anchors)}, over {what}"


def _image(found: VerifiedAttestation | DstackError) -> str:
    checked = check_release_image(_value(found))
    return f"os_image_hash {info_of(checked).os_image_hash.hex()}: {checked.verdict.lanes.os_image.reason}"


def _answer(leaf: bytes, meta: Meta, hostname: str, now: int) -> dict[str, Finding]:
    named = _verified("the certificate is for this name")

    def issuer() -> str:
        nonlocal named
        try:
            check_kms_certificate(leaf, root_ca_pem=meta.ca_pem, hostname=hostname, now=now)
        except InvalidEvidence as error:
            # the check comes after that of the issuer; an auditor may come through a tunnel, an app may not
            if error.code != "ratls.hostname":
                raise
            named = Finding(Status.SKIPPED, f"{error.message}: apps that use this name refuse it")
        except ConfigError as error:
            raise InvalidEvidence("kms_audit.ca_cert", f"ca_cert of GetMeta: {error.message}") from error
        return "issued by ca_cert of GetMeta"

    found = _lane(issuer)
    return {"issuer": found, "hostname": named if found.status is Status.VERIFIED else _UNREACHED}


def _on_chain(seen: Seen, server: VerifiedAttestation, meta: Meta) -> dict[str, Finding]:
    contract, proven = seen.contract, seen.proven
    if contract is None:
        return dict.fromkeys(CHAIN, _NO_CONTRACT)
    lanes = {"contract": _lane(lambda: _contract(contract, meta))}
    if proven is None:
        return lanes
    lanes["root_ca"] = _lane(lambda: _root_ca(_value(proven.roots), meta))
    lanes["k256_key"] = _lane(lambda: _k256_key(_value(proven.roots), meta))
    lanes["allowed"] = _lane(lambda: _allowed(_value(proven.decision), server, meta))
    return lanes


def _contract(contract: Contract, meta: Meta) -> str:
    if meta.kms_contract is None:
        raise InvalidEvidence("kms_audit.contract.unnamed", "the KMS names no contract that it answers to")
    if meta.chain_id != contract.chain_id:
        raise InvalidEvidence(
            "kms_audit.contract.chain", f"the KMS is on chain {meta.chain_id}, expected {contract.chain_id}"
        )
    if meta.kms_contract != contract.address:
        raise InvalidEvidence(
            "kms_audit.contract.other",
            f"the KMS answers to contract 0x{meta.kms_contract.hex()}, expected 0x{contract.address.hex()}",
        )
    return f"the KMS answers to 0x{contract.address.hex()} on chain {contract.chain_id}"


def _root_ca(roots: KmsRoots, meta: Meta) -> str:
    if roots.ca_pubkey is None:
        raise InvalidEvidence(
            "kms_audit.root_ca.unset", "kmsInfo.caPubkey is not set, so the contract vouches for no root CA"
        )
    if roots.ca_pubkey != meta.ca_pubkey:
        raise InvalidEvidence(
            "kms_audit.root_ca.other",
            f"the KMS has the root CA {_short(meta.ca_pubkey)}, the contract publishes "
            f"{_short(roots.ca_pubkey)}",
        )
    return f"equal to kmsInfo.caPubkey, final in block {roots.finalized_number} and unchanged since"


def _k256_key(roots: KmsRoots, meta: Meta) -> str:
    if roots.k256_pubkey is None:
        raise InvalidEvidence(
            "kms_audit.k256_key.unset",
            "kmsInfo.k256Pubkey is not set, so the contract vouches for no k256 key",
        )
    if roots.k256_pubkey != meta.k256_pubkey:
        raise InvalidEvidence(
            "kms_audit.k256_key.other",
            f"the KMS has the k256 key {_short(meta.k256_pubkey)}, the contract publishes "
            f"{_short(roots.k256_pubkey)}",
        )
    return f"equal to kmsInfo.k256Pubkey, final in block {roots.finalized_number} and unchanged since"


def _allowed(decision: Decision, server: VerifiedAttestation, meta: Meta) -> str:
    if not decision.is_allowed:
        raise PolicyDenied("kms_audit.denied", f"the contract does not allow this KMS: {decision.reason}")
    is_told = not server.verdict.tcb_status and _fills_in(meta)
    told = ", told UpToDate for a platform that has no such status" if is_told else ""
    return f"image, measurement and device, in block {decision.finalized_number} and at the head{told}"


def _bootstrap(seen: Seen, server: VerifiedAttestation, meta: Meta) -> dict[str, Finding]:
    found, evidence = seen.record, seen.record_evidence
    if found is None:
        return dict.fromkeys(BOOTSTRAP, _NO_RECORD)
    if isinstance(found, DstackError):
        return {"bootstrap_keys": refusal(found)}
    record = found
    lanes = {"bootstrap_keys": _lane(lambda: _bootstrap_keys(record, meta))}
    if evidence is None:
        return lanes
    lanes["bootstrap_evidence"] = _lane(lambda: _bootstrap_evidence(record, evidence))
    if lanes["bootstrap_evidence"].status is Status.VERIFIED:
        lanes["bootstrap_image"] = _bootstrap_image(_value(evidence), server)
    return lanes


def _bootstrap_keys(record: BootstrapRecord, meta: Meta) -> str:
    for name, attested, told in (
        ("root CA", record.ca_pubkey, meta.ca_pubkey),
        ("k256 key", record.k256_pubkey, meta.k256_pubkey),
    ):
        if attested != told:
            raise InvalidEvidence(
                "kms_audit.bootstrap.other_keys",
                f"the KMS has the {name} {_short(told)}, its record says that {_short(attested)} was made",
            )
    return "the keys that were made are the keys that it has"


def _bootstrap_evidence(record: BootstrapRecord, evidence: VerifiedAttestation | DstackError) -> str:
    verified = _value(evidence)
    text = _evidence(verified, bootstrap_report_data(record.ca_pubkey, record.k256_pubkey), "both keys")
    if verified.verdict.made_at is None:
        return f"{text}, judged by present collateral"
    return f"{text}, judged at the document's own time: a document ages, and its certificates end"


def _bootstrap_image(evidence: VerifiedAttestation, server: VerifiedAttestation) -> Finding:
    """Compare the images: anybody can have some enclave sign two keys that he made."""
    try:
        made, runs = (info_of(check_release_image(found)) for found in (evidence, server))
    except DstackError as error:
        return refusal(error)
    if _workload(made) == _workload(runs):
        return _verified("the image that made the keys is the one that runs")
    return Finding(
        Status.SKIPPED,
        f"another image made the keys: os_image_hash {made.os_image_hash.hex()}, compose_hash "
        f"{made.compose_hash.hex()}; was it approved then?",
    )


def _policy(server: VerifiedAttestation, meta: Meta) -> Finding:
    policy = meta.policy
    if policy is None:
        return Finding(Status.SKIPPED, "policy unknown: this KMS reports none, as upstream's")
    if server.verdict.simulated and policy.simulated is False:
        error = InvalidEvidence(
            "kms_audit.policy.simulated", "the KMS says that it is real, and its evidence is simulated"
        )
        return refusal(error)
    return Finding(Status.SELF_ASSERTED, f"lax settings: {len(meta.lax)}, by the word of the image that runs")


def _fills_in(meta: Meta) -> bool:
    return meta.policy is not None and meta.policy.treat_nitro_as_up_to_date is True


def _workload(info: AppInfo) -> tuple[bytes, bytes]:
    return info.os_image_hash, info.compose_hash


def _lane(check: Callable[[], str]) -> Finding:
    try:
        return _verified(check())
    except DstackError as error:
        return refusal(error)


def _verified(reason: str) -> Finding:
    return Finding(Status.VERIFIED, reason)


def _value(found: _T | DstackError) -> _T:
    """Return what a step brought back, or raise its error."""
    if isinstance(found, DstackError):
        raise found
    return found


def _short(key: bytes) -> str:
    return f"..{key.hex()[-16:]}"

"""`dstack-cloud verify`: is this evidence real, whose is it, and if refused, what would have to change."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click
import msgspec

from cli.evidence_file import MAX_INPUT, EvidenceFile, read_evidence
from cli.trust_options import Gather, take_trust, trust_options
from cli.verify_hints import hint_for
from shared.attestation.bare import verify_bare_document, verify_bare_quote
from shared.attestation.endorsements import NO_ENDORSEMENTS
from shared.attestation.envelope import Attestation, NitroEnclaveQuote, NitroTpmQuote, TdxQuote
from shared.attestation.identity import info_of
from shared.attestation.image import check_image, os_image_hash_of
from shared.attestation.nitro import parse_document
from shared.attestation.policy import DEFAULT_POLICY, Policy
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Verdict
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.errors import ConfigError, DstackError, ExitCode, InvalidEvidence
from shared.hex import decode_hex

if TYPE_CHECKING:  # dcap-qvl is heavy
    from shared.attestation.gcp import VerifiedGcp
    from shared.attestation.nitro import VerifiedNitroDocument
    from shared.attestation.tdx import VerifiedTdx


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one run found. `made_at` and `judged_at` are unix seconds, `registers` hex by name.

    `exit_code` tells a refusal (3) from a network that failed (1). Where `is_valid` is false, `code`,
    `reason` and `hint` say why and what to change, and all below them is empty.
    """

    is_valid: bool
    exit_code: ExitCode = ExitCode.OK
    kind: str
    simulated: bool | None = None
    judged_at: int
    made_at: int | None = None
    code: str | None = None
    reason: str | None = None
    hint: str | None = None
    report_data: str | None = None
    module_id: str | None = None
    registers: dict[str, str] = {}
    app_info: dict[str, Any] | None = None
    verdict: Verdict | None = None


# The last second of the year 9999: what dates can be compared with.
MAX_TIME = 253_402_300_799


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option(
    "--at", type=click.IntRange(0, MAX_TIME), metavar="UNIX", help="Judge at this time instead of now."
)
@trust_options
@click.option("--report-data", metavar="HEX", help="Refuse evidence that does not carry these 64 bytes.")
@click.option(
    "--save-collateral",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write what was used as a bundle, so that --collateral can judge again without the network.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    file: BinaryIO,
    at: int | None,
    report_data: str | None,
    save_collateral: Path | None,
    *,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - options of click
) -> None:
    """Verify evidence, whatever form it comes in.

    FILE is an attestation envelope, a Nitro document, a TDX quote, a verifier request, an RA-TLS certificate,
    or hex of one; it may be - for standard input. Nitro evidence needs no network. TDX needs Intel's
    statements about the platform (collateral), Google Cloud needs Google's certificates too: both are fetched
    unless --collateral gives them.

    Exit codes: 0 verified, 1 the network failed, 2 usage, 3 refused. The page docs/verification.md explains
    the output, lane by lane, and policy files.
    """
    trust = take_trust(given, save=save_collateral)
    expected = None if report_data is None else _report_data(report_data)
    judged_at = int(time.time()) if at is None else at
    report = judge(
        file.read(MAX_INPUT + 1),
        now=judged_at,
        anchors=trust.anchors,
        policy=trust.policy,
        gather=trust.gather,
        report_data=expected,
    )
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        from cli.verify_output import print_report  # noqa: PLC0415 - loading rich takes longer than verifying

        print_report(report, at_given=at is not None)
    sys.exit(report.exit_code)


def judge(
    data: bytes,
    *,
    now: int,
    anchors: TrustAnchors,
    policy: Policy = DEFAULT_POLICY,
    gather: Gather = lambda _attestation, _now: NO_ENDORSEMENTS,
    report_data: bytes | None = None,
) -> Report:
    """Verify evidence at `now` (unix seconds); a refusal is a report too.

    Raises `ConfigError`: what is wrong there is not the evidence.
    """
    kind, made_at = "unknown", None
    try:
        evidence = read_evidence(data)
        kind, made_at = evidence.kind, _made_at(evidence)
        if evidence.attestation is None:
            return _bare(evidence, now, anchors, policy, gather, report_data)
        expected = _expected(evidence, report_data)
        verified = verify_attestation(
            evidence.attestation,
            now=now,
            anchors=anchors,
            policy=policy,
            endorsements=gather(evidence.attestation, now),
            report_data=expected,
        )
        return _verified(kind, check_image(verified))
    except ConfigError:
        raise
    except DstackError as error:
        # What an offline run lacks is the caller's to give: the evidence is refused as it stands.
        refused = error.exit_code is ExitCode.REFUSED or error.code == "endorsements.offline"
        return Report(
            is_valid=False,
            exit_code=ExitCode.REFUSED if refused else ExitCode.FAILED,
            kind=kind,
            judged_at=now,
            made_at=made_at,
            code=error.code,
            reason=error.message,
            hint=hint_for(error.code, made_at),
        )


def _expected(evidence: EvidenceFile, wanted: bytes | None) -> bytes | None:
    """Return the report_data to hold the evidence to: a certificate's key and the caller's must agree."""
    bound = evidence.report_data
    if bound is not None and wanted is not None and bound != wanted:
        raise InvalidEvidence(
            "attestation.report_data",
            f"certificate's key makes report_data {bound[:16].hex()}.., expected {wanted[:16].hex()}..",
        )
    return bound if wanted is None else wanted


def _made_at(evidence: EvidenceFile) -> int | None:
    """Return the time that an AWS document names, before anything is verified: only a hint uses it."""
    if evidence.attestation is None:
        return parse_document(evidence.bare).timestamp if evidence.kind == "nitro-document" else None
    return document_time(evidence.attestation)


def document_time(attestation: Attestation) -> int | None:
    """Return the unix second that an AWS document names, before anything is verified; None for others.

    Raises what parsing raises.
    """
    match attestation.quote:
        case NitroEnclaveQuote(document):
            return parse_document(document).timestamp
        case NitroTpmQuote(document):
            from shared.attestation.nitro_tpm import parse_tpm_document  # noqa: PLC0415 - the rarest platform

            return parse_tpm_document(document).timestamp
        case _:
            return None


def _verified(kind: str, checked: VerifiedAttestation) -> Report:
    registers, module_id = _registers(checked)
    return Report(
        is_valid=True,
        kind=kind,
        simulated=checked.verdict.simulated,
        judged_at=checked.verdict.verified_at,
        made_at=checked.verdict.made_at,
        report_data=checked.attestation.report_data.hex(),
        module_id=module_id,
        registers=registers,
        app_info=info_of(checked).to_json(),
        verdict=checked.verdict,
    )


def _bare(
    evidence: EvidenceFile,
    now: int,
    anchors: TrustAnchors,
    policy: Policy,
    gather: Gather,
    report_data: bytes | None,
) -> Report:
    is_nitro = evidence.kind == "nitro-document"
    quote = NitroEnclaveQuote(evidence.bare) if is_nitro else TdxQuote(evidence.bare, ())
    endorsements = gather(Attestation(quote, (), bytes(64), ""), now)
    if is_nitro:
        bare = verify_bare_document(
            evidence.bare,
            now=now,
            anchors=anchors,
            policy=policy,
            endorsements=endorsements,
            report_data=report_data,
        )
        document = bare.nitro.document
        data, registers, module_id = document.user_data, _pcrs(document.pcrs), document.module_id
        verdict = bare.verdict
        info: dict[str, Any] | None = {"os_image_hash": os_image_hash_of(document.pcrs).hex()}
    else:
        tdx = verify_bare_quote(
            evidence.bare,
            now=now,
            anchors=anchors,
            policy=policy,
            endorsements=endorsements,
            report_data=report_data,
        )
        data, registers, module_id = tdx.tdx.quote.report.report_data, _tdx_registers(tdx.tdx), None
        verdict, info = tdx.verdict, None
    return Report(
        is_valid=True,
        kind=evidence.kind,
        simulated=verdict.simulated,
        judged_at=now,
        made_at=verdict.made_at,
        report_data=None if data is None else data.hex(),
        module_id=module_id,
        registers=registers,
        app_info=info,
        verdict=verdict,
    )


def _registers(checked: VerifiedAttestation) -> tuple[dict[str, str], str | None]:
    """Return the signed registers by name, and the module that signed them on AWS."""
    match checked.attestation.quote:
        case NitroEnclaveQuote() | NitroTpmQuote():
            document = cast("VerifiedNitroDocument", checked.evidence).document
            return _pcrs(document.pcrs), document.module_id
        case TdxQuote():
            return _tdx_registers(cast("VerifiedTdx", checked.evidence)), None
        case _:
            gcp = cast("VerifiedGcp", checked.evidence)
            return {**_tdx_registers(gcp.tdx), **_pcrs(gcp.pcrs)}, None


def _tdx_registers(tdx: "VerifiedTdx") -> dict[str, str]:
    report = tdx.quote.report
    registers = {"MRTD": report.mrtd.hex(), "MRCONFIGID": report.mr_config_id.hex()}
    return registers | {f"RTMR{index}": value.hex() for index, value in enumerate(report.rtmrs)}


def _pcrs(pcrs: dict[int, bytes]) -> dict[str, str]:
    return {f"PCR{index}": value.hex() for index, value in sorted(pcrs.items()) if any(value)}


def _report_data(text: str) -> bytes:
    try:
        return decode_hex(text, what="--report-data", length=64)
    except DstackError as error:
        raise ConfigError("verify.report_data", error.message) from error

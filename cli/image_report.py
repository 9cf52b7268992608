"""What `dstack-cloud image inspect` finds in a file, and how it shows that to a person."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

import msgspec

from shared.errors import ExitCode, InvalidEvidence
from shared.measurement.eif import Eif, EifMeasurement, measure_eif, read_eif
from shared.measurement.eif_registers import STOCK_PCR1

_NOT_AN_IMAGE = (
    "pass an enclave image (EIF), as `dstack-cloud image build` or `nitro-cli build-enclave` writes it"
)
_DAMAGED = "the file is damaged: copy it again, or build it again"
_BUILD = "build it with `dstack-cloud image build` or a current nitro-cli"
_SIGN = "the signature is malformed: sign the image again"
_SHOWN = 200  # characters of a text that its maker chose
# By the longest leading part of the refusal's code.
_HINTS = {
    "eif": _DAMAGED,
    "eif.magic": _NOT_AN_IMAGE,
    "eif.version": f"the image is of another age: {_BUILD}",
    "eif.section.order": f"the image was made by an unknown tool: {_BUILD}",
    "eif.section.size": (
        "the file is damaged, or was signed twice (AWS's tool keeps the first signature's size): sign the "
        "image as it was before"
    ),
    "eif.metadata": f"the image was made by an unknown tool: {_BUILD}",
    "eif.signature": _SIGN,
    "eif.signature.payload": "the signature was made for another image: sign this one",
    "eif.signature.invalid": "the signature or the certificate was altered: sign the image again",
    "eif.signature.expired": "sign the image with a new certificate, or judge it at its own time with --at",
    "eif.signature.not_yet_valid": "check this machine's clock, or judge the image at its own time with --at",
    "cbor": _SIGN,
}


class Section(msgspec.Struct, frozen=True):
    """One section; `offset` is that of its payload."""

    kind: str
    offset: int
    size: int


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The signature's verdict: `code`, `reason` and `hint` are set where it was refused.

    Times are unix seconds. Nobody vouches for the subject: compare `pcr8`.
    """

    is_valid: bool
    pcr8: str
    subject: str
    not_before: int
    not_after: int
    judged_at: int
    code: str | None = None
    reason: str | None = None
    hint: str | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says and measures; registers and hashes are hex."""

    arch: str
    size: int
    crc32: str
    sections: list[Section]
    cmdline: str
    pcr0: str
    pcr1: str
    pcr2: str
    os_image_hash: str
    stock_bootstrap: bool
    signature: Signature | None
    metadata: dict[str, Any]


class ImageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one run found. Where the file is refused, `code`, `reason` and `hint` say why; `image` is None."""

    is_valid: bool
    exit_code: ExitCode
    kind: str
    code: str | None = None
    reason: str | None = None
    hint: str | None = None
    image: Image | None = None


def inspect_image(file: BinaryIO, *, at: int) -> ImageReport:
    """Measure a seekable file; a signature's certificate must be in date `at` (unix seconds)."""
    try:
        eif = read_eif(file)
        measured = measure_eif(file)
    except InvalidEvidence as error:
        kind = "unknown" if error.code == "eif.magic" else "eif"
        return ImageReport(
            is_valid=False,
            exit_code=ExitCode.REFUSED,
            kind=kind,
            code=error.code,
            reason=error.message,
            hint=hint_for(error.code),
        )
    image = _image(eif, measured, at)
    is_valid = image.signature is None or image.signature.is_valid
    exit_code = ExitCode.OK if is_valid else ExitCode.REFUSED
    return ImageReport(is_valid=is_valid, exit_code=exit_code, kind="eif", image=image)


def hint_for(code: str) -> str:
    """Return what to change, by the refusal's code."""
    while code and code not in _HINTS:
        code = code.rpartition(".")[0]
    return _HINTS.get(code, _DAMAGED)


def lines(report: ImageReport) -> Iterator[str]:
    """Yield the report's lines; what the image's maker wrote is shown in ascii."""
    image = report.image
    if image is None:
        yield f"REFUSED  {report.reason} [{report.code}]"
        yield f"hint: {report.hint}"
        return
    yield f"EIF for {image.arch}, {image.size} bytes, crc {image.crc32} ok"
    yield f"  OS_IMAGE_HASH  {image.os_image_hash}"
    yield f"  PCR0           {image.pcr0}"
    yield f"  PCR1           {image.pcr1}{'  (stock AWS bootstrap)' if image.stock_bootstrap else ''}"
    yield f"  PCR2           {image.pcr2}"
    yield from _signature_lines(image.signature)
    yield f"  cmdline        {_shown(image.cmdline)}"
    build = image.metadata["BuildMetadata"]
    name, version = _shown(image.metadata["ImageName"]), _shown(image.metadata["ImageVersion"])
    tool = f"{_shown(build['BuildTool'])} {_shown(build['BuildToolVersion'])}"
    kernel = f"{_shown(build['OperatingSystem'])} {_shown(build['KernelVersion'])}"
    yield f"  image          {name} {version} (not measured)"
    yield f"  built          {_shown(build['BuildTime'])} by {tool}, kernel {kernel} (not measured)"
    yield f"  {'section':<13}{'offset':>13}{'size':>13}"
    for section in image.sections:
        yield f"  {section.kind:<13}{section.offset:>13}{section.size:>13}"


def _signature_lines(signature: Signature | None) -> Iterator[str]:
    if signature is None:
        yield "  PCR8           none"
        yield "  signature      none"
        return
    yield f"  PCR8           {signature.pcr8}"
    dates = f"{_day(signature.not_before)} to {_day(signature.not_after)}"
    yield f"  certificate    {_shown(signature.subject)}, {dates} (nobody vouches for the name)"
    if signature.is_valid:
        yield "  signature      valid: the certificate's key signed PCR0"
    else:
        yield f"  signature      REFUSED: {signature.reason} [{signature.code}]"
        yield f"hint: {signature.hint}"


def _image(eif: Eif, measured: EifMeasurement, at: int) -> Image:
    sections = [Section(one.kind.name.lower(), one.offset, one.size) for one in eif.sections]
    return Image(
        arch=eif.arch,
        size=sections[-1].offset + sections[-1].size,
        crc32=f"{measured.crc32:08x}",
        sections=sections,
        cmdline=eif.cmdline.decode("latin-1"),
        pcr0=measured.pcr0.hex(),
        pcr1=measured.pcr1.hex(),
        pcr2=measured.pcr2.hex(),
        os_image_hash=measured.os_image_hash.hex(),
        stock_bootstrap=measured.pcr1 in STOCK_PCR1,
        signature=_signature(eif, measured.pcr0, at),
        metadata=msgspec.to_builtins(eif.metadata),
    )


def _signature(eif: Eif, pcr0: bytes, at: int) -> Signature | None:
    signature = eif.signature
    if signature is None:
        return None
    from shared.measurement.eif_signature import verify_signature  # noqa: PLC0415 - loads cryptography

    verdict = Signature(
        is_valid=True,
        pcr8=signature.pcr8.hex(),
        subject=signature.subject,
        not_before=signature.not_before,
        not_after=signature.not_after,
        judged_at=at,
    )
    try:
        verify_signature(signature, pcr0, at=at)
    except InvalidEvidence as error:
        return msgspec.structs.replace(
            verdict, is_valid=False, code=error.code, reason=error.message, hint=hint_for(error.code)
        )
    return verdict


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _shown(text: str) -> str:
    return ascii(text[:_SHOWN])[1:-1]

"""What a linter has to say: one finding, and how grave it is."""

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """`error` refuses the document, `warning` wants a look, `note` tells a reader what runs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """One finding: a stable dotted code, where it is, and a lowercase sentence; `detail` is shown as is."""

    code: str
    severity: Severity
    where: str
    message: str
    detail: str = ""


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether any finding refuses the document."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def error(code: str, where: str, message: str) -> Finding:
    """Return a finding that refuses the document."""
    return Finding(code, Severity.ERROR, where, message)


def warning(code: str, where: str, message: str) -> Finding:
    """Return a finding that wants a look."""
    return Finding(code, Severity.WARNING, where, message)


def note(code: str, where: str, message: str, detail: str = "") -> Finding:
    """Return a finding that tells what runs."""
    return Finding(code, Severity.NOTE, where, message, detail)

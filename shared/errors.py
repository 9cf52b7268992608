"""The one error tree. Every error carries a stable machine code and a lowercase sentence.

Only the outermost edge (a command line, an HTTP handler) turns an error into an exit code or a status.
The classes say who must act; the code says what happened and never changes once released.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command (DESIGN section 3)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    CHANGES_PENDING = 4
    NEEDS_APPROVAL = 5
    TIMED_OUT = 6


class DstackError(Exception):
    """Base of all errors that we raise on purpose.

    `code` is dotted lowercase (`nitro.chain.expired`), `message` one lowercase sentence without a full stop
    that says what was got and what was expected.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidEvidence(DstackError):  # noqa: N818 - the tree names the thing refused, as DESIGN does
    """Evidence, a certificate or a proof does not hold: whoever presented it must present another."""

    exit_code = ExitCode.REFUSED


class PolicyDenied(DstackError):  # noqa: N818 - a verdict, as DESIGN names it
    """Everything is authentic, and the policy says no: the policy's owner may change it."""

    exit_code = ExitCode.REFUSED


class ProtocolError(DstackError):
    """A peer sent bytes that do not follow the protocol: the peer's author must act."""


class UnavailableError(DstackError):
    """A peer is unreachable, slow or failing: try again, or look at the peer."""


class ConfigError(DstackError):
    """Our own configuration, file or argument is wrong: the operator must act."""

    exit_code = ExitCode.USAGE


class StorageError(DstackError):
    """Reading or writing our own files failed, or would destroy what must be kept."""


class CloudError(DstackError):
    """A cloud's control plane refused, failed or lied."""

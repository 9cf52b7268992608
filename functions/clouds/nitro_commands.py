"""The commands that are sent to a parent over Systems Manager, and what its answers mean (deploy 5B.4, 5B.6).

An answer is the parent's word: it is read strictly, bounded, and believed no further than to decide what to
do next. Systems Manager returns the first 24,000 characters of an output, so every command says less.
"""

import base64
import binascii
import re
import shlex
from typing import Final, Literal, TypeVar

import msgspec

from functions.clouds.nitro_parent import (
    BRINGUP_LOG,
    ENCLAVE_UNIT,
    EXIT_OTHER_BYTES,
    EXIT_OTHER_PCRS,
    FORWARDER_UNIT,
    STATE,
)
from functions.clouds.nitro_settings import ENCLAVE_NAME, MEMORY_RATIO
from functions.deploy.cloud import DeniedError, TransientCloudError
from shared.errors import CloudError, ConfigError, ProtocolError

MAX_OUTPUT: Final = 24000
"""Characters that Systems Manager hands back of an output."""

LOG_PAGE: Final = 12000
"""Bytes of one page of a log; as JSON it may double, and has to stay below `MAX_OUTPUT`."""

_MAX_LINE: Final = 800
"""Characters of one line, of which JSON makes twelve bytes at most: the longest has to fit into an output."""

_CURSOR: Final = re.compile(r"[A-Za-z0-9=;]{1,512}")
_ERROR_BYTES: Final = 1500


class Enclave(msgspec.Struct, frozen=True, rename="pascal", kw_only=True):
    """One entry of `nitro-cli describe-enclaves`; what else it says is left unread."""

    enclave_id: str = msgspec.field(name="EnclaveID")
    state: Literal["RUNNING", "TERMINATING", "EMPTY"]
    flags: str
    enclave_name: str = ""
    enclave_cid: int = msgspec.field(name="EnclaveCID", default=0)
    measurements: dict[str, str] = {}

    def has(self, pcrs: dict[str, str]) -> bool:
        """Whether it measures these registers (hex)."""
        return bool(pcrs) and all(self.measurements.get(name) == value for name, value in pcrs.items())


class ParentStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `status_command` prints. `step` is where the bring-up failed, `error` its last words (base64)."""

    bringup: Literal["pending", "done", "failed"]
    step: str
    enclave_exit: str
    forwarder: str
    enclaves: tuple[Enclave, ...]
    error: str

    @property
    def running(self) -> Enclave | None:
        """The enclave that runs, ours or whatever it is."""
        return next((one for one in self.enclaves if one.state == "RUNNING"), None)

    @property
    def error_text(self) -> str:
        """The last words, on one line, of printable characters."""
        try:
            raw = base64.b64decode(self.error, validate=True)
        except (ValueError, binascii.Error):
            return ""
        text = raw.decode("utf-8", "replace")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[-300:]


class Terminated(msgspec.Struct, frozen=True, rename="pascal", kw_only=True):
    """The answer of `nitro-cli terminate-enclave`."""

    enclave_id: str = msgspec.field(name="EnclaveID")
    terminated: bool
    enclave_name: str | None = None


class JournalPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `journal_command` prints: whole lines, and the cursor behind the last one."""

    cursor: str
    lines: tuple[str, ...]


def status_command() -> str:
    """Return the command that says how far the parent is; before its user data ran it says `pending`."""
    return f"""#!/bin/bash
set -u
bringup=pending; step=; forwarder=unknown; enclaves='[]'
[ -e {STATE}/bringup.done ] && bringup=done
if [ -e {STATE}/bringup.failed ]; then bringup=failed; step=$(head -c 20 {STATE}/bringup.failed); fi
code=$(head -c 3 {STATE}/enclave.exit 2>/dev/null || true)
if [ "$bringup" != pending ] && command -v nitro-cli >/dev/null; then
  forwarder=$(systemctl is-active {FORWARDER_UNIT} || true)
  # its unit may have started the enclave after the first attempt, and with it the set-up, failed
  enclaves=$(nitro-cli describe-enclaves); failed=$?
  if [ "$failed" != 0 ]; then
    [ "$bringup" = failed ] || exit "$failed"
    enclaves='[]'
  fi
fi
error=$({{ tail -c {_ERROR_BYTES} {STATE}/bringup.log; tail -c {_ERROR_BYTES} {STATE}/enclave.err; }} \\
  2>/dev/null | base64 -w0)
printf '{{"bringup":"%s","step":"%s","enclave_exit":"%s","forwarder":"%s","enclaves":%s,"error":"%s"}}\\n' \\
  "$bringup" "$step" "$code" "$forwarder" "$enclaves" "$error"
"""


def run_command() -> str:
    """Return the command that starts the enclave again after it ended by itself."""
    return f"#!/bin/bash\nsystemctl reset-failed {ENCLAVE_UNIT} || true\nsystemctl restart {ENCLAVE_UNIT}\n"


def terminate_command() -> str:
    """Return the command that ends the enclave; it prints nothing where none runs."""
    return f"""#!/bin/bash
set -euo pipefail
nitro-cli describe-enclaves | grep '"EnclaveID"' >/dev/null || exit 0
nitro-cli terminate-enclave --enclave-name {shlex.quote(ENCLAVE_NAME)}
"""


def journal_command(cursor: str, limit: int) -> str:
    """Return the command that prints a page of what the parent's units and its bring-up wrote.

    In production an enclave has no console; what its app prints stays inside. Raises
    `ConfigError("nitro.logs.cursor")`.
    """
    if cursor and _CURSOR.fullmatch(cursor) is None:
        raise ConfigError("nitro.logs.cursor", f"got cursor {cursor[:40]!a}, expected one of an earlier page")
    after = f"--after-cursor={shlex.quote(cursor)}" if cursor else ""
    size = max(1, min(limit, LOG_PAGE))
    return f"""#!/bin/bash
journalctl --no-pager --output=json {after} \\
  _SYSTEMD_UNIT={FORWARDER_UNIT} + _SYSTEMD_UNIT={ENCLAVE_UNIT} + SYSLOG_IDENTIFIER={BRINGUP_LOG} \\
  | /usr/bin/python3 -c '
import json, sys, time
left, cursor, lines = int(sys.argv[1]), sys.argv[2], []
for raw in sys.stdin:
    entry = json.loads(raw)
    text = entry.get("MESSAGE")
    text = text if isinstance(text, str) else bytes(text or []).decode("utf-8", "replace")
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(entry["__REALTIME_TIMESTAMP"]) // 1000000))
    line = "%s %s: %s" % (at, entry.get("SYSLOG_IDENTIFIER", "?"), text[:{_MAX_LINE}])
    left -= len(json.dumps(line)) + 1
    if left < 0 and lines:
        break
    lines.append(line)
    cursor = entry["__CURSOR"]
print(json.dumps(dict(cursor=cursor, lines=lines)))
' {size} {shlex.quote(cursor)}
"""


def read_status(output: str) -> ParentStatus:
    """Read what `status_command` printed. Raises `ProtocolError("nitro.status")`."""
    return _read(output, ParentStatus, "nitro.status")


def read_terminated(output: str) -> Terminated | None:
    """Read what `terminate_command` printed; None where nothing ran. Raises `ProtocolError`, `CloudError`."""
    if not output.strip():
        return None
    found = _read(output, Terminated, "nitro.terminate")
    if not found.terminated:
        raise CloudError("nitro.terminate", f"enclave {found.enclave_id[:60]!a} was not terminated")
    return found


def read_journal(output: str) -> JournalPage:
    """Read what `journal_command` printed. Raises `ProtocolError("nitro.logs")`."""
    return _read(output, JournalPage, "nitro.logs")


def enclave_failure(exit_code: int, error: str, memory_mib: int) -> CloudError:
    """Return the error for an exit code of nitro-cli or of `run-enclave`: who must change what.

    `DeniedError("nitro.enclave.eNN")` where the settings or the instance do not fit the image,
    `TransientCloudError("nitro.enclave.e39")`, `CloudError`: `nitro.enclave.image` (not the planned one),
    `nitro.enclave.failed`.
    """
    said = f": {error}" if error else ""
    if exit_code in {EXIT_OTHER_BYTES, EXIT_OTHER_PCRS}:
        return CloudError("nitro.enclave.image", f"the image on the instance is not the planned one{said}")
    if exit_code == _CONNECTION:
        return TransientCloudError("nitro.enclave.e39", f"nitro-cli lost its enclave process{said}")
    if exit_code in _HINTS:
        what, hint = _HINTS[exit_code]
        return DeniedError(
            f"nitro.enclave.e{exit_code}", f"{what} (nitro-cli E{exit_code}){said}", hint.format(memory_mib)
        )
    return CloudError("nitro.enclave.failed", f"nitro-cli ended with {exit_code}{said}")


def memory_needed(image_bytes: int) -> int:
    """Return the least memory (MiB, even) of an enclave with an image of so many bytes."""
    needed = -(-image_bytes * MEMORY_RATIO // (1 << 20))
    return needed + needed % 2


_CONNECTION: Final = 39
_HINTS: Final = {
    22: (
        "the instance has too few cpus for the enclave",
        "lower nitro_config.cpu_count (an even number) or take a larger nitro_config.instance_type",
    ),
    26: (
        "the enclave has less memory than its image needs",
        f"raise nitro_config.memory_mib above {{}}, to {MEMORY_RATIO} times the image's size or more",
    ),
    27: (
        "the instance has too little memory for the enclave",
        "lower nitro_config.memory_mib from {} or take a larger nitro_config.instance_type",
    ),
    36: (
        "the enclave did not boot",
        "check nitro_config.kernel, init and nsm_ko: they must be AWS's for nitro_config.arch",
    ),
    44: ("the enclave's console cannot be reached", "only a debug enclave has one: read the units' log"),
    51: ("nitro-cli has no place for its artifacts", "use an AMI with aws-nitro-enclaves-cli as it comes"),
    52: ("nitro-cli has no boot files", "use an AMI with aws-nitro-enclaves-cli as it comes"),
}

_AnswerT = TypeVar("_AnswerT", ParentStatus, Terminated, JournalPage)


def _read(output: str, model: type[_AnswerT], code: str) -> _AnswerT:
    if len(output) >= MAX_OUTPUT:
        raise ProtocolError(code, f"the parent's answer reaches {MAX_OUTPUT} characters, so its end is lost")
    try:
        return msgspec.json.decode(output, type=model)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        detail = str(error)[:200].encode("ascii", "replace").decode()
        raise ProtocolError(code, f"the parent's answer is not what nitro-cli prints: {detail}") from error

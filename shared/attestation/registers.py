"""A TDX guest's registers against its event log (spec attestation section 3.4).

Digests of runtime events are recomputed from name and payload; what a log calls a digest is not believed for
them. Boot events carry their digests, so a replay proves that the log is the one that was measured.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.attestation.envelope import RuntimeEvent, TdxEvent
from shared.attestation.event_log import replay, replay_registers
from shared.attestation.verdict import Lane, skipped, verified
from shared.errors import InvalidEvidence

if TYPE_CHECKING:  # loaded with the first TDX evidence
    from shared.attestation.tdx_quote import TdReport

_BOOT_REGISTERS = (0, 1, 2)


def check_rtmr3(rtmr3: bytes, events: Sequence[RuntimeEvent]) -> None:
    """Refuse runtime events that do not replay to the quoted RTMR3: `tdx.rtmr3`."""
    replayed = replay(events, "sha384")
    if replayed != rtmr3:
        raise InvalidEvidence(
            "tdx.rtmr3", f"runtime events replay to {replayed.hex()}, RTMR3 is {rtmr3.hex()}"
        )


def check_boot_log(report: "TdReport", log: Sequence[TdxEvent]) -> Lane:
    """Compare each boot register whose log is complete; a stripped log leaves the lane skipped.

    Raises `InvalidEvidence`: `tdx.boot_log`, and `event_log.*` for digests of another length.
    """
    replayed = replay_registers(log)
    for index, value in sorted(replayed.items()):
        if value != report.rtmrs[index]:
            raise InvalidEvidence(
                "tdx.boot_log",
                f"log of RTMR{index} replays to {value.hex()}, the quote has {report.rtmrs[index].hex()}",
            )
    missing = [f"RTMR{index}" for index in _BOOT_REGISTERS if index not in replayed]
    if missing:
        return skipped(f"the log of {', '.join(missing)} was stripped from the envelope")
    return verified("replayed to RTMR0, RTMR1 and RTMR2")

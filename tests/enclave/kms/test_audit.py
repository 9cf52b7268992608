"""The audit log: what a line says, and that a line which was removed, altered or forged shows."""

import json
import threading

import pytest

from enclave.kms.audit import GENESIS, MAX_LINE, AuditLog, Case, Chain, case_of, check_chain, line_hash
from enclave.kms.authorization import Decision
from shared.errors import PolicyDenied
from tests.enclave.conftest import APP_ID
from tests.shared.refusal import refuses


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def log(lines: list[str]) -> AuditLog:
    return AuditLog(lines.append)


def test_the_first_line_names_the_process_and_follows_nothing(log, lines) -> None:
    log.record("kms.first", {})
    entry = json.loads(lines[0])
    assert entry == {"event": "kms.first", "seq": 0, "process": log.process, "previous": GENESIS}
    assert len(bytes.fromhex(log.process)) == 8


def test_each_line_has_the_hash_of_the_one_before(log, lines) -> None:
    for name in ("kms.a", "kms.b", "kms.c"):
        log.record(name, {"n": 1, "list": ["x"], "none": None, "yes": True})
    entries = [json.loads(line) for line in lines]
    assert [entry["seq"] for entry in entries] == [0, 1, 2]
    assert [entry["previous"] for entry in entries[1:]] == [line_hash(entry) for entry in entries[:-1]]
    assert check_chain(lines) == {log.process: Chain(3, line_hash(entries[-1]))}
    assert log.lines == 3


def test_a_removed_line_shows(log, lines) -> None:
    for _ in range(3):
        log.record("kms.app_key.released", {"app_id": "ab"})
    with refuses("audit.gap"):
        check_chain([lines[0], lines[2]])
    with refuses("audit.gap"):
        check_chain(lines[1:])


def test_an_altered_line_shows(log, lines) -> None:
    for _ in range(2):
        log.record("kms.app_key.released", {"app_id": "ab"})
    with refuses("audit.altered"):
        check_chain([lines[0].replace('"ab"', '"cd"'), lines[1]])


@pytest.mark.parametrize("order", [(0, 0, 1), (1, 0), (0, 1, 1)])
def test_a_doubled_or_moved_line_shows(log, lines, order) -> None:
    for _ in range(2):
        log.record("kms.event", {})
    with refuses("audit.gap"):
        check_chain([lines[index] for index in order])


def test_a_field_that_was_given_twice_is_no_line(log, lines) -> None:
    """Readers disagree on which of the two counts."""
    for _ in range(2):
        log.record("kms.event", {"app_id": "ab"})
    with refuses("audit.gap"):
        check_chain([lines[0].replace("{", '{"app_id":"cd",', 1), lines[1]])


def test_other_lines_and_other_processes_may_stand_between(log, lines) -> None:
    other = AuditLog(lines.append)
    for name in ("kms.a", "kms.b"):
        log.record(name, {})
        other.record(name, {})
    mixed = ["", "not json", '{"event": "kms.ready"}', '{"seq": "0", "process": 1, "previous": []}', *lines]
    assert {process: chain.lines for process, chain in check_chain(mixed).items()} == {
        log.process: 2,
        other.process: 2,
    }


def test_a_collector_may_parse_lines_and_write_them_again(log, lines) -> None:
    for _ in range(2):
        log.record("kms.event", {"z": "ü\x7f\u2028", "a": ["\\", '"']})
    again = [json.dumps(json.loads(line), sort_keys=True, indent=None) for line in lines]
    assert check_chain(again) == check_chain(lines)


@pytest.mark.parametrize(
    "text", ["a\nb", "a\r\nb", "\u2028", "\x85", "\x0b\x0c\x1c", "\x7f\x00", "\ud800", '"}\n{"']
)
def test_no_text_of_a_caller_makes_a_second_line(log, lines, text: str) -> None:
    log.record("prpc.refused", {"message": text, "names": [text]})
    log.record("kms.next", {})
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert len(lines[0].splitlines()) == 1
    assert json.loads(lines[0])["message"] == text
    assert check_chain(lines)[log.process].lines == 2


def test_a_line_is_bounded(log, lines) -> None:
    log.record("prpc.refused", {"message": "m" * 10**6, "names": ["n" * 10**5] * 1000})
    log.record("kms.next", {})
    assert len(lines[0]) <= MAX_LINE
    assert check_chain(lines)[log.process].lines == 2


def test_lines_of_many_threads_are_one_chain(log, lines) -> None:
    def write() -> None:
        for _ in range(200):
            log.record("kms.event", {"who": threading.get_ident()})

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert check_chain(lines)[log.process].lines == 1600


def test_a_line_that_cannot_be_written_fails_its_caller_and_leaves_a_gap(lines) -> None:
    failing = [True]

    def write(line: str) -> None:
        if failing.pop():
            raise BrokenPipeError
        lines.append(line)

    log = AuditLog(write)
    with pytest.raises(BrokenPipeError):
        log.record("kms.app_key.released", {})
    failing.append(False)
    log.record("kms.next", {})
    with refuses("audit.gap"):
        check_chain(lines)


def test_tells_who_asks_and_what_was_verified(app_enclave, anchors) -> None:
    verified = app_enclave.evidence(anchors)
    case = Case("proof", verified)
    case.decision = Decision(
        is_allowed=True,
        reason="",
        gateway_app_id="",
        finalized_block=7,
        finalized_hash=b"\xab" * 32,
        head_block=9,
    )
    fields = case.fields()
    image = fields["os_image_hash"]
    assert fields == {
        "evidence_verified": True,
        "tee_variant": "dstack-nitro-enclave",
        "app_id": APP_ID.hex(),
        "instance_id": "",
        "device_id": "de7d1b721a1e0632b7cf04edf5032c8ecffa9f9a08492152b926f1a5a7e765d7",
        "compose_hash": image,
        "os_image_hash": image,
        "mr_aggregated": image,
        "self_asserted": ["app_id"],
        "simulated": True,
        "anchors": list(verified.verdict.anchors),
        "disabled_checks": [],
        "auth_mode": "proof",
        "finalized_block": 7,
        "finalized_hash": "ab" * 32,
        "head_block": 9,
    }


def test_an_app_id_that_the_guest_measured_is_not_a_claim(gcp) -> None:
    guest = gcp.start()
    verified = gcp.verifier(guest).verify(guest.attestor.attest(bytes(64)), bytes(64))
    assert Case("proof", verified).fields()["self_asserted"] == []


def test_a_caller_that_was_not_verified_is_marked() -> None:
    case = Case("proof")
    case.evidence = b"evidence"
    assert case.fields() == {
        "evidence_verified": False,
        "evidence_sha256": "ee8250fb76e094b34b471f13a73dbbe51d1ae142e9df59d7c0d31ec20f0a0a8e",
        "auth_mode": "proof",
    }


def test_an_error_carries_the_innermost_case() -> None:
    error = PolicyDenied("test.code", "no")
    inner = Case("proof")

    def fail() -> None:
        with Case("dev"), inner:
            raise error

    with refuses("test.code", PolicyDenied):
        fail()
    assert case_of(error) is inner
    assert case_of(PolicyDenied("test.code", "no")) is None

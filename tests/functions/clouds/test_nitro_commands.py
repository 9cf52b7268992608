"""What a parent says, and what of it is believed."""

import base64
import json

import pytest

from functions.clouds.nitro_commands import (
    MAX_OUTPUT,
    memory_needed,
    read_journal,
    read_status,
    read_terminated,
    status_command,
)
from shared.errors import CloudError, ProtocolError
from tests.shared.refusal import refuses

PCRS = {f"PCR{number}": f"{number:02x}" * 48 for number in range(3)}
# as nitro-cli 1.4 prints it (deploy spec 5B.4)
ENCLAVE = {
    "EnclaveName": "app",
    "EnclaveID": "i-05f6ed443aEXAMPLE-enc173dfe3eEXAMPLE",
    "ProcessID": 5000,
    "EnclaveCID": 16,
    "NumberOfCPUs": 2,
    "CPUIDs": [1, 3],
    "MemoryMiB": 512,
    "State": "RUNNING",
    "Flags": "NONE",
    "Measurements": {"HashAlgorithm": "Sha384 { ... }", **PCRS},
    "ImageName": "app",
    "ImageVersion": "1",
    "Metadata": {"BuildTime": "1970"},
}
STATUS = {
    "bringup": "done",
    "step": "",
    "enclave_exit": "0",
    "forwarder": "active",
    "enclaves": [ENCLAVE],
    "error": base64.b64encode(b"two\nlines\x1b[31m").decode(),
}


def test_a_running_enclave_is_read() -> None:
    status = read_status(json.dumps(STATUS))
    assert status.running is not None
    assert status.running.has(PCRS)
    assert (status.running.enclave_cid, status.running.flags) == (16, "NONE")
    assert status.error_text == "two lines [31m"


@pytest.mark.parametrize("pcrs", [{}, PCRS | {"PCR0": "ff" * 48}, PCRS | {"PCR8": "00" * 48}])
def test_other_registers_are_not_the_planned_ones(pcrs: dict[str, str]) -> None:
    status = read_status(json.dumps(STATUS))
    assert status.running is not None
    assert not status.running.has(pcrs)


@pytest.mark.parametrize("state", ["TERMINATING", "EMPTY"])
def test_an_enclave_that_does_not_run_is_none(state: str) -> None:
    assert read_status(json.dumps(STATUS | {"enclaves": [ENCLAVE | {"State": state}]})).running is None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "not json",
        "[]",
        json.dumps(STATUS | {"bringup": "perhaps"}),
        json.dumps(STATUS | {"enclaves": {}}),
        json.dumps(STATUS | {"enclaves": [ENCLAVE | {"State": "READY"}]}),
        json.dumps(STATUS | {"enclaves": [{"EnclaveID": "x"}]}),
        json.dumps(STATUS | {"more": 1}),
        "[" * 20000,
        json.dumps(STATUS | {"error": "x" * MAX_OUTPUT}),
    ],
)
def test_an_answer_of_another_shape_is_refused(answer: str) -> None:
    with refuses("nitro.status", ProtocolError):
        read_status(answer)


def test_last_words_that_are_no_base64_are_left_out() -> None:
    assert read_status(json.dumps(STATUS | {"error": "%%%"})).error_text == ""


def test_a_termination_is_believed_only_when_it_says_so() -> None:
    done = {"EnclaveName": "app", "EnclaveID": "i-1-enc1", "Terminated": True}
    assert read_terminated(json.dumps(done)) is not None
    assert read_terminated("\n") is None
    with refuses("nitro.terminate", CloudError):
        read_terminated(json.dumps(done | {"Terminated": False}))
    with refuses("nitro.terminate", ProtocolError):
        read_terminated("{}")


def test_a_journal_of_another_shape_is_refused() -> None:
    assert read_journal('{"cursor": "s=1", "lines": ["a"]}').lines == ("a",)
    with refuses("nitro.logs", ProtocolError):
        read_journal('{"cursor": "s=1", "lines": [1]}')


@pytest.mark.parametrize(("size", "mib"), [(1, 2), (1 << 20, 4), ((1 << 20) + 1, 6), (100 << 20, 400)])
def test_an_enclave_needs_four_times_its_image_in_whole_pages(size: int, mib: int) -> None:
    assert memory_needed(size) == mib


def test_the_status_command_is_short_of_what_the_agent_returns() -> None:
    assert len(status_command()) < 4096

"""Commands end in time, and fail with words."""

import pytest

from enclave.agent.commands import MAX_OUTPUT, command_output
from shared.errors import UnavailableError
from tests.shared.refusal import refuses


def test_returns_what_a_command_prints() -> None:
    assert command_output("sh", "-c", "echo; echo hello; echo", seconds=20) == "hello"


def test_bounds_what_a_command_prints() -> None:
    output = command_output("sh", "-c", f"head -c {MAX_OUTPUT + 9} /dev/zero | tr '\\0' x", seconds=20)
    assert len(output) == MAX_OUTPUT


def test_a_command_does_not_see_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WG_HIDE_KEYS", "never")
    assert "WG_HIDE_KEYS" not in command_output("env", seconds=20)


def test_a_command_that_is_not_there_is_refused() -> None:
    with refuses("agent.command.missing", UnavailableError):
        command_output("no-such-command-of-ours", seconds=20)


def test_a_command_that_fails_is_refused_with_its_words() -> None:
    with refuses("agent.command.failed", UnavailableError) as caught:
        command_output("sh", "-c", "echo broken. >&2; exit 3", seconds=20)
    assert caught.value.message == "sh ended with 3: broken"


def test_a_command_that_does_not_end_is_refused() -> None:
    with refuses("agent.command.timeout", UnavailableError):
        command_output("sleep", "60", seconds=0.05)

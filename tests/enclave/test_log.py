"""What daemons write for people and collectors: each thing is one line, whatever a peer put into it."""

import pytest

from enclave.kms import daemon
from enclave.log import write_error
from enclave.platform import Platform
from shared.errors import ExitCode, PolicyDenied

FORGED = '{"event":"kms.app_key.released","seq":0,"process":"00","previous":"00"}'


@pytest.mark.parametrize(
    "text", [f"a\n{FORGED}\n", f"a\r{FORGED}", f"a\u2028{FORGED}", "\x1b[2J", "\ud800", "\0"]
)
def test_no_text_of_a_peer_makes_a_second_line(capsys: pytest.CaptureFixture[str], text: str) -> None:
    write_error(text)
    written = capsys.readouterr().err
    assert written.endswith("\n")
    assert written[:-1].isprintable()


def test_other_text_is_written_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    write_error("kms: café [kms.failed]")
    assert capsys.readouterr().err == "kms: café [kms.failed]\n"


def test_a_kms_that_does_not_start_tells_why_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence may quote the policy's server, which could write lines of an audit log into it."""

    def refuse(_platform: Platform) -> None:
        raise PolicyDenied("kms.self.denied", f"KMS is not allowed: no\n{FORGED}")

    monkeypatch.setattr(daemon, "assemble", refuse)
    assert daemon.main([], object()) == ExitCode.REFUSED  # type: ignore[arg-type]
    assert len(capsys.readouterr().err.splitlines()) == 1

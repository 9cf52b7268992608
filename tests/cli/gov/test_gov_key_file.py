"""The key file: who may read it, and that no error repeats it."""

from pathlib import Path

import pytest

from cli.gov.key_file import read_key
from shared.errors import ConfigError
from tests.shared.refusal import refuses

KEY = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"


def written(place: Path, text: str, mode: int = 0o600) -> Path:
    path = place / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("text", [KEY, f"0x{KEY}\n"])
def test_reads_a_key(tmp_path: Path, text: str) -> None:
    account = read_key(written(tmp_path, text))
    assert account.address.hex() == "f39fd6e51aad88f6f4ce6ab8827279cfffb92266"
    assert KEY[:8] not in repr(account)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_refuses_a_file_that_others_may_read(tmp_path: Path, mode: int) -> None:
    with refuses("gov.key_file.mode", ConfigError):
        read_key(written(tmp_path, KEY, mode))


@pytest.mark.parametrize(
    "text", ["", KEY[:-2], f"{KEY}00", "00" * 32, "ff" * 32, "zz" * 32, "1" * 10_000, "\x00"]
)
def test_refuses_what_is_no_key_without_repeating_it(tmp_path: Path, text: str) -> None:
    with refuses("gov.key_file.invalid", ConfigError) as caught:
        read_key(written(tmp_path, text))
    assert KEY[:8] not in str(caught.value)
    assert caught.value.__suppress_context__


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with refuses("gov.key_file.absent", ConfigError):
        read_key(tmp_path / "absent")


def test_refuses_a_directory(tmp_path: Path) -> None:
    with refuses("gov.key_file.absent", ConfigError):
        read_key(tmp_path)

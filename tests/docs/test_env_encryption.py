"""docs/env-encryption.md: its example is what the code makes, its limits and exit codes are the code's."""

import json
import re
from itertools import zip_longest

import pytest

from shared import errors
from shared.compose.env_envelope import MAX_CIPHERTEXT_BYTES, EnvSignature
from shared.compose.env_file import MAX_ENTRIES, MAX_NAME_BYTES, MAX_TOTAL_BYTES, MAX_VALUE_BYTES
from shared.compose.model import model_of
from shared.keys.app_keys import MAX_AGE, MAX_FUTURE
from shared.keys.env_signer import EnvSigningKey, check_env_signature
from tests.docs.references import REPOSITORY, is_error_code

PAGE = (REPOSITORY / "docs" / "env-encryption.md").read_text()
KEY = EnvSigningKey(bytes(range(32)))
ENTRIES = (("A", "é"), ("BC", ""))


def example(name: str) -> bytes:
    return bytes.fromhex(re.findall(rf"^    {name} +([0-9a-f]+)$", PAGE, re.MULTILINE)[0])


def test_the_worked_example_is_what_is_signed() -> None:
    signed = KEY.sign(ENTRIES, app_id=b"\x22" * 20, env_version=7)
    assert signed == EnvSignature(7, example("signature"))
    assert check_env_signature(ENTRIES, signed, env_signer=KEY.public_key, app_id=b"\x22" * 20) == 7
    # the table's layout, read from the message itself
    message = example("message")
    tag, app_id, numbers, rest = message[:24], message[24:44], message[44:56], message[56:]
    assert tag.decode() in re.findall(r"`([^`]+)`", PAGE)
    assert (app_id, int.from_bytes(numbers[:8]), int.from_bytes(numbers[8:])) == (b"\x22" * 20, 7, 2)
    texts = []
    while rest:
        size = int.from_bytes(rest[:4])
        texts.append(rest[4 : 4 + size].decode())
        rest = rest[4 + size :]
    assert tuple(zip_longest(texts[::2], texts[1::2])) == ENTRIES


def test_the_example_in_app_compose_is_read() -> None:
    text = re.findall(r'^    ("env_signer".*?\n.*?)$', PAGE, re.MULTILINE)[0]
    base = {"manifest_version": 2, "name": "demo", "runner": "docker-compose"}
    compose = model_of(base | json.loads("{" + text + "}"))
    assert (compose.env_signer, compose.env_min_version) == (KEY.public_key.hex(), 7)


def test_the_limits_are_those_of_the_code() -> None:
    assert f"at most {MAX_CIPHERTEXT_BYTES >> 10} KiB" in PAGE
    assert f"at most {MAX_ENTRIES} entries" in PAGE
    assert f"up to {MAX_NAME_BYTES} bytes, values up to {MAX_VALUE_BYTES >> 10} KiB" in PAGE
    assert f"{MAX_TOTAL_BYTES >> 20} MiB in all" in PAGE
    assert f"from {MAX_FUTURE} s early to {MAX_AGE} s old" in PAGE


@pytest.mark.parametrize(
    "code", sorted(set(re.findall(r"`((?:env|env_signer|keys\.env|proof\.signer|lint)\.[a-z_.]+)`", PAGE)))
)
def test_every_code_can_be_raised(code: str) -> None:
    assert is_error_code(code)


def test_exit_codes_are_named_as_they_are() -> None:
    assert (errors.PolicyDenied.exit_code, errors.InvalidEvidence.exit_code) == (3, 3)
    assert (errors.ConfigError.exit_code, errors.UnavailableError.exit_code) == (2, 1)
    assert errors.ProtocolError.exit_code == 1

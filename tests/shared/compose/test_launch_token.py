"""Launch tokens: their hash, and whether a guest would find them."""

import json
from pathlib import Path

import pytest

from shared.compose.launch_token import launch_token_hash, lint_launch_token
from shared.errors import ProtocolError
from tests.shared.refusal import refuses

VECTOR = json.loads((Path(__file__).parents[2] / "data" / "deploy" / "vectors.json").read_text())[
    "launch_token"
]
TOKEN, PINNED = VECTOR["token"], VECTOR["hash"]


def user_config(token: object) -> bytes:
    return json.dumps({"dstack": {"launch_token": token}}).encode()


def test_hashes_a_launch_token_as_upstream() -> None:
    assert launch_token_hash(TOKEN.encode()).hex() == PINNED


def test_n72_refuses_a_short_launch_token() -> None:
    with refuses("compose.launch_token", ProtocolError):
        launch_token_hash(b"x" * 31)


def test_the_pinned_token_is_found() -> None:
    assert lint_launch_token(PINNED.upper(), user_config(TOKEN)) == ()


@pytest.mark.parametrize(
    "config",
    [
        *(None, b"", b"[]", b"{}", b'{"dstack":1}', b'{"dstack":{"launch_token":"\\ud800"}}'),
        *(user_config(token) for token in (7, "short", TOKEN + "x")),
    ],
)
def test_n72_a_missing_short_or_wrong_token_is_an_error(config: bytes | None) -> None:
    found = lint_launch_token(PINNED, config)
    assert [one.code for one in found] == ["lint.launch_token"]
    assert TOKEN not in repr(found)

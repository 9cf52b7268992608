"""The launch token: a secret beside the app-compose, without which a guest does not start (spec deploy 2.1).

Whoever may encrypt variables to an app's key is not thereby its deployer; a token that the measured document
pins is what tells them apart (SECURITY N-72).
"""

import hmac
from hashlib import sha256
from typing import Any, Final

from shared.compose.findings import Finding, error
from shared.errors import ProtocolError
from shared.strict_json import decode_json

MIN_TOKEN_BYTES: Final = 32  # the guest refuses a shorter one

_TAG: Final = b"dstack-launch-token/v1:"
_MAX_USER_CONFIG: Final = 50 * 1024 * 1024  # the guest's cap on the file
_WHERE: Final = ".user-config"


def launch_token_hash(token: bytes) -> bytes:
    """Return the 32 bytes that `requirements.launch_token_hash` pins for a token of at least 32 bytes.

    Raises `ProtocolError("compose.launch_token")` for a shorter one.
    """
    if len(token) < MIN_TOKEN_BYTES:
        raise ProtocolError(
            "compose.launch_token",
            f"the launch token has {len(token)} bytes, expected at least {MIN_TOKEN_BYTES}",
        )
    return sha256(_TAG + token).digest()


def lint_launch_token(pinned: str, user_config: bytes | None) -> tuple[Finding, ...]:
    """Say whether a guest that wants the token of hash `pinned` (64 hex digits) would find it.

    The token is at /dstack/launch_token of the JSON in `user_config`; no finding repeats it.
    """
    token = _token(user_config)
    if token is None:
        return (
            error("lint.launch_token", _WHERE, "has no text at /dstack/launch_token, and a hash pins one"),
        )
    try:
        got = launch_token_hash(token)
    except ProtocolError as problem:
        return (error("lint.launch_token", _WHERE, problem.message),)
    if not hmac.compare_digest(got.hex(), pinned.lower()):
        return (error("lint.launch_token", _WHERE, "has a launch token of another hash than the pinned one"),)
    return ()


def _token(user_config: bytes | None) -> bytes | None:
    if user_config is None:
        return None
    try:
        value: Any = decode_json(user_config, what=_WHERE, code="user_config", max_bytes=_MAX_USER_CONFIG)
        for key in ("dstack", "launch_token"):
            value = value.get(key) if isinstance(value, dict) else None
        return value.encode() if isinstance(value, str) else None
    except (ProtocolError, UnicodeEncodeError):
        return None

"""The unprivileged user that the image names for its app, looked up in the image's own files."""

import re
from typing import Final

import msgspec

from enclave.platform import Platform
from shared.errors import ConfigError

_NUMBERS: Final = re.compile(r"(0|[1-9][0-9]{0,9})(?::(0|[1-9][0-9]{0,9}))?")
_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_MAX_ID: Final = 0xFFFF_FFFE  # all ones means "no change" to the kernel


class Account(msgspec.Struct, frozen=True):
    """Whom the app runs as. `home` is empty where the image does not say."""

    uid: int
    gid: int
    home: str = ""


def find_account(platform: Platform, user: str) -> Account | None:
    """Return the account of `name`, `uid` or `uid:gid`; None for an empty text, which is root.

    A number without a group takes the group of the same number. Raises `ConfigError("init.user")`.
    """
    if not user:
        return None
    numbers = _NUMBERS.fullmatch(user)
    if numbers is not None:
        uid, gid = int(numbers[1]), int(numbers[2] or numbers[1])
        if max(uid, gid) > _MAX_ID:
            raise ConfigError("init.user", f"boot.user is {user!r}, ids are at most {_MAX_ID}")
        return Account(uid, gid)
    if not _NAME.fullmatch(user):
        raise ConfigError("init.user", f"boot.user is {user[:40]!r}, expected a name, uid or uid:gid")
    for line in platform.read_measured("/etc/passwd").decode(errors="replace").splitlines():
        fields = line.split(":")
        if fields[0] == user and len(fields) == 7 and fields[2].isdecimal() and fields[3].isdecimal():
            return Account(int(fields[2]), int(fields[3]), fields[5])
    raise ConfigError("init.user", f"boot.user is {user!r}, and the image's /etc/passwd has no such name")

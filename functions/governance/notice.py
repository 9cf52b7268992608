"""What operators are told."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell: `alarm` wants somebody now. `facts` are texts and numbers, never a secret."""

    code: str
    message: str
    severity: Literal["info", "warning", "alarm"] = "info"
    facts: dict[str, Any] = {}


Notify = Callable[[Notice], None]
"""Never raises: what cannot be told must not keep a machine from being stopped."""

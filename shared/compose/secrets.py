"""Values that look like secrets in text that everybody can read: an app-compose is public by default.

Guesses, on purpose: a finding names the place and never repeats the value.
"""

import re
from typing import Final

# Forms that are secrets whatever they are called.
_VALUES: Final = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
    re.compile(r"\bgithub_pat_[A-Za-z0-9_]{60,}"),
    re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^/\s:@]{0,64}:[^/\s:@$]{3,128}@"),
)
_NAME: Final = re.compile(
    r"(?:^|_)(?:[A-Z]*PASSWORD|(?<=_)PWD|PASS|PASSWD|PASSPHRASE|SECRET|TOKEN|APIKEY|CREDENTIALS?|PRIVATE_?KEY|API_?KEY|"
    r"ACCESS_?KEY|SECRET_?KEY|ENCRYPTION_?KEY|SIGNING_?KEY|WALLET_?KEY|MNEMONIC|SEED_?PHRASE)(?:$|_)",
    re.IGNORECASE,
)
# A name like these points at a secret and holds none.
_POINTER: Final = re.compile(
    r"_(?:FILE|PATH|URL|URI|NAME|ID|HASH|TTL|EXPIRY|LENGTH|ADDRESS|CONTRACT|SYMBOL|DECIMALS|ENABLED)$",
    re.IGNORECASE,
)
# A switch beside a secret, as ALLOW_EMPTY_PASSWORD=yes, is none.
_SWITCH: Final = re.compile(r"(?:true|false|yes|no|on|off|0|1|y|n)?", re.IGNORECASE)


def is_secret_value(value: str) -> bool:
    """Whether the text holds something in the form of a known kind of secret."""
    return any(pattern.search(value) for pattern in _VALUES)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name usually holds a secret."""
    return _NAME.search(name) is not None and _POINTER.search(name) is None


def is_switch(value: str) -> bool:
    """Whether a value is a yes or a no, or nothing."""
    return _SWITCH.fullmatch(value.strip()) is not None

"""What endpoints say of a transaction that they were handed: that they have it, did not take it, or neither.

An error alone says nothing. What answers for several nodes says `request timed out` also when one of them
took the transaction, and broadcast it.
"""

import re
from typing import Final

from shared.errors import DstackError

_KNOWN: Final = re.compile(r"\balready ?(known|imported|exists)\b|\bknown transaction\b", re.IGNORECASE)
# How geth, anvil, reth, erigon, nethermind and besu begin to say what they hold against a transaction before
# they take it; erigon puts a word in capitals before. Too low a nonce is not among it: that is what a second
# node says, too, once the transaction that the first one took is in a block.
_REFUSED: Final = re.compile(
    r"(?:\S+ answered with an error: )?(?-i:[A-Z_]+: )?(?:"
    r"insufficient ?funds|upfront cost exceeds account balance"
    r"|(?:replacement )?(?:transaction )?underpriced|fee ?too ?low|could not replace existing tx"
    r"|max fee per gas less than block base fee|(?:transaction )?(?:gas price|priority fee) below"
    r"|tx fee \(.*\) exceeds the configured cap|transaction fee cap exceeded"
    r"|(?:invalid|unknown|unsupported) transaction type|transaction type not supported"
    r"|fork supporting this transaction type is not activated"
    r"|invalid (?:transaction )?signature|invalid sender|failed to recover sender"
    r"|failed to decode signed transaction"
    r"|(?:invalid|wrong) chain ?id"
    r"|intrinsic ?gas|(?:exceeds (?:block|max transaction) |transaction )?gas limit"
    r")",
    re.IGNORECASE,
)


def is_known(error: DstackError) -> bool:
    """Tell whether an endpoint refused a transaction because it has it already."""
    return _KNOWN.search(error.message) is not None


def is_refused(error: DstackError) -> bool:
    """Tell whether an endpoint refused a transaction in words that leave no doubt: no node took it."""
    return error.code == "rpc.error" and _REFUSED.match(error.message) is not None

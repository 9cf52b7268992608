"""The app's encrypted environment: offered by the parent, opened with the app's key (spec deploy section 3).

The parent holds a ciphertext that only this app's `env_crypt_key` opens, so a changed secret needs no new
image. It is hostile input: bounded, and refused whole where it does not open or is not the signer's. Anybody
can encrypt to the key, so whoever must know that the variables are the deployer's names an `env_signer`.
"""

from typing import Final

from enclave.init.offers import read_offer
from enclave.tee.nitro import NitroTee
from shared.compose.env_envelope import MAX_CIPHERTEXT_BYTES

READ_SECONDS: Final = 30.0
"""For all of it: 256 KiB from the same machine."""


def fetch_encrypted_env(tee: NitroTee, port: int, *, seconds: float = READ_SECONDS) -> bytes | None:
    """Return what the parent's vsock port sends until it closes; None where it sends nothing.

    Raises `ProtocolError("init.env.oversize")` above 256 KiB, `UnavailableError`: `init.env.timeout`,
    `init.env.broken`, `vsock.connect.*`.
    """
    content = read_offer(
        tee, port, what="an environment", limit=MAX_CIPHERTEXT_BYTES, seconds=seconds, code="init.env"
    )
    return content or None

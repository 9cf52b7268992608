"""The app id in a register of the Nitro Security Module: our second attestation profile (SECURITY N-36).

An enclave's `app-id` event is its own claim. Our init also extends PCR16 with the app id that its measured
image names, and locks the register before any other program of the image starts. A document carries the
registers that are locked, so evidence of such an enclave shows the app id under the module's signature, and
nothing that runs in the enclave afterwards can make evidence that names another app.

What it does not do: the lock itself is not a field of the document, and an image that does not bind its app
id leaves PCR16 to whoever runs inside. Such an image can write any app id there, as it can claim any in its
event. So the register says who the enclave is only together with the measured image, which the app's contract
must allow. Upstream's verifiers ignore the register.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

APP_ID_PCR: Final = 16
"""The first register that is the enclave's own: AWS locks those below."""

_TAG: Final = b"dstack-nitro-app-id/v1:"
_EMPTY: Final = bytes(48)


def app_id_message(app_id: bytes) -> bytes:
    """Return what PCR16 is extended with: `dstack-nitro-app-id/v1:` and the 20 bytes of the app id."""
    return _TAG + app_id


def app_id_register(app_id: bytes) -> bytes:
    """Return the 48 bytes that PCR16 then holds: the module hashes the zero register and the message."""
    return hashlib.sha384(_EMPTY + app_id_message(app_id)).digest()


def is_app_id_bound(pcrs: Mapping[int, bytes], app_id: bytes) -> bool:
    """Tell whether the registers of a document hold this app id; without one nothing is bound."""
    return bool(app_id) and hmac.compare_digest(pcrs.get(APP_ID_PCR, b""), app_id_register(app_id))

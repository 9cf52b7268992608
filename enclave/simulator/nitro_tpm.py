"""A NitroTPM in process: SHA-384 registers, and the documents that AWS signs over them (attestation 5.5)."""

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from threading import Lock

from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import InstanceCredentials
from shared.attestation.nitro_document import MAX_NONCE, MAX_PUBLIC_KEY, MAX_USER_DATA, PCR_LENGTH
from shared.attestation.nitro_tpm import TPM_PCR_COUNT
from shared.measurement.images import AWS_BOOT_PCRS


class SimulatedNitroTpm:
    """One instance's TPM.

    `pcrs` are the registers that booting sets (48 bytes each); PCR 4, 7 and 12 have made-up values unless
    they are given, the others are zero. `clock` returns unix seconds.
    """

    def __init__(
        self,
        authority: SimulatedAuthority,
        pcrs: Mapping[int, bytes] | None = None,
        clock: Callable[[], float] = time.time,
        *,
        instance_id: str | None = None,
    ) -> None:
        self._clock = clock
        self.instance_id = instance_id or f"i-{secrets.token_hex(9)[:17]}"
        self._credentials = InstanceCredentials(authority, self.instance_id, self.instance_id)
        self.pcrs = {index: bytes(PCR_LENGTH) for index in range(TPM_PCR_COUNT)}
        for index in AWS_BOOT_PCRS:
            self.pcrs[index] = hashlib.sha384(b"simulated boot %d" % index).digest()
        self.pcrs.update(pcrs or {})
        self._lock = Lock()

    def extend(self, index: int, digest: bytes) -> bytes:
        """Extend a register by a digest of 48 bytes, and return its new value. Raises `ValueError`."""
        if len(digest) != PCR_LENGTH or index not in self.pcrs:
            raise ValueError("a register from 0 to 23 is extended by 48 bytes")
        with self._lock:
            self.pcrs[index] = hashlib.sha384(self.pcrs[index] + digest).digest()
            return self.pcrs[index]

    def attestation(
        self,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
    ) -> bytes:
        """Return a signed document over all registers. Raises `ValueError` for a field that is too long."""
        limits = ((user_data, MAX_USER_DATA), (nonce, MAX_NONCE), (public_key, MAX_PUBLIC_KEY))
        if any(len(value or b"") > limit for value, limit in limits):
            raise ValueError("user_data, nonce or public_key is too long")
        with self._lock:
            now = self._clock()
            payload = {
                "module_id": self.instance_id,
                "digest": "SHA384",
                "timestamp": int(now * 1000),
                "nitrotpm_pcrs": dict(self.pcrs),
                "certificate": None,
                "cabundle": None,
                "public_key": public_key,
                "user_data": user_data,
                "nonce": nonce,
            }
            return self._credentials.document(payload, now)

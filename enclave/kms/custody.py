"""Who keeps the root keys between two starts of this KMS."""

from typing import Protocol

from enclave.kms.key_store import KeyMaterial


class Custody(Protocol):
    """One kind of custody: `file` and `tpm` (`KeyStore`, with the keys in the clear or sealed), `peer`.

    A cloud KMS's envelope, opened by the attestation document that a guest shows it, would be one more
    `SecretForm` of `KeyStore`.
    """

    def bootstrapped(self) -> bool:
        """Tell whether anything exists that a bootstrap would have to replace."""
        ...

    def load(self) -> KeyMaterial | None:
        """Return the keys, or None where there were never any, and may be made or onboarded."""
        ...

    def create(self, material: KeyMaterial) -> None:
        """Keep a first set of keys. Raises `StorageError("kms.bootstrapped")` where one exists."""
        ...

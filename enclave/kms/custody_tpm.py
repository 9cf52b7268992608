"""The root keys sealed under this machine's TPM: whoever has the disk, or another image, cannot read them.

The secret is the root CA's scalar, the temporary CA's and the k256 key, 32 bytes each: it fits one sealed
object. Which registers it is sealed to, the measured configuration says (`custody_config.TpmCustody`).
"""

from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from enclave.kms.key_store import SEALED_KEYS, RootSecrets, scalar
from enclave.tee.tee import Sealer
from shared.errors import ProtocolError, StorageError, UnavailableError

_LENGTH = 32


class SealedKeys:
    """A `SecretForm`: one sealed blob. It is no secret, and useless on any other machine."""

    names = (SEALED_KEYS,)

    def __init__(self, sealer: Sealer, bank: str, registers: Sequence[int]) -> None:
        self._sealer = sealer
        self._bank = bank
        self._registers = tuple(registers)

    def encode(self, secrets: RootSecrets) -> dict[str, bytes]:
        """Seal the secrets, and open them again: no public key may be told whose keys will not come back.

        Raises `StorageError("kms.custody.seal")`, and what the TPM raises.
        """
        plain = scalar(secrets.root_ca_key) + scalar(secrets.temp_ca_key) + secrets.k256
        blob = self._sealer.seal(plain, self._bank, self._registers)
        if self._sealer.unseal(blob, self._bank, self._registers) != plain:
            raise StorageError("kms.custody.seal", "the tpm gave back something else than it had sealed")
        return {SEALED_KEYS: blob}

    def decode(self, contents: Mapping[str, bytes]) -> RootSecrets:
        """Unseal the secrets.

        Raises `StorageError`: `kms.custody.sealed` when the registers hold other values than at sealing,
        `kms.custody.foreign` for a blob that this machine's TPM did not make; `ValueError` for what is none;
        and `UnavailableError` while the TPM does not answer.
        """
        plain = self._unsealed(contents[SEALED_KEYS])
        if len(plain) != 3 * _LENGTH:
            raise ValueError("sealed secret has another length")
        root, temporary, k256 = (plain[at : at + _LENGTH] for at in range(0, 3 * _LENGTH, _LENGTH))
        return RootSecrets(root_ca_key=_p256(root), temp_ca_key=_p256(temporary), k256=k256)

    def _unsealed(self, blob: bytes) -> bytes:
        try:
            return self._sealer.unseal(blob, self._bank, self._registers)
        except UnavailableError as error:
            if error.code != "tpm_device.sealed":
                raise
            raise StorageError(
                "kms.custody.sealed",
                f"the root keys are sealed to another image or app-compose ({error.message}): give the new "
                "one an empty cert_dir, and onboard it from a running KMS",
            ) from error
        except ProtocolError as error:
            if error.code != "tpm_device.refused":
                raise ValueError(error.message) from error
            raise StorageError(
                "kms.custody.foreign",
                f"{SEALED_KEYS} is not of this machine's tpm ({error.message}): give this machine an empty "
                "cert_dir, and onboard it from a running KMS",
            ) from error


def _p256(number: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(number, "big"), ec.SECP256R1())

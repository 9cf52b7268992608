"""A TPM 2.0 with types: randomness, registers, primary keys, quotes (spec attestation sections 5.1, 5.2)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import msgspec

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm_device import TpmDevice
from enclave.devices.tpm_wire import EMPTY_AUTH, Auth, Reader, Response
from shared.errors import DstackError, ProtocolError

# A TPM answers 32 to 64 random bytes a time; without a limit a device that answers one by one never ends.
MAX_RANDOM = 1024


class Primary(msgspec.Struct, frozen=True):
    """A loaded primary key: handle, TPMT_PUBLIC, name (hash algorithm and digest of the public area)."""

    handle: int
    public: bytes
    name: bytes


class TpmQuoted(msgspec.Struct, frozen=True):
    """A quote: TPMS_ATTEST and TPMT_SIGNATURE."""

    message: bytes
    signature: bytes


class Tpm:
    """A TPM's commands.

    Every method raises what `TpmDevice.transact` does, `TpmRefused("tpm_device.refused")` with the TPM's
    return code, `UnavailableError("tpm_device.busy")`, and `ProtocolError("tpm_device.response.*")` for an
    answer of another shape. Registers of a bank are named `sha1`, `sha256` or `sha384`.
    """

    def __init__(self, device: TpmDevice) -> None:
        self._device = device

    def run(
        self,
        command: str,
        code: int,
        *,
        handles: Sequence[int] = (),
        auths: Sequence[Auth] = (),
        parameters: bytes = b"",
        with_handle: bool = False,
    ) -> Response:
        """Run one command; `with_handle` says that its response begins with a handle."""
        request = wire.encode_command(code, handles=handles, auths=auths, parameters=parameters)
        response = self._device.transact(request)
        return wire.decode_response(response, command, auths=len(auths), with_handle=with_handle)

    def run_vendor(self, command: str, code: int, *, handles: Sequence[int], auths: Sequence[Auth]) -> None:
        """Run a vendor's command that answers success or failure: no standard tells what else is in it."""
        response = self._device.transact(wire.encode_command(code, handles=handles, auths=auths))
        wire.check_response(response, command)

    def get_random(self, count: int) -> bytes:
        """Return `count` random bytes, at most 1024."""
        if not 0 < count <= MAX_RANDOM:
            raise ProtocolError(
                "tpm_device.random.size", f"asked for {count} random bytes, expected 1 to {MAX_RANDOM}"
            )
        random = b""
        while len(random) < count:
            wanted = count - len(random)
            answer = self.run("GetRandom", wire.CC_GET_RANDOM, parameters=wire.u16(wanted)).parameters
            piece = answer.sized()
            answer.finish()
            if not 0 < len(piece) <= wanted:
                raise ProtocolError(
                    "tpm_device.response.layout",
                    f"tpm answered {len(piece)} random bytes, expected 1 to {wanted}",
                )
            random += piece
        return random

    def pcr_read(self, algorithm: str, indices: Sequence[int]) -> dict[int, bytes]:
        """Return registers by index. Raises `ProtocolError("tpm_device.pcr")` for a bank without them."""
        _check_indices(indices)
        values: dict[int, bytes] = {}
        while missing := [index for index in indices if index not in values]:
            values |= self._read_some(algorithm, missing)
        return {index: values[index] for index in indices}

    def _read_some(self, algorithm: str, missing: Sequence[int]) -> dict[int, bytes]:
        """Return at least one of the missing registers; a TPM answers up to 8 a time."""
        parameters = wire.selection(algorithm, missing)
        answer = self.run("PCR_Read", wire.CC_PCR_READ, parameters=parameters).parameters
        answer.u32()  # update counter: a quote's own digest is what tells whether values belong together
        bank, read = wire.read_selection(answer)
        values = [answer.sized() for _ in range(min(answer.u32(), wire.PCR_COUNT))]
        answer.finish()
        if not read:
            raise ProtocolError("tpm_device.pcr", f"tpm has no {algorithm} register {missing[0]}")
        length = wire.DIGEST_LENGTHS[algorithm]
        if (
            bank != wire.HASHES[algorithm]
            or not set(read) <= set(missing)
            or len(values) != len(read)
            or any(len(value) != length for value in values)
        ):
            raise ProtocolError(
                "tpm_device.response.layout", f"tpm answered other registers than {algorithm} {list(missing)}"
            )
        return dict(zip(read, values, strict=True))

    def pcr_extend(self, index: int, digests: Mapping[str, bytes]) -> None:
        """Extend a register by one digest per bank: new = hash(old || digest); nothing is hashed first."""
        _check_indices([index])
        for algorithm, digest in digests.items():
            if len(digest) != wire.DIGEST_LENGTHS[algorithm]:
                raise ProtocolError(
                    "tpm_device.digest.length",
                    f"{algorithm} digest has {len(digest)} bytes, expected {wire.DIGEST_LENGTHS[algorithm]}",
                )
        self.run(
            "PCR_Extend",
            wire.CC_PCR_EXTEND,
            handles=[index],
            auths=[EMPTY_AUTH],
            parameters=wire.encode_digests(digests),
        ).parameters.finish()

    @contextmanager
    def primary(self, hierarchy: int, template: bytes) -> Iterator[Primary]:
        """Create the primary key of a raw TPMT_PUBLIC template under a hierarchy of empty password.

        The same hierarchy and template give the same key. It is flushed at the end, errors included.
        """
        no_secret = wire.sized(wire.sized(b"") + wire.sized(b""))
        no_outside_info, no_pcrs = wire.sized(b""), wire.u32(0)
        response = self.run(
            "CreatePrimary",
            wire.CC_CREATE_PRIMARY,
            handles=[hierarchy],
            auths=[EMPTY_AUTH],
            parameters=no_secret + wire.sized(template) + no_outside_info + no_pcrs,
            with_handle=True,
        )
        with self.flushed(response.handle):
            yield _read_primary(response)

    @contextmanager
    def flushed(self, handle: int) -> Iterator[int]:
        """Give a loaded object's or session's handle, and flush it at the end, errors included."""
        try:
            yield handle
        except BaseException:
            with suppress(DstackError):  # the first error is the one to show
                self.flush(handle)
            raise
        self.flush(handle)

    def flush(self, handle: int) -> None:
        """Remove a loaded object or a session from the TPM."""
        self.run("FlushContext", wire.CC_FLUSH_CONTEXT, parameters=wire.u32(handle)).parameters.finish()

    def quote(self, key: int, qualifying_data: bytes, algorithm: str, indices: Sequence[int]) -> TpmQuoted:
        """Sign registers and `qualifying_data` (at most 66 bytes) with a loaded key, in the key's scheme."""
        _check_indices(indices)
        scheme = wire.u16(wire.ALG_NULL)
        answer = self.run(
            "Quote",
            wire.CC_QUOTE,
            handles=[key],
            auths=[EMPTY_AUTH],
            parameters=wire.sized(qualifying_data) + scheme + wire.selection(algorithm, indices),
        ).parameters
        message, signature = answer.sized(), answer.rest()
        _check_signature(signature)
        return TpmQuoted(message, signature)


def _read_primary(response: Response) -> Primary:
    answer = response.parameters
    public = answer.sized()
    answer.sized()  # creation data
    answer.sized()  # creation hash
    answer.take(6)  # creation ticket: tag and hierarchy
    answer.sized()  # and its digest
    name = answer.sized()
    answer.finish()
    return Primary(response.handle, public, name)


def _check_indices(indices: Sequence[int]) -> None:
    if not indices or not all(0 <= index < wire.PCR_COUNT for index in indices):
        raise ProtocolError("tpm_device.pcr", f"got registers {list(indices)}, expected some of 0 to 23")


def _check_signature(signature: bytes) -> None:
    """Check the layout of a TPMT_SIGNATURE; whether it verifies is for its reader to find out."""
    reader = Reader(signature, "tpm's signature")
    algorithm = reader.u16()
    reader.u16()  # hash
    for _ in range({wire.ALG_RSASSA: 1, wire.ALG_ECDSA: 2}.get(algorithm, 0)):
        reader.sized()
    if algorithm not in {wire.ALG_RSASSA, wire.ALG_ECDSA}:
        raise ProtocolError(
            "tpm_device.response.layout",
            f"tpm signed with algorithm {algorithm:#x}, expected rsassa or ecdsa",
        )
    reader.finish()

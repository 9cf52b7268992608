"""A TPM's non-volatile indexes (spec attestation section 5.1)."""

import msgspec

from enclave.devices import tpm_wire as wire
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_wire import EMPTY_AUTH, Auth, TpmRefused
from shared.errors import ProtocolError, UnavailableError

# TPM2_PT_NV_BUFFER_MAX of the vTPMs we read.
CHUNK = 1024

ATTR_OWNER_WRITE = 1 << 1
ATTR_AUTH_WRITE = 1 << 2
ATTR_OWNER_READ = 1 << 17
ATTR_AUTH_READ = 1 << 18
ATTR_NO_DA = 1 << 25  # a wrong password does not count towards a lockout
ATTR_WRITTEN = 1 << 29

# TPM_RC_HANDLE for the first handle: no such index.
_RC_NO_INDEX = 0x18B


class NvPublic(msgspec.Struct, frozen=True):
    """An index's public area. `size` is in bytes; `name` is the hash algorithm and digest of the area."""

    index: int
    attributes: int
    size: int
    name: bytes


class NvStorage:
    """The indexes of one TPM. Methods raise what `Tpm` does."""

    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm

    def find(self, index: int) -> NvPublic | None:
        """Return an index's public area, None when it is not defined."""
        try:
            answer = self._tpm.run("NV_ReadPublic", wire.CC_NV_READ_PUBLIC, handles=[index]).parameters
        except TpmRefused as error:
            if error.rc == _RC_NO_INDEX:
                return None
            raise
        area, name = wire.Reader(answer.sized(), "nv public area"), answer.sized()
        answer.finish()
        found = area.u32()
        area.u16()  # name algorithm
        attributes = area.u32()
        area.sized()  # policy
        size = area.u16()
        area.finish()
        if found != index:
            raise ProtocolError(
                "tpm_device.response.layout", f"tpm described index {found:#x}, asked for {index:#x}"
            )
        return NvPublic(found, attributes, size, name)

    def read(self, index: int, *, auth: Auth = EMPTY_AUTH) -> bytes:
        """Return an index's whole content: as the owner, or with `auth` for the index where that is refused.

        Raises `UnavailableError("tpm_device.nv.absent")` when the index is not defined.
        """
        if (public := self.find(index)) is None:
            raise UnavailableError("tpm_device.nv.absent", f"tpm has no nv index {index:#x}")
        content = b""
        authority, secret = wire.RH_OWNER, EMPTY_AUTH
        while (left := public.size - len(content)) > 0:
            try:
                content += self._read_chunk(authority, secret, index, len(content), min(left, CHUNK))
            except TpmRefused:
                if authority == index:
                    raise
                authority, secret = index, auth
        return content

    def _read_chunk(self, authority: int, auth: Auth, index: int, offset: int, size: int) -> bytes:
        answer = self._tpm.run(
            "NV_Read",
            wire.CC_NV_READ,
            handles=[authority, index],
            auths=[auth],
            parameters=wire.u16(size) + wire.u16(offset),
        ).parameters
        chunk = answer.sized()
        answer.finish()
        if len(chunk) != size:
            raise ProtocolError(
                "tpm_device.response.layout", f"tpm answered {len(chunk)} nv bytes, expected {size}"
            )
        return chunk

    def define(
        self,
        index: int,
        size: int,
        attributes: int,
        *,
        auth: bytes = b"",
        name_algorithm: int = wire.ALG_SHA256,
    ) -> None:
        """Define an index of `size` bytes as the owner; `auth` becomes its password.

        `name_algorithm` is the hash of its name; a TPM takes a password as long as that hash at most.
        """
        area = wire.u32(index) + wire.u16(name_algorithm) + wire.u32(attributes)
        area += wire.sized(b"") + wire.u16(size)
        self._tpm.run(
            "NV_DefineSpace",
            wire.CC_NV_DEFINE_SPACE,
            handles=[wire.RH_OWNER],
            auths=[EMPTY_AUTH],
            parameters=wire.sized(auth) + wire.sized(area),
        ).parameters.finish()

    def write(self, index: int, content: bytes, *, auth: Auth | None = None) -> None:
        """Write an index from its start: as the owner, or with `auth` for the index."""
        authority = wire.RH_OWNER if auth is None else index
        for offset in range(0, len(content), CHUNK):
            self._tpm.run(
                "NV_Write",
                wire.CC_NV_WRITE,
                handles=[authority, index],
                auths=[auth or EMPTY_AUTH],
                parameters=wire.sized(content[offset : offset + CHUNK]) + wire.u16(offset),
            ).parameters.finish()

    def undefine(self, index: int) -> None:
        """Remove an index as the owner."""
        self._tpm.run(
            "NV_UndefineSpace",
            wire.CC_NV_UNDEFINE_SPACE,
            handles=[wire.RH_OWNER, index],
            auths=[EMPTY_AUTH],
        ).parameters.finish()

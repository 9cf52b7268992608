"""Evidence about an EC2 instance: its NitroTPM's document (spec attestation section 5.5).

The NitroTPM takes the requests of a Nitro Security Module, by a vendor command over a non-volatile index that
holds the request and then the response.
"""

import io
import secrets
from collections.abc import Callable
from contextlib import suppress

import cbor2

from enclave.devices import tpm_wire as wire
from enclave.devices.nsm import Nsm
from enclave.devices.runtime_events import RuntimeEventLog
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_nv import ATTR_AUTH_READ, ATTR_AUTH_WRITE, NvStorage
from enclave.devices.tpm_session import salted_session
from enclave.devices.tpm_wire import Auth
from shared.attestation.envelope import Attestation, NitroTpmQuote, encode_envelope
from shared.attestation.event_log import replay
from shared.attestation.nitro_tpm import RUNTIME_PCR, parse_tpm_document
from shared.errors import DstackError, InvalidEvidence, ProtocolError, UnavailableError
from shared.measurement.images import check_aws_image
from shared.measurement.vm_config import parse_vm_config

CC_NSM_REQUEST = 0x20000001
BUFFER_SIZE = 8192

# Within what the NitroTPM takes (0x01000000 to 0x01FFFFFF), the part that TCG leaves to a machine's owner.
_FIRST_INDEX = 0x01800000
_INDEX_COUNT = 0x00400000
# A few of four million are in use: more than one unlucky draw is no accident.
_MAX_DRAWS = 8
_PASSWORD_LENGTH = 64
_ATTRIBUTES = ATTR_AUTH_READ | ATTR_AUTH_WRITE

# TCG's default template of an RSA endorsement key: restricted decryption, AES-128-CFB, policy A.
EK_TEMPLATE = bytes.fromhex(
    "0001 000b 000300b2"
    "0020 837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
    "0006 0080 0043 0010 0800 00000000"
) + wire.sized(bytes(256))


class NitroTpmModule:
    """The security module behind a NitroTPM; a `NsmDevice`."""

    def __init__(self, tpm: Tpm) -> None:
        self._tpm = tpm
        self._storage = NvStorage(tpm)

    def transact(self, request: bytes) -> bytes:
        """Return the module's response.

        Raises what `Tpm` does; `ProtocolError`: `nsm.request.size`, `nsm.response` for no CBOR;
        `UnavailableError("tpm_device.nv.full")` when no free index is found.
        """
        if len(request) > BUFFER_SIZE:
            raise ProtocolError(
                "nsm.request.size", f"nsm request has {len(request)} bytes, at most {BUFFER_SIZE} are taken"
            )
        index = self._free_index()
        # A TPM cuts zeros off a password's end, and the session's HMAC is over what is left.
        password = secrets.token_bytes(_PASSWORD_LENGTH - 1) + b"\x01"
        self._storage.define(index, BUFFER_SIZE, _ATTRIBUTES, auth=password, name_algorithm=wire.ALG_SHA512)
        try:
            response = self._exchange(index, password, request)
        except BaseException:
            with suppress(DstackError):  # the first error is the one to show
                self._storage.undefine(index)
            raise
        self._storage.undefine(index)
        return response

    def _exchange(self, index: int, password: bytes, request: bytes) -> bytes:
        self._storage.write(index, request, auth=Auth(password=password))
        # Its name has changed with the first write.
        if (public := self._storage.find(index)) is None:
            raise UnavailableError("tpm_device.nv.absent", f"nv index {index:#x} is gone")
        with (
            self._tpm.primary(wire.RH_ENDORSEMENT, EK_TEMPLATE) as endorsement,
            salted_session(self._tpm, endorsement) as session,
        ):
            auth = session.authorise(CC_NSM_REQUEST, [public.name] * 2, b"", password)
            self._tpm.run_vendor("NSM request", CC_NSM_REQUEST, handles=[index] * 2, auths=[auth])
        return _first_item(self._storage.read(index, auth=Auth(password=password)))

    def _free_index(self) -> int:
        for _ in range(_MAX_DRAWS):
            index = _FIRST_INDEX + secrets.randbelow(_INDEX_COUNT)
            if self._storage.find(index) is None:
                return index
        raise UnavailableError(
            "tpm_device.nv.full", f"{_MAX_DRAWS} nv indexes were tried, and all are in use"
        )


class NitroTpmAttestor:
    """Makes envelopes over any report_data. `vm_config` gives the host's text for this guest."""

    def __init__(self, module: Nsm, log: RuntimeEventLog, vm_config: Callable[[], str]) -> None:
        self._module = module
        self._log = log
        self._vm_config = vm_config

    def attest(self, report_data: bytes) -> bytes:
        """Return an envelope whose document's user_data is the 64 bytes of `report_data`.

        Evidence that cannot verify never leaves: the document is read back, and nobody can emit an event
        while it is made.

        Raises what `Nsm.attestation`, the event log and `vm_config` do; `InvalidEvidence`: those of
        `parse_tpm_document`, `nitro_tpm.report_data`, `nitro_tpm.pcr14` when the events are not what PCR14
        was extended by, and those of `parse_vm_config` and `check_aws_image` when the text does not name the
        image that booted.
        """
        with self._log.held() as events:
            cose = self._module.attestation(user_data=report_data)
        document = parse_tpm_document(cose)
        if document.user_data != report_data:
            raise InvalidEvidence("nitro_tpm.report_data", "document is over something else than report_data")
        if (replayed := replay(events, "sha384")) != document.pcrs[RUNTIME_PCR]:
            raise InvalidEvidence(
                "nitro_tpm.pcr14",
                f"runtime events replay to {replayed.hex()}, PCR14 is {document.pcrs[RUNTIME_PCR].hex()}",
            )
        vm_config = self._vm_config()
        check_aws_image(parse_vm_config(vm_config), document.pcrs)
        return encode_envelope(Attestation(NitroTpmQuote(cose), events, report_data, vm_config))


def _first_item(buffer: bytes) -> bytes:
    """Return the CBOR item at the buffer's start; what follows is left from whatever was there before."""
    stream = io.BytesIO(buffer)
    try:
        cbor2.load(stream)
    except (cbor2.CBORError, ValueError) as error:
        raise ProtocolError("nsm.response", "nitrotpm answered with bytes that are not cbor") from error
    return buffer[: stream.tell()]

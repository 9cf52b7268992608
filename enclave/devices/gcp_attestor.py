"""Evidence about a TDX guest of Google Cloud: a TDX quote, and a vTPM quote of it (spec attestation 5.1)."""

import hashlib
from collections.abc import Callable

from enclave.devices.gcp_ak import GcpVtpm
from enclave.devices.runtime_events import RuntimeEventLog
from enclave.devices.tdx import TdxDevice
from enclave.devices.tdx_attestor import collect_tdx
from shared.attestation.envelope import Attestation, GcpTdxQuote, PcrValue, TpmQuote, encode_envelope
from shared.attestation.gcp import precheck_gcp
from shared.attestation.tcg_log import tpm_events
from shared.attestation.tpm_quote import BANK_NAME


class GcpTdxAttestor:
    """Makes envelopes over any report_data.

    `vm_config` gives the host's text for this guest, `boot_log` the TPM's event log (`read_boot_log`).
    """

    def __init__(
        self,
        device: TdxDevice,
        vtpm: GcpVtpm,
        log: RuntimeEventLog,
        *,
        vm_config: Callable[[], str],
        boot_log: Callable[[], bytes],
    ) -> None:
        self._device = device
        self._vtpm = vtpm
        self._log = log
        self._vm_config = vm_config
        self._boot_log = boot_log

    def attest(self, report_data: bytes) -> bytes:
        """Return an envelope over the 64 bytes of `report_data`.

        1. No process emits an event until both quotes are made.
        2. A TDX quote over `report_data`, with its log.
        3. A vTPM quote over PCR 0, 2 and 14 whose qualifying data is the SHA-256 of the whole TDX quote.
        4. The two halves, the logs and the key's certificate fit together, as a verifier will find.

        Raises what `collect_tdx`, `GcpVtpm.quote`, the event log, `boot_log` and `vm_config` do, and
        `InvalidEvidence`: `tcg_log.*`, and those of `precheck_gcp`: `gcp.pcr14` when somebody else extended
        PCR14 or the log lost an event.
        """
        with self._log.held() as events:
            tdx = collect_tdx(self._device, report_data, events)
            tpm = self._vtpm.quote(hashlib.sha256(tdx.quote).digest())
        quote = GcpTdxQuote(
            tdx,
            TpmQuote(
                message=tpm.quoted.message,
                signature=tpm.quoted.signature,
                pcr_values=tuple(PcrValue(index, BANK_NAME, value) for index, value in tpm.values.items()),
                ak_cert=tpm.certificate,
                platform="gcp",
                event_log=tpm_events(self._boot_log()),
            ),
        )
        precheck_gcp(quote, events)
        return encode_envelope(Attestation(quote, events, report_data, self._vm_config()))

"""Hardware for the client from the specification: what simulated devices say, in the client's own types."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from enclave.devices.nsm import Nsm
from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.evidence import APP_COMPOSE, sample_guest
from enclave.simulator.nsm import SimulatedNsm
from enclave.simulator.tdx import SimulatedIntel
from shared.attestation.envelope import Attestation, GcpTdxQuote, TdxQuote, decode_envelope
from tests.enclave.conftest import registers
from tests.interop.spec_client import evidence
from tests.interop.spec_client.evidence import Evidence, TdxEvent, TpmQuote
from tests.interop.spec_client.kms import Attest

_IMAGE = 90

_GOOGLE = 1
"""The platform byte of a vTPM's quote (spec attestation 1.3)."""


def nitro_guest(
    authority: SimulatedAuthority, app_id: bytes | None, pcrs: dict[int, bytes] | None = None
) -> Attest:
    """An enclave of a made-up image; the client gets NSM documents, and makes the rest itself."""
    nsm = Nsm(SimulatedNsm(pcrs or registers(_IMAGE), authority))
    return lambda report_data: evidence.nitro(nsm.attestation(user_data=report_data), report_data, app_id)


def gcp_guest(platform: Platform) -> Attest:
    """A guest of Google Cloud that runs as `platform`."""
    attestor = platform.tee.attestor(None)
    return lambda report_data: _evidence(decode_envelope(attestor.attest(report_data)))


def tdx_guest(intel: SimulatedIntel, image: Path, now: int) -> Attest:
    """A plain TDX guest of a made-up image, on a machine of this Intel."""
    with patch.object(SimulatedIntel, "create", return_value=intel):
        guest = sample_guest("tdx", image, now=now)
    attest: Callable[[bytes], Attestation] = guest.attest
    return lambda report_data: _evidence(attest(report_data))


def sample_app_id() -> bytes:
    """The app id of `sample_guest`'s guests: no deployment gave one."""
    return hashlib.sha256(APP_COMPOSE).digest()[:20]


def _evidence(attestation: Attestation) -> Evidence:
    runtime = tuple((event.event, event.payload) for event in attestation.runtime_events)
    tdx, tpm = attestation.quote, None
    if isinstance(tdx, GcpTdxQuote):
        tpm = TpmQuote(
            tdx.tpm.message,
            tdx.tpm.signature,
            tuple((pcr.index, pcr.algorithm, pcr.value) for pcr in tdx.tpm.pcr_values),
            tdx.tpm.ak_cert,
            _GOOGLE,
            tuple((event.pcr_index, event.digest) for event in tdx.tpm.event_log),
        )
        tdx = tdx.tdx
    assert isinstance(tdx, TdxQuote)
    log = tuple(TdxEvent(e.imr, e.event_type, e.digest, e.event, e.event_payload) for e in tdx.event_log)
    variant = evidence.TDX if tpm is None else evidence.GCP_TDX
    return Evidence(variant, tdx.quote, attestation.report_data, runtime, attestation.config, log, tpm)

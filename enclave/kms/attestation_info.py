"""What an operator lists in the contract for this KMS (spec kms section 2.4, GetAttestationInfo)."""

from collections.abc import Callable

from enclave.kms.authorization import ChainInfo
from enclave.kms.config import Core
from enclave.log import log_event
from shared.attestation.identity import app_info, raw_device_id
from shared.attestation.verify import VerifiedAttestation
from shared.errors import DstackError
from shared.rpc import kms_pb2 as pb


def attestation_info(
    own: VerifiedAttestation, core: Core, contract: Callable[[], ChainInfo]
) -> pb.AttestationInfoResponse:
    """Describe this KMS by its verified evidence, and the contract by what can be learned of it.

    The values are those of the self check, with the events of the whole boot. A contract that cannot be
    asked leaves its fields empty. Raises what `app_info` raises for evidence of an unknown image.
    """
    info = app_info(own)
    try:
        facts = contract()
    except DstackError as error:
        log_event("kms.attestation_info.no_contract", code=error.code, message=error.message)
        facts = ChainInfo()
    return pb.AttestationInfoResponse(
        device_id=info.device_id,
        mr_aggregated=info.mr_aggregated,
        os_image_hash=info.os_image_hash,
        tee_variant=own.verdict.platform,
        site_name=core.site_name,
        eth_rpc_url=facts.eth_rpc_url or "",
        kms_contract_address=facts.kms_contract_address or "",
        ppid=raw_device_id(own),
        simulated=own.verdict.simulated,
    )

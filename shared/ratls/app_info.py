"""App info as a certificate carries it: MessagePack, the fields in an array (spec kms section 4.1)."""

from shared.attestation.identity import AppInfo
from shared.attestation.messagepack import array, bin_


def encode_app_info(info: AppInfo) -> bytes:
    """Encode the nine fields that upstream has, in its order."""
    fields = (
        info.app_id,
        info.compose_hash,
        info.instance_id,
        info.device_id,
        info.mr_system,
        info.mr_aggregated,
        info.os_image_hash,
        info.key_provider_info,
    )
    return array([*map(bin_, fields), array(list(map(bin_, info.init_script_hashes)))])

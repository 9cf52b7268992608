"""The field table of kms.proto is that of spec kms 2.1."""

import pytest

from shared.rpc import kms_pb2

TABLE = {
    "GetAppKeyRequest": "1 api_version 2 vm_config 100 key_epoch",
    "AppKeyResponse": "1 ca_cert 2 disk_crypt_key 3 env_crypt_key 4 k256_key 5 k256_signature "
    "6 tproxy_app_id 7 gateway_app_id 8 os_image_hash 100 key_epoch",
    "AppId": "1 app_id 100 key_epoch",
    "PublicKeyResponse": "1 public_key 2 signature 3 timestamp 4 signature_v1",
    "GetMetaResponse": "1 ca_cert 2 allow_any_upgrade 3 k256_pubkey 4 bootstrap_info 5 is_dev "
    "6 gateway_app_id 7 kms_contract_address 8 chain_id 9 app_auth_implementation 100 policy",
    "GetKmsKeyRequest": "1 vm_config",
    "KmsKeys": "1 ca_key 2 k256_key",
    "KmsKeyResponse": "1 temp_ca_key 2 keys",
    "GetTempCaCertResponse": "1 temp_ca_cert 2 temp_ca_key 3 ca_cert",
    "SignCertRequest": "1 api_version 2 csr 3 signature 4 vm_config",
    "SignCertResponse": "1 certificate_chain",
    "ClearImageCacheRequest": "1 image_hash 2 config_hash",
    "BootstrapRequest": "1 domain",
    "BootstrapResponse": "1 ca_pubkey 2 k256_pubkey 3 attestation",
    "OnboardRequest": "1 source_url 2 domain 3 source_token",
    "OnboardResponse": "1 k256_pubkey",
    "AttestationInfoResponse": "1 device_id 2 mr_aggregated 3 os_image_hash 4 tee_variant 5 site_name "
    "6 eth_rpc_url 7 kms_contract_address 8 ppid 100 simulated",
    "ProtoError": "1 message 100 code",
}


@pytest.mark.parametrize("name", TABLE)
def test_fields_have_the_numbers_of_the_specification(name: str) -> None:
    fields = kms_pb2.DESCRIPTOR.message_types_by_name[name].fields
    assert " ".join(f"{field.number} {field.name}" for field in fields) == TABLE[name]


@pytest.mark.parametrize(
    ("service", "methods"),
    [
        (
            "KMS",
            (
                "GetAppKey(GetAppKeyRequest)AppKeyResponse GetKmsKey(GetKmsKeyRequest)KmsKeyResponse "
                "GetAppEnvEncryptPubKey(AppId)PublicKeyResponse GetMeta(Empty)GetMetaResponse "
                "GetTempCaCert(Empty)GetTempCaCertResponse SignCert(SignCertRequest)SignCertResponse"
            ),
        ),
        ("Admin", "ClearImageCache(ClearImageCacheRequest)Empty GetKmsKey(GetKmsKeyRequest)KmsKeyResponse"),
        (
            "Onboard",
            (
                "Bootstrap(BootstrapRequest)BootstrapResponse Onboard(OnboardRequest)OnboardResponse "
                "GetAttestationInfo(Empty)AttestationInfoResponse Finish(Empty)Empty"
            ),
        ),
    ],
)
def test_services_have_the_methods_of_the_specification(service: str, methods: str) -> None:
    descriptor = kms_pb2.DESCRIPTOR.services_by_name[service]
    found = [f"{one.name}({one.input_type.name}){one.output_type.name}" for one in descriptor.methods]
    assert " ".join(found) == methods

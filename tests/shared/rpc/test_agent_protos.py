"""The fields of the guest agent's messages are those of spec guest-agent 2.2, 2.12 and 2.13."""

import pytest
from google.protobuf.descriptor import FileDescriptor

from shared.rpc import agent_pb2, agent_v1_pb2, guest_api_pb2

CERTIFICATE = (
    "1 subject 2 alt_names 3 usage_ra_tls 4 usage_server_auth 5 usage_client_auth 6 not_before 7 not_after "
    "8 with_app_info"
)
FROZEN = {
    "GetTlsKeyArgs": CERTIFICATE,
    "DeriveKeyArgs": "1 path 2 subject 3 alt_names 4 usage_ra_tls 5 usage_server_auth 6 usage_client_auth "
    "7 random_seed",
    "GetTlsKeyResponse": "1 key 2 certificate_chain",
    "GetKeyArgs": "1 path 2 purpose 3 algorithm",
    "GetKeyResponse": "1 key 2 signature_chain",
    "DeriveK256KeyResponse": "1 k256_key 2 k256_signature_chain",
    "TdxQuoteArgs": "1 report_data 2 hash_algorithm 3 prefix",
    "RawQuoteArgs": "1 report_data",
    "TdxQuoteResponse": "1 quote 2 event_log 3 hash_algorithm 4 prefix",
    "GetQuoteResponse": "1 quote 2 event_log 3 report_data 4 vm_config 5 attestation",
    "AttestResponse": "1 attestation",
    "GpuInfoResponse": "1 attestation",
    "AppInfo": "1 app_id 2 instance_id 3 app_cert 4 tcb_info 5 app_name 8 device_id 9 mr_aggregated "
    "10 os_image_hash 12 key_provider_info 13 compose_hash 14 vm_config 15 cloud_vendor 16 cloud_product "
    "100 tee_variant",
    "WorkerVersion": "1 version 2 rev",
    "SignRequest": "1 algorithm 2 data",
    "SignResponse": "1 signature 2 signature_chain 3 public_key",
    "VerifyRequest": "1 algorithm 2 data 3 signature 4 public_key",
    "VerifyResponse": "1 valid",
    "GetAttestationForAppKeyRequest": "1 algorithm",
    "EmitEventArgs": "1 event 2 payload",
}
V1 = {
    "IssueCertRequest": CERTIFICATE,
    "IssueCertResponse": "1 key 2 certificate_chain",
    "GetKeyRequest": "1 domain 2 algorithm",
    "GetKeyResponse": "1 key 2 public_key 3 signature_chain",
    "AttestRequest": "1 report_data 2 include_boottime_gpu_evidence",
    "GpuEvidenceBundle": "1 vendor 2 format 3 evidence",
    "AttestResponse": "1 attestation 2 boottime_gpu_evidence",
    "AttestGpuRequest": "1 nonce",
    "AttestGpuResponse": "1 bundles",
    "InfoResponse": "1 app_id 2 app_name 3 compose_hash 4 app_compose 5 instance_id 6 device_id "
    "7 os_image_hash 8 mr_aggregated 9 vm_config 10 key_provider_info 11 cloud_vendor 12 cloud_product",
    "VersionResponse": "1 version 2 rev",
    "UnhealthyContainer": "1 name 2 status",
    "HealthResponse": "1 healthy 2 unhealthy 3 error",
}
HOST = {
    "GuestInfo": "1 version 2 app_id 3 instance_id 4 app_cert 5 tcb_info 6 device_id",
    "DiskInfo": "1 name 2 mount_point 3 total_size 5 free_size",
    "SystemInfo": "1 os_name 2 os_version 3 kernel_version 4 cpu_model 5 num_cpus 6 total_memory "
    "7 available_memory 8 used_memory 9 free_memory 10 total_swap 11 used_swap 12 free_swap 13 uptime "
    "14 loadavg_one 15 loadavg_five 16 loadavg_fifteen 17 disks",
    "IpAddress": "1 address 2 prefix",
    "Gateway": "1 address",
    "Interface": "1 name 2 addresses 3 rx_bytes 4 tx_bytes 5 rx_errors 6 tx_errors",
    "NetworkInformation": "1 dns_servers 2 gateways 3 interfaces 4 wg_info",
    "Container": "1 id 2 names 3 image 4 image_id 6 created 7 state 8 status",
    "ListContainersResponse": "1 containers",
    "HostInfo": "1 name 2 version",
    "Notification": "1 event 2 payload",
    "GetSealingKeyRequest": "1 quote",
    "GetSealingKeyResponse": "1 encrypted_key 2 provider_quote",
}


@pytest.mark.parametrize(
    ("file", "table"),
    [(agent_pb2.DESCRIPTOR, FROZEN), (agent_v1_pb2.DESCRIPTOR, V1), (guest_api_pb2.DESCRIPTOR, HOST)],
    ids=["v0", "v1", "host"],
)
def test_fields_have_the_numbers_of_the_specification(file: FileDescriptor, table: dict[str, str]) -> None:
    messages = file.message_types_by_name
    found = {
        name: " ".join(f"{field.number} {field.name}" for field in message.fields)
        for name, message in messages.items()
    }
    assert found == table

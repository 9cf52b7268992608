from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IssueCertRequest(_message.Message):
    __slots__ = ("subject", "alt_names", "usage_ra_tls", "usage_server_auth", "usage_client_auth", "not_before", "not_after", "with_app_info")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ALT_NAMES_FIELD_NUMBER: _ClassVar[int]
    USAGE_RA_TLS_FIELD_NUMBER: _ClassVar[int]
    USAGE_SERVER_AUTH_FIELD_NUMBER: _ClassVar[int]
    USAGE_CLIENT_AUTH_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    NOT_AFTER_FIELD_NUMBER: _ClassVar[int]
    WITH_APP_INFO_FIELD_NUMBER: _ClassVar[int]
    subject: str
    alt_names: _containers.RepeatedScalarFieldContainer[str]
    usage_ra_tls: bool
    usage_server_auth: bool
    usage_client_auth: bool
    not_before: int
    not_after: int
    with_app_info: bool
    def __init__(self, subject: _Optional[str] = ..., alt_names: _Optional[_Iterable[str]] = ..., usage_ra_tls: _Optional[bool] = ..., usage_server_auth: _Optional[bool] = ..., usage_client_auth: _Optional[bool] = ..., not_before: _Optional[int] = ..., not_after: _Optional[int] = ..., with_app_info: _Optional[bool] = ...) -> None: ...

class IssueCertResponse(_message.Message):
    __slots__ = ("key", "certificate_chain")
    KEY_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    key: str
    certificate_chain: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key: _Optional[str] = ..., certificate_chain: _Optional[_Iterable[str]] = ...) -> None: ...

class GetKeyRequest(_message.Message):
    __slots__ = ("domain", "algorithm")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    domain: str
    algorithm: str
    def __init__(self, domain: _Optional[str] = ..., algorithm: _Optional[str] = ...) -> None: ...

class GetKeyResponse(_message.Message):
    __slots__ = ("key", "public_key", "signature_chain")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    public_key: bytes
    signature_chain: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, key: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., signature_chain: _Optional[_Iterable[bytes]] = ...) -> None: ...

class AttestRequest(_message.Message):
    __slots__ = ("report_data", "include_boottime_gpu_evidence")
    REPORT_DATA_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_BOOTTIME_GPU_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    report_data: bytes
    include_boottime_gpu_evidence: bool
    def __init__(self, report_data: _Optional[bytes] = ..., include_boottime_gpu_evidence: _Optional[bool] = ...) -> None: ...

class GpuEvidenceBundle(_message.Message):
    __slots__ = ("vendor", "format", "evidence")
    VENDOR_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    vendor: str
    format: str
    evidence: bytes
    def __init__(self, vendor: _Optional[str] = ..., format: _Optional[str] = ..., evidence: _Optional[bytes] = ...) -> None: ...

class AttestResponse(_message.Message):
    __slots__ = ("attestation", "boottime_gpu_evidence")
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    BOOTTIME_GPU_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    attestation: bytes
    boottime_gpu_evidence: _containers.RepeatedCompositeFieldContainer[GpuEvidenceBundle]
    def __init__(self, attestation: _Optional[bytes] = ..., boottime_gpu_evidence: _Optional[_Iterable[_Union[GpuEvidenceBundle, _Mapping]]] = ...) -> None: ...

class AttestGpuRequest(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class AttestGpuResponse(_message.Message):
    __slots__ = ("bundles",)
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[GpuEvidenceBundle]
    def __init__(self, bundles: _Optional[_Iterable[_Union[GpuEvidenceBundle, _Mapping]]] = ...) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("app_id", "app_name", "compose_hash", "app_compose", "instance_id", "device_id", "os_image_hash", "mr_aggregated", "vm_config", "key_provider_info", "cloud_vendor", "cloud_product")
    APP_ID_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    COMPOSE_HASH_FIELD_NUMBER: _ClassVar[int]
    APP_COMPOSE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    OS_IMAGE_HASH_FIELD_NUMBER: _ClassVar[int]
    MR_AGGREGATED_FIELD_NUMBER: _ClassVar[int]
    VM_CONFIG_FIELD_NUMBER: _ClassVar[int]
    KEY_PROVIDER_INFO_FIELD_NUMBER: _ClassVar[int]
    CLOUD_VENDOR_FIELD_NUMBER: _ClassVar[int]
    CLOUD_PRODUCT_FIELD_NUMBER: _ClassVar[int]
    app_id: bytes
    app_name: str
    compose_hash: bytes
    app_compose: str
    instance_id: bytes
    device_id: bytes
    os_image_hash: bytes
    mr_aggregated: bytes
    vm_config: str
    key_provider_info: str
    cloud_vendor: str
    cloud_product: str
    def __init__(self, app_id: _Optional[bytes] = ..., app_name: _Optional[str] = ..., compose_hash: _Optional[bytes] = ..., app_compose: _Optional[str] = ..., instance_id: _Optional[bytes] = ..., device_id: _Optional[bytes] = ..., os_image_hash: _Optional[bytes] = ..., mr_aggregated: _Optional[bytes] = ..., vm_config: _Optional[str] = ..., key_provider_info: _Optional[str] = ..., cloud_vendor: _Optional[str] = ..., cloud_product: _Optional[str] = ...) -> None: ...

class VersionResponse(_message.Message):
    __slots__ = ("version", "rev")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REV_FIELD_NUMBER: _ClassVar[int]
    version: str
    rev: str
    def __init__(self, version: _Optional[str] = ..., rev: _Optional[str] = ...) -> None: ...

class UnhealthyContainer(_message.Message):
    __slots__ = ("name", "status")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: str
    def __init__(self, name: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class HealthResponse(_message.Message):
    __slots__ = ("healthy", "unhealthy", "error")
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    UNHEALTHY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    healthy: bool
    unhealthy: _containers.RepeatedCompositeFieldContainer[UnhealthyContainer]
    error: str
    def __init__(self, healthy: _Optional[bool] = ..., unhealthy: _Optional[_Iterable[_Union[UnhealthyContainer, _Mapping]]] = ..., error: _Optional[str] = ...) -> None: ...
